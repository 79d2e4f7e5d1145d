//! The names of the other ends (`dest_app`): from the table of `--apps`, and from the directory at the service.
//!
//! ```text
//! bytes ──▶ table ──▶ sums            one address, or an address and a port
//!             │        ▲ ▲
//!             ▼        │ └─ table     ranges, or else the address: what nobody claims
//!          waiting ──▶ directory      who had the endpoint when it was heard
//! ```
//!
//! Each agent tells the directory which application listens at which of its addresses ([`claims`]), and asks for the
//! endpoints whose bytes wait ([`waiting`]). Bytes wait until all agents have told the directory about the moment at
//! which the other end was heard, a minute at most. A connection gets one name for all of its bytes.

mod answers;
mod claims;
mod exchange;
mod waiting;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flow::Counters;
use flow::directory::{Claim, DirectoryRequest, DirectoryResponse, QUESTIONS_MAX, Question};
use ipnet::IpNet;
use xxhash_rust::xxh3::xxh3_64;

use self::answers::Answers;
use self::claims::{Claims, ClaimsFile, Listener, Look};
use self::exchange::{Exchange, Offset, ServiceClock};
use self::waiting::Waiting;
use super::clock::{Span, now_ms};
use super::connections::NewBytes;
use super::saved::{Ended, SocketId};
use super::sock_diag::TcpSocket;
use super::watched::{KnownAddresses, Namespaces, Watched};
use crate::client::{Client, ClientError};
use crate::command::eprint_line;
use crate::report::{Names, Sums, jittered};

pub(super) use self::waiting::{Waited, Waiter};

/// The time between two requests to the directory is a quarter of that between two reports, within these bounds.
const EXCHANGE_INTERVALS: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(15)];
/// When claims have changed, others may wait for them.
const EXCHANGE_INTERVAL_MIN: Duration = Duration::from_secs(1);
/// A service without a directory is asked again after this long.
const UNSUPPORTED_PAUSE: Duration = Duration::from_secs(600);
/// A socket that listens may be handed to another process: its application is looked up again after this long.
const LISTENER_KEPT: Duration = Duration::from_secs(600);
/// The same if its application is not known.
const UNKNOWN_LISTENER_KEPT: Duration = Duration::from_secs(60);
/// Interval between looks at what has waited for long enough without an answer.
const RESOLVE_INTERVAL: Duration = Duration::from_secs(1);
/// How long the last request gets, when the agent ends.
const LAST_EXCHANGE_MAX: Duration = Duration::from_secs(1);
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Names the other ends.
#[derive(Debug)]
pub(super) struct Destinations {
    names: Names,
    waiting: Waiting,
    directory: Option<Directory>,
    /// When it was last looked at what waits.
    resolved_at: Instant,
    /// Bytes whose destination is in neither.
    pub(super) unnamed_bytes: u64,
}

/// This agent's part of the directory.
#[derive(Debug)]
struct Directory {
    agent: String,
    vpc_id: String,
    /// Addresses that are not unique among the hosts.
    private_ranges: Vec<IpNet>,
    interval: Duration,
    exchange: Exchange,
    exchange_at: Instant,
    exchanged_at: Instant,
    clock: ServiceClock,
    claims: Claims,
    claims_file: ClaimsFile,
    /// The applications of sockets that listen, and when they were looked up.
    listeners: HashMap<SocketId, (Option<Arc<str>>, Instant)>,
    /// The questions of the last request.
    asked: HashMap<SocketAddr, Span>,
    /// `None` if the service has a directory, or that is not known yet. Otherwise nothing waits.
    unsupported_since: Option<Instant>,
    /// The last error, which is printed once.
    error: Option<String>,
    has_printed_refused: bool,
}

/// The destination of new bytes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Destination {
    Named(Arc<str>),
    /// It waits for the directory: the moment at which it was heard.
    Waits(Span),
}

impl Destinations {
    /// `restored`: what waited before a restart.
    pub(super) fn new(names: Names, restored: Vec<(Waiter, Waited)>) -> Destinations {
        Destinations {
            names,
            waiting: Waiting::new(restored),
            directory: None,
            resolved_at: Instant::now(),
            unnamed_bytes: 0,
        }
    }

