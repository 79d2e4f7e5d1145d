//! Untrusted text on a terminal: no control sequence is executed. The terminal is one of `script`, which records every
//! byte.

use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Daemon, TestFlow};

/// A window title and a bell, a colour by a C1 character, and right-to-left writing.
const HOSTILE: &str = "x\u{1b}]2;owned\u{7}\u{9b}31m\u{202e}y";
/// The same, escaped.
const SHOWN: &str = "x\\u{1b}]2;owned\\u{7}\\u{9b}31m\\u{202e}y";

/// The terminal output of a shell command, and its status; `None` without `script`.
pub fn in_terminal(command: &str) -> Option<(String, Option<i32>)> {
    let output = Command::new("script")
        .args([
            "--quiet",
            "--return",
            "--echo",
            "never",
            "--command",
            command,
            "/dev/null",
        ])
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .output();
    let Ok(output) = output else {
        println!("what a terminal gets: NOT RUN, script is not installed");
        return None;
    };
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Some((text, output.status.code()))
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn flowtally() -> String {
    quoted(Daemon::binary().to_str().unwrap())
}

/// Asserts that no control sequence reaches the terminal.
fn is_escaped(what: &str, text: &str) {
    for wrong in ["\u{1b}]2;", "\u{7}", "\u{9b}", "\u{202e}"] {
        assert!(!text.contains(wrong), "{what}: {text:?}");
    }
}

/// The same, and asserts that the text is shown.
fn is_shown_escaped(what: &str, text: &str) {
    is_escaped(what, text);
    assert!(text.contains("owned"), "{what}: {text:?}");
}

fn hostile_files(dir: &Path) -> Vec<String> {
    let files = [
        (
            "a.log",
            format!("version srcaddr {HOSTILE} dstaddr\n2 1.1.1.1 x 2.2.2.2\n"),
        ),
        (
            "b.csv",
            format!("src_app,{HOSTILE},vpc_id,bytes_tx,bytes_rx,hour\na,b,c,1,1,1\n"),
        ),
        (
            "c.csv",
            format!("src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\na,b,c,{HOSTILE},1,1\n"),
        ),
        ("d.ndjson", format!("{{\"src_app\":\"{HOSTILE}\"}}\n")),
        ("e.ndjson", format!("{{\"{HOSTILE}\":1}}\n")),
        ("f.json", format!("[{HOSTILE}]")),
        (HOSTILE, "nonsense\n".to_owned()),
    ];
    let write = |(name, text): (&str, String)| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    files.into_iter().map(write).collect()
}

#[test]
fn files_and_their_names_are_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("files");
    std::fs::create_dir(&files).unwrap();
    let db = dir.path().join("db");
    let mut shown = String::new();
    for file in hostile_files(&files) {
        let file = quoted(&file);
        for command in [
            format!("send --url http://127.0.0.1:9 --retry-for 0 {file}"),
            format!("import --data-dir {} {file}", db.display()),
            format!("import --data-dir {} --apps {file} {file}", db.display()),
            format!("serve --print-config --config {file}"),
        ] {
            let Some((text, _)) = in_terminal(&format!("{} {command}", flowtally())) else {
                return;
            };
            shown += &text;
            is_escaped(&command, &text);
        }
    }
    is_shown_escaped("all", &shown);
    assert!(shown.contains(SHOWN), "{shown}");
}

