//! The network namespaces that the agent looks at, and what was counted in those that are not open.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flow::Counters;
use rustix::io::Errno;

use super::addresses::{Addresses, Held};
use super::connections::Connections;
use super::files::FileLimit;
use super::namespaces::Namespace;
use super::saved::SocketId;
use super::sock_diag::SockDiag;
use crate::arguments::NamespaceSelection;
use crate::command::eprint_line;

/// A namespace is closed when no process has been in it for so long: what was open there has ended by then.
const EMPTY_NAMESPACE_KEPT: Duration = Duration::from_secs(10);
/// Closed namespaces that may be opened again.
const CLOSED_NAMESPACES_MAX: usize = 10_000;
const EPERM: i32 = Errno::PERM.raw_os_error();
/// No process is in the namespace any more.
const ESRCH: i32 = Errno::SRCH.raw_os_error();

/// The addresses of each network namespace when an agent looked last.
pub(super) type KnownAddresses = HashMap<u64, HashMap<IpAddr, Held>>;

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
    /// Reads which addresses have changed. Without them, nothing is claimed for this namespace. Returns how many times
    /// messages about changes were lost.
    pub(super) fn update_addresses(&mut self) -> u64 {
        let Some(addresses) = &mut self.addresses else {
            return 0;
        };
        let is_usable = addresses.update();
        let overruns = addresses.take_overruns();
        if !is_usable {
            self.addresses = None;
        }
        overruns
    }
}

/// All of them.
#[derive(Debug)]
pub(super) struct Namespaces {
    selection: NamespaceSelection,
    files: FileLimit,
    /// Of namespaces that are not open; `None` if addresses do not matter.
    known_addresses: Option<KnownAddresses>,
    open: HashMap<u64, Watched>,
    /// What was counted in namespaces that are not open: none of their processes is listed.
    closed: HashMap<u64, HashMap<u64, Counters>>,
    unopened: Unopened,
}

/// Namespaces that are there, and could not be opened.
#[derive(Debug, Default)]
struct Unopened {
    count: usize,
    /// The last line about them.
    printed: Option<String>,
}

impl Namespaces {
    /// `known_addresses`: `None` if addresses do not matter. `counted`: the bytes of connections that were counted before
    /// this process started.
    ///
    /// # Errors
    /// If the namespace of the agent cannot be opened, or if it lacks the capabilities for others.
    pub(super) fn open(
        selection: NamespaceSelection,
        files: FileLimit,
        known_addresses: Option<KnownAddresses>,
        counted: HashMap<SocketId, Counters>,
    ) -> io::Result<Namespaces> {
        let mut closed: HashMap<u64, HashMap<u64, Counters>> = HashMap::new();
        for ((namespace, cookie), bytes) in counted {
            closed.entry(namespace).or_default().insert(cookie, bytes);
        }
        let mut namespaces = Namespaces {
            selection,
            files,
            known_addresses,
            open: HashMap::new(),
            closed,
            unopened: Unopened::default(),
        };
        namespaces.update_all(true)?;
        // Namespaces that are not there now are gone.
        if let Some(known) = &mut namespaces.known_addresses {
            known.clear();
        }
        Ok(namespaces)
    }

    /// Opens the namespaces that are new, and closes those that are gone. If some cannot be opened, the others are watched
    /// nevertheless, and these are tried again with the next call.
    pub(super) fn update(&mut self) {
        if self.selection == NamespaceSelection::All
            && let Err(error) = self.update_all(false)
        {
            // Those that are open stay so: nobody knows which are gone.
            self.unopened.print(&format!(
                "cannot list the network namespaces of this host ({error}): new ones are not watched"
            ));
        }
    }

    /// # Errors
    /// If the namespaces cannot be listed, or that of the agent cannot be opened; at the start also without the
    /// capabilities for others.
    fn update_all(&mut self, is_start: bool) -> io::Result<()> {
        let now = Instant::now();
        let own = Namespace::own()?;
        let listed = match self.selection {
            NamespaceSelection::Host => vec![own.clone()],
            NamespaceSelection::All => Namespace::all()?,
        };
        let namespaces_max = self.files.namespaces_max();
        let (mut unopened, mut why) = (0, None);
        for namespace in listed {
            if let Some(watched) = self.open.get_mut(&namespace.id) {
                watched.listed_at = now;
                continue;
            }
            if self.open.len() >= namespaces_max {
                unopened += 1;
                why = Some(self.files.why_no_more());
                continue;
            }
            let known = self.known_addresses.as_mut();
            let known = known.map(|known| known.remove(&namespace.id).unwrap_or_default());
            let (kernel, addresses) = match namespace.open(known) {
                Ok(opened) => opened,
                Err(error) if namespace == own || is_start && is_forbidden(&error) => {
                    return Err(error);
                }
                Err(error) if is_gone_or_unfinished(&error) => continue,
                Err(error) => {
                    unopened += 1;
                    why = Some(match is_forbidden(&error) {
                        true => format!("{error}; give the agent CAP_SYS_ADMIN"),
                        false => error.to_string(),
                    });
                    continue;
                }
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
        self.unopened.count = unopened;
        if let Some(why) = why {
            self.unopened.print(&format!(
                "not all network namespaces of this host are watched: {why}"
            ));
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

    /// Those that are there, and could not be opened at the last look.
    pub(super) fn unopened(&self) -> usize {
        self.unopened.count
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

impl Unopened {
    /// Prints a line, unless it is the same as the last one.
    fn print(&mut self, line: &str) {
        if self.printed.as_deref() != Some(line) {
            eprint_line(&format!("flowtally: {line}"));
            self.printed = Some(line.to_owned());
        }
    }
}

/// Whether the agent lacks a capability.
fn is_forbidden(error: &io::Error) -> bool {
    error.raw_os_error() == Some(EPERM)
}

/// Whether the namespace has ended since it was listed, or is being made.
fn is_gone_or_unfinished(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::InvalidInput)
        || error.raw_os_error() == Some(ESRCH)
}
