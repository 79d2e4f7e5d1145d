//! Checks recorded system calls: before each acknowledgement, the required names have to be durable by a sync of their
//! directory, and bytes by a sync of their file. Needs strace.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::backup::text;
use crate::support::{Daemon, TestFlow};

const CALLS: &str = "openat,mkdir,mkdirat,rename,renameat,renameat2,link,linkat,unlink,unlinkat,rmdir,\
                     fsync,fdatasync,write,pwrite64,writev,sendto,exit_group";

/// Changes that are not synced yet.
#[derive(Clone, Debug, Default)]
struct Unsynced {
    /// By directory: the names that were created, renamed or removed in it.
    names: BTreeMap<PathBuf, BTreeSet<String>>,
    /// Files that have been written to.
    files: BTreeSet<PathBuf>,
}

impl Unsynced {
    fn change_name(&mut self, path: &Path) {
        let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
            return;
        };
        let name = name.to_string_lossy().into_owned();
        self.names.entry(dir.to_owned()).or_default().insert(name);
    }

    fn is_dirty(&self, path: &Path) -> bool {
        self.files.contains(path)
    }

    /// The relevant changes under `root`: without RocksDB's info logs, locks, files that the next start removes, and
    /// removed files of the database.
    fn under(&self, root: &Path) -> Vec<String> {
        let is_needed = |path: &Path| {
            let Ok(relative) = path.strip_prefix(root) else {
                return false;
            };
            let is_scratch = |part: &std::ffi::OsStr| {
                let part = part.to_string_lossy();
                ["staging", "checkpoints", "LOCK", "lock", ".lock", "tmp"].contains(&&*part)
                    || part.starts_with("LOG")
                    || part.ends_with(".dbtmp")
                    || part.starts_with("FLOWTALLY.new")
            };
            let is_old = path.parent().is_some_and(|dir| dir.ends_with("rocks")) && !path.exists();
            !relative.iter().any(is_scratch) && !is_old
        };
        let names = self.names.iter().flat_map(|(dir, names)| {
            let paths = names.iter().map(|name| dir.join(name));
            paths
                .filter(|path| is_needed(path))
                .map(|path| format!("the name of {}", path.display()))
        });
        let files = self.files.iter().filter(|path| is_needed(path));
        let files = files.map(|path| format!("the bytes of {}", path.display()));
        names.chain(files).collect()
    }
}

/// The system calls of a process, each with the unsynced changes before it.
struct Recorded {
    calls: Vec<(String, Unsynced)>,
}

impl Recorded {
    /// Reads a record of strace (`-f -y`).
    fn read(path: &Path) -> Recorded {
        let record = std::fs::read_to_string(path).unwrap();
        let (mut now, mut calls) = (Unsynced::default(), Vec::new());
        let mut under_way: BTreeMap<&str, String> = BTreeMap::new();
        for line in record.lines() {
            let (thread, call) = line.split_once(' ').unwrap();
            let call = call.trim_start();
            if let Some(beginning) = call.strip_suffix(" <unfinished ...>") {
                // Sent data may arrive before the call returns.
                calls.push((beginning.to_owned(), now.clone()));
                under_way.insert(thread, beginning.to_owned());
                continue;
            }
            let call = match call.split_once(" resumed>") {
                Some((_, end)) => under_way.remove(thread).unwrap_or_default() + end,
                None => call.to_owned(),
            };
            calls.push((call.clone(), now.clone()));
            note(&mut now, &call);
        }
        calls.push(("exit".into(), now));
        Recorded { calls }
    }

    /// The unsynced changes at the first call for which `is_it` holds.
    fn before(&self, what: &str, is_it: impl Fn(&str) -> bool) -> &Unsynced {
        let found = self.calls.iter().find(|(call, _)| is_it(call));
        &found.unwrap_or_else(|| panic!("no call is it: {what}")).1
    }

    /// Asserts that everything under `root` is synced before the call that has all of `words`.
    fn all_is_synced_before(&self, words: &[&str], root: &Path) {
        let has_all = |call: &str| words.iter().all(|word| call.contains(word));
        let left = self.before(&words.join(" … "), has_all).under(root);
        assert!(left.is_empty(), "before {words:?}, not synced: {left:#?}");
    }

