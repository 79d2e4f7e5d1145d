//! `flowtally-agent watch`: reports the outbound TCP connections of this host.
//!
//! ```text
//! kernel ── sock_diag ──▶ connections ── new bytes ──▶ sums ── report ──▶ spool ──▶ service
//!            dump, ends        │                         ▲
//!                              └── own, destinations ────┘  src_app, dest_app
//! ```
//!
//! - [`sock_diag`] asks the kernel for all sockets, and gets a message about each one that ends; [`tcp_info`] has their
//!   counters; [`namespaces`] are the network namespaces of the host, as many as [`files`] permits.
//! - [`connections`] tells which end opened a connection, and which bytes are new; [`connection`] is one of them.
//! - [`own`] names the applications of this host, [`destinations`] those at the other ends: by a table, and by the
//!   directory at the service, which each agent tells about its own [`addresses`].
//! - [`Sums`] are the bytes since the last report. [`saved`] keeps what was counted in step with the spool, [`ended`] what
//!   has ended since.

mod addresses;
mod clock;
mod connection;
mod connections;
mod destinations;
mod ended;
mod files;
mod namespaces;
mod netlink;
mod own;
mod saved;
mod sock_diag;
mod stopped;
mod tcp_info;
mod totals;
mod vpc;
mod watched;

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use self::connections::NewBytes;
use self::destinations::{Destination, Destinations};
use self::ended::{Ended, EndedWaits};
use self::files::FileLimit;
use self::own::{OwnNames, RulesError};
use self::saved::{Saved, SavedError};
use self::sock_diag::TcpSocket;
use self::totals::{MetricsFile, Totals};
use self::watched::Namespaces;
use crate::arguments::{NamespaceSelection, Watch};
use crate::command::{connect, eprint_line, signals};
use crate::delivery::{SendError, Sender};
use crate::report::{
    Names, PAIRS_OF_A_REPORT, SECONDS_PER_HOUR, SPOOL_IS_FULL, Sums, hour_now, jittered, send_last,
    since_epoch, start_sender,
};

/// The time between two looks at all sockets.
const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// With the directory, the kernel is asked so often whether anything happened: that bounds when it was.
const QUIET_INTERVAL: Duration = Duration::from_millis(100);
/// Ends that wait to be noted while the disk is full. The oldest are dropped: they are counted, unless the agent is killed.
const UNNOTED_MAX: usize = 10_000;

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

#[derive(Debug)]
struct Watcher {
    namespaces: Namespaces,
    with_loopback: bool,
    /// How long to wait for the kernel at most.
    quiet_interval: Duration,
    own: OwnNames,
    destinations: Destinations,
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
    metrics_file: MetricsFile,
    is_spool_full: bool,
}

impl Watcher {
    fn open(arguments: &Watch) -> Result<Watcher, WatchError> {
        let files = FileLimit::raise();
        if arguments.netns == NamespaceSelection::All {
            eprint_line(&files.describe());
        }
        let own = OwnNames::open(arguments.app_rules.as_deref())?;
        let names = Names::open(arguments.apps.as_deref(), arguments.unattributed);
        let names = names.map_err(WatchError::Arguments)?;
        let vpc_id = match &arguments.vpc_id {
            Some(vpc_id) => vpc_id.clone(),
            None => vpc::of_this_instance().unwrap_or_default(),
        };
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
        let boot_id = boot_id.map_err(WatchError::Kernel)?.trim().to_owned();
        let (saved, restored) = Saved::open(&arguments.state_dir, boot_id.clone())?;
        let mut sums = Sums::default();
        let mut waiting = restored.waiting;
        let mut destinations = match restored.is_same_boot {
            true => Destinations::new(names, std::mem::take(&mut waiting)),
            false => Destinations::new(names, Vec::new()),
        };
        // The times at which the other ends were heard mean nothing after a restart of the system.
        for (_, waited) in &waiting {
            destinations.settle(waited, &mut sums);
        }
        for ended in &restored.ended {
            destinations.add_ended(ended, restored.is_same_boot, &mut sums);
        }
        let sender = start_sender(
            &arguments.service,
            &arguments.credentials,
            &Saved::spool(&arguments.state_dir),
            arguments.spool_max,
        )?;
        let (mut quiet_interval, mut known_addresses) = (LOOK_INTERVAL, None);
        if !arguments.no_directory {
            let client = connect::client(&arguments.service.url, &arguments.credentials);
            let client = client.map_err(WatchError::Arguments)?;
            let known = destinations.use_directory(
                client,
                (&boot_id, &arguments.state_dir),
                &vpc_id,
                &arguments.private_ranges,
                arguments.interval,
            );
            let known =
                known.map_err(|e| WatchError::Arguments(format!("cannot start a thread: {e}")))?;
            known_addresses = Some(known);
            quiet_interval = QUIET_INTERVAL;
        }
        let namespaces =
            Namespaces::open(arguments.netns, files, known_addresses, restored.counted);
        let mut watcher = Watcher {
            namespaces: namespaces.map_err(WatchError::Kernel)?,
            with_loopback: arguments.loopback,
            quiet_interval,
            own,
            destinations,
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
            metrics_file: MetricsFile::new(arguments.metrics_file.clone()),
            is_spool_full: false,
        };
        if restored.is_first {
            watcher.begin()?;
        }
        Ok(watcher)
    }

