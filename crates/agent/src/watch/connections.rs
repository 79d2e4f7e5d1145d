//! Outbound connections of one network namespace, and the bytes of each that were counted.
//!
//! A connection counts at the end that opened it. Its counters include the SYN and the FIN, which are not bytes.
//! While a socket lives, its state tells whether the peer's FIN has arrived. The message about its end has no state, so
//! there it is concluded from what is left: see [`has_received_fin`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flow::Counters;

use super::clock::{Span, now_ms};
use super::sock_diag::{SockDiag, State, TcpSocket};
use super::stopped::StoppedListeners;

/// How long a port on which nobody listens any more is remembered, for connections that were accepted there.
const LISTENER_KEPT: Duration = Duration::from_secs(600);
/// Sockets that are remembered although the kernel does not list them any more. A program may keep a connection open that
/// its peer has reset, and the message about its end, with all of its bytes, comes later.
const UNLISTED_MAX: usize = 200_000;

/// Which end of a connection a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Outbound,
    Inbound,
}

/// A socket that was seen.
#[derive(Debug)]
struct Connection {
    direction: Direction,
    /// The name of the application that owns it; `None` until it is known.
    app: Option<Arc<str>>,
    /// The name of the other end, if the directory has given it one.
    peer: Option<Arc<str>>,
    /// The bytes that were counted.
    counted: Counters,
    has_received_fin: bool,
    listed_at: Instant,
}

/// Bytes of a connection, with those that were not counted before.
#[derive(Clone, Debug)]
pub(super) struct NewBytes {
    pub(super) cookie: u64,
    /// The application that opened the connection; `None` if it is not known, as of a socket that was never seen alive.
    pub(super) app: Option<Arc<str>>,
    /// The name of the other end, if the directory has given it one.
    pub(super) peer: Option<Arc<str>>,
    /// The socket has ended, and was never seen alive.
    pub(super) is_unseen: bool,
    pub(super) remote: SocketAddr,
    /// When the other end was heard last.
    pub(super) heard: Span,
    pub(super) bytes: Counters,
    /// All bytes of the connection up to now.
    pub(super) total: Counters,
}

/// The connections of a namespace.
#[derive(Debug)]
pub(super) struct Connections {
    connections: HashMap<u64, Connection>,
    /// The ports on which a socket listens, or did, and when that was seen.
    listeners: HashMap<u16, Instant>,
    /// The sockets that listened at the last look, and when that was.
    listening: Vec<TcpSocket>,
    /// Those that have stopped since the last look.
    stopped: StoppedListeners,
    looked_at: Span,
    /// All messages about ends from before this time were read.
    ends_read_at: u64,
    ephemeral_ports: RangeInclusive<u16>,
}

impl Connections {
    /// `counted` are the bytes that were counted before this process started, by the socket's cookie.
    pub(super) fn new(counted: impl IntoIterator<Item = (u64, Counters)>) -> Connections {
        let now = Instant::now();
        let connection = |counted| Connection {
            counted,
            // Others are not counted.
            ..Connection::new(Direction::Outbound, now)
        };
        let counted = counted.into_iter();
        Connections {
            connections: counted
                .map(|(cookie, counted)| (cookie, connection(counted)))
                .collect(),
            listeners: HashMap::new(),
            listening: Vec::new(),
            stopped: StoppedListeners::default(),
            looked_at: Span::default(),
            ends_read_at: now_ms(),
            ephemeral_ports: ephemeral_ports(),
        }
    }

