//! Outbound connections of one network namespace, and the bytes of each that were counted.
//!
//! A connection counts at the end that opened it. Its counters include the SYN and the FIN, which are not bytes.
//! While a socket lives, its state tells whether the peer's FIN has arrived. The message about its end has no state, so
//! there it is concluded from what is left: see [`Connection::has_received_fin`].

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flow::Counters;

use super::clock::{Span, now_ms};
use super::connection::{Connection, Direction};
use super::own::Verdict;
use super::sock_diag::{SockDiag, State, TcpSocket};
use super::stopped::StoppedListeners;
use super::tcp_info::TcpInfo;

pub(super) use super::connection::NewBytes;

/// How long a port on which nobody listens any more is remembered, for connections that were accepted there.
const LISTENER_KEPT: Duration = Duration::from_secs(600);
/// Sockets that are remembered although the kernel does not list them any more. A program may keep a connection open that
/// its peer has reset, and the message about its end, with all of its bytes, comes later.
const UNLISTED_MAX: usize = 200_000;

/// A connection whose socket has ended.
#[derive(Debug)]
struct Ended {
    socket: TcpSocket,
    info: TcpInfo,
    connection: Connection,
    is_unseen: bool,
    /// `None`: the kernel has to be asked.
    has_received_fin: Option<bool>,
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

    /// All bytes up to the last look are counted, without a report.
    pub(super) fn skip_left_bytes(&mut self) {
        self.connections
            .values_mut()
            .for_each(Connection::skip_left_byte);
    }

    /// The bytes of each connection that were counted.
    pub(super) fn counted(&self) -> impl Iterator<Item = (u64, Counters)> {
        let connections = self.connections.iter();
        connections
            .filter(|(_, connection)| connection.counted != Counters::default())
            .map(|(cookie, connection)| (*cookie, connection.counted))
    }