    /// Uses the directory of the service. Returns the addresses that were there when the agent looked last that used
    /// `state_dir` before.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn use_directory(
        &mut self,
        client: Client,
        (boot_id, state_dir): (&str, &Path),
        vpc_id: &str,
        private_ranges: &[IpNet],
        report_interval: Duration,
    ) -> std::io::Result<KnownAddresses> {
        let [min, max] = EXCHANGE_INTERVALS;
        let now = Instant::now();
        let (claims_file, claims) = ClaimsFile::open(state_dir, boot_id, vpc_id);
        let known_addresses = claims.known_addresses();
        let mut directory = Directory {
            agent: agent_id(boot_id, state_dir),
            vpc_id: vpc_id.to_owned(),
            private_ranges: private_ranges.to_vec(),
            interval: (report_interval / 4).clamp(min, max),
            exchange: Exchange::start(client)?,
            exchange_at: now,
            exchanged_at: now,
            clock: ServiceClock::default(),
            claims,
            claims_file,
            listeners: HashMap::new(),
            asked: HashMap::new(),
            unsupported_since: None,
            error: None,
            has_printed_refused: false,
        };
        directory.remove_private_claims();
        self.directory = Some(directory);
        Ok(known_addresses)
    }

    /// Reads the table again if it has changed.
    pub(super) fn reload(&mut self) {
        if let Err(error) = self.names.reload() {
            eprint_line(&format!("flowtally: {error}; the names before stay"));
        }
    }

    /// Connections, or groups of short ones, whose bytes wait.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// What waits, to be saved with a report.
    pub(super) fn all_waiting(&self) -> impl Iterator<Item = (&Waiter, &Waited)> {
        self.waiting.all()
    }

    /// Claims of this host.
    pub(super) fn claims(&self) -> usize {
        let claims = self.directory.as_ref().map(|directory| &directory.claims);
        claims.map_or(0, |claims| claims.all().count())
    }

    /// Adds new bytes of a connection to `sums`, or lets them wait. Returns which.
    pub(super) fn add(
        &mut self,
        sums: &mut Sums,
        socket: SocketId,
        src_app: &Arc<str>,
        new: &NewBytes,
        hour: u32,
    ) -> Destination {
        let name = new.peer.clone().or_else(|| self.names.of_one(new.remote));
        let name = match (name, &self.directory) {
            (Some(name), _) => name,
            (None, Some(directory))
                if directory.is_supported() && !directory.is_private(new.remote.ip()) =>
            {
                let is_short = new.is_unseen && !self.waiting.has_socket(socket);
                let waiter = match is_short {
                    true => Waiter::ended(src_app, new.remote, new.heard),
                    false => Waiter::Socket(socket),
                };
                let bytes = (src_app, hour, new.bytes);
                let now = now_ms();
                if new.bytes == Counters::default()
                    || (self.waiting).add(waiter, new.remote, bytes, new.heard, now)
                {
                    return Destination::Waits(new.heard);
                }
                self.unnamed(new.remote, new.bytes)
            }
            (None, _) => self.unnamed(new.remote, new.bytes),
        };
        if new.bytes != Counters::default() {
            sums.add(src_app, &name, hour, new.bytes);
        }
        Destination::Named(name)
    }

    /// The name of an endpoint that nobody claims.
    fn unnamed(&mut self, remote: SocketAddr, bytes: Counters) -> Arc<str> {
        let (name, is_known) = self.names.of_any(remote);
        if !is_known {
            self.unnamed_bytes += bytes.tx.saturating_add(bytes.rx);
        }
        name
    }

    /// Adds a connection that ended before a restart: as its bytes were counted, or else they wait again.
    pub(super) fn add_ended(&mut self, ended: &Ended, is_same_boot: bool, sums: &mut Sums) {
        let bytes = Counters {
            tx: ended.bytes_tx,
            rx: ended.bytes_rx,
        };
        if bytes == Counters::default() {
            return;
        }
        let name = match ended.waits {
            None => ended.dest_app.clone(),
            Some(waits) => {
                let waiter = Waiter::ended(&ended.src_app, waits.remote, waits.heard);
                let of = (&ended.src_app, ended.hour, bytes);
                if is_same_boot
                    && (self.waiting).add(waiter, waits.remote, of, waits.heard, now_ms())
                {
                    return;
                }
                self.unnamed(waits.remote, bytes)
            }
        };
        sums.add(&ended.src_app, &name, ended.hour, bytes);
    }

    /// Adds bytes that wait no more to `sums`, without a name of the directory.
    pub(super) fn settle(&mut self, waited: &Waited, sums: &mut Sums) {
        settle(&self.names, &mut self.unnamed_bytes, waited, None, sums);
    }

    /// Takes in what a look at a namespace has found. The messages about sockets that have ended must have been read after
    /// it. `app` finds the applications of sockets that listen.
    pub(super) fn look(
        &mut self,
        namespace: u64,
        watched: &mut Watched,
        app: impl FnOnce(&[TcpSocket]) -> Vec<Option<Arc<str>>>,
    ) {
        let stopped = watched.connections.take_stopped();
        let (Some(directory), Some(addresses)) = (&mut self.directory, &mut watched.addresses)
        else {
            return;
        };
        let listening = watched.connections.listening();
        let now = Instant::now();
        let listeners = &mut directory.listeners;
        let is_known = |socket: &&TcpSocket| {
            let known = listeners.get(&(namespace, socket.cookie));
            known.is_some_and(|(app, at)| {
                let kept = match app {
                    Some(_) => LISTENER_KEPT,
                    None => UNKNOWN_LISTENER_KEPT,
                };
                at.elapsed() < kept
            })
        };
        let new = listening.iter().filter(|socket| !is_known(socket));
        let new: Vec<TcpSocket> = new.cloned().collect();
        for (socket, app) in new.iter().zip(app(&new)) {
            listeners.insert((namespace, socket.cookie), (app, now));
        }
        let app_of = |socket: &TcpSocket| {
            let known = listeners.get(&(namespace, socket.cookie));
            known.and_then(|(app, _)| app.clone())
        };
        let listeners = listening
            .iter()
            .map(|socket| Listener {
                cookie: socket.cookie,
                local: socket.local,
                is_v6_only: socket.is_v6_only,
                app: app_of(socket),
            })
            .collect();
        let mut lost = addresses.take_lost();
        lost.retain(|lost| !directory.is_private(lost.address));
        let looked_at = watched.connections.looked_at();
        let held = addresses.held().iter();
        let held = held.filter(|(address, _)| !directory.is_private(**address));
        let look = Look {
            at: Span {
                // Later, an address may have been lost.
                from: looked_at.from.min(addresses.quiet_at()),
                to: looked_at.to,
            },
            held: held.map(|(address, held)| (*address, *held)).collect(),
            lost,
            listeners,
            stopped,
        };
        directory.claims.look(namespace, look);
    }

    /// To be called after a look at all namespaces.
    pub(super) fn keep(&mut self, namespaces: &Namespaces) {
        if let Some(directory) = &mut self.directory {
            (directory.claims).keep(&namespaces.with_addresses(), now_ms());
            directory.claims_file.save(&mut directory.claims);
            let listening = namespaces.listening();
            (directory.listeners).retain(|socket, _| listening.contains(socket));
        }
    }

    /// Takes a response of the directory, if there is one, and adds to `sums` what waits no more. Sends the next request
    /// when it is time. Calls `name` with each connection that has a name now.
    pub(super) fn exchange(&mut self, sums: &mut Sums, name: impl FnMut(SocketId, &Arc<str>)) {
        let Some(directory) = &mut self.directory else {
            // What waited before a restart, with a directory then.
            self.settle_all(sums);
            return;
        };
        let answers = directory.receive();
        if !directory.is_supported() {
            self.settle_all(sums);
        } else if answers.is_some() || self.resolved_at.elapsed() >= RESOLVE_INTERVAL {
            self.resolve(answers.as_ref(), now_ms(), sums, name);
        }
        if let Some(directory) = &mut self.directory
            && directory.is_due()
        {
            directory.send(&self.waiting);
        }
    }

    /// Asks the directory once more, and adds all that waits to `sums`: the agent ends.
    pub(super) fn finish(&mut self, sums: &mut Sums) {
        if let Some(directory) = &mut self.directory
            && directory.is_supported()
            && self.waiting.len() > 0
        {
            let until = Instant::now() + LAST_EXCHANGE_MAX;
            let mut is_last_sent = false;
            while Instant::now() < until {
                let answers = directory.receive();
                if let (Some(answers), true) = (&answers, is_last_sent) {
                    // It will not be more complete.
                    self.resolve(Some(answers), u64::MAX, sums, |_, _| {});
                    break;
                }
                if is_last_sent && !directory.exchange.is_waiting() {
                    break;
                }
                if !directory.exchange.is_waiting() && !is_last_sent {
                    directory.send(&self.waiting);
                    is_last_sent = true;
                }
                std::thread::sleep(POLL_INTERVAL);
            }
        }
        self.settle_all(sums);
    }

    fn resolve(
        &mut self,
        answers: Option<&Answers>,
        now: u64,
        sums: &mut Sums,
        mut name: impl FnMut(SocketId, &Arc<str>),
    ) {
        self.resolved_at = Instant::now();
        let (names, unnamed_bytes) = (&self.names, &mut self.unnamed_bytes);
        self.waiting.resolve(answers, now, |waiter, waited, app| {
            if let (Waiter::Socket(socket), Some(app)) = (waiter, app) {
                name(*socket, app);
            }
            settle(names, unnamed_bytes, waited, app, sums);
        });
    }

    fn settle_all(&mut self, sums: &mut Sums) {
        let (names, unnamed_bytes) = (&self.names, &mut self.unnamed_bytes);
        self.waiting
            .settle_all(|_, waited| settle(names, unnamed_bytes, waited, None, sums));
    }
}