    fn is_synced(&self, dir: &Path) -> bool {
        let end = format!("<{}>)", dir.display());
        let is_it = |call: &str| call.starts_with("fsync(") && call.contains(&end);
        self.calls.iter().any(|(call, _)| is_it(call))
    }
}

/// Text in quotes, and paths in `<>`, in their order.
fn paths(call: &str) -> Vec<PathBuf> {
    call.split('"')
        .skip(1)
        .step_by(2)
        .map(PathBuf::from)
        .collect()
}

/// The path of the first descriptor.
fn descriptor(call: &str) -> Option<PathBuf> {
    let (_, rest) = call.split_once('<')?;
    Some(PathBuf::from(rest.split_once('>')?.0))
}

fn note(now: &mut Unsynced, call: &str) {
    let (name, _) = call.split_once('(').unwrap_or((call, ""));
    let failed = call
        .rsplit_once(" = ")
        .is_none_or(|(_, result)| result.starts_with('-'));
    if failed {
        return;
    }
    let absolute = |path: &PathBuf| match descriptor(call) {
        Some(dir) if path.is_relative() => dir.join(path),
        _ => path.clone(),
    };
    let paths: Vec<_> = paths(call).iter().map(absolute).collect();
    match (name, paths.as_slice()) {
        ("openat", [path]) if call.contains("O_CREAT") => now.change_name(path),
        ("mkdir" | "mkdirat" | "unlink" | "unlinkat" | "rmdir", [path]) => {
            now.files.remove(path);
            now.change_name(path);
        }
        ("rename" | "renameat" | "renameat2" | "link" | "linkat", [from, to]) => {
            let is_dirty = now.is_dirty(from);
            if name.starts_with("rename") {
                now.files.remove(from);
                // The content of a directory is renamed with it.
                let inside = |path: &Path| path.strip_prefix(from).is_ok();
                let moved: Vec<_> = now.files.iter().filter(|p| inside(p)).cloned().collect();
                for path in moved {
                    now.files.remove(&path);
                    now.files.insert(to.join(path.strip_prefix(from).unwrap()));
                }
            }
            if is_dirty {
                now.files.insert(to.clone());
            }
            now.change_name(to);
        }
        ("write" | "pwrite64" | "writev", _) => {
            // Not pipes, sockets or terminals.
            now.files
                .extend(descriptor(call).filter(|path| path.starts_with("/tmp")));
        }
        ("fsync" | "fdatasync", _) => {
            let Some(path) = descriptor(call) else { return };
            now.files.remove(&path);
            now.names.remove(&path);
        }
        _ => {}
    }
}

/// The binary under strace; `None` if strace may not attach.
fn traced(record: &Path) -> Option<Command> {
    let trace = format!("trace={CALLS}");
    let options = [
        "-f",
        "-y",
        "-qq",
        "-s",
        "400",
        "-e",
        "signal=none",
        "-e",
        &trace,
    ];
    let works = Command::new("strace")
        .args(options)
        .args(["-o", "/dev/null", "true"])
        .status();
    if !works.is_ok_and(|status| status.success()) {
        println!("syncs: NOT TESTED, strace is missing or may not attach");
        return None;
    }
    let mut command = Command::new("strace");
    command
        .args(options)
        .arg("-o")
        .arg(record)
        .arg(Daemon::binary());
    Some(command)
}

fn good(record: &Path, arguments: &[&str]) -> Recorded {
    let output = traced(record).unwrap().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    Recorded::read(record)
}

fn flows() -> Vec<TestFlow> {
    (0..50)
        .map(|n| TestFlow::new(1, &format!("s{n}"), "d", "v", 1, 2))
        .collect()
}

/// A service under strace; `None` if strace may not attach.
fn start(record: &Path, data: &Path) -> Option<Daemon> {
    let daemon = Daemon::launch_by(traced(record)?, data, &[]);
    crate::wait::until("the daemon to be ready", || {
        daemon.client.get("/readyz", &[]).unwrap().status == 200
    });
    Some(daemon)
}

/// Stops a service that strace started, by a signal to strace's child.
fn stop(daemon: &mut Daemon) {
    let children = format!("/proc/{0}/task/{0}/children", daemon.id());
    let children = std::fs::read_to_string(children).unwrap();
    let status = Command::new("kill")
        .args(["-TERM", children.trim()])
        .status();
    assert!(status.unwrap().success() && daemon.wait().success());
}

