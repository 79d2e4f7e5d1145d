//! A data directory, with a service on it or not, and the commands that count files into it.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::send::{parts, url};
use crate::support::Daemon;

/// The command that counts a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Way {
    Send,
    ImportUrl,
    ImportDir,
}

pub(crate) const WAYS: [Way; 3] = [Way::Send, Way::ImportUrl, Way::ImportDir];

/// A data directory, with a service on it or not, and files.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    daemon: Option<Daemon>,
}

/// The output of a command.
#[derive(Debug)]
pub(crate) struct CommandOutput {
    pub(crate) status: Option<i32>,
    pub(crate) out: String,
    pub(crate) error: String,
}

impl World {
    pub(crate) fn new() -> World {
        World {
            dir: tempfile::tempdir().unwrap(),
            daemon: None,
        }
    }

    fn db(&self) -> PathBuf {
        self.dir.path().join("db")
    }

    pub(crate) fn file(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }

    pub(crate) fn daemon(&mut self) -> &Daemon {
        let db = self.db();
        self.daemon.get_or_insert_with(|| Daemon::start(&db))
    }

    fn command(&mut self, way: Way, arguments: &[&str]) -> Command {
        let mut command = Command::new(Daemon::binary());
        match way {
            Way::Send => command.args(["send", "--url", &url(self.daemon())]),
            Way::ImportUrl => command.args(["import", "--url", &url(self.daemon())]),
            Way::ImportDir => {
                if let Some(daemon) = self.daemon.take() {
                    daemon.stop();
                }
                command.args(["import", "--data-dir"]).arg(self.db())
            }
        };
        command.args(arguments);
        command
    }

    pub(crate) fn run(&mut self, way: Way, arguments: &[&str]) -> CommandOutput {
        output_of(&self.command(way, arguments).output().unwrap())
    }

    pub(crate) fn pipe(&mut self, way: Way, arguments: &[&str], input: &[u8]) -> CommandOutput {
        let mut child = self.spawn(way, arguments);
        child.stdin.take().unwrap().write_all(input).unwrap();
        output_of(&child.wait_with_output().unwrap())
    }

    pub(crate) fn spawn(&mut self, way: Way, arguments: &[&str]) -> Child {
        self.command(way, arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Number of counted flows: each test flow has a bytes_rx of 1.
    pub(crate) fn counted(&mut self) -> u64 {
        let rows = self.daemon().client.hour(1);
        rows.iter().map(|(_, counters)| counters.rx).sum()
    }

    /// Sum of bytes_tx, which distinguishes the flows.
    pub(crate) fn tx(&mut self) -> u64 {
        let rows = self.daemon().client.hour(1);
        rows.iter().map(|(_, counters)| counters.tx).sum()
    }
}

pub(crate) fn output_of(output: &std::process::Output) -> CommandOutput {
    let (status, out, error) = parts(output);
    CommandOutput { status, out, error }
}

impl CommandOutput {
    /// Asserts the numbers of counted and skipped flows.
    #[track_caller]
    pub(crate) fn assert(&self, counted: u64, skipped: u64) {
        assert_eq!(self.status, Some(0), "{self:?}");
        assert!(
            self.out.starts_with(&format!("{counted} flows ")),
            "{self:?}"
        );
        let text = match skipped {
            1 => "; 1 flow skipped, which was counted before, first on 20".into(),
            n => format!("; {n} flows skipped, which were counted before, first on 20"),
        };
        assert_eq!(self.out.contains(&text), skipped > 0, "{self:?}");
    }

    #[track_caller]
    pub(crate) fn assert_refused(&self, word: &str) {
        assert_eq!(self.status, Some(1), "{self:?}");
        assert!(self.error.contains(word), "{self:?}");
        assert!(self.out.starts_with("0 flows "), "{self:?}");
    }
}