    /// Looks at all sockets. `app` finds the applications of sockets that have none yet; it gets all of these at once.
    /// Calls `count` for each connection with new bytes. What needs a process that was not looked for yet is counted with a
    /// later look: the kernel's counters go on.
    pub(super) fn look(
        &mut self,
        kernel: &mut SockDiag,
        app: impl FnOnce(&[TcpSocket]) -> Vec<Verdict>,
        mut count: impl FnMut(NewBytes),
    ) -> io::Result<()> {
        let now = Instant::now();
        let from = now_ms();
        // Those that need more than what is known already: few, unless the agent has just started.
        let mut unknown = Vec::new();
        let mut listed = 0;
        self.listening.clear();
        kernel.dump(|socket| {
            if socket.state == State::Listening {
                self.listeners.insert(socket.local.port(), now);
                self.listening.push(socket);
                return;
            }
            // In `FIN_WAIT2`, the kernel also lists what is left of a socket that has ended.
            let Some(info) = socket.info else { return };
            listed += 1;
            match self.connections.get_mut(&socket.cookie) {
                Some(connection) if !connection.lacks_app(&socket) => {
                    connection.list(&socket, now);
                    if let Some(new) = connection.count_listed(&socket, &info, from) {
                        count(new);
                    }
                }
                _ => unknown.push((socket, info)),
            }
        })?;
        let to = now_ms();
        self.looked_at = Span { from, to };
        self.listeners
            .retain(|_, seen| now.duration_since(*seen) < LISTENER_KEPT);
        let mut without_app = Vec::new();
        for (socket, _) in &unknown {
            let direction = match self.connections.get(&socket.cookie) {
                Some(connection) => connection.direction,
                None => self.direction(socket),
            };
            let connection = self.connections.entry(socket.cookie);
            let connection = connection.or_insert_with(|| Connection::new(direction, now));
            connection.list(socket, now);
            if connection.lacks_app(socket) {
                without_app.push(socket.clone());
            }
        }
        let mut postponed = HashSet::new();
        for (socket, verdict) in without_app.iter().zip(app(&without_app)) {
            if verdict == Verdict::NeedsProcess {
                postponed.insert(socket.cookie);
            } else if let Some(connection) = self.connections.get_mut(&socket.cookie) {
                connection.app = verdict.into_name();
            }
        }
        for (socket, info) in &unknown {
            if !postponed.contains(&socket.cookie)
                && let Some(connection) = self.connections.get_mut(&socket.cookie)
                && let Some(new) = connection.count_listed(socket, info, from)
            {
                count(new);
            }
        }
        self.forget_unlisted(now, listed);
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
    /// Leaves out connections to loopback addresses unless they are to be counted, `with_loopback`. Returns whether messages
    /// about others were lost.
    pub(super) fn end(
        &mut self,
        kernel: &mut SockDiag,
        with_loopback: bool,
        mut count: impl FnMut(NewBytes),
    ) -> io::Result<bool> {
        let mut sockets = Vec::new();
        let now = Instant::now();
        let from = std::mem::replace(&mut self.ends_read_at, now_ms());
        let have_lost = kernel.read_destroyed(|socket| sockets.push(socket))?;
        let at = Span { from, to: now_ms() };
        if have_lost {
            self.stopped.lose(at.to);
        }
        let mut ended = Vec::new();
        for socket in sockets {
            // Not connected: it may have listened.
            if socket.remote.port() == 0 {
                self.stopped.add(socket.local.port(), socket.cookie, at.to);
            }
            let Some(info) = socket.info else { continue };
            let known = self.connections.remove(&socket.cookie);
            let is_unseen = known.is_none();
            let connection = known.unwrap_or_else(|| Connection::new(self.direction(&socket), now));
            if connection.direction == Direction::Outbound
                && (with_loopback || !socket.remote.ip().is_loopback())
            {
                ended.push(Ended {
                    has_received_fin: connection.has_received_fin(&socket, &info),
                    socket,
                    info,
                    connection,
                    is_unseen,
                });
            }
        }
        let unclear = ended.iter().filter(|end| end.has_received_fin.is_none());
        let unclear: Vec<&TcpSocket> = unclear.map(|end| &end.socket).collect();
        let mut have_finished_first = kernel.have_finished_first(&unclear)?.into_iter();
        for mut end in ended {
            let has_received_fin = end
                .has_received_fin
                .or_else(|| have_finished_first.next().map(|is_first| !is_first));
            let total = end.info.bytes(has_received_fin.unwrap_or_default());
            let heard = at.before(end.info.heard_ago);
            let mut new = end.connection.count(&end.socket, total, heard);
            new.is_unseen = end.is_unseen;
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
    use std::io::{Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};

    use super::super::connection::tests::socket;
    use super::*;

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

    /// Its bytes are counted with a later look, each once.
    #[test]
    fn what_waits_for_its_process_is_not_counted_yet() {
        let Ok(mut kernel) = SockDiag::open() else {
            println!("watch: NOT TESTED, the kernel does not tell about sockets");
            return;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut near = TcpStream::connect(address).unwrap();
        let (mut far, _) = listener.accept().unwrap();
        near.write_all(b"12345").unwrap();
        far.read_exact(&mut [0; 5]).unwrap();
        // It acknowledges them.
        far.write_all(b"1").unwrap();
        near.read_exact(&mut [0]).unwrap();
        let mut connections = Connections::new([]);
        let mut look = |verdict: Verdict| {
            let mut counted = Vec::new();
            let app = |sockets: &[TcpSocket]| vec![verdict; sockets.len()];
            let count = |new: NewBytes| {
                if new.remote == address {
                    counted.push((new.app, new.bytes.tx, new.bytes.rx));
                }
            };
            connections.look(&mut kernel, app, count).unwrap();
            counted
        };
        let app: Arc<str> = "a".into();
        assert_eq!(look(Verdict::NeedsProcess), []);
        let (mut sums, began) = ((0, 0), Instant::now());
        // The byte that has just arrived may be a FIN for some milliseconds.
        while sums != (5, 1) {
            for (name, tx, rx) in look(Verdict::Name(app.clone())) {
                assert_eq!(name.as_ref(), Some(&app));
                sums = (sums.0 + tx, sums.1 + rx);
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{sums:?}");
        }
        assert_eq!(look(Verdict::NoRule), []);
        assert!(connections.listening().iter().any(|of| of.local == address));

        let mut end = || {
            let mut ended = Vec::new();
            let count = |new: NewBytes| {
                if new.remote == address {
                    ended.push(new.total);
                }
            };
            connections.end(&mut kernel, true, count).unwrap();
            ended
        };
        drop(far);
        assert_eq!(near.read(&mut [0]).unwrap(), 0);
        drop(near);
        let began = Instant::now();
        let ended = loop {
            let ended = end();
            if !ended.is_empty() {
                break ended;
            }
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::sleep(Duration::from_millis(10));
        };
        assert_eq!(ended, [Counters { tx: 5, rx: 1 }]);
    }
}
