//! The network namespaces that the agent looks at, and what was counted in those that are not open.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use flow::Counters;
use rustix::io::Errno;

use super::addresses::Addresses;
use super::connections::Connections;
use super::namespaces::Namespace;
use super::saved::SocketId;
use super::sock_diag::SockDiag;
use crate::arguments::NamespaceSelection;

/// A namespace is closed when no process has been in it for so long: what was open there has ended by then.
const EMPTY_NAMESPACE_KEPT: Duration = Duration::from_secs(10);
/// Closed namespaces that may be opened again.
const CLOSED_NAMESPACES_MAX: usize = 10_000;
const EPERM: i32 = Errno::PERM.raw_os_error();

/// One network namespace.
#[derive(Debug)]
pub(super) struct Watched {
    pub(super) kernel: SockDiag,
    /// `None` if the directory is not used, or the kernel does not tell.
    pub(super) addresses: Option<Addresses>,
    pub(super) connections: Connections,
    /// When it was last on the list.
    listed_at: Instant,
}

impl Watched {
    /// Reads which addresses have changed. Without them, nothing is claimed for this namespace.
    pub(super) fn update_addresses(&mut self) {
        if let Some(addresses) = &mut self.addresses
            && !addresses.update()
        {
            self.addresses = None;
        }
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Namespaces {
    selection: NamespaceSelection,
    with_addresses: bool,
    open: HashMap<u64, Watched>,
    /// What was counted in namespaces that are not open: none of their processes is listed.
    closed: HashMap<u64, HashMap<u64, Counters>>,
}

impl Namespaces {
    /// `counted`: the bytes of connections that were counted before this process started.
    pub(super) fn open(
        selection: NamespaceSelection,
        with_addresses: bool,
        counted: HashMap<SocketId, Counters>,
    ) -> io::Result<Namespaces> {
        let mut closed: HashMap<u64, HashMap<u64, Counters>> = HashMap::new();
        for ((namespace, cookie), bytes) in counted {
            closed.entry(namespace).or_default().insert(cookie, bytes);
        }
        let mut namespaces = Namespaces {
            selection,
            with_addresses,
            open: HashMap::new(),
            closed,
        };
        namespaces.update_all()?;
        Ok(namespaces)
    }

    /// Opens the namespaces that are new, and closes those that are gone.
    pub(super) fn update(&mut self) -> io::Result<()> {
        match self.selection {
            NamespaceSelection::Host => Ok(()),
            NamespaceSelection::All => self.update_all(),
        }
    }

    fn update_all(&mut self) -> io::Result<()> {
        let now = Instant::now();
        let own = Namespace::own()?;
        let listed = match self.selection {
            NamespaceSelection::Host => vec![own.clone()],
            NamespaceSelection::All => Namespace::all()?,
        };
        for namespace in listed {
            if let Some(watched) = self.open.get_mut(&namespace.id) {
                watched.listed_at = now;
                continue;
            }
            let (kernel, addresses) = match namespace.open(self.with_addresses) {
                Ok(opened) => opened,
                Err(error) if namespace == own || error.raw_os_error() == Some(EPERM) => {
                    return Err(error);
                }
                // It may have ended since it was listed, or is being made.
                Err(_) => continue,
            };
            let counted = self.closed.remove(&namespace.id).unwrap_or_default();
            let watched = Watched {
                kernel,
                addresses,
                connections: Connections::new(counted),
                listed_at: now,
            };
            self.open.insert(namespace.id, watched);
        }
        let is_gone =
            |watched: &Watched| now.duration_since(watched.listed_at) >= EMPTY_NAMESPACE_KEPT;
        for (id, watched) in self.open.extract_if(|_, watched| is_gone(watched)) {
            let counted: HashMap<_, _> = watched.connections.counted().collect();
            if !counted.is_empty() && self.closed.len() < CLOSED_NAMESPACES_MAX {
                self.closed.insert(id, counted);
            }
        }
        Ok(())
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Watched> {
        self.open.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (u64, &mut Watched)> {
        self.open.iter_mut().map(|(id, watched)| (*id, watched))
    }

    pub(super) fn get_mut(&mut self, id: u64) -> Option<&mut Watched> {
        self.open.get_mut(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// Connections that are followed, at both ends.
    pub(super) fn connections(&self) -> usize {
        self.iter().map(|watched| watched.connections.len()).sum()
    }

    /// Those whose addresses are known.
    pub(super) fn with_addresses(&self) -> HashSet<u64> {
        let open = self.open.iter();
        let known = open.filter(|(_, watched)| watched.addresses.is_some());
        known.map(|(id, _)| *id).collect()
    }

    /// All sockets that listen.
    pub(super) fn listening(&self) -> HashSet<SocketId> {
        let sockets = self.open.iter().flat_map(|(&namespace, watched)| {
            let listening = watched.connections.listening().iter();
            listening.map(move |socket| (namespace, socket.cookie))
        });
        sockets.collect()
    }

    /// The bytes of each connection that were counted.
    pub(super) fn counted(&self) -> impl Iterator<Item = (SocketId, Counters)> {
        let open = self.open.iter().flat_map(|(&namespace, watched)| {
            let counted = watched.connections.counted();
            counted.map(move |(cookie, bytes)| ((namespace, cookie), bytes))
        });
        let closed = self.closed.iter().flat_map(|(&namespace, counted)| {
            let counted = counted.iter();
            counted.map(move |(cookie, bytes)| ((namespace, *cookie), *bytes))
        });
        open.chain(closed)
    }
}
