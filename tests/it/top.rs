//! `flowtally top`: its rows as text, and the live view in a terminal of tmux.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::support::{Daemon, TestFlow};
use crate::wait::{DEADLINE, poll_for, until};

/// A name that tries to clear the screen and to set the window title.
const HOSTILE: &str = "evil\u{1b}[2J\u{1b}]2;owned\u{7}\u{9b}2J";

fn flows() -> Vec<TestFlow> {
    vec![
        TestFlow::new(2, "old", "db", "v", 7, 7),
        TestFlow::new(3, "web", "images", "edge", 5_000, 90_000_000),
        TestFlow::new(3, "web", "images", "core", 5_000, 10_000_000),
        TestFlow::new(3, "batch", "storage", "core", 60_000_000, 1_000),
        TestFlow::new(3, HOSTILE, "名前", "core", 2_000, 0),
    ]
}

fn top(daemon: &Daemon, arguments: &[&str]) -> Output {
    let url = format!("http://{}", daemon.address);
    let mut command = Command::new(Daemon::binary());
    command.args(["top", "--url", &url]).args(arguments);
    command.output().unwrap()
}

fn stdout(daemon: &Daemon, arguments: &[&str]) -> String {
    let output = top(daemon, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

fn rows(daemon: &Daemon, arguments: &[&str]) -> Value {
    let all = [&["--once", "--format", "json"], arguments].concat();
    serde_json::from_str(&stdout(daemon, &all)).unwrap()
}

#[test]
fn rows_are_printed_once() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    assert_eq!(rows(&daemon, &[]), json!([]));
    daemon.client.accept(&flows());
    let table = "\
src_app                                           dest_app  bytes_tx   bytes_rx  hour
web                                               images       10000  100000000     3
batch                                             storage   60000000       1000     3
evil\\u{1b}[2J\\u{1b}]2;owned\\u{7}\\u{9b}2J  名前          2000          0     3
";
    let shown = stdout(&daemon, &["--once"]);
    // The widths of the columns follow from the longest name.
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    assert_eq!(squeezed(&shown), squeezed(table));
    let ends: Vec<_> = shown.lines().map(|line| line.rfind(' ')).collect();
    assert_eq!(ends.len(), 4);
    let web = json!({"src_app": "web", "bytes_tx": 10_000, "bytes_rx": 100_000_000, "hour": 3});
    let first = ["--group-by", "src_app", "--limit", "1"];
    assert_eq!(rows(&daemon, &first), json!([web]));
    let by_vpc = rows(&daemon, &["--group-by", "vpc_id", "--sort", "tx"]);
    let vpcs: Vec<_> = by_vpc
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["vpc_id"])
        .collect();
    assert_eq!(vpcs, ["core", "edge"]);
    let found = rows(
        &daemon,
        &[
            "--search",
            "IMAG",
            "--vpc-id",
            "edge",
            "--group-by",
            "dest_app",
        ],
    );
    let images = json!({"dest_app": "images", "bytes_tx": 5000, "bytes_rx": 90_000_000, "hour": 3});
    assert_eq!(found, json!([images]));
    assert_eq!(rows(&daemon, &["--hour", "9"]), json!([]));
    let lines = stdout(&daemon, &["--once", "--format", "ndjson", "--hour", "2"]);
    assert_eq!(
        lines,
        "{\"src_app\":\"old\",\"dest_app\":\"db\",\"bytes_tx\":7,\"bytes_rx\":7,\"hour\":2}\n"
    );
    let csv = stdout(&daemon, &["--once", "--format", "csv", "--sort", "tx"]);
    assert!(
        csv.starts_with("src_app,dest_app,bytes_tx,bytes_rx,hour\nbatch,storage,60000000,1000,3\n")
    );
    assert!(
        csv.contains(HOSTILE),
        "output that is not for a terminal is exact"
    );
    // A long name leaves the other rows readable; in formats for scripts, it is complete.
    let long = "é".repeat(512);
    daemon
        .client
        .accept(&[TestFlow::new(1, &long, "db", "v", 1, 1)]);
    let hour = ["--once", "--hour", "1", "--format"];
    let shown = stdout(&daemon, &[&hour[..], &["table"]].concat());
    assert!(shown.contains(&format!("\n{}…  db", "é".repeat(59))));
    let csv = stdout(&daemon, &[&hour[..], &["csv"]].concat());
    assert!(csv.contains(&long));
    let hostile = stdout(&daemon, &["--once", "--format", "json", "--search", "evil"]);
    assert!(
        !hostile.trim_end().contains(char::is_control),
        "{hostile:?}"
    );
    let hostile: Value = serde_json::from_str(&hostile).unwrap();
    assert_eq!(hostile[0]["src_app"], HOSTILE);
    let rated = rows(&daemon, &["--sort", "rate", "--interval-s", "1"]);
    assert_eq!(rated[0]["bytes_per_s"], 0, "{rated}");
    let output = top(&daemon, &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--once"));
    assert_eq!(top(&daemon, &["--format", "csv"]).status.code(), Some(2));
    assert_eq!(
        top(&daemon, &["--once", "--hour", "4294967295"])
            .status
            .code(),
        Some(2)
    );
    let address = daemon.address;
    daemon.stop();
    let output = Command::new(Daemon::binary())
        .args(["top", "--once", "--url", &format!("http://{address}")])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("is the service running there?"));
}