/// Adds bytes that wait no more to the sums.
fn settle(
    names: &Names,
    unnamed_bytes: &mut u64,
    waited: &Waited,
    app: Option<&Arc<str>>,
    sums: &mut Sums,
) {
    let (name, is_known) = match app {
        Some(app) => (app.clone(), true),
        None => names.of_any(waited.remote),
    };
    for (src_app, hour, bytes) in waited.bytes() {
        if !is_known {
            *unnamed_bytes += bytes.tx.saturating_add(bytes.rx);
        }
        sums.add(src_app, &name, hour, bytes);
    }
}

impl Directory {
    fn is_supported(&self) -> bool {
        self.unsupported_since.is_none()
    }

    fn is_private(&self, address: IpAddr) -> bool {
        address.is_loopback()
            || self
                .private_ranges
                .iter()
                .any(|range| range.contains(&address))
    }

    /// Removes claims of private addresses: their ranges may be others than before a restart.
    fn remove_private_claims(&mut self) {
        let claims = std::mem::take(&mut self.claims);
        self.claims = claims.without(|address| self.is_private(address));
    }

    fn is_due(&mut self) -> bool {
        if self.exchange.is_waiting() {
            return false;
        }
        let may_be_early =
            self.is_supported() && self.exchanged_at.elapsed() >= EXCHANGE_INTERVAL_MIN;
        Instant::now() >= self.exchange_at || may_be_early && self.claims.take_changed()
    }

