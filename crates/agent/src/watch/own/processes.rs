//! The processes that hold sockets, from /proc. To see those of other users, a user other than root needs
//! CAP_DAC_READ_SEARCH, which lists their open files, and CAP_SYS_PTRACE, which reads them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, RawDir, open, readlinkat_raw};
use rustix::time::{ClockId, clock_gettime};

use super::facts::Process;

/// After a search, the next one comes after this many times the CPU that it took. Hosts may have millions of open files.
const PAUSE_TO_CPU: u32 = 100;
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Processes that are searched first, since they had one of the sockets of the last search.
const LIKELY_MAX: usize = 64;
/// Of one read of a directory.
const NAMES_BYTES: usize = 4 << 10;
/// `socket:[4294967295]` is shorter.
const TARGET_BYTES: usize = 32;

/// Searches the open files of processes.
#[derive(Debug, Default)]
pub(super) struct Processes {
    likely: Vec<u32>,
    due_at: Option<Instant>,
}

impl Processes {
    /// Whether the last searches were long enough ago for what they have cost.
    pub(super) fn are_due(&self) -> bool {
        self.due_at.is_none_or(|due_at| due_at <= Instant::now())
    }

    /// Finds the processes that hold these sockets, by the inode. Reads the open files of all processes until each socket
    /// is found.
    pub(super) fn of_sockets(&mut self, mut inodes: HashSet<u32>) -> HashMap<u32, Process> {
        let began = cpu_time();
        let mut found = HashMap::new();
        let mut having = Vec::new();
        let others = all().filter(|number| !self.likely.contains(number));
        for number in self.likely.iter().copied().chain(others) {
            if inodes.is_empty() {
                break;
            }
            let before = found.len();
            search(number, &mut inodes, &mut found);
            if found.len() > before && having.len() < LIKELY_MAX {
                having.push(number);
            }
        }
        if !having.is_empty() {
            self.likely = having;
        }
        let cpu = cpu_time().saturating_sub(began);
        self.due_at = Some(due_at(self.due_at, Instant::now(), cpu));
        found
    }
}

/// When the next search is due, after one that has ended `now` and has taken so much CPU. `before`: when it was due before.
fn due_at(before: Option<Instant>, now: Instant, cpu: Duration) -> Instant {
    let pause = cpu.saturating_mul(PAUSE_TO_CPU).min(PAUSE_MAX);
    let from = before.unwrap_or(now).max(now);
    (from + pause).min(now + PAUSE_MAX)
}

/// The CPU that this thread has taken.
fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

/// The numbers of all processes.
fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Moves the sockets that a process holds from `inodes` to `found`. Makes one system call for each open file, and no more,
/// since there may be tens of thousands.
fn search(number: u32, inodes: &mut HashSet<u32>, found: &mut HashMap<u32, Process>) {
    let dir = PathBuf::from(format!("/proc/{number}"));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    // It has ended, or is another user's.
    let Ok(files) = open(dir.join("fd"), flags, Mode::empty()) else {
        return;
    };
    let mut buffer = Vec::with_capacity(NAMES_BYTES);
    let mut names = RawDir::new(&files, buffer.spare_capacity_mut());
    let mut process: Option<Process> = None;
    while let Some(Ok(entry)) = names.next() {
        let mut target = [0_u8; TARGET_BYTES];
        let Ok(length) = readlinkat_raw(&files, entry.file_name(), &mut target) else {
            continue;
        };
        let inode = target.get(..length).and_then(socket_inode);
        let Some(inode) = inode.filter(|inode| inodes.remove(inode)) else {
            continue;
        };
        let process = process.get_or_insert_with(|| read(&dir));
        found.insert(inode, process.clone());
        if inodes.is_empty() {
            return;
        }
    }
}

/// As in `socket:[12345]`.
fn socket_inode(target: &[u8]) -> Option<u32> {
    let inode = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    str::from_utf8(inode).ok()?.parse().ok()
}

fn read(process: &Path) -> Process {
    let cgroup = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
    let executable = fs::read_link(process.join("exe")).unwrap_or_default();
    let executable = executable.to_string_lossy();
    Process {
        // After an upgrade of the program.
        executable: executable.trim_end_matches(" (deleted)").into(),
        cgroup: cgroup_path(&cgroup).unwrap_or_default().to_owned(),
    }
}

/// The path in version 2 of control groups, or else the one that systemd uses.
fn cgroup_path(text: &str) -> Option<&str> {
    let path = |prefix: &str| text.lines().find_map(|line| line.strip_prefix(prefix));
    let named = || {
        let mut lines = text.lines();
        lines.find_map(|line| line.split_once(":name=systemd:").map(|(_, path)| path))
    };
    path("0::").filter(|path| *path != "/").or_else(named)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn sockets_of_this_process_are_found() {
        // More files than one read of the directory has names.
        let socket = |_| UdpSocket::bind("127.0.0.1:0").unwrap();
        let sockets: Vec<UdpSocket> = (0..300).map(socket).collect();
        let inode_of = |socket: &UdpSocket| {
            let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
            socket_inode(link.as_os_str().as_bytes()).unwrap()
        };
        let inodes: HashSet<u32> = sockets.iter().map(inode_of).collect();
        assert_eq!(inodes.len(), sockets.len());
        let mut processes = Processes::default();
        assert!(processes.are_due());
        let mut wanted = inodes.clone();
        wanted.insert(0);
        let found = processes.of_sockets(wanted);
        assert_eq!(found.keys().copied().collect::<HashSet<_>>(), inodes);
        let executable = std::env::current_exe().unwrap();
        assert!(found.values().all(|of| of.executable == executable));
        assert_eq!(processes.likely, [std::process::id()]);
        assert!(processes.due_at.is_some());
    }

    #[test]
    fn searches_take_a_part_of_a_core_at_most() {
        let now = Instant::now();
        let [millisecond, second] = [Duration::from_millis(1), Duration::from_secs(1)];
        let pause = PAUSE_TO_CPU * millisecond;
        assert_eq!(due_at(None, now, millisecond), now + pause);
        // The one before was longer ago.
        let before = Some(now.checked_sub(millisecond).unwrap_or(now));
        assert_eq!(due_at(before, now, millisecond), now + pause);
        // Several at one look, in different namespaces.
        let before = Some(now + second);
        assert_eq!(due_at(before, now, millisecond), now + second + pause);
        assert_eq!(due_at(before, now, second), now + PAUSE_MAX);
    }

    #[test]
    fn links_of_sockets() {
        assert_eq!(socket_inode(b"socket:[4294967295]"), Some(u32::MAX));
        for other in [&b"socket:[4294967296]"[..], b"socket:[1", b"pipe:[7]", b""] {
            assert_eq!(socket_inode(other), None);
        }
    }

    #[test]
    fn cgroup_paths() {
        for (text, path) in [
            (
                "0::/system.slice/a.service\n",
                Some("/system.slice/a.service"),
            ),
            (
                "12:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n",
                Some("/system.slice/a.service"),
            ),
            ("12:cpu:/\n", None),
        ] {
            assert_eq!(cgroup_path(text), path);
        }
    }
}
