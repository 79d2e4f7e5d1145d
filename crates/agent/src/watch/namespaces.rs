//! The network namespaces of this host: that of the agent, or all that a process is in or `ip netns` has made.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::addresses::{Addresses, Held};
use super::sock_diag::SockDiag;

/// The namespace of this process.
const OWN: &str = "/proc/self/ns/net";
/// Where `ip netns` mounts the namespaces that it makes.
const NAMED: &str = "/run/netns";

/// A network namespace: its inode, and a path to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Namespace {
    pub(super) id: u64,
    path: PathBuf,
}

impl Namespace {
    pub(super) fn own() -> io::Result<Namespace> {
        Ok(Namespace {
            id: fs::metadata(OWN)?.ino(),
            path: OWN.into(),
        })
    }

    /// All namespaces of the host, each once. Without those of processes that end meanwhile. Those of other users'
    /// processes are found by root, or with CAP_SYS_PTRACE.
    pub(super) fn all() -> io::Result<Vec<Namespace>> {
        let mut all = vec![Namespace::own()?];
        let file_system = fs::metadata(OWN)?.dev();
        let mut add = |path: PathBuf| {
            if let Ok(namespace) = fs::metadata(&path)
                // A name that is not mounted yet is a plain file.
                && namespace.dev() == file_system
                && all.iter().all(|known| known.id != namespace.ino())
            {
                let id = namespace.ino();
                all.push(Namespace { id, path });
            }
        };
        for named in fs::read_dir(NAMED).into_iter().flatten().flatten() {
            add(named.path());
        }
        for process in fs::read_dir("/proc")?.flatten() {
            let is_process = process
                .file_name()
                .to_string_lossy()
                .bytes()
                .all(|byte| byte.is_ascii_digit());
            if is_process {
                add(process.path().join("ns/net"));
            }
        }
        Ok(all)
    }

    /// Opens the kernel's interfaces in this namespace: for sockets, and for addresses. `known_addresses`: those that were
    /// there when an agent looked last; `None` if addresses do not matter.
    ///
    /// # Errors
    /// Also if another namespace than the agent's is given, and the agent lacks CAP_SYS_ADMIN.
    pub(super) fn open(
        &self,
        known_addresses: Option<HashMap<IpAddr, Held>>,
    ) -> io::Result<(SockDiag, Option<Addresses>)> {
        let open = move || {
            let addresses = known_addresses.and_then(Addresses::open_or_print);
            Ok((SockDiag::open()?, addresses))
        };
        if self.path == Path::new(OWN) {
            return open();
        }
        let file = File::open(&self.path)?;
        // A thread of its own, since a thread stays in its namespace.
        let open_there = move || {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
            open()
        };
        let opener = thread::Builder::new()
            .name("namespace".into())
            .spawn(open_there)?;
        let opened = opener.join();
        opened.unwrap_or_else(|_| {
            Err(io::Error::other(
                "the thread that opens the namespace has panicked",
            ))
        })
    }
}