#[test]
fn a_start_and_a_stop_sync_what_they_write() {
    let temp = tempfile::tempdir().unwrap();
    let (root, record) = (temp.path().join("some"), temp.path().join("record"));
    let data = root.join("where/db");
    for round in 0..2 {
        let Some(mut daemon) = start(&record, &data) else {
            return;
        };
        daemon.client.accept(&flows());
        stop(&mut daemon);
        let recorded = Recorded::read(&record);
        recorded.all_is_synced_before(&["accepted"], temp.path());
        recorded.all_is_synced_before(&["exit_group"], temp.path());
        // No log is created while another one is not synced: only the end of the newest may be torn.
        let mut begun = 0;
        for (call, before) in &recorded.calls {
            if call.contains(".log\"") && call.contains("O_CREAT") {
                let is_log = |path: &&PathBuf| path.extension().is_some_and(|e| e == "log");
                assert_eq!(before.files.iter().find(is_log), None, "{call}");
                begun += 1;
            }
        }
        assert!(begun > 1, "a stop begins a log");
        // The previous start may have been killed before its syncs: all names are synced again.
        for dir in [root.join("where"), data.clone(), data.join("rocks")] {
            assert!(recorded.is_synced(&dir), "start {round}: {}", dir.display());
        }
    }
    // And logs, which may have unsynced data after a kill.
    let mut daemon = Daemon::start(&data);
    daemon.client.accept(&flows());
    daemon.kill();
    let logs = || {
        let files = std::fs::read_dir(data.join("rocks")).unwrap();
        let files = files.map(|entry| entry.unwrap().path());
        files
            .filter(|path| path.extension().is_some_and(|e| e == "log"))
            .collect::<Vec<_>>()
    };
    let left = logs();
    assert!(!left.is_empty());
    let mut daemon = start(&record, &data).unwrap();
    daemon.client.accept(&flows());
    stop(&mut daemon);
    let recorded = Recorded::read(&record);
    for log in left {
        assert!(recorded.is_synced(&log), "{}", log.display());
    }
}

#[test]
fn an_import_syncs_what_it_writes() {
    let temp = tempfile::tempdir().unwrap();
    let (data, record) = (
        temp.path().join("some/where/db"),
        temp.path().join("record"),
    );
    let file = temp.path().join("flows.ndjson");
    let rejects = temp.path().join("rejects.ndjson");
    let mut lines = crate::support::ndjson_body(&flows());
    lines.extend(b"{\"no\":\"flow\"}\n");
    std::fs::write(&file, lines).unwrap();
    let Some(mut command) = traced(&record) else {
        return;
    };
    let arguments = [
        "import",
        "--data-dir",
        text(&data),
        "--rejects",
        text(&rejects),
        text(&file),
    ];
    let status = command.args(arguments).output().unwrap().status;
    assert_eq!(status.code(), Some(1), "a flow is refused");
    Recorded::read(&record).all_is_synced_before(&["flows imported"], &temp.path().join("some"));
    Recorded::read(&record).all_is_synced_before(&["exit_group"], temp.path());
}

#[test]
fn a_backup_and_a_restore_sync_what_they_write() {
    let temp = tempfile::tempdir().unwrap();
    let record = temp.path().join("record");
    let (data, to) = (temp.path().join("db"), temp.path().join("backups/of/db"));
    if traced(&record).is_none() {
        return;
    }
    let daemon = Daemon::start(&data);
    daemon.client.accept(&flows());
    let url = format!("http://{}", daemon.address);
    let from_service = ["backup", "--url", &url, "--to", text(&to)];
    let recorded = good(&record, &from_service);
    let is_named = |call: &str| call.starts_with("rename") && call.contains(".incomplete");
    let left = recorded.before("the name of a backup", is_named).under(&to);
    let is_of_it =
        |left: &&String| left.matches(".incomplete").count() == 1 && left.ends_with(".incomplete");
    let left: Vec<_> = left.iter().filter(|left| !is_of_it(left)).collect();
    assert!(left.is_empty(), "{left:#?}");
    recorded.all_is_synced_before(&["exit_group"], temp.path());
    daemon.stop();
    // The second links the files of the first.
    let recorded = good(
        &record,
        &["backup", "--data-dir", text(&data), "--to", text(&to)],
    );
    recorded.all_is_synced_before(&["exit_group"], temp.path());

    let restored = temp.path().join("re/stored/db");
    let recorded = good(
        &record,
        &[
            "restore",
            "--from",
            text(&to),
            "--data-dir",
            text(&restored),
        ],
    );
    recorded.all_is_synced_before(&["unlink", "RESTORING"], temp.path());
    recorded.all_is_synced_before(&["exit_group"], temp.path());
    // Conversely, nothing exists before the marker.
    let is_first = |call: &str| call.contains("db/rocks") && call.starts_with("mkdir");
    let before = recorded.before("the directory of the database", is_first);
    assert_eq!(before.under(temp.path()), Vec::<String>::new());
}

