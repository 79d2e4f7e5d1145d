//! Commands other than `serve` and `send`: export, stats, the configuration, completions and manual pages.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use clap::{CommandFactory, Parser};
use flowtally::config::Cli;

use crate::support::{Daemon, Model, TestFlow, add_to};

fn flowtally(arguments: &[&str]) -> Output {
    flowtally_with(&[], arguments)
}

fn flowtally_with(variables: &[(&str, &str)], arguments: &[&str]) -> Output {
    let output = Command::new(Daemon::binary())
        .args(arguments)
        .env("COLUMNS", "100")
        .envs(variables.iter().copied())
        .output();
    output.unwrap()
}

fn stdout(arguments: &[&str]) -> String {
    let output = flowtally(arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn flows() -> Vec<TestFlow> {
    (0..30)
        .map(|n| TestFlow::new(n % 5, &format!("s\"{n}"), "d,\n", "v", u64::from(n), 1))
        .collect()
}

#[test]
fn rows_of_hours_are_exported() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    daemon.client.accept(&flows());
    let mut model = Model::new();
    add_to(&mut model, &flows());
    let url = format!("http://{}", daemon.address);
    let range = ["--from", "1", "--to", "4"];
    let export = |place: [&str; 2], more: &[&str]| {
        let all = [&["export"][..], &place, &range, more].concat();
        stdout(&all)
    };
    let lines = export(["--url", &url], &[]);
    let rows: Vec<serde_json::Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let expected = model.keys().filter(|key| (1..4).contains(&key.0)).count();
    assert_eq!(rows.len(), expected);
    let csv = export(["--url", &url], &["--format", "csv"]);
    assert_eq!(csv.matches("src_app,dest_app").count(), 1);
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    assert_eq!(reader.records().filter(|r| r.is_ok()).count(), expected);
    let stats = stdout(&["stats", "--url", &url, "--json"]);
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    assert_eq!((&stats["hours"], &stats["flows"]), (&5.into(), &30.into()));
    daemon.stop();
    let data = ["--data-dir", dir.path().to_str().unwrap()];
    assert_eq!(export(data, &[]), lines);
    assert_eq!(export(data, &["--format", "csv"]), csv);
    let table = stdout(&["stats", data[0], data[1]]);
    assert!(table.contains("hours       5, from 0 to 4\n"), "{table}");
    assert!(table.contains("disk bytes"), "{table}");
    // The output can be imported again.
    let daemon = Daemon::start(&dir.path().join("again"));
    let file = dir.path().join("rows.csv");
    std::fs::write(&file, &csv).unwrap();
    let url = format!("http://{}", daemon.address);
    stdout(&["send", "--url", &url, file.to_str().unwrap()]);
    assert_eq!(stdout(&["export", "--url", &url]), lines);
}

#[test]
fn a_missing_or_invalid_location_is_refused() {
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    for (arguments, status, words) in [
        (
            &["stats", "--url", "http://x", "--data-dir", "y"][..],
            2,
            "cannot be used with",
        ),
        (&["stats", "--url", "x"], 1, "http://127.0.0.1:8080"),
        (
            &["stats", "--url", "http://127.0.0.1:9"],
            1,
            "is the service running there?",
        ),
        (
            &["stats", "--data-dir", empty],
            1,
            "is not a flowtally data directory",
        ),
        (
            &["stats", "--data-dir", "/nowhere/db"],
            1,
            "there is no data directory",
        ),
        (
            &["compact", "--data-dir", "/nowhere/db"],
            1,
            "there is no data directory",
        ),
        (
            &["compact", "--data-dir", empty],
            1,
            "is not a flowtally data directory",
        ),
        (
            &[
                "export",
                "--data-dir",
                "/nowhere",
                "--from",
                "3",
                "--to",
                "3",
            ],
            1,
            "is not before",
        ),
    ] {
        let output = flowtally(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}: {error}");
        assert!(error.contains(words), "{arguments:?}: {error}");
    }
}

#[test]
fn settings_come_from_one_file_too() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flowtally.toml");
    std::fs::write(
        &file,
        "memory-max = 256\nflush-interval = 2\nlisten = \"127.0.0.1:1\"\n",
    )
    .unwrap();
    let file = file.to_str().unwrap();
    let shown = Command::new(Daemon::binary())
        .args([
            "serve",
            "--print-config",
            "--config",
            file,
            "--listen",
            "127.0.0.1:0",
        ])
        .env("FLOWTALLY_FLUSH_INTERVAL", "3")
        .output()
        .unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    for (setting, source) in [
        ("memory-max = 256", file),
        ("flush-interval = 3", "FLOWTALLY_FLUSH_INTERVAL"),
        ("listen = \"127.0.0.1:0\"", "--listen"),
        ("data-dir = \"data/db\"", "default"),
        ("allow-anonymous = false", "default"),
    ] {
        let line = shown.lines().find(|line| line.starts_with(setting));
        let line = line.unwrap_or_else(|| panic!("{setting} in {shown}"));
        assert!(line.ends_with(&format!("# {source}")), "{line}");
    }
    assert!(shown.contains("# retain-hours is not set\n"), "{shown}");
    // The output is a valid file.
    let again = dir.path().join("again.toml");
    std::fs::write(&again, &shown).unwrap();
    let again = stdout(&[
        "serve",
        "--print-config",
        "--config",
        again.to_str().unwrap(),
    ]);
    assert!(again.contains("flush-interval = 3 "), "{again}");
    let daemon = Daemon::start_with(&dir.path().join("db"), &["--config", file]);
    daemon.stop();
    let output = flowtally(&["serve", "--config", file, "--tls-key", "x"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("belong together"));
}

#[test]
fn every_command_has_help_a_manual_page_and_completions() {
    let dir = tempfile::tempdir().unwrap();
    stdout(&["man", "--out", dir.path().to_str().unwrap()]);
    for command in Cli::command().get_subcommands() {
        let command = command.get_name();
        let help = stdout(&[command, "--help"]);
        assert!(help.contains("Usage: flowtally"), "{help}");
        let words: Vec<&str> = help.split_whitespace().collect();
        assert!(words.join(" ").contains("Exit status: 0"), "{help}");
        assert!(help.contains("\nExamples:\n  "), "{help}");
        let page = dir.path().join(format!("flowtally-{command}.1"));
        let page = std::fs::read_to_string(&page).unwrap();
        assert!(page.contains(".SH EXAMPLES\n"), "{page}");
        assert!(!page.contains("EXTRA"), "{page}");
    }
    assert!(stdout(&["man"]).contains(".TH flowtally 1"));
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&["completions", shell]);
        assert!(script.contains("flush-interval"), "{shell}");
    }
    if Path::new("/bin/bash").exists() {
        let script = dir.path().join("completions");
        std::fs::write(&script, stdout(&["completions", "bash"])).unwrap();
        let checked = Command::new("bash").arg("-n").arg(&script).status();
        assert!(checked.unwrap().success());
    }
}

