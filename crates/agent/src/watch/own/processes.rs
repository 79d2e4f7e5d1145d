//! The processes that hold sockets, from /proc. To see those of other users, a user other than root needs
//! CAP_DAC_READ_SEARCH, which lists their open files, and CAP_SYS_PTRACE, which reads them.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::Path;

use super::facts::Process;

/// Finds the processes that hold these sockets, by the inode. Reads the open files of all processes until each socket
/// is found.
pub(super) fn of_sockets(mut inodes: HashSet<u32>) -> HashMap<u32, Process> {
    let mut found = HashMap::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    for process in processes {
        if inodes.is_empty() {
            break;
        }
        let is_process = process
            .file_name()
            .to_string_lossy()
            .bytes()
            .all(|byte| byte.is_ascii_digit());
        if !is_process {
            continue;
        }
        let dir = process.path();
        let mut is_read = None;
        for file in fs::read_dir(dir.join("fd")).into_iter().flatten().flatten() {
            let Ok(target) = fs::read_link(file.path()) else {
                continue;
            };
            let inode = target.to_str().and_then(socket_inode);
            let Some(inode) = inode.filter(|inode| inodes.remove(inode)) else {
                continue;
            };
            let process: &mut Process = is_read.get_or_insert_with(|| read(&dir));
            found.insert(inode, process.clone());
        }
    }
    found
}

/// As in `socket:[12345]`.
fn socket_inode(target: &str) -> Option<u32> {
    let inode = target.strip_prefix("socket:[")?.strip_suffix(']')?;
    inode.parse().ok()
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
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsRawFd;

    #[test]
    fn a_socket_of_this_process_is_found() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let inode = socket_inode(link.to_str().unwrap()).unwrap();
        let found = of_sockets([inode, 0].into());
        assert_eq!(found.len(), 1);
        assert_eq!(found[&inode].executable, std::env::current_exe().unwrap());
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