/// clap prints in colours, and passes on those of an argument.
#[test]
fn colours_in_arguments_are_escaped() {
    const RED: &str = "\u{1b}[31mX";
    let dir = tempfile::tempdir().unwrap();
    let config = |name: &str, text: String| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        format!("serve --config {}", quoted(path.to_str().unwrap()))
    };
    let red = quoted(RED);
    let variable =
        |name: &str, command: &str| format!("env {name}={red} {} {command}", flowtally());
    for (command, is_shown) in [
        (format!("serve --memory-max 1{red}"), true),
        (format!("serve --listen {red}"), true),
        (format!("serve --{red}"), true),
        (format!("serve --port={red}"), false),
        (format!("serve {red}"), true),
        (red.clone(), true),
        (format!("send --url {red}"), true),
        (format!("send --batch-flows {red} --spool x"), true),
        (format!("export --from {red}"), true),
        (format!("top --group-by {red}"), true),
        (config("line.toml", format!("{RED} = 1\n")), true),
        (config("key.toml", "\"\\u001b[31mX\" = 1\n".into()), true),
        (
            config("value.toml", "memory-max = \"\\u001b[31mX\"\n".into()),
            true,
        ),
        (config(RED, "memory-max =\n".into()), true),
        (
            format!("serve --config {}", quoted(&format!("/nowhere/{RED}"))),
            true,
        ),
        (variable("FLOWTALLY_LISTEN", "serve"), true),
        (variable("FLOWTALLY_MEMORY_MAX", "serve"), true),
        (variable("FLOWTALLY_LISTEN", "serve --help"), false),
        (variable("FLOWTALLY_URL", "stats --help"), false),
        (variable("FLOWTALLY_URL", "stats"), true),
        (
            format!(
                "serve --listen 127.0.0.1:0 --log-format text --data-dir {}",
                quoted(dir.path().join(RED).to_str().unwrap())
            ),
            true,
        ),
    ] {
        let line = match command.starts_with("env ") {
            true => command.clone(),
            false => format!("timeout --foreground 2 {} {command}", flowtally()),
        };
        let Some((text, _)) = in_terminal(&line) else {
            return;
        };
        assert!(!text.contains(RED), "{command}: {text:?}");
        let shown = text.to_lowercase().contains("\\u{1b}[31mx");
        assert!(shown || !is_shown, "{command}: {text:?}");
        // The same without a terminal.
        let output = Command::new("sh").args(["-c", &line]).output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(!text.contains('\u{1b}'), "{command}: {text:?}");
    }
}

#[test]
fn arguments_are_harmless() {
    let file = quoted(&format!("/nowhere/{HOSTILE}"));
    let word = quoted(HOSTILE);
    for command in [
        format!("send --url {word}"),
        format!("send --token-file {file}"),
        format!("send --retry-for {word}"),
        format!("stats --{word}"),
        word.clone(),
        format!("stats --data-dir {file}"),
        format!("restore --from {file} --data-dir /nowhere/db"),
        format!("verify --data-dir {file}"),
        format!("serve --log {}", quoted(&format!("x={HOSTILE}"))),
        format!("serve --listen {word}"),
        format!("serve --print-config --log {word}"),
        format!("serve --config {file}"),
        format!("top --hour {word}"),
    ] {
        let Some((text, status)) = in_terminal(&format!(
            "timeout --foreground 30 {} {command}",
            flowtally()
        )) else {
            return;
        };
        // clap removes text that looks like a colour sequence.
        is_escaped(&command, &text);
        let is_wrong = !command.contains("--print-config");
        assert_eq!(
            status.is_some_and(|status| status > 0),
            is_wrong,
            "{command}: {text}"
        );
    }
}

#[test]
fn names_in_flows_are_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let flow = TestFlow::new(3, HOSTILE, "db", HOSTILE, 1, 1);
    daemon.client.accept(std::slice::from_ref(&flow));
    let url = format!("--url http://{}", daemon.address);
    let data_dir = format!("--data-dir {}", dir.path().join("db").display());
    let export = |place: &str| {
        for format in ["csv", "ndjson"] {
            let command = format!("{} export {place} --format {format}", flowtally());
            let Some((text, _)) = in_terminal(&command) else {
                return;
            };
            is_shown_escaped(&command, &text);
            // JSON is still JSON.
            if format == "ndjson" {
                let row: serde_json::Value = serde_json::from_str(&text).unwrap();
                assert_eq!(row["src_app"], HOSTILE);
            }
            // Output for programs is exact.
            let command = format!("{command} | cat");
            let output = Command::new("sh").args(["-c", &command]).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            assert!(text.contains("\u{9b}31m\u{202e}y"), "{text:?}");
        }
    };
    export(&url);
    for format in ["table", "csv", "json", "ndjson"] {
        let command = format!("{} top --once {url} --format {format}", flowtally());
        let Some((text, _)) = in_terminal(&command) else {
            return;
        };
        is_shown_escaped(&command, &text);
    }
    daemon.stop();
    export(&data_dir);
}

