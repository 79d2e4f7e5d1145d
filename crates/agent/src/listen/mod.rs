//! `flowtally-agent listen`: receives what routers and switches export: NetFlow versions 5 and 9, IPFIX, sFlow.
//!
//! ```text
//! exporters ── UDP ──▶ workers ── records ──▶ sums ── report ──▶ spool ──▶ service
//!                        │  netflow, sflow      ▲
//!                        └─ exporters, templates  names
//! ```
//!
//! Each worker has sockets of its own at the same addresses; the kernel gives it all datagrams of an exporter. UDP may
//! lose datagrams, on the way, and when the sockets' buffers are full: what the numbers of datagrams and the kernel tell
//! about that is counted.

mod exporters;
mod netflow;
mod sflow;
mod templates;
mod totals;

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};
use socket2::{Domain, Socket, Type};

use self::exporters::Exporters;
use self::netflow::Netflow;
use self::templates::Templates;
use self::totals::Totals;
use crate::arguments::Listen;
use crate::command::{eprint_line, signals};
use crate::delivery::{SendError, Sender};
use crate::durable::{self, DirLock};
use crate::inputs::Count;
use crate::report::{
    MetricsError, MetricsText, Names, PAIRS_OF_A_REPORT, SECONDS_PER_HOUR, SPOOL_IS_FULL, Sums,
    jittered, send_last, since_epoch, start_sender,
};

/// Room in a socket for datagrams that were not read yet.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// The largest datagram of UDP.
const DATAGRAM_BYTES_MAX: usize = 65_535;
/// How often a worker that receives nothing looks whether to end, and the table of names is looked at.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
const NAMES_INTERVAL: Duration = Duration::from_secs(5);
/// Workers, on a machine with as many cores.
const WORKERS_MAX: usize = 4;

/// The error that ends the command.
#[derive(Debug, thiserror::Error)]
enum ListenError {
    #[error("cannot listen at {address}: {error}")]
    Address {
        address: SocketAddr,
        error: io::Error,
    },
    #[error("{}: {error}", path.display())]
    State { path: PathBuf, error: io::Error },
    #[error("{}: another agent is using this directory; give each its own", .0.display())]
    InUse(PathBuf),
    #[error("{0}")]
    Arguments(String),
    #[error(transparent)]
    Send(#[from] SendError),
    #[error("cannot write the report: {0}")]
    Report(#[from] serde_json::Error),
    #[error("cannot start: {0}")]
    Start(io::Error),
}

/// Which way a flow passed the interface that has seen it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Ingress,
    Egress,
}

/// Traffic between two addresses, scaled by the sampling rate.
#[derive(Clone, Copy, Debug)]
struct Record {
    source: SocketAddr,
    destination: SocketAddr,
    /// From the source to the destination.
    bytes: u64,
    /// From the destination to the source, where an exporter has both in one record.
    bytes_back: u64,
    /// Its start, since 1970.
    seconds: u64,
    direction: Option<Direction>,
}

/// What all workers share.
#[derive(Debug)]
struct Shared {
    names: RwLock<Names>,
    sums: Mutex<Sums>,
    totals: Totals,
    count: Count,
    /// Who may send; empty: everybody.
    exporters: Vec<IpNet>,
    is_ending: AtomicBool,
}

/// Runs until a signal ends it.
pub fn run(arguments: &Listen) -> Result<(), String> {
    listen(arguments).map_err(|error| error.to_string())
}

fn listen(arguments: &Listen) -> Result<(), ListenError> {
    let is_signalled = Arc::new(AtomicBool::new(false));
    for signal in signals::ending() {
        let registered = signal_hook::flag::register(signal, is_signalled.clone());
        registered.map_err(ListenError::Start)?;
    }
    let dir = &arguments.state_dir;
    let state = |error| ListenError::State {
        path: dir.clone(),
        error,
    };
    durable::create_dir_all(dir).map_err(state)?;
    let _lock = DirLock::create(&dir.join("lock")).map_err(|error| match error {
        std::fs::TryLockError::WouldBlock => ListenError::InUse(dir.clone()),
        std::fs::TryLockError::Error(error) => state(error),
    })?;
    let templates = Templates::open(dir).map_err(state)?;
    let sender = start_sender(
        &arguments.service,
        &arguments.credentials,
        &dir.join("spool"),
        arguments.spool_max,
    )?;
    let names = Names::open(arguments.apps.as_deref(), arguments.unattributed);
    let shared = Arc::new(Shared {
        names: RwLock::new(names.map_err(ListenError::Arguments)?),
        sums: Mutex::default(),
        totals: Totals::default(),
        count: arguments.count.into(),
        exporters: arguments.exporters.clone(),
        is_ending: AtomicBool::new(false),
    });
    let workers = thread::available_parallelism().map_or(1, |cores| cores.get().min(WORKERS_MAX));
    let mut threads = Vec::new();
    for &address in &arguments.listen {
        for _ in 0..workers {
            let socket = open(address).map_err(|error| ListenError::Address { address, error })?;
            threads.push(start_worker(
                socket,
                &shared,
                &templates,
                arguments.sampling_rate,
            )?);
        }
    }
    let mut reporter = Reporter {
        shared: shared.clone(),
        templates,
        sender,
        vpc_id: arguments.vpc_id.clone().unwrap_or_default(),
        metrics_file: arguments.metrics_file.clone(),
        metrics_error: MetricsError::default(),
        is_spool_full: false,
    };
    let result = reporter.run(&is_signalled, arguments.interval);
    shared.is_ending.store(true, Ordering::Relaxed);
    for thread in threads {
        let _ended = thread.join(); // if it panicked, the message was printed
    }
    reporter.report()?;
    if let Err(error) = reporter.templates.save() {
        eprint_line(&format!("flowtally: templates are not kept: {error}"));
    }
    send_last(&reporter.sender);
    reporter.write_metrics();
    result
}

/// A socket at an address that other sockets of this process have, too.
fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
    socket.set_reuse_port(true)?;
    let forced =
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER_BYTES);
    if forced.is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER_BYTES)?;
    }
    socket.bind(&address.into())?;
    socket.set_read_timeout(Some(POLL_INTERVAL))?;
    Ok(socket.into())
}

