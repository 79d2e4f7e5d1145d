//! `flowtally demo`: a service with the flows of a made-up shop, of which nothing remains.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Lines};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};

use crate::daemon::signal;
use crate::support::{Client, Daemon};
use crate::wait::{until, until_some};

/// What it prints: a heading, two ways to look, and a line for each of three stories.
const LINES: usize = 6;

struct Demo {
    child: Child,
    client: Client,
    url: String,
    shown: Vec<String>,
    /// Open, as a terminal's would be.
    _out: Lines<BufReader<ChildStdout>>,
}

impl Demo {
    fn start(tmp: &Path, variables: &[(&str, &str)], arguments: &[&str]) -> Demo {
        let mut child = Command::new(Daemon::binary())
            .arg("demo")
            .args(arguments)
            .env("TMPDIR", tmp)
            .env_remove("DISPLAY")
            .env_remove("WAYLAND_DISPLAY")
            .envs(variables.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap()).lines();
        let shown: Vec<String> = out.by_ref().take(LINES).map(Result::unwrap).collect();
        let url = shown.iter().find_map(|line| {
            let url = line.strip_prefix("the page")?.trim();
            url.strip_suffix('/').map(str::to_owned)
        });
        let url = url.unwrap_or_else(|| panic!("{shown:?}"));
        let address = url.strip_prefix("http://").unwrap().parse().unwrap();
        Demo {
            child,
            client: Client::new(address),
            url,
            shown,
            _out: out,
        }
    }

    fn get(&self, path: &str) -> serde_json::Value {
        let response = self.client.get(path, &[]).unwrap();
        assert_eq!(response.status, 200, "{path}");
        response.json()
    }

    /// Both directions of all rows that `filters` select.
    fn bytes(&self, filters: &str) -> u64 {
        let rows = self.get(&format!("/flows?group_by=&{filters}"));
        let number = |name: &str| rows[0][name].as_u64().unwrap_or(0);
        number("bytes_tx") + number("bytes_rx")
    }

    /// The first and the last hour that have flows.
    fn hours(&self) -> (u64, u64) {
        let rows = self.get("/hours");
        let rows = rows.as_array().unwrap();
        let hour = |row: &serde_json::Value| row["hour"].as_u64().unwrap();
        let (first, last) = (hour(&rows[0]), hour(&rows[rows.len() - 1]));
        assert_eq!(last - first + 1, rows.len() as u64, "each hour has flows");
        (first, last)
    }