    /// Connections that are followed, at both ends.
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }

    /// The sockets that listened at the last look.
    pub(super) fn listening(&self) -> &[TcpSocket] {
        &self.listening
    }

    /// The sockets that may have stopped listening since the last call.
    pub(super) fn take_stopped(&mut self) -> StoppedListeners {
        std::mem::take(&mut self.stopped)
    }

    /// When the last look was.
    pub(super) fn looked_at(&self) -> Span {
        self.looked_at
    }

    /// Names the other end of a connection.
    pub(super) fn name_peer(&mut self, cookie: u64, peer: &Arc<str>) {
        if let Some(connection) = self.connections.get_mut(&cookie) {
            connection.peer = Some(peer.clone());
        }
    }

    /// The bytes of each connection that were counted.
    pub(super) fn counted(&self) -> impl Iterator<Item = (u64, Counters)> {
        let connections = self.connections.iter();
        connections
            .filter(|(_, connection)| connection.counted != Counters::default())
            .map(|(cookie, connection)| (*cookie, connection.counted))
    }

    /// Looks at all sockets. `app` finds the applications of sockets that have none yet; it gets all of these at once.
    /// Calls `count` for each connection with new bytes.
    pub(super) fn look(
        &mut self,
        kernel: &mut SockDiag,
        app: impl FnOnce(&[TcpSocket]) -> Vec<Option<Arc<str>>>,
        mut count: impl FnMut(NewBytes),
    ) -> io::Result<()> {
        let now = Instant::now();
        let mut sockets = Vec::new();
        let from = now_ms();
        self.listening.clear();
        kernel.dump(|socket| match socket.state {
            State::Listening => {
                self.listeners.insert(socket.local.port(), now);
                self.listening.push(socket);
            }
            State::Opening | State::Ended => {}
            State::Established | State::PeerHasFinished => sockets.push(socket),
        })?;
        let at = Span { from, to: now_ms() };
        self.looked_at = at;
        self.listeners
            .retain(|_, seen| now.duration_since(*seen) < LISTENER_KEPT);
        let mut unknown = Vec::new();
        for socket in &sockets {
            let direction = match self.connections.get(&socket.cookie) {
                Some(connection) => connection.direction,
                None => self.direction(socket),
            };
            let connection = self.connections.entry(socket.cookie);
            let connection = connection.or_insert_with(|| Connection::new(direction, now));
            connection.listed_at = now;
            connection.has_received_fin |= socket.state == State::PeerHasFinished;
            let is_held = socket.inode != 0;
            if direction == Direction::Outbound && connection.app.is_none() && is_held {
                unknown.push(socket.clone());
            }
        }
        for (socket, app) in unknown.iter().zip(app(&unknown)) {
            if let Some(connection) = self.connections.get_mut(&socket.cookie) {
                connection.app = app;
            }
        }
        for socket in &sockets {
            let Some(connection) = self.connections.get_mut(&socket.cookie) else {
                continue;
            };
            if connection.direction == Direction::Outbound
                && let Some(info) = &socket.info
            {
                let total = info.bytes(connection.has_received_fin);
                let new = connection.count(socket, total, at.before(info.heard_ago));
                if new.bytes != Counters::default() {
                    count(new);
                }
            }
        }
        self.forget_unlisted(now, sockets.len());
        Ok(())
    }

    /// Forgets the sockets that were not listed for longest, if there are too many.
    fn forget_unlisted(&mut self, now: Instant, listed: usize) {
        let unlisted = self.connections.len().saturating_sub(listed);
        if unlisted <= UNLISTED_MAX {
            return;
        }
        let connections = self.connections.values();
        let mut times: Vec<_> = connections.map(|connection| connection.listed_at).collect();
        let excess = unlisted - UNLISTED_MAX;
        let (_, last, _) = times.select_nth_unstable(excess);
        let last = *last;
        self.connections
            .retain(|_, connection| connection.listed_at > last || connection.listed_at == now);
    }

    /// Counts the last bytes of sockets that have ended: calls `count` for each that has carried bytes, new ones or not.
    /// Returns whether messages about others were lost.
    pub(super) fn end(
        &mut self,
        kernel: &mut SockDiag,
        mut count: impl FnMut(NewBytes),
    ) -> io::Result<bool> {
        let mut ended = Vec::new();
        let now = now_ms();
        let from = std::mem::replace(&mut self.ends_read_at, now);
        let have_lost = kernel.read_destroyed(|socket| ended.push(socket))?;
        let at = Span { from, to: now_ms() };
        if have_lost {
            self.stopped.lose(at.to);
        }
        for socket in ended {
            // Not connected: it may have listened.
            if socket.remote.port() == 0 {
                self.stopped.add(socket.local.port(), socket.cookie, at.to);
            }
            let Some(info) = socket.info else { continue };
            let known = self.connections.remove(&socket.cookie);
            let is_unseen = known.is_none();
            let mut connection =
                known.unwrap_or_else(|| Connection::new(self.direction(&socket), Instant::now()));
            if connection.direction == Direction::Inbound {
                continue;
            }
            let has_received_fin = connection.has_received_fin
                || info.received > 0 && has_received_fin(kernel, &socket)?;
            let heard = at.before(info.heard_ago);
            let mut new = connection.count(&socket, info.bytes(has_received_fin), heard);
            new.is_unseen = is_unseen;
            if new.total != Counters::default() {
                count(new);
            }
        }
        Ok(have_lost)
    }

    /// Which end a socket is that was not seen before: only the one that has opened the connection has sent a SYN. If
    /// that cannot be told from a FIN, the ports decide.
    fn direction(&self, socket: &TcpSocket) -> Direction {
        let info = socket.info.as_ref();
        match info.and_then(|info| info.not_bytes(socket.unacked)) {
            Some(0) => Direction::Inbound,
            Some(1) if !socket.may_have_finished => Direction::Outbound,
            Some(2) => Direction::Outbound,
            _ => {
                let port = socket.local.port();
                let is_chosen_by_system = self.ephemeral_ports.contains(&port);
                match self.listeners.contains_key(&port) || !is_chosen_by_system {
                    true => Direction::Inbound,
                    false => Direction::Outbound,
                }
            }
        }
    }
}