/// Each command with examples, and those below it.
fn with_examples(command: &clap::Command, all: &mut Vec<String>) {
    let lines = command.get_after_help().map(ToString::to_string);
    all.extend(lines);
    for subcommand in command.get_subcommands() {
        with_examples(subcommand, all);
    }
}

#[test]
fn the_examples_of_the_help_are_valid() {
    let mut all = Vec::new();
    with_examples(&Cli::command(), &mut all);
    assert!(all.len() > 15, "{all:?}");
    for text in all {
        let (heading, lines) = text.split_once('\n').unwrap();
        assert_eq!(heading, "Examples:");
        let examples = lines.lines().take_while(|line| line.starts_with("  "));
        for line in examples {
            // What a shell passes to the program.
            let start = line.find("flowtally").unwrap();
            let own = line[start..].split(" | ").next().unwrap();
            let own = own.replacen("flowtally-agent", "flowtally agent", 1);
            let words = own.split_whitespace().filter(|word| !word.starts_with('>'));
            let parsed = Cli::try_parse_from(words);
            assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
        }
    }
}

/// Each command that answers prints a table, JSON and CSV, by the same flag.
#[test]
fn answers_have_the_same_formats_by_the_same_flag() {
    let dir = tempfile::tempdir().unwrap();
    let (db, empty) = (dir.path().join("db"), dir.path().join("empty"));
    let daemon = Daemon::start(&db);
    let db = db.to_str().unwrap();
    let flow = TestFlow::new(498_879, "web", "d,b", "v", 7, 8);
    daemon.client.accept(std::slice::from_ref(&flow));
    let url = format!("http://{}", daemon.address);
    let row = "\"src_app\":\"web\",\"dest_app\":\"d,b\"";
    let (date, csv) = ("498879 = 2026-11-29 15:00 UTC", "web,\"d,b\"");
    for command in ["export", "query", "top"] {
        let more: &[&str] = match command {
            "top" => &["--once"],
            "query" => &["--from", "0", "--group-by", "src_app,dest_app"],
            _ => &[],
        };
        let answer = |format: &str| {
            let all = [&[command, "--url", &url, "-o", format][..], more].concat();
            stdout(&all)
        };
        let (json, of_csv, table) = (answer("json"), answer("csv"), answer("table"));
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(
            parsed.as_array().map(Vec::len),
            Some(1),
            "{command}: {json}"
        );
        assert!(json.contains(row), "{command}: {json}");
        assert!(
            of_csv.starts_with("src_app,dest_app,"),
            "{command}: {of_csv}"
        );
        assert!(of_csv.contains(csv), "{command}: {of_csv}");
        assert!(
            table.starts_with("src_app") && table.contains("d,b"),
            "{table}"
        );
        // The rows of that query have no hour.
        assert!(
            command == "query" || table.contains(date),
            "{command}: {table}"
        );
    }
    let json = stdout(&["stats", "--url", &url, "-o", "json"]);
    assert_eq!(json, stdout(&["stats", "--url", &url, "--json"]));
    assert_eq!(
        stdout(&["stats", "--url", &url, "-o", "csv"]),
        "hours,first_hour,last_hour,flows,bytes_tx,bytes_rx,disk_bytes\n1,498879,498879,1,7,8,\n"
    );
    assert!(stdout(&["stats", "--url", &url, "-o", "table"]).contains(date));
    daemon.stop();
    let verify = |format: &str| stdout(&["verify", "--data-dir", db, "-o", format]);
    let json: serde_json::Value = serde_json::from_str(&verify("json")).unwrap();
    assert_eq!(
        (&json["flows"], &json["faults_found"]),
        (&1.into(), &0.into())
    );
    assert_eq!(json["faults"], serde_json::json!([]));
    assert!(
        verify("csv").starts_with("hours,flows,rows,spans,journal_batches,faults_found\n1,1,1,")
    );
    assert_eq!(verify("table"), stdout(&["verify", "--data-dir", db]));
    Daemon::start(&empty).stop();
    let empty = ["export", "--data-dir", empty.to_str().unwrap(), "-o"];
    assert_eq!(stdout(&[&empty[..], &["json"]].concat()), "[]\n");
    let header = stdout(&[&empty[..], &["csv"]].concat());
    assert_eq!(header, "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\n");
}