fn start_worker(
    socket: UdpSocket,
    shared: &Arc<Shared>,
    templates: &Arc<Templates>,
    default_rate: u32,
) -> Result<JoinHandle<()>, ListenError> {
    let netflow = Netflow::new(templates.clone()).map_err(ListenError::Arguments)?;
    let mut worker = Worker {
        socket,
        shared: shared.clone(),
        netflow,
        exporters: Exporters::new(default_rate.into(), templates.rates()),
    };
    let thread = thread::Builder::new().name("listener".into());
    thread
        .spawn(move || worker.run())
        .map_err(ListenError::Start)
}

struct Worker {
    socket: UdpSocket,
    shared: Arc<Shared>,
    netflow: Netflow,
    exporters: Exporters,
}

impl Worker {
    fn run(&mut self) {
        let mut buffer = vec![0; DATAGRAM_BYTES_MAX];
        let mut records = Vec::new();
        while !self.shared.is_ending.load(Ordering::Relaxed) {
            // An error is the time to look whether to end.
            if let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
                records.clear();
                self.read(from, &buffer[..length], &mut records);
                self.shared.add(&records);
            }
        }
    }

    fn read(&mut self, from: SocketAddr, datagram: &[u8], records: &mut Vec<Record>) {
        let totals = &self.shared.totals;
        let address = from.ip().to_canonical();
        let allowed = &self.shared.exporters;
        if !allowed.is_empty() && !allowed.iter().any(|range| range.contains(&address)) {
            totals.foreign.add(1);
            return;
        }
        totals.datagrams.add(1);
        let exporters = &mut self.exporters;
        match sflow::is_sflow(datagram) {
            true => {
                let seconds = since_epoch().as_secs();
                sflow::read(datagram, seconds, exporters, totals, |record| {
                    records.push(record);
                });
            }
            false => {
                let each = &mut |record| records.push(record);
                self.netflow.read(from, datagram, exporters, totals, each);
            }
        }
    }
}