    /// At the first start: what connections have carried before does not count, since nobody knows in which hour that was.
    fn begin(&mut self) -> Result<(), WatchError> {
        self.own.begin_look(true);
        for (namespace, watched) in self.namespaces.iter_mut() {
            let own = &mut self.own;
            let (kernel, connections) = (&mut watched.kernel, &mut watched.connections);
            let app = |sockets: &[TcpSocket]| own.of_connections(namespace, sockets);
            let looked = connections.look(kernel, app, |_| {});
            looked.map_err(WatchError::Kernel)?;
            connections.skip_left_bytes();
        }
        Ok(self.saved.begin(self.namespaces.counted())?)
    }

    fn run(&mut self, mut signalled: &UnixStream) -> Result<(), WatchError> {
        // Agents that start at the same time do not report at the same time.
        let mut report_at = Instant::now() + jittered(self.interval, 0.0);
        self.look(false)?;
        loop {
            let next_hour = Instant::now() + Duration::from_secs(SECONDS_PER_HOUR) - since_hour();
            let look_at = next_hour.min(self.looked_at + LOOK_INTERVAL);
            // No signal is missed: it is in the pipe.
            let pause = self.ends_interval().saturating_sub(self.ended_at.elapsed());
            std::thread::sleep(pause.min(look_at.saturating_duration_since(Instant::now())));
            self.wait(look_at.min(report_at), signalled)?;
            let is_ending = signalled.read(&mut [0; 64]).is_ok();
            self.end()?;
            if Instant::now() >= look_at || is_ending {
                self.look(is_ending)?;
            }
            self.name_destinations(is_ending);
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

    /// How long messages about connections that end may wait, to be read together.
    fn ends_interval(&self) -> Duration {
        let namespaces = self.namespaces.iter();
        let intervals = namespaces.map(|watched| watched.kernel.ends_interval());
        intervals.min().unwrap_or_default()
    }

    /// Waits until a socket has ended, an address has changed, a signal has arrived, or the time has come.
    fn wait(&self, until: Instant, signalled: &UnixStream) -> Result<(), WatchError> {
        let mut fds = vec![PollFd::new(signalled, PollFlags::IN)];
        let kernels = self.namespaces.iter().flat_map(|watched| {
            let addresses = watched.addresses.as_ref();
            let changes = addresses.map(|addresses| addresses.changes_fd());
            [Some(watched.kernel.destroyed_fd()), changes]
        });
        let kernels = kernels.flatten();
        fds.extend(kernels.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let left = until.saturating_duration_since(Instant::now());
        let quiet = (self.quiet_interval).saturating_sub(self.ended_at.elapsed());
        let timeout = Timespec::try_from(left.min(quiet)).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(WatchError::Kernel(error.into())),
        }
    }

    /// Looks at all sockets. The bytes since the last look belong to the hour that it was in.
    fn look(&mut self, is_last: bool) -> Result<(), WatchError> {
        // After a suspension, which stops the other clock, the bytes are more likely of the time after it.
        if since_epoch().saturating_sub(self.looked_at_since_epoch) > 2 * LOOK_INTERVAL {
            self.hour = hour_now();
        }
        self.own.begin_look(is_last || self.hour != hour_now());
        self.destinations.reload();
        self.namespaces.update();
        let mut new_bytes = Vec::new();
        for (namespace, watched) in self.namespaces.iter_mut() {
            let own = &mut self.own;
            let looked = watched.connections.look(
                &mut watched.kernel,
                |sockets| own.of_connections(namespace, sockets),
                |bytes| new_bytes.push((namespace, bytes)),
            );
            looked.map_err(WatchError::Kernel)?;
        }
        for (namespace, bytes) in new_bytes {
            self.count(namespace, bytes, false);
        }
        // What is claimed of a listener depends on all that had ended when it was listed.
        self.end()?;
        for (namespace, watched) in self.namespaces.iter_mut() {
            let own = &mut self.own;
            (self.destinations).look(namespace, watched, |sockets| own.of(namespace, sockets));
        }
        self.destinations.keep(&self.namespaces);
        self.hour = hour_now();
        self.looked_at = Instant::now();
        self.looked_at_since_epoch = since_epoch();
        self.totals.looks += 1;
        self.totals.postponed_names = self.own.postponed;
        self.write_metrics();
        Ok(())
    }

    /// Counts the last bytes of sockets that have ended, and notices which addresses have changed.
    fn end(&mut self) -> Result<(), WatchError> {
        self.ended_at = Instant::now();
        let mut new_bytes = Vec::new();
        let with_loopback = self.with_loopback;
        for (namespace, watched) in self.namespaces.iter_mut() {
            self.totals.lost_address_changes += watched.update_addresses();
            let add = |bytes| new_bytes.push((namespace, bytes));
            let ended = (watched.connections).end(&mut watched.kernel, with_loopback, add);
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
        let socket = (namespace, new.cookie);
        let (sums, hour) = (&mut self.sums, self.hour);
        let destination = (self.destinations).add(sums, socket, &src_app, &new, hour);
        if has_ended {
            let (dest_app, waits) = match destination {
                Destination::Named(name) => (name, None),
                Destination::Waits(heard) => {
                    let remote = new.remote;
                    ("".into(), Some(EndedWaits { remote, heard }))
                }
            };
            self.ended.push(Ended {
                namespace,
                cookie: new.cookie,
                src_app,
                dest_app,
                hour: self.hour,
                bytes_tx: new.total.tx,
                bytes_rx: new.total.rx,
                waits,
            });
        }
    }

    /// Adds to the sums what has waited for a name, and asks the directory for others; at the end for the last time.
    fn name_destinations(&mut self, is_ending: bool) {
        let namespaces = &mut self.namespaces;
        (self.destinations).exchange(&mut self.sums, |(namespace, cookie), name| {
            if let Some(watched) = namespaces.get_mut(namespace) {
                watched.connections.name_peer(cookie, name);
            }
        });
        if is_ending {
            self.destinations.finish(&mut self.sums);
        }
    }

    /// Puts the sums into the spool, in step with what was counted.
    fn report(&mut self) -> Result<(), WatchError> {
        if self.sums.is_empty() {
            return Ok(());
        }
        let key = Sender::random_key();
        let json = self.sums.to_json(&self.vpc_id)?;
        let waiting = self.destinations.all_waiting();
        let waiting = waiting.map(|(waiter, waited)| (waiter.clone(), waited.clone()));
        let counted = self.namespaces.counted();
        let prepared = self.saved.prepare(&key, counted, waiting.collect());
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

    fn write_metrics(&mut self) {
        self.metrics_file.write(
            &self.totals,
            &self.namespaces,
            &self.destinations,
            self.sums.many_bytes,
            &self.sender.report(),
        );
    }
}

/// The time since the hour began.
fn since_hour() -> Duration {
    let now = since_epoch();
    now - Duration::from_secs(now.as_secs() / SECONDS_PER_HOUR * SECONDS_PER_HOUR)
}