impl Connection {
    fn new(direction: Direction, now: Instant) -> Connection {
        Connection {
            direction,
            app: None,
            peer: None,
            counted: Counters::default(),
            has_received_fin: false,
            listed_at: now,
        }
    }

    /// Counts the bytes that are new. `total` has all bytes of the connection so far.
    fn count(&mut self, socket: &TcpSocket, total: Counters, heard: Span) -> NewBytes {
        let before = self.counted;
        self.counted = Counters {
            tx: before.tx.max(total.tx),
            rx: before.rx.max(total.rx),
        };
        NewBytes {
            cookie: socket.cookie,
            app: self.app.clone(),
            peer: self.peer.clone(),
            is_unseen: false,
            remote: socket.remote,
            heard,
            bytes: Counters {
                tx: self.counted.tx - before.tx,
                rx: self.counted.rx - before.rx,
            },
            total: self.counted,
        }
    }
}

/// Whether the bytes that a socket received include the FIN of its peer, when it has ended.
///
/// - The peer has not acknowledged a FIN of this end: the connection was reset. The peer had not finished before, as far
///   as is known.
/// - Something is unread: the FIN, since a socket with unread bytes is reset when it is closed.
/// - This end waits in `TIME_WAIT` or `FIN_WAIT2`: it was closed first, and the FIN arrives, or has arrived, there.
/// - Otherwise the program has read up to the FIN, and then closed this end.
fn has_received_fin(kernel: &mut SockDiag, socket: &TcpSocket) -> io::Result<bool> {
    let Some(info) = socket.info else {
        return Ok(false);
    };
    if info.unsent > 0 || info.not_bytes(0).is_some_and(|not_bytes| not_bytes < 2) {
        return Ok(false);
    }
    Ok(socket.unread > 0 || !kernel.has_finished_first(socket)?)
}

/// The local ports that the system chooses from for outbound connections.
fn ephemeral_ports() -> RangeInclusive<u16> {
    let range = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range");
    let range = range.unwrap_or_default();
    let mut ports = range.split_ascii_whitespace().map(str::parse::<u16>);
    match (ports.next(), ports.next()) {
        (Some(Ok(first)), Some(Ok(last))) => first..=last,
        _ => 32768..=60999,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tcp_info::TcpInfo;
    use super::*;

    fn socket(port: u16, acked: u64, may_have_finished: bool) -> TcpSocket {
        TcpSocket {
            cookie: 1,
            local: SocketAddr::from(([10, 0, 0, 1], port)),
            interface: 0,
            is_v6_only: false,
            remote: SocketAddr::from(([10, 0, 0, 2], 443)),
            state: State::Established,
            may_have_finished,
            user: 0,
            inode: 1,
            cgroup: None,
            unread: 0,
            unacked: 0,
            info: Some(TcpInfo {
                acked,
                received: 300,
                sent: Some(100),
                unsent: 0,
                heard_ago: 5,
            }),
        }
    }

    #[test]
    fn a_connection_counts_at_the_end_that_has_opened_it() {
        let mut connections = Connections::new([]);
        connections.ephemeral_ports = 32768..=60999;
        connections.listeners.insert(40000, Instant::now());
        for (socket, direction) in [
            // A SYN, and nothing else.
            (socket(50000, 101, false), Direction::Outbound),
            (socket(9000, 101, false), Direction::Outbound),
            (socket(50000, 100, false), Direction::Inbound),
            // A SYN and a FIN, of any port.
            (socket(40000, 102, true), Direction::Outbound),
            // One of them: as the port says.
            (socket(50000, 101, true), Direction::Outbound),
            (socket(40000, 101, true), Direction::Inbound),
            (socket(9000, 101, true), Direction::Inbound),
        ] {
            assert_eq!(connections.direction(&socket), direction, "{socket:?}");
        }
    }

    #[test]
    fn bytes_count_once() {
        let counted = Counters { tx: 40, rx: 100 };
        let mut connections = Connections::new([(1, counted)]);
        let socket = socket(50000, 101, false);
        let connection = connections.connections.get_mut(&1).unwrap();
        let total = Counters { tx: 100, rx: 300 };
        let heard = Span { from: 90, to: 95 };
        let new = connection.count(&socket, total, heard);
        assert_eq!(new.heard, heard);
        assert_eq!(new.bytes, Counters { tx: 60, rx: 200 });
        assert_eq!(new.total, total);
        assert_eq!(
            connection.count(&socket, total, heard).bytes,
            Counters::default()
        );
        assert_eq!(connections.counted().collect::<Vec<_>>(), [(1, total)]);
    }
}