#[test]
fn a_spool_syncs_what_it_writes() {
    let temp = tempfile::tempdir().unwrap();
    let (spool, record) = (temp.path().join("a/spool"), temp.path().join("record"));
    let Some(mut command) = traced(&record) else {
        return;
    };
    // No service listens: it gives up, and its flows are in the spool.
    command.args([
        "send",
        "--url",
        "http://127.0.0.1:9",
        "--retry-for",
        "1",
        "--spool",
        text(&spool),
    ]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let mut sender: Child = command.spawn().unwrap();
    let mut input = sender.stdin.take().unwrap();
    std::io::Write::write_all(&mut input, &crate::support::ndjson_body(&flows())).unwrap();
    drop(input);
    assert!(!sender.wait().unwrap().success());
    let batches = std::fs::read_dir(&spool)
        .unwrap()
        .map(|entry| entry.unwrap().file_name());
    let batches = batches
        .filter(|name| name.to_string_lossy().contains(".json"))
        .count();
    assert_eq!(batches, 1);
    let recorded = Recorded::read(&record);
    let is_exit = |call: &str| call.contains("exit_group");
    let mut left = recorded.before("exit_group", is_exit).under(temp.path());
    // Reserved room is released; if it reappears after a crash, the next process removes it.
    left.retain(|what| !what.ends_with(".tmp"));
    assert!(left.is_empty(), "not synced: {left:#?}");
    let first_try = |call: &str| call.contains("POST /flows");
    // A batch is sent only after its file is synced.
    if let Some((_, before)) = Recorded::read(&record)
        .calls
        .iter()
        .find(|(call, _)| first_try(call))
    {
        assert!(before.under(temp.path()).is_empty());
    }
    // A second one that finds the directories syncs the spool's name again.
    let mut again = traced(&record).unwrap();
    again.args([
        "send",
        "--url",
        "http://127.0.0.1:9",
        "--retry-for",
        "1",
        "--spool",
        text(&spool),
    ]);
    let _gives_up = again.stdin(Stdio::null()).output().unwrap();
    assert!(Recorded::read(&record).is_synced(&temp.path().join("a")));
}

/// The recorded calls are parsed correctly.
#[test]
fn a_missing_sync_is_detected() {
    let temp = tempfile::tempdir().unwrap();
    let (record, dir) = (temp.path().join("record"), text(temp.path()).to_owned());
    let line = |call: &str, result: &str| format!("7 {call} = {result}\n").replace("DIR", &dir);
    let lines = [
        line("mkdir(\"DIR/a\", 0777)", "0"),
        line(
            "openat(AT_FDCWD</>, \"DIR/a/f\", O_WRONLY|O_CREAT)",
            "3<DIR/a/f>",
        ),
        line("write(3<DIR/a/f>, \"x\", 1)", "1"),
        line("fsync(3<DIR/a/f>)", "-1 EIO"),
        line("rename(\"DIR/a/f\", \"DIR/a/g\")", "0"),
        line("fsync(3<DIR/a>)", "0"),
        line("write(1<pipe:[1]>, \"done\", 4)", "4"),
        line("fsync(3<DIR/a/g>)", "0"),
        line("fsync(3<DIR>)", "0"),
        "7 exit_group(0) = ?\n".into(),
    ];
    std::fs::write(&record, lines.concat()).unwrap();
    let recorded = Recorded::read(&record);
    let left = recorded
        .before("done", |call| call.contains("done"))
        .under(temp.path());
    let expected = [
        format!("the name of {dir}/a"),
        format!("the bytes of {dir}/a/g"),
    ];
    assert_eq!(left, expected);
    recorded.all_is_synced_before(&["exit_group"], temp.path());
}