    fn receive(&mut self) -> Option<Answers> {
        let exchanged = self.exchange.receive()?;
        let is_first = self.clock.offset(now_ms()).is_none();
        match &exchanged.response {
            Ok(response) => {
                self.unsupported_since = None;
                match &response.claims_refused {
                    None => self.error = None,
                    Some(why) => self.print_error("takes no claims of this host", why),
                }
                self.clock.add(&exchanged, response.now);
                if is_first {
                    // It could not claim or ask anything before it knew the service's clock.
                    self.exchange_at = Instant::now();
                }
                if !response.refused.is_empty() && !self.has_printed_refused {
                    self.has_printed_refused = true;
                    print_refused(response);
                }
                Some(self.answers(response))
            }
            Err(error) => {
                self.receive_error(error);
                None
            }
        }
    }

    fn receive_error(&mut self, error: &ClientError) {
        if let ClientError::Refused {
            status: 404 | 405 | 501,
            ..
        } = error
        {
            self.unsupported_since = Some(Instant::now());
            self.exchange_at = Instant::now() + UNSUPPORTED_PAUSE;
        }
        self.print_error(
            "does not answer, and other ends are named by --apps only",
            &error.to_string(),
        );
    }

    /// Prints an error, unless it is the same as before.
    fn print_error(&mut self, what: &str, why: &str) {
        if self.error.as_deref() != Some(why) {
            eprint_line(&format!(
                "flowtally: the directory of addresses {what}: {why}"
            ));
            self.error = Some(why.to_owned());
        }
    }

