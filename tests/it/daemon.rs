//! Daemons for tests, and small disks for their data.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::support::Client;
use crate::wait::{DEADLINE, poll_for, until_daemon};

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
    log: Log,
}

/// What a process has written into a pipe. A thread drains it, so that the process never waits for a reader. It is not a
/// file, to which the limits of the process would apply.
#[derive(Debug)]
struct Log {
    pipe: Arc<ChildStderr>,
    text: Arc<Mutex<Vec<u8>>>,
}

impl Log {
    fn new(pipe: ChildStderr) -> Log {
        let (pipe, text) = (Arc::new(pipe), Arc::default());
        let log = Log { pipe, text };
        let (pipe, text) = (log.pipe.clone(), log.text.clone());
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let mut input = [PollFd::new(&*pipe, PollFlags::IN)];
                if poll(&mut input, None) == Err(Errno::INTR) {
                    continue;
                }
                // Reading under the lock ensures that each byte is either in the pipe or in the text.
                let mut text = text.lock();
                match rustix::io::read(&*pipe, &mut buffer).unwrap() {
                    0 => return,
                    length => text.extend_from_slice(&buffer[..length]),
                }
            }
        });
        log
    }

    /// All that was written before the call.
    fn read(&self) -> String {
        loop {
            let text = self.text.lock();
            if rustix::io::ioctl_fionread(&*self.pipe).unwrap() == 0 {
                return String::from_utf8_lossy(&text).into_owned();
            }
            drop(text);
            std::thread::yield_now();
        }
    }
}

/// The address in a whole line of the log.
fn listens_at(log: &str) -> Option<SocketAddr> {
    let (_, rest) = log
        .split_once("address=")
        .or(log.split_once("\"address\":\""))?;
    rest.split_once([' ', '"', '\n'])?.0.parse().ok()
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
        let log = Log::new(child.stderr.take().unwrap());
        let address = poll_for(DEADLINE, || {
            let has_ended = child.try_wait().unwrap().is_some();
            let address = listens_at(&log.read());
            (has_ended || address.is_some()).then_some(address)
        });
        let Some(Some(address)) = address else {
            let _it_may_have_ended = child.kill();
            panic!("{:?}: {}", child.wait(), log.read());
        };
        Daemon {
            child,
            address,
            client: Client::new(address),
            log,
        }
    }

    /// The ID of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All that it has logged so far.
    pub fn log(&self) -> String {
        self.log.read()
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
        signal(&self.child, name);
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
        self.child.try_wait().unwrap().is_some()
    }

    /// Sends SIGTERM, and asserts a graceful shutdown.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "{status:?}: {}", self.log());
    }
}

/// Lines of the log that a failed test prints.
const LINES_OF_A_FAILURE: usize = 60;

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = &lines[lines.len().saturating_sub(LINES_OF_A_FAILURE)..];
            println!("the log of {} ends:\n{}", self.address, last.join("\n"));
        }
    }
}

pub fn signal(process: &Child, name: &str) {
    let kill = Command::new("kill")
        .args([format!("-{name}"), process.id().to_string()])
        .status();
    assert!(kill.unwrap().success());
}