/// A URL without a service.
const NOWHERE: &str = "http://127.0.0.1:9";

#[test]
fn a_flag_overrides_a_variable_and_a_variable_the_file() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let (dir, file, wrong) = (path("db"), path("flowtally.toml"), path("wrong.toml"));
    Daemon::start(Path::new(&dir)).stop();
    std::fs::write(&file, format!("data-dir = \"{dir}\"\nmemory-max = 256\n")).unwrap();
    std::fs::write(&wrong, "memory = 256\n").unwrap();
    let url = ("FLOWTALLY_URL", NOWHERE);
    let by_dir = ("FLOWTALLY_DATA_DIR", dir.as_str());
    let config = ("FLOWTALLY_CONFIG", file.as_str());
    let (there, nowhere) = (Ok("disk bytes"), Err((1, "is the service running there?")));
    type Case<'a> = (
        &'a [(&'a str, &'a str)],
        &'a [&'a str],
        Result<&'a str, (i32, &'a str)>,
    );
    let cases: [Case<'_>; 11] = [
        (&[by_dir], &[], there),
        (&[url], &[], nowhere),
        (&[by_dir], &["--url", NOWHERE], nowhere),
        (&[url], &["--data-dir", &dir], there),
        (&[url, by_dir], &[], Err((2, "are both set"))),
        (&[("FLOWTALLY_URL", ""), by_dir], &[], there),
        (&[], &["--config", &file], there),
        (&[config], &[], there),
        (&[url, config], &[], nowhere),
        (&[config], &["--url", NOWHERE], nowhere),
        (&[by_dir], &["--config", &wrong], Err((2, "not a setting"))),
    ];
    for (variables, more, expected) in cases {
        let output = flowtally_with(variables, &[&["stats"], more].concat());
        let error = String::from_utf8_lossy(&output.stderr);
        let said = String::from_utf8_lossy(&output.stdout) + error.clone();
        let (status, words) = match expected {
            Ok(words) => (0, words),
            Err(expected) => expected,
        };
        let of = format!("{variables:?} {more:?}: {said}");
        assert_eq!(output.status.code(), Some(status), "{of}");
        assert!(said.contains(words), "{of}");
    }
}