    fn answers(&mut self, response: &DirectoryResponse) -> Answers {
        let Some(offset) = self.clock.offset(now_ms()) else {
            return Answers::default();
        };
        let asked = std::mem::take(&mut self.asked);
        let complete_until = match response.complete_until {
            0 => 0,
            until => offset.to_own(until).saturating_sub(offset.error),
        };
        let mut answers = Answers::new(asked, complete_until);
        for named in &response.names {
            let span = Span {
                from: offset.to_own(named.from) + offset.error,
                to: offset.to_own(named.to).saturating_sub(offset.error),
            };
            answers.add(named.endpoint(), span, named.app.as_str().into());
        }
        answers
    }

    fn send(&mut self, waiting: &Waiting) {
        let mut request = DirectoryRequest {
            agent: self.agent.clone(),
            vpc_id: self.vpc_id.clone(),
            ..DirectoryRequest::default()
        };
        if let Some(offset) = self.clock.offset(now_ms()) {
            let complete_until = self.claims.complete_until();
            request.confirmed_until = complete_until.map_or(0, |until| {
                offset.to_service(until).saturating_sub(offset.error)
            });
            request.claims = self.request_claims(offset);
            self.asked = waiting.questions(QUESTIONS_MAX);
            request.questions = questions(&self.asked, offset);
        }
        self.exchange.send(request);
        let _included = self.claims.take_changed();
        self.exchanged_at = Instant::now();
        // Without all questions, the next ones follow soon.
        let interval = match self.asked.len() {
            QUESTIONS_MAX.. => EXCHANGE_INTERVAL_MIN,
            _ => self.interval,
        };
        self.exchange_at = Instant::now() + jittered(interval, 0.9);
    }

    /// Shortened at both ends by how far the clock may be wrong.
    fn request_claims(&self, offset: Offset) -> Vec<Claim> {
        let claims = self.claims.all().map(|claim| Claim {
            app: claim.app.to_string(),
            address: claim.endpoint.ip(),
            port: claim.endpoint.port(),
            from: offset.to_service(claim.from) + offset.error,
            to: offset.to_service(claim.to).saturating_sub(offset.error),
        });
        claims.filter(|claim| claim.from < claim.to).collect()
    }
}

fn questions(asked: &HashMap<SocketAddr, Span>, offset: Offset) -> Vec<Question> {
    let questions = asked.iter().map(|(endpoint, span)| Question {
        address: endpoint.ip(),
        port: endpoint.port(),
        from: offset.to_service(span.from).saturating_sub(offset.error),
        to: offset.to_service(span.to) + offset.error,
    });
    questions.collect()
}

fn print_refused(response: &DirectoryResponse) {
    let mut addresses = String::new();
    for address in response.refused.iter().take(5) {
        let _infallible = write!(addresses, " {address}");
    }
    let more = match response.refused.len() {
        0..=5 => "",
        _ => " and others",
    };
    eprint_line(&format!(
        "flowtally: the token does not permit this host to claim its addresses{addresses}{more}; \
         connections to them have no name of the directory"
    ));
}

/// Identifies an agent: the same for each start with this directory, until the system restarts.
fn agent_id(boot_id: &str, state_dir: &Path) -> String {
    // Several agents may run on one system, each with a directory of its own.
    let place = std::fs::metadata(state_dir).map_or((0, 0), |meta| (meta.dev(), meta.ino()));
    let place = [place.0.to_ne_bytes(), place.1.to_ne_bytes()].concat();
    format!("{boot_id}-{:016x}", xxh3_64(&place))
}