/// Text of a server: a problem document, the target of a redirect, a header.
#[test]
fn control_characters_from_a_server_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let json = serde_json::json!({
        "type": "urn:flowtally:problem:bad-batch", "title": HOSTILE, "status": 400, "detail": HOSTILE,
    })
    .to_string();
    let response = |status: &str, headers: &str| {
        let length = json.len();
        format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\n{headers}content-length: {length}\r\n\r\n{json}"
        )
    };
    for response in [
        response("400 Bad Request", ""),
        response("413 Payload Too Large", ""),
        response("503 Service Unavailable", ""),
        response("403 Forbidden", ""),
        response("302 Found", "location: http://owned/\u{9b}31m\u{202e}\r\n"),
    ] {
        let (url, spool) = (answering(response), dir.path().join("spool"));
        let flow =
            r#"{"src_app":"a","dest_app":"b","vpc_id":"c","bytes_tx":1,"bytes_rx":1,"hour":1}"#;
        for command in [
            format!(
                "echo {} | {} send --url {url} --retry-for 1",
                quoted(flow),
                flowtally()
            ),
            format!(
                "echo {} | {} send --url {url} --retry-for 1 --spool {}",
                quoted(flow),
                flowtally(),
                spool.display()
            ),
            format!("{} stats --url {url}", flowtally()),
            format!("{} top --once --url {url}", flowtally()),
            format!(
                "{} backup --url {url} --to {}",
                flowtally(),
                dir.path().display()
            ),
        ] {
            let Some((text, status)) = in_terminal(&command) else {
                return;
            };
            assert_eq!(status, Some(1), "{command}: {text}");
            is_shown_escaped(&command, &text);
        }
        let _not_made_where_nothing_waits = std::fs::remove_dir_all(spool);
    }
}

fn answering(response: String) -> String {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _request = stream.read(&mut [0; 64 << 10]);
            let _it_may_have_left = stream.write_all(response.as_bytes());
        }
    });
    url
}

/// A log contains untrusted text: here, the path of the data directory. Each event is one line, also in a file.
#[test]
fn logs_are_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{HOSTILE}\nforged");
    let db = quoted(dir.path().join(&name).to_str().unwrap());
    let serve = format!(
        "{} serve --listen 127.0.0.1:0 --data-dir {db} --shutdown-timeout 1",
        flowtally()
    );
    let Some((text, _)) = in_terminal(&format!("timeout --foreground -s INT 5 {serve}")) else {
        return;
    };
    is_shown_escaped("on a terminal", &text);
    // The colours are the log's own.
    assert!(text.contains("\u{1b}[32m INFO\u{1b}[0m"), "{text:?}");
    assert!(!text.contains("\nforged"), "{text:?}");
    for format in ["text", "json"] {
        let command = format!("timeout -s INT 5 {serve} --log-format {format}");
        let output = Command::new("sh").args(["-c", &command]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        is_shown_escaped(format, &text);
        assert!(
            !text.contains('\u{1b}') && !text.contains("\nforged"),
            "{text:?}"
        );
        if format == "json" {
            let ready = text
                .lines()
                .find(|line| line.contains("replay_ms"))
                .unwrap();
            let ready: serde_json::Value = serde_json::from_str(ready).unwrap();
            let data_dir = ready["data_dir"].as_str().unwrap();
            assert!(data_dir.ends_with(&name), "{data_dir:?}");
        }
    }
}

/// A terminal shows the page's URL, and the command that sends flows, with the flags that this service needs.
#[test]
fn a_service_shows_how_to_use_it() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("write tokens");
    std::fs::write(&tokens, "secret-1\n").unwrap();
    let serve = format!(
        "{} serve --listen 127.0.0.1:0 --data-dir {} --write-token-file {} --shutdown-timeout 1",
        flowtally(),
        quoted(dir.path().join("db").to_str().unwrap()),
        quoted(tokens.to_str().unwrap())
    );
    let Some((text, _)) = in_terminal(&format!("timeout --foreground -s INT 5 {serve}")) else {
        return;
    };
    let (_, rest) = text.split_once("open http://127.0.0.1:").unwrap();
    let (port, _) = rest.split_once("/ in a browser").unwrap();
    assert!(port.parse::<u16>().is_ok(), "{text:?}");
    let send = format!(
        "send --url http://127.0.0.1:{port} --token-file '{}' data/sample-day.ndjson",
        tokens.display()
    );
    assert!(text.contains(&send), "{text:?}");
    assert!(!text.contains("secret-1"), "{text:?}");
    // Not in a log for programs.
    let output = Command::new("sh")
        .args(["-c", &format!("timeout -s INT 5 {serve}")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        text.contains("listening") && !text.contains("in a browser"),
        "{text:?}"
    );
}