#[test]
fn every_command_reads_its_location_from_variables() {
    let temp = tempfile::tempdir().unwrap();
    let path = |name: &str| temp.path().join(name).to_str().unwrap().to_owned();
    let (dir, flows_file, to) = (path("db"), path("flows.csv"), path("backups"));
    let daemon = Daemon::start(Path::new(&dir));
    daemon.client.accept(&flows());
    let url = format!("http://{}", daemon.address);
    let run = |variable: (&str, &str), arguments: &[&str]| {
        let output = flowtally_with(&[variable], arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        output.stdout
    };
    let export = ["export", "--format", "csv"];
    let by_url = ("FLOWTALLY_URL", url.as_str());
    std::fs::write(&flows_file, run(by_url, &export)).unwrap();
    run(by_url, &["import", &flows_file]);
    run(by_url, &["send", &flows_file]);
    run(by_url, &["stats"]);
    run(by_url, &["backup", "--to", &to]);
    let rows = run(by_url, &export);
    daemon.stop();
    let by_dir = ("FLOWTALLY_DATA_DIR", dir.as_str());
    run(by_dir, &["import", &flows_file]);
    for command in ["stats", "compact", "verify"] {
        run(by_dir, &[command]);
    }
    run(
        ("FLOWTALLY_DATA_DIR", &path("new")),
        &["restore", "--from", &to],
    );
    assert_eq!(run(("FLOWTALLY_DATA_DIR", &path("new")), &export), rows);
    run(by_dir, &["backup", "--to", &path("others")]);
}

#[test]
fn variables_can_be_yes_or_no_and_empty_ones_are_unset() {
    const ANONYMOUS: &str = "FLOWTALLY_ALLOW_ANONYMOUS";
    let show = ["serve", "--print-config"];
    for (text, yes) in [
        ("1", true),
        ("yes", true),
        ("on", true),
        ("true", true),
        ("0", false),
        ("no", false),
        ("off", false),
        ("false", false),
    ] {
        let shown = flowtally_with(&[(ANONYMOUS, text)], &show).stdout;
        let shown = String::from_utf8(shown).unwrap();
        let line = shown.lines().find(|l| l.starts_with("allow-anonymous"));
        let line = line.unwrap();
        assert!(line.contains(&format!("= {yes} ")), "{text}: {line}");
        assert!(line.ends_with(ANONYMOUS), "{text}: {line}");
    }
    let output = flowtally_with(&[(ANONYMOUS, "perhaps")], &show);
    assert_eq!(output.status.code(), Some(2));
    let command = Cli::command();
    let arguments = command.get_subcommands().flat_map(|c| c.get_arguments());
    let variables: BTreeSet<&OsStr> = arguments.filter_map(|a| a.get_env()).collect();
    assert!(variables.len() > 20, "{variables:?}");
    let empty: Vec<_> = variables
        .iter()
        .map(|v| (v.to_str().unwrap(), ""))
        .collect();
    let shown = flowtally_with(&empty, &show);
    assert_eq!(String::from_utf8(shown.stdout).unwrap(), stdout(&show));
    let output = flowtally_with(&empty, &["stats", "--url", "http://127.0.0.1:9"]);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(error.contains("is the service running there?"), "{error}");
}

/// A closed pipe is success; a full disk is an error if rows, figures or a page are lost.
#[test]
fn a_closed_pipe_is_no_error_and_a_full_disk_is() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().to_str().unwrap();
    let daemon = Daemon::start(temp.path());
    daemon.client.accept(&flows());
    daemon.stop();
    let printing: [&[&str]; 6] = [
        &["stats", "--data-dir", dir],
        &["stats", "--json", "--data-dir", dir],
        &["export", "--data-dir", dir],
        &["completions", "bash"],
        &["man"],
        &["serve", "--print-config"],
    ];
    let into = |out: Stdio, arguments: &[&str]| {
        let mut command = Command::new(Daemon::binary());
        let output = command.args(arguments).stdout(out).stderr(Stdio::piped());
        let output = output.spawn().unwrap().wait_with_output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), error)
    };
    for arguments in printing
        .into_iter()
        .chain([&["verify", "--data-dir", dir][..]])
    {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = into(writer.into(), arguments);
        assert_eq!(ended, (Some(0), String::new()), "{arguments:?}");
    }
    for arguments in printing {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (status, error) = into(full.into(), arguments);
        assert_eq!(status, Some(1), "{arguments:?}: {error}");
        assert!(error.contains("cannot write to standard output"), "{error}");
    }
}