/// A shell in a terminal of 80 x 24.
struct Screen<'a> {
    /// The socket of its own tmux.
    socket: &'a Path,
}

impl Screen<'_> {
    /// `None` if tmux is not installed.
    fn open(socket: &Path) -> Option<Screen<'_>> {
        if Command::new("tmux").arg("-V").output().is_err() {
            println!("the live view: NOT TESTED, tmux is not installed");
            return None;
        }
        let screen = Screen { socket };
        // Otherwise, the shell's children would inherit ignored signals from the tests.
        let shell = "env --default-signal=HUP,INT -u NO_COLOR PS1='ready> ' sh";
        screen.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "80",
            "-y",
            "24",
            shell,
        ]);
        screen.wait("a prompt", |shown| shown.contains("ready>"));
        Some(screen)
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("tmux");
        command.arg("-u").arg("-S").arg(self.socket).args(arguments);
        let output = command.output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        String::from_utf8(output.stdout).unwrap()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    /// The value of tmux's variable `what` for the terminal.
    fn is(&self, what: &str) -> String {
        let format = format!("#{{{what}}}");
        self.tmux(&["display-message", "-p", &format])
            .trim_end()
            .to_owned()
    }

    fn shown(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    /// Waits until the screen satisfies `is_so`, and returns its text.
    fn wait(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let found = poll_for(DEADLINE, || Some(self.shown()).filter(|shown| is_so(shown)));
        found.unwrap_or_else(|| panic!("{what} is not shown:\n{}", self.shown()))
    }

    /// Runs it in the shell, and waits for the first rows.
    fn start_top(&self, address: std::net::SocketAddr, environment: &str) {
        let top = Daemon::binary();
        let top = top.display();
        let line = format!(
            "{environment} {top} top --url http://{address} --interval-s 1; echo status=$?"
        );
        self.keys(&["clear; echo before", "Enter"]);
        self.keys(&[&line, "Enter"]);
        self.wait("the view", |shown| {
            shown.contains("hour 3 (latest)") && shown.contains("web")
        });
        assert_eq!(self.is("alternate_on"), "1");
    }

    /// Asserts that the view has ended and the terminal is restored.
    fn is_restored(&self, status: &str) {
        let status = format!("status={status}");
        let shown = self.wait(&status, |shown| shown.contains(&status));
        assert!(shown.contains("before\n"), "{shown}");
        assert_eq!(
            (self.is("alternate_on"), self.is("cursor_flag")),
            ("0".into(), "1".into())
        );
        self.keys(&[
            "clear; stty -a | grep -ow -e '-*echo' -e '-*icanon'",
            "Enter",
        ]);
        self.wait("a terminal that echoes lines", |shown| {
            ["echo", "icanon"]
                .iter()
                .all(|on| shown.lines().any(|line| line == *on))
        });
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        let mut command = Command::new("tmux");
        let _best_effort = command
            .arg("-S")
            .arg(self.socket)
            .arg("kill-server")
            .status();
    }
}

