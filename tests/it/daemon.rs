//! Daemons for tests, and small disks for their data.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::Mutex;

use crate::support::Client;
use crate::wait::until_daemon;

/// A small disk, if the user may mount one.
#[derive(Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub mounted: bool,
}

impl Disk {
    pub fn new(path: PathBuf, mib: usize) -> Disk {
        std::fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(&path)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            println!("full disk: NOT TESTED, this user may not mount one");
        }
        Disk { path, mounted }
    }

    /// Fills all space except `leave_mib`.
    pub fn fill(&self, leave_mib: u64) {
        let mut file = std::fs::File::create(self.path.join("filler")).unwrap();
        while file.write_all(&[1; 64 << 10]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(leave_mib << 20))
            .unwrap();
    }

    pub fn free(&self) {
        let _there_is_none = std::fs::remove_file(self.path.join("filler"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _best_effort = Command::new("umount").arg("-l").arg(&self.path).status();
        }
    }
}

/// The real binary on a free port.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
    pub client: Client,
    log: Arc<Mutex<String>>,
    /// Ends when the daemon has ended and its whole log is in `log`.
    drain: Option<JoinHandle<()>>,
}

impl Daemon {
    pub fn binary() -> PathBuf {
        PathBuf::from(env!("CARGO_BIN_EXE_flowtally"))
    }

    pub fn start(data_dir: &Path) -> Daemon {
        Daemon::start_with(data_dir, &[])
    }

    /// Starts it and waits until it is ready, and has logged that.
    pub fn start_with(data_dir: &Path, arguments: &[&str]) -> Daemon {
        let mut daemon = Daemon::launch(data_dir, arguments);
        until_daemon(&mut daemon, "it to be ready", |daemon| {
            let response = daemon.client.get("/readyz", &[]);
            response.is_ok_and(|a| a.status == 200) && daemon.log().contains("replay_ms")
        });
        daemon
    }

    /// Starts it and waits until it listens.
    pub fn launch(data_dir: &Path, arguments: &[&str]) -> Daemon {
        Daemon::launch_by(Command::new(Daemon::binary()), data_dir, arguments)
    }

    /// The same, with this limit of open files.
    pub fn launch_with_files(data_dir: &Path, files: usize) -> Daemon {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}:{files}"));
        command.arg(Daemon::binary());
        Daemon::launch_by(command, data_dir, &[])
    }

    /// The same with `command`, which runs the binary in the environment of a test.
    pub fn launch_by(mut command: Command, data_dir: &Path, arguments: &[&str]) -> Daemon {
        command.args(["serve", "--data-dir"]).arg(data_dir);
        command.env("FLOWTALLY_LOG_FORMAT", "text");
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        for line in lines.by_ref() {
            let line = line.unwrap() + "\n";
            log.lock().push_str(&line);
            let found = line
                .split_once("address=")
                .or(line.split_once("\"address\":\""));
            if let Some((_, rest)) = found {
                let end = rest.find([' ', '"', '\n']).unwrap();
                address = rest[..end].parse().ok();
                break;
            }
        }
        // Drains the pipe, so that the daemon never waits for its log to be read.
        let drained = log.clone();
        let drain = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                drained.lock().push_str(&(line + "\n"));
            }
        });
        let address = address.unwrap_or_else(|| {
            let status = child.wait();
            panic!("it ended with {status:?}: {}", log.lock())
        });
        Daemon {
            child,
            address,
            client: Client::new(address),
            log,
            drain: Some(drain),
        }
    }

    /// The ID of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Resident memory.
    pub fn memory_mib(&self) -> u64 {
        self.status_mib("VmRSS")
    }

    /// The peak of the resident memory.
    pub fn memory_mib_max(&self) -> u64 {
        self.status_mib("VmHWM")
    }

    fn status_mib(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024
    }

    /// `TERM`, `INT` and the like.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// Sends SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        until_daemon(self, "it to end", Daemon::has_ended);
        self.child.wait().unwrap()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        let has_ended = self.child.try_wait().unwrap().is_some();
        if has_ended && let Some(drain) = self.drain.take() {
            // Then the log is complete.
            drain.join().unwrap();
        }
        has_ended
    }

    /// Sends SIGTERM, and asserts a graceful shutdown.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "{status:?}: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
