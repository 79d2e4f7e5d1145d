//! `flowtally-agent watch`: reports the outbound TCP connections of this host.
//!
//! ```text
//! kernel ── sock_diag ──▶ connections ── new bytes ──▶ sums ── report ──▶ spool ──▶ service
//!            dump, ends        │                         ▲
//!                              └── own, names ───────────┘  src_app, dest_app
//! ```
//!
//! - [`sock_diag`] asks the kernel for all sockets, and gets a message about each one that ends; [`tcp_info`] has their
//!   counters; [`namespaces`] are the network namespaces of the host.
//! - [`connections`] tells which end opened a connection, and which bytes are new.
//! - [`own`] names the applications of this host, [`Names`] those at the other ends.
//! - [`Sums`] are the bytes since the last report. [`saved`] keeps what was counted in step with the spool.

mod connections;
mod namespaces;
mod own;
mod saved;
mod sock_diag;
mod tcp_info;
mod vpc;

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::connections::{Connections, NewBytes};
use self::namespaces::Namespace;
use self::own::{OwnNames, RulesError};
use self::saved::{Ended, Saved, SavedError, SocketId};
use self::sock_diag::SockDiag;
use crate::arguments::{NamespaceSelection, Watch};
use crate::command::{eprint_line, signals};
use crate::delivery::{SendError, Sender};
use crate::report::{
    MetricsError, MetricsText, Names, PAIRS_OF_A_REPORT, SECONDS_PER_HOUR, SPOOL_IS_FULL, Sums,
    hour_now, jittered, send_last, since_epoch, start_sender,
};

/// The time between two looks at all sockets.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// The messages about connections that end are read at once, and then together for so long: many at a time cost less.
const ENDS_INTERVAL: Duration = Duration::from_millis(20);
/// Ends that wait to be noted while the disk is full. The oldest are dropped: they are counted, unless the agent is killed.
const UNNOTED_MAX: usize = 10_000;
/// A namespace is closed when no process has been in it for so long: what was open there has ended by then.
const EMPTY_NAMESPACE_KEPT: Duration = Duration::from_secs(10);
/// Closed namespaces that may be opened again.
const CLOSED_NAMESPACES_MAX: usize = 10_000;
const EPERM: i32 = Errno::PERM.raw_os_error();