impl Shared {
    /// Adds records to the sums.
    fn add(&self, records: &[Record]) {
        if records.is_empty() {
            return;
        }
        let names = self.names.read();
        let mut sums = self.sums.lock();
        for record in records {
            let is_of_other_end = matches!(
                (self.count, record.direction),
                (Count::Sender, Some(Direction::Egress))
                    | (Count::Receiver, Some(Direction::Ingress))
            );
            if is_of_other_end {
                self.totals.other_end.add(1);
                continue;
            }
            let Ok(hour) = u32::try_from(record.seconds / SECONDS_PER_HOUR) else {
                self.totals.skipped.add(1);
                continue;
            };
            self.totals.records.add(1);
            let bytes = flow::Counters {
                tx: record.bytes,
                rx: record.bytes_back,
            };
            let (source, destination) = (names.of(record.source), names.of(record.destination));
            sums.add(&source, &destination, hour, bytes);
        }
    }
}

/// Reports the sums.
struct Reporter {
    shared: Arc<Shared>,
    templates: Arc<Templates>,
    sender: Sender,
    vpc_id: String,
    metrics_file: Option<PathBuf>,
    metrics_error: MetricsError,
    is_spool_full: bool,
}

impl Reporter {
    /// Until the signal.
    fn run(&mut self, is_signalled: &AtomicBool, interval: Duration) -> Result<(), ListenError> {
        let mut report_at = Instant::now() + jittered(interval, 0.0);
        let mut names_at = Instant::now();
        while !is_signalled.load(Ordering::Relaxed) {
            thread::sleep(POLL_INTERVAL);
            let is_full = self.shared.sums.lock().len() >= PAIRS_OF_A_REPORT && !self.is_spool_full;
            if Instant::now() >= report_at || is_full {
                self.report()?;
                report_at = Instant::now() + jittered(interval, 0.9);
            }
            if Instant::now() >= names_at {
                names_at = Instant::now() + NAMES_INTERVAL;
                self.reload_names();
                if let Err(error) = self.templates.save() {
                    eprint_line(&format!("flowtally: templates are not kept: {error}"));
                }
                self.write_metrics();
            }
            if let Some(error) = self.sender.failure() {
                return Err(error.into());
            }
        }
        Ok(())
    }

    /// Reads the table again if it has changed, while workers use the one before.
    fn reload_names(&mut self) {
        let mut names = self.shared.names.read().clone();
        match names.reload() {
            Ok(true) => *self.shared.names.write() = names,
            Ok(false) => {}
            Err(error) => {
                eprint_line(&format!("flowtally: {error}; the names before stay"));
                *self.shared.names.write() = names;
            }
        }
    }

    /// Puts the sums into the spool. Workers do not wait for it.
    fn report(&mut self) -> Result<(), ListenError> {
        let sums = std::mem::take(&mut *self.shared.sums.lock());
        if sums.is_empty() {
            return Ok(());
        }
        let json = sums.to_json(&self.vpc_id)?;
        let stored = self
            .sender
            .push_stored(&Sender::random_key(), sums.len(), json, || Ok(()))?;
        match stored {
            true => self.shared.totals.reports.add(1),
            false => {
                self.shared.sums.lock().merge(&sums);
                if !self.is_spool_full {
                    eprint_line(SPOOL_IS_FULL);
                }
            }
        }
        self.is_spool_full = !stored;
        Ok(())
    }

    fn write_metrics(&mut self) {
        let Some(path) = &self.metrics_file else {
            return;
        };
        let mut text = MetricsText::default();
        self.shared.totals.write(&mut text);
        text.delivery(&self.sender.report());
        self.metrics_error.report(path, text.write(path));
    }
}

/// Reads datagrams, each after its length in two bytes. For fuzzing.
#[cfg(fuzzing)]
#[allow(clippy::expect_used)]
pub fn read_datagrams(mut input: &[u8]) {
    let from = SocketAddr::from(([127, 0, 0, 1], 9));
    // It is not written.
    let templates = Templates::open(std::path::Path::new("/nonexistent")).expect("no file");
    let mut netflow = Netflow::new(templates).expect("valid options");
    let mut exporters = Exporters::new(1, Default::default());
    let totals = Totals::default();
    while let Some((length, rest)) = input.split_at_checked(2) {
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        let (datagram, rest) = rest.split_at(length.min(rest.len()));
        input = rest;
        match sflow::is_sflow(datagram) {
            true => sflow::read(datagram, 0, &mut exporters, &totals, |_| {}),
            false => netflow.read(from, datagram, &mut exporters, &totals, &mut |_| {}),
        }
    }
}