    fn end(mut self, by: &str) -> ExitStatus {
        signal(&self.child, by);
        until_some("the end of the demo", || self.child.try_wait().unwrap())
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn names(dir: &Path) -> BTreeSet<OsString> {
    let entries = std::fs::read_dir(dir).unwrap();
    entries.map(|entry| entry.unwrap().file_name()).collect()
}

#[test]
fn a_shop_goes_on_moving_and_nothing_of_it_remains() {
    let tmp = tempfile::tempdir().unwrap();
    // None of these is the demo's.
    let variables = [
        ("FLOWTALLY_DATA_DIR", "/nowhere"),
        ("FLOWTALLY_LISTEN", "0.0.0.0:1"),
        ("FLOWTALLY_READ_TOKEN_FILE", "/nowhere"),
        ("FLOWTALLY_KAFKA_BROKERS", "nowhere:1"),
        ("FLOWTALLY_RETAIN_HOURS", "2"),
        ("FLOWTALLY_URL", "http://127.0.0.1:9"),
    ];
    let demo = Demo::start(tmp.path(), &variables, &[]);
    let (first, last) = demo.hours();
    assert!(last - first >= 30 * 24, "{first} to {last}");
    // What it prints is in its flows.
    assert_eq!(demo.shown.len(), LINES);
    assert!(demo.shown[5].contains("assistant"), "{:?}", demo.shown);
    let launched = demo.bytes(&format!("from={}&to={last}&peer=assistant", last - 24));
    let before = demo.bytes(&format!("from={first}&to={}&peer=assistant", first + 480));
    assert!(launched > 0 && before == 0, "{launched} {before}");
    for line in &demo.shown[3..] {
        let (_, view) = line
            .split_once(&format!("{}/?last=720&", demo.url))
            .unwrap();
        assert!(demo.bytes(&format!("from={first}&{view}")) > 0, "{line}");
    }
    // It goes on.
    let now = format!("hour={last}");
    let seen = demo.bytes(&now);
    until("more flows of now", || {
        demo.bytes(&now) > seen || demo.hours().1 > last
    });
    // Another demo of the same hour has the same flows, but for those of now.
    let other = Demo::start(tmp.path(), &[], &[]);
    if other.hours().0 == first {
        for hour in [first, first + 100, last - 1] {
            let path = format!("/flows?hour={hour}");
            assert_eq!(demo.get(&path), other.get(&path), "hour {hour}");
        }
    }
    assert_eq!(names(tmp.path()).len(), 2);
    assert!(demo.end("TERM").success());
    assert_eq!(names(tmp.path()).len(), 1);
    assert!(other.end("INT").success());
    assert_eq!(names(tmp.path()), BTreeSet::new());
}

/// A demo that was killed leaves its directory. The next one removes it, and nothing else.
#[test]
fn only_directories_of_dead_demos_are_removed() {
    let tmp = tempfile::tempdir().unwrap();
    let few = ["--days", "1"];
    let dead = Demo::start(tmp.path(), &[], &few);
    let of_dead = names(tmp.path());
    assert!(dead.end("KILL").code().is_none());
    assert_eq!(names(tmp.path()), of_dead);
    let mine = tmp.path().join("flowtally-demo-mine");
    std::fs::create_dir_all(mine.join("db")).unwrap();
    std::fs::write(mine.join("db/notes"), "keep").unwrap();
    let alive = Demo::start(tmp.path(), &[], &few);
    let with_alive = names(tmp.path());
    assert!(with_alive.is_disjoint(&of_dead), "{with_alive:?}");
    let next = Demo::start(tmp.path(), &[], &few);
    assert!(names(tmp.path()).is_superset(&with_alive));
    assert!(
        alive.bytes("from=0") > 0,
        "the other demo still has its data"
    );
    assert!(next.end("TERM").success() && alive.end("TERM").success());
    assert_eq!(
        names(tmp.path()),
        BTreeSet::from([OsString::from("flowtally-demo-mine")])
    );
    assert_eq!(
        std::fs::read_to_string(mine.join("db/notes")).unwrap(),
        "keep"
    );
}

#[test]
fn the_page_is_opened_where_there_is_a_desktop() {
    let dir = tempfile::tempdir().unwrap();
    let (tmp, opened) = (dir.path().join("tmp"), dir.path().join("opened"));
    std::fs::create_dir(&tmp).unwrap();
    let opener = dir.path().join("xdg-open");
    let script = format!(
        "#!/bin/sh\nprintf %s \"$1\" >'{0}.new' && mv '{0}.new' '{0}'\n",
        opened.display()
    );
    std::fs::write(&opener, script).unwrap();
    std::fs::set_permissions(&opener, PermissionsExt::from_mode(0o755)).unwrap();
    let path = format!(
        "{}:{}",
        dir.path().display(),
        std::env::var("PATH").unwrap()
    );
    let path = ("PATH", path.as_str());
    for (variables, arguments) in [
        (&[path][..], &["--days", "1"][..]),
        (&[path, ("DISPLAY", "")], &["--days", "1"]),
        (&[path, ("DISPLAY", ":0")], &["--days", "1", "--no-browser"]),
    ] {
        assert!(
            Demo::start(&tmp, variables, arguments)
                .end("TERM")
                .success()
        );
        assert!(!opened.exists(), "{variables:?} {arguments:?}");
    }
    let variables = [path, ("WAYLAND_DISPLAY", "wayland-0")];
    let demo = Demo::start(&tmp, &variables, &["--days", "1"]);
    until("the page to be opened", || opened.exists());
    assert_eq!(
        std::fs::read_to_string(&opened).unwrap(),
        format!("{}/", demo.url)
    );
    assert!(demo.end("TERM").success());
}