/// The error that ends the agent.
#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(
        "the kernel does not tell about sockets ({0}): it needs Linux 4.19 or later with the module inet_diag; to look into \
         other network namespaces, give the agent CAP_SYS_ADMIN"
    )]
    Kernel(io::Error),
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error(transparent)]
    Saved(#[from] SavedError),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("{0}")]
    Arguments(String),
    #[error("cannot write the report: {0}")]
    Report(#[from] serde_json::Error),
}

/// Runs until a signal ends it.
pub fn run(arguments: &Watch) -> Result<(), String> {
    let (signalled, ending) = UnixStream::pair().map_err(|e| format!("cannot start: {e}"))?;
    for signal in signals::ending() {
        let to = ending.try_clone();
        to.and_then(|to| signal_hook::low_level::pipe::register(signal, to))
            .map_err(|e| format!("cannot start: {e}"))?;
    }
    signalled
        .set_nonblocking(true)
        .map_err(|e| format!("cannot start: {e}"))?;
    let watch = Watcher::open(arguments);
    watch
        .and_then(|mut watcher| watcher.run(&signalled))
        .map_err(|error| error.to_string())
}

/// One network namespace.
#[derive(Debug)]
struct Watched {
    kernel: SockDiag,
    connections: Connections,
    /// When it was last on the list.
    listed_at: Instant,
}

/// What the agent has done since it started.
#[derive(Debug, Default)]
struct Totals {
    looks: u64,
    reports: u64,
    bytes_tx: u64,
    bytes_rx: u64,
    /// Of applications of this host that are not known.
    unattributed_bytes: u64,
    lost_ends: u64,
}

#[derive(Debug)]
struct Watcher {
    namespaces: HashMap<u64, Watched>,
    /// What was counted in namespaces that are not open: none of their processes is listed.
    closed: HashMap<u64, HashMap<u64, flow::Counters>>,
    selection: NamespaceSelection,
    with_loopback: bool,
    own: OwnNames,
    names: Names,
    vpc_id: String,
    interval: Duration,
    sums: Sums,
    /// Connections that ended, until they are noted.
    ended: Vec<Ended>,
    /// The hour to which new bytes belong.
    hour: u32,
    looked_at: Instant,
    looked_at_since_epoch: Duration,
    /// When the messages about connections that have ended were read.
    ended_at: Instant,
    saved: Saved,
    sender: Sender,
    totals: Totals,
    metrics_file: Option<PathBuf>,
    metrics_error: MetricsError,
    is_spool_full: bool,
}

impl Watcher {
    fn open(arguments: &Watch) -> Result<Watcher, WatchError> {
        let own = OwnNames::open(arguments.app_rules.as_deref())?;
        let names = Names::open(arguments.apps.as_deref(), arguments.unattributed);
        let names = names.map_err(WatchError::Arguments)?;
        let vpc_id = match &arguments.vpc_id {
            Some(vpc_id) => vpc_id.clone(),
            None => vpc::of_this_instance().unwrap_or_default(),
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot_id = boot_id.map_err(WatchError::Kernel)?.trim().to_owned();
        let (saved, restored) = Saved::open(&arguments.state_dir, boot_id)?;
        let mut sums = Sums::default();
        for ended in &restored.ended {
            let bytes = flow::Counters {
                tx: ended.bytes_tx,
                rx: ended.bytes_rx,
            };
            if bytes != flow::Counters::default() {
                sums.add(&ended.src_app, &ended.dest_app, ended.hour, bytes);
            }
        }
        let mut counted: HashMap<u64, HashMap<u64, flow::Counters>> = HashMap::new();
        for ((namespace, cookie), bytes) in restored.counted {
            counted.entry(namespace).or_default().insert(cookie, bytes);
        }
        let sender = start_sender(
            &arguments.service,
            &arguments.credentials,
            &Saved::spool(&arguments.state_dir),
            arguments.spool_max,
        )?;
        let mut watcher = Watcher {
            namespaces: HashMap::new(),
            closed: counted,
            selection: arguments.netns,
            with_loopback: arguments.loopback,
            own,
            names,
            vpc_id,
            interval: arguments.interval,
            sums,
            ended: Vec::new(),
            hour: hour_now(),
            looked_at: Instant::now(),
            looked_at_since_epoch: since_epoch(),
            ended_at: Instant::now(),
            saved,
            sender,
            totals: Totals::default(),
            metrics_file: arguments.metrics_file.clone(),
            metrics_error: MetricsError::default(),
            is_spool_full: false,
        };
        watcher.open_namespaces()?;
        if restored.is_first {
            watcher.begin()?;
        }
        Ok(watcher)
    }

    /// At the first start: what connections have carried before does not count, since nobody knows in which hour that was.
    fn begin(&mut self) -> Result<(), WatchError> {
        for (&namespace, watched) in &mut self.namespaces {
            let own = &mut self.own;
            let (kernel, connections) = (&mut watched.kernel, &mut watched.connections);
            let looked = connections.look(kernel, |sockets| own.of(namespace, sockets), |_| {});
            looked.map_err(WatchError::Kernel)?;
        }
        let counted: Vec<_> = self.counted().collect();
        Ok(self.saved.begin(counted.into_iter())?)
    }

    fn run(&mut self, mut signalled: &UnixStream) -> Result<(), WatchError> {
        // Agents that start at the same time do not report at the same time.
        let mut report_at = Instant::now() + jittered(self.interval, 0.0);
        self.look()?;
        loop {
            let next_hour = Instant::now() + Duration::from_secs(SECONDS_PER_HOUR) - since_hour();
            let look_at = next_hour.min(self.looked_at + LOOK_INTERVAL);
            // No signal is missed: it is in the pipe.
            std::thread::sleep(ENDS_INTERVAL.saturating_sub(self.ended_at.elapsed()));
            self.wait(look_at.min(report_at), signalled)?;
            let is_ending = signalled.read(&mut [0; 64]).is_ok();
            self.end()?;
            if Instant::now() >= look_at || is_ending {
                self.look()?;
            }
            let is_full = self.sums.len() >= PAIRS_OF_A_REPORT && !self.is_spool_full;
            let is_due = Instant::now() >= report_at || is_full;
            if is_due || is_ending {
                self.report()?;
                report_at = Instant::now() + jittered(self.interval, 0.9);
            }
            if let Some(error) = self.sender.failure() {
                return Err(error.into());
            }
            if is_ending {
                send_last(&self.sender);
                self.write_metrics();
                return Ok(());
            }
        }
    }

    /// Waits until a socket has ended, a signal has arrived, or the time has come.
    fn wait(&self, until: Instant, signalled: &UnixStream) -> Result<(), WatchError> {
        let mut fds = vec![PollFd::new(signalled, PollFlags::IN)];
        let kernels = self.namespaces.values();
        fds.extend(
            kernels.map(|watched| {
                PollFd::from_borrowed_fd(watched.kernel.destroyed_fd(), PollFlags::IN)
            }),
        );
        let left = until.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(WatchError::Kernel(error.into())),
        }
    }

    /// Looks at all sockets. The bytes since the last look belong to the hour that it was in.
    fn look(&mut self) -> Result<(), WatchError> {
        // After a suspension, which stops the other clock, the bytes are more likely of the time after it.
        if since_epoch().saturating_sub(self.looked_at_since_epoch) > 2 * LOOK_INTERVAL {
            self.hour = hour_now();
        }
        if let Err(error) = self.names.reload() {
            eprint_line(&format!("flowtally: {error}; the names before stay"));
        }
        if self.selection == NamespaceSelection::All {
            self.open_namespaces()?;
        }
        let mut new_bytes = Vec::new();
        for (&namespace, watched) in &mut self.namespaces {
            let own = &mut self.own;
            let looked = watched.connections.look(
                &mut watched.kernel,
                |sockets| own.of(namespace, sockets),
                |bytes| new_bytes.push((namespace, bytes)),
            );
            looked.map_err(WatchError::Kernel)?;
        }
        for (namespace, bytes) in new_bytes {
            self.count(namespace, bytes, false);
        }
        self.hour = hour_now();
        self.looked_at = Instant::now();
        self.looked_at_since_epoch = since_epoch();
        self.totals.looks += 1;
        self.write_metrics();
        Ok(())
    }

    /// Counts the last bytes of sockets that have ended.
    fn end(&mut self) -> Result<(), WatchError> {
        self.ended_at = Instant::now();
        let mut new_bytes = Vec::new();
        for (&namespace, watched) in &mut self.namespaces {
            let ended = watched.connections.end(&mut watched.kernel, |bytes| {
                new_bytes.push((namespace, bytes))
            });
            self.totals.lost_ends += u64::from(ended.map_err(WatchError::Kernel)?);
        }
        for (namespace, bytes) in new_bytes {
            self.count(namespace, bytes, true);
        }
        match self.saved.note_ended(&self.ended) {
            // They are noted, or reported, when there is room.
            Err(error) if error.is_out_of_space() => {
                let excess = self.ended.len().saturating_sub(UNNOTED_MAX);
                self.ended.drain(..excess);
            }
            noted => {
                noted?;
                self.ended.clear();
            }
        }
        Ok(())
    }

    fn count(&mut self, namespace: u64, new: NewBytes, has_ended: bool) {
        if new.remote.ip().is_loopback() && !self.with_loopback {
            return;
        }
        let src_app = match &new.app {
            Some(app) => app.clone(),
            None => self.own.of_unseen(namespace, new.remote),
        };
        let all = new.bytes.tx.saturating_add(new.bytes.rx);
        if self.own.is_unknown(&src_app) {
            self.totals.unattributed_bytes += all;
        }
        self.totals.bytes_tx += new.bytes.tx;
        self.totals.bytes_rx += new.bytes.rx;
        let dest_app = self.names.of(new.remote);
        if all > 0 {
            self.sums.add(&src_app, &dest_app, self.hour, new.bytes);
        }
        if has_ended {
            self.ended.push(Ended {
                namespace,
                cookie: new.cookie,
                src_app,
                dest_app,
                hour: self.hour,
                bytes_tx: new.total.tx,
                bytes_rx: new.total.rx,
            });
        }
    }

    /// Puts the sums into the spool, in step with what was counted.
    fn report(&mut self) -> Result<(), WatchError> {
        if self.sums.is_empty() {
            return Ok(());
        }
        let key = Sender::random_key();
        let json = self.sums.to_json(&self.vpc_id)?;
        let prepared = self.saved.prepare(&key, self.counted());
        let saved = &mut self.saved;
        let stored = match prepared {
            Err(error) if error.is_out_of_space() => false,
            prepared => {
                prepared?;
                let flows = self.sums.len();
                self.sender
                    .push_stored(&key, flows, json, || saved.complete())?
            }
        };
        match stored {
            true => {
                self.totals.reports += 1;
                self.sums.clear();
                self.ended.clear();
            }
            false => {
                self.saved.undo()?;
                if !self.is_spool_full {
                    eprint_line(SPOOL_IS_FULL);
                }
            }
        }
        self.is_spool_full = !stored;
        Ok(())
    }

    /// Opens the namespaces that are new, and closes those that are gone.
    fn open_namespaces(&mut self) -> Result<(), WatchError> {
        let now = Instant::now();
        let own = Namespace::own().map_err(WatchError::Kernel)?;
        let listed = match self.selection {
            NamespaceSelection::Host => Ok(vec![own.clone()]),
            NamespaceSelection::All => Namespace::all(),
        };
        for namespace in listed.map_err(WatchError::Kernel)? {
            if let Some(watched) = self.namespaces.get_mut(&namespace.id) {
                watched.listed_at = now;
                continue;
            }
            let kernel = match namespace.open() {
                Ok(kernel) => kernel,
                Err(error) if namespace == own || error.raw_os_error() == Some(EPERM) => {
                    return Err(WatchError::Kernel(error));
                }
                // It may have ended since it was listed, or is being made.
                Err(_) => continue,
            };
            let counted = self.closed.remove(&namespace.id).unwrap_or_default();
            let watched = Watched {
                kernel,
                connections: Connections::new(counted),
                listed_at: now,
            };
            self.namespaces.insert(namespace.id, watched);
        }
        let is_gone =
            |watched: &Watched| now.duration_since(watched.listed_at) >= EMPTY_NAMESPACE_KEPT;
        for (id, watched) in self.namespaces.extract_if(|_, watched| is_gone(watched)) {
            let counted: HashMap<_, _> = watched.connections.counted().collect();
            if !counted.is_empty() && self.closed.len() < CLOSED_NAMESPACES_MAX {
                self.closed.insert(id, counted);
            }
        }
        Ok(())
    }

    /// The bytes of each connection that were counted.
    fn counted(&self) -> impl Iterator<Item = (SocketId, flow::Counters)> {
        let open = self.namespaces.iter().flat_map(|(&namespace, watched)| {
            let counted = watched.connections.counted();
            counted.map(move |(cookie, bytes)| ((namespace, cookie), bytes))
        });
        let closed = self.closed.iter().flat_map(|(&namespace, counted)| {
            let counted = counted.iter();
            counted.map(move |(cookie, bytes)| ((namespace, *cookie), *bytes))
        });
        open.chain(closed)
    }

    fn write_metrics(&mut self) {
        let Some(path) = &self.metrics_file else {
            return;
        };
        let totals = &self.totals;
        let connections = self.namespaces.values();
        let connections = connections.map(|watched| watched.connections.len()).sum();
        let mut text = MetricsText::default();
        text.gauge(
            "connections",
            "Connections that the agent follows, at both ends.",
            connections,
        );
        text.gauge(
            "namespaces",
            "Network namespaces that the agent looks at.",
            self.namespaces.len(),
        );
        text.counter("looks_total", "Looks at all sockets.", totals.looks);
        text.counter(
            "reports_total",
            "Reports that were put into the spool.",
            totals.reports,
        );
        text.counter(
            "bytes_tx_total",
            "Bytes that outbound connections have sent.",
            totals.bytes_tx,
        );
        text.counter(
            "bytes_rx_total",
            "Bytes that outbound connections have received.",
            totals.bytes_rx,
        );
        text.counter(
            "unattributed_bytes_total",
            "Bytes whose source application is not known, and of destinations beyond the limit of a report.",
            totals.unattributed_bytes + self.sums.many_bytes,
        );
        text.counter(
            "lost_ends_total",
            "Times that the kernel dropped messages about connections that ended, because the agent was too slow.",
            totals.lost_ends,
        );
        text.delivery(&self.sender.report());
        self.metrics_error.report(path, text.write(path));
    }
}

/// The time since the hour began.
fn since_hour() -> Duration {
    let now = since_epoch();
    now - Duration::from_secs(now.as_secs() / SECONDS_PER_HOUR * SECONDS_PER_HOUR)
}