/// The position in `shown` of the row that begins with `name`.
fn row_of(shown: &str, name: &str) -> Option<usize> {
    shown.lines().position(|line| line.starts_with(name))
}

#[test]
fn the_live_view_handles_keys_and_outlives_the_service() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("tmux");
    let mut daemon = Daemon::start(&dir.path().join("db"));
    daemon.client.accept(&flows());
    let Some(screen) = Screen::open(&socket) else {
        return;
    };
    screen.start_top(daemon.address, "");
    let shown = screen.shown();
    assert!(row_of(&shown, "web ") < row_of(&shown, "batch "), "{shown}");
    assert!(row_of(&shown, "evil\\u{1b}[2J").is_some(), "{shown}");
    assert_ne!(screen.is("pane_title"), "owned");
    screen.wait("a rate", |shown| shown.contains("0 B/s"));
    daemon
        .client
        .accept(&[TestFlow::new(3, "web", "images", "edge", 0, 50_000_000)]);
    screen.wait("a higher rate", |shown| {
        let web = shown.lines().find(|line| line.starts_with("web "));
        web.is_some_and(|line| line.contains("MB/s"))
    });

    screen.keys(&["s"]);
    screen.wait("the order by tx", |shown| {
        shown.contains("▼tx") && row_of(shown, "batch ") < row_of(shown, "web ")
    });
    screen.keys(&["g", "g"]);
    screen.wait("destinations", |shown| {
        shown.contains("dest_app by tx") && row_of(shown, "storage ").is_some()
    });
    screen.keys(&["/", "名", "Enter"]);
    screen.wait("what is searched for", |shown| {
        row_of(shown, "名前 ").is_some() && row_of(shown, "storage ").is_none()
    });
    screen.keys(&["/", "BSpace", "Enter", "Left"]);
    screen.wait("the hour before", |shown| {
        shown.contains("hour 2  tx 7 B") && row_of(shown, "db ").is_some()
    });
    screen.keys(&["?"]);
    screen.wait("the keys", |shown| shown.contains("any key goes back"));
    screen.keys(&["x", "l"]);
    screen.wait("the latest hour", |shown| {
        row_of(shown, "storage ").is_some()
    });
    daemon
        .client
        .accept(&[TestFlow::new(4, "newest", "db", "v", 1, 1)]);
    screen.wait("a new hour", |shown| shown.contains("hour 4 (latest)"));
    screen.keys(&["Space"]);
    screen.wait("the pause", |shown| shown.contains("paused"));
    screen.keys(&["Space"]);
    screen.tmux(&["resize-window", "-x", "40", "-y", "12"]);
    screen.wait("a small view", |shown| {
        shown.starts_with("http://") && shown.contains("\ndb ") && shown.ends_with("g group\n")
    });
    screen.tmux(&["resize-window", "-x", "80", "-y", "24"]);

    let address = daemon.address.to_string();
    daemon.kill();
    let shown = screen.wait("what is wrong", |shown| {
        shown.contains("trying again: no response")
    });
    assert!(
        row_of(&shown, "db ").is_some(),
        "the last rows are still shown: {shown}"
    );
    let _daemon = Daemon::start_with(&dir.path().join("db"), &["--listen", &address]);
    screen.wait("the service again", |shown| {
        !shown.contains("trying again") && row_of(shown, "db ").is_some()
    });
    screen.keys(&["q"]);
    screen.is_restored("0");
}

