//! Commands beside the service: export, stats, the configuration, completions and manual pages.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Daemon, Model, TestFlow, add_to};

fn flowtally(arguments: &[&str]) -> Output {
    let output = Command::new(Daemon::binary())
        .args(arguments)
        .env("COLUMNS", "100")
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
    // What comes out goes in again.
    let daemon = Daemon::start(&dir.path().join("again"));
    let file = dir.path().join("rows.csv");
    std::fs::write(&file, &csv).unwrap();
    let url = format!("http://{}", daemon.address);
    stdout(&["send", "--url", &url, file.to_str().unwrap()]);
    assert_eq!(stdout(&["export", "--url", &url]), lines);
}

#[test]
fn places_are_needed_and_checked() {
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    for (arguments, status, words) in [
        (&["export"][..], 2, "--url"),
        (
            &["stats", "--url", "http://x", "--data-dir", "y"],
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
    // What is shown can be given.
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
    let commands = [
        "serve",
        "send",
        "verify",
        "backup",
        "restore",
        "export",
        "stats",
        "top",
        "compact",
        "completions",
        "man",
    ];
    for command in commands {
        assert!(stdout(&[command, "--help"]).contains("Usage: flowtally"));
        let page = dir.path().join(format!("flowtally-{command}.1"));
        assert!(page.exists(), "{}", page.display());
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
