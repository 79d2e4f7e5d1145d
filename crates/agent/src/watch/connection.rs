//! A connection that was seen, and the bytes of it that were counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use flow::Counters;

use super::clock::{Span, now_ms};
use super::sock_diag::{State, TcpSocket};
use super::tcp_info::TcpInfo;

/// A packet that has arrived so recently may have come during a look: two ticks of a kernel with 100 of them a second.
const JUST_HEARD_MS: u64 = 20;

/// Which end of a connection a socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    Outbound,
    Inbound,
}

/// A socket that was seen.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) direction: Direction,
    /// The name of the application that owns it; `None` until it is known.
    pub(super) app: Option<Arc<str>>,
    /// The name of the other end, if the directory has given it one.
    pub(super) peer: Option<Arc<str>>,
    /// The bytes that were counted.
    pub(super) counted: Counters,
    pub(super) has_received_fin: bool,
    /// The last look left a byte out, since it may be a FIN.
    pub(super) leaves_byte: bool,
    pub(super) listed_at: Instant,
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

impl Connection {
    pub(super) fn new(direction: Direction, now: Instant) -> Connection {
        Connection {
            direction,
            app: None,
            peer: None,
            counted: Counters::default(),
            has_received_fin: false,
            leaves_byte: false,
            listed_at: now,
        }
    }

    /// Whether its application is to be looked for: a process holds the socket.
    pub(super) fn lacks_app(&self, socket: &TcpSocket) -> bool {
        self.direction == Direction::Outbound && self.app.is_none() && socket.inode != 0
    }

    /// Takes in what the kernel lists.
    pub(super) fn list(&mut self, socket: &TcpSocket, now: Instant) {
        self.listed_at = now;
        self.has_received_fin |= socket.state == State::PeerHasFinished;
    }

    /// Counts the bytes that are new, if there are any. `from`: when the look began.
    pub(super) fn count_listed(
        &mut self,
        socket: &TcpSocket,
        info: &TcpInfo,
        from: u64,
    ) -> Option<NewBytes> {
        if self.direction == Direction::Inbound {
            return None;
        }
        // The kernel reads the counters a moment after the state: a FIN may have arrived in between. A later look counts that byte,
        // or the end.
        let may_be_fin = !self.has_received_fin && info.heard_ago <= JUST_HEARD_MS;
        self.leaves_byte = may_be_fin && info.received > 0;
        let total = info.bytes(self.has_received_fin || may_be_fin);
        if total.tx <= self.counted.tx && total.rx <= self.counted.rx {
            return None;
        }
        let at = Span { from, to: now_ms() };
        Some(self.count(socket, total, at.before(info.heard_ago)))
    }

    /// Counts the byte that the last look left out, if it did, without a report.
    pub(super) fn skip_left_byte(&mut self) {
        self.counted.rx += u64::from(std::mem::take(&mut self.leaves_byte));
    }

    /// Whether the bytes that a socket received include the FIN of its peer, when it has ended.
    ///
    /// - The peer has not acknowledged a FIN of this end: the connection was reset. The peer had not finished before, as far
    ///   as is known.
    /// - Something is unread: the FIN, since a socket with unread bytes is reset when it is closed.
    /// - This end waits in `TIME_WAIT` or `FIN_WAIT2`: it was closed first, and the FIN arrives, or has arrived, there.
    /// - Otherwise the program has read up to the FIN, and then closed this end.
    ///
    /// `None`: one of the last two, which the kernel has to be asked.
    pub(super) fn has_received_fin(&self, socket: &TcpSocket, info: &TcpInfo) -> Option<bool> {
        if self.has_received_fin {
            return Some(true);
        }
        let was_reset = info.unsent > 0 || info.not_bytes(0).is_some_and(|not_bytes| not_bytes < 2);
        if info.received == 0 || was_reset {
            return Some(false);
        }
        (socket.unread > 0).then_some(true)
    }

    /// Counts the bytes that are new. `total` has all bytes of the connection so far.
    pub(super) fn count(&mut self, socket: &TcpSocket, total: Counters, heard: Span) -> NewBytes {
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

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A socket of a connection that has sent 100 bytes and received 300, FINs included.
    pub(in super::super) fn socket(port: u16, acked: u64, may_have_finished: bool) -> TcpSocket {
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
    fn bytes_count_once() {
        let counted = Counters { tx: 40, rx: 100 };
        let mut connection = Connection {
            counted,
            ..Connection::new(Direction::Outbound, Instant::now())
        };
        let socket = socket(50000, 101, false);
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
        assert_eq!(connection.counted, total);
    }

    /// Its state is from before it arrived.
    #[test]
    fn a_fin_that_arrives_during_a_look_is_no_byte() {
        let mut connection = Connection::new(Direction::Outbound, Instant::now());
        let mut socket = socket(50000, 101, false);
        let mut received = |connection: &mut Connection, heard_ago| {
            let info = socket.info.as_mut().unwrap();
            info.heard_ago = heard_ago;
            let info = *info;
            connection.list(&socket, Instant::now());
            let new = connection.count_listed(&socket, &info, 90);
            new.map(|new| new.total.rx)
        };
        assert_eq!(received(&mut connection, 0), Some(299));
        assert_eq!(received(&mut connection, JUST_HEARD_MS), None);
        assert_eq!(received(&mut connection, JUST_HEARD_MS + 1), Some(300));
        connection.skip_left_byte();
        assert_eq!(connection.counted.rx, 300);

        // At the first start, all bytes so far are left out.
        let mut connection = Connection::new(Direction::Outbound, Instant::now());
        assert_eq!(received(&mut connection, 0), Some(299));
        connection.skip_left_byte();
        assert_eq!(received(&mut connection, JUST_HEARD_MS + 1), None);
    }

    #[test]
    fn a_fin_of_the_peer_is_no_byte() {
        let connection = Connection::new(Direction::Outbound, Instant::now());
        let both_fins = socket(50000, 102, true);
        let has_received_fin = |connection: &Connection, socket: &TcpSocket| {
            connection.has_received_fin(socket, &socket.info.unwrap())
        };
        // Either the program has read up to it, or this end was closed first.
        assert_eq!(has_received_fin(&connection, &both_fins), None);
        let unread = TcpSocket {
            unread: 1,
            ..both_fins.clone()
        };
        assert_eq!(has_received_fin(&connection, &unread), Some(true));
        // Without a FIN of this end, it was reset.
        let reset = socket(50000, 101, true);
        assert_eq!(has_received_fin(&connection, &reset), Some(false));
        let mut silent = both_fins.clone();
        silent.info.as_mut().unwrap().received = 0;
        assert_eq!(has_received_fin(&connection, &silent), Some(false));
        // It was seen.
        let mut seen = Connection::new(Direction::Outbound, Instant::now());
        let closing = TcpSocket {
            state: State::PeerHasFinished,
            ..both_fins
        };
        seen.list(&closing, Instant::now());
        assert_eq!(has_received_fin(&seen, &reset), Some(true));
    }
}