#[test]
fn rows_are_selected_and_lead_from_peer_to_peer() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("tmux");
    let daemon = Daemon::start(&dir.path().join("db"));
    daemon.client.accept(&flows());
    // More than fit on the screen.
    let many: Vec<_> = (0..60)
        .map(|n| TestFlow::new(3, &format!("app-{n:02}"), "db", "v", 1_000 - n, 0))
        .collect();
    daemon.client.accept(&many);
    let Some(screen) = Screen::open(&socket) else {
        return;
    };
    screen.tmux(&["resize-window", "-x", "160", "-y", "24"]);
    screen.start_top(daemon.address, "env -u DISPLAY -u WAYLAND_DISPLAY");
    assert_eq!(row_of(&screen.shown(), "app-59 "), None);
    // More rows are fetched on the way.
    until("the last row", || {
        screen.keys(&["NPage"]);
        let shown = screen.shown();
        row_of(&shown, "app-59 ").is_some() && row_of(&shown, "web ").is_none()
    });
    screen.keys(&["Home", "Down", "Enter"]);
    screen.wait("the peers of an application", |shown| {
        shown.contains("peer=batch")
            && row_of(shown, "batch ").is_some()
            && row_of(shown, "web ").is_none()
    });
    screen.keys(&["o"]);
    let page = format!(
        "http://{}/?hour=3&peer=batch&group_by=src_app%2Cdest_app",
        daemon.address
    );
    screen.wait("the URL of the same view", |shown| shown.contains(&page));
    screen.keys(&["Enter"]);
    screen.wait("the peers of its peer", |shown| {
        shown.contains("peer=storage") && row_of(shown, "batch ").is_some()
    });
    screen.keys(&["["]);
    screen.wait("the hour before, of the same application", |shown| {
        shown.contains("hour 2 ")
            && shown.contains("peer=storage")
            && shown.contains("no name matches")
    });
    screen.keys(&["]", "BSpace", "BSpace"]);
    screen.wait("where it began", |shown| {
        !shown.contains("peer=") && row_of(shown, "web ").is_some()
    });
    screen.keys(&["Escape"]);
    screen.is_restored("0");
}

#[test]
fn a_wrong_token_ends_the_view() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("readers"), "right\n").unwrap();
    std::fs::write(path("wrong"), "wrong\n").unwrap();
    let readers = path("readers");
    let readers = ["--read-token-file", readers.to_str().unwrap()];
    let daemon = Daemon::start_with(&path("db"), &readers);
    daemon.client.accept(&flows());
    let socket = path("tmux");
    let Some(screen) = Screen::open(&socket) else {
        return;
    };
    let top = Daemon::binary();
    let line = format!(
        "clear; {} top --url http://{} --token-file {}; echo status=$?",
        top.display(),
        daemon.address,
        path("wrong").display()
    );
    screen.keys(&[&line, "Enter"]);
    let shown = screen.wait("the end", |shown| shown.contains("status=1"));
    assert!(shown.contains("--token-file"), "{shown}");
}

#[test]
fn the_terminal_is_restored_however_it_ends() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("tmux");
    let daemon = Daemon::start(&dir.path().join("db"));
    daemon.client.accept(&flows());
    let Some(screen) = Screen::open(&socket) else {
        return;
    };
    screen.start_top(daemon.address, "");
    let colors = screen.tmux(&["capture-pane", "-p", "-e"]);
    assert!(colors.contains("\u{1b}[38;5;2m"), "{colors:?}");
    screen.keys(&["C-c"]);
    screen.is_restored("0");

    screen.start_top(daemon.address, "NO_COLOR=1");
    let plain = screen.tmux(&["capture-pane", "-p", "-e"]);
    assert!(plain.contains(";7m"), "{plain:?}");
    assert!(!plain.contains("[38;5;"), "{plain:?}");
    screen.keys(&["Escape"]);
    screen.is_restored("0");

    for (signal, status) in [("TERM", "143"), ("HUP", "129"), ("INT", "130")] {
        screen.start_top(daemon.address, "");
        let shell = screen.is("pane_pid");
        let child = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"));
        let killed = Command::new("kill")
            .arg(format!("-{signal}"))
            .arg(child.unwrap().trim())
            .status();
        assert!(killed.unwrap().success());
        screen.is_restored(status);
    }
}
