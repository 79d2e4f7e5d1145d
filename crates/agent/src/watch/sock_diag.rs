//! The kernel's interface for sockets (`man 7 sock_diag`): all TCP sockets of a network namespace, and a message for
//! each one that ends.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NlasIterator, Parseable as _};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{
    AF_INET, AF_INET6, INET_DIAG_INFO, INET_DIAG_SKV6ONLY, IPPROTO_TCP,
};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseBuffer, InetResponseHeader, SocketId, StateFlags,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::net::{RecvFlags, sockopt};

use super::netlink::{self, Content, READ_BYTES};
use super::tcp_info::TcpInfo;

/// `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY` of include/uapi/linux/sock_diag.h.
const DESTROY_GROUPS: [u32; 2] = [1, 3];
/// `INET_DIAG_CGROUP_ID` of include/uapi/linux/inet_diag.h.
const CGROUP_ID: u16 = 21;
/// Room for about 20,000 sockets that end before their messages are read.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;
/// The messages about sockets that end are read at once, and then together for so long: many at a time cost less.
const ENDS_INTERVAL: Duration = Duration::from_millis(50);
/// The same if the system grants less than [`RECEIVE_BUFFER_BYTES`]: its usual limit is room for about 300 messages.
const ENDS_INTERVAL_SMALL_BUFFER: Duration = Duration::from_millis(20);
/// Requests that are sent at once. Their answers have to fit into a socket's usual buffer of 208 KiB.
const REQUESTS_AT_ONCE: usize = 32;
const DONT_WAIT: i32 = RecvFlags::DONTWAIT.bits() as i32;
/// The states of sockets that matter here: those that listen, and those of connections that were answered and are not over.
const LISTED: StateFlags = StateFlags::LISTEN
    .union(StateFlags::ESTABLISHED)
    .union(StateFlags::FIN_WAIT1)
    .union(StateFlags::FIN_WAIT2)
    .union(StateFlags::CLOSE_WAIT)
    .union(StateFlags::LAST_ACK)
    .union(StateFlags::CLOSING);

/// The state of a TCP socket, as far as it matters here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Listening,
    /// Not answered yet: no bytes.
    Opening,
    Established,
    /// The peer's FIN has arrived.
    PeerHasFinished,
    /// Closed: nothing more will arrive at this socket.
    Ended,
}

impl State {
    /// From the numbers of include/net/tcp_states.h.
    fn from_number(number: u8) -> State {
        match number {
            // ESTABLISHED, FIN_WAIT1, FIN_WAIT2
            1 | 4 | 5 => State::Established,
            // SYN_SENT, SYN_RECV, NEW_SYN_RECV
            2 | 3 | 12 => State::Opening,
            // TIME_WAIT, CLOSE
            6 | 7 => State::Ended,
            10 => State::Listening,
            // CLOSE_WAIT, LAST_ACK, CLOSING
            _ => State::PeerHasFinished,
        }
    }
}

/// A TCP socket at one moment.
#[derive(Clone, Debug)]
pub(super) struct TcpSocket {
    /// Unique while the system runs.
    pub(super) cookie: u64,
    pub(super) local: SocketAddr,
    /// That the socket is bound to, or 0.
    pub(super) interface: u32,
    /// It listens, and takes no connections of IPv4.
    pub(super) is_v6_only: bool,
    pub(super) remote: SocketAddr,
    pub(super) state: State,
    /// This end has sent its FIN, or may have.
    pub(super) may_have_finished: bool,
    pub(super) user: u32,
    /// 0 if no process holds it.
    pub(super) inode: u32,
    /// From Linux 5.7 on, with version 2 of control groups.
    pub(super) cgroup: Option<u64>,
    /// Sequence numbers that the program has not read yet.
    pub(super) unread: u32,
    /// Sequence numbers that the peer has not acknowledged yet, sent or not.
    pub(super) unacked: u32,
    /// `None` for sockets that listen, and in `TIME_WAIT`.
    pub(super) info: Option<TcpInfo>,
}

impl TcpSocket {
    /// Parses a message in place: `struct inet_diag_msg`, and attributes.
    ///
    /// # Errors
    /// If it is of another kind, or cut.
    fn parse(payload: &[u8]) -> io::Result<TcpSocket> {
        let header = InetResponseHeader::parse(payload).map_err(netlink::invalid)?;
        let id = header.socket_id;
        let mut socket = TcpSocket {
            cookie: u64::from_ne_bytes(id.cookie),
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            interface: id.interface_id,
            is_v6_only: false,
            remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            state: State::from_number(header.state),
            // All but ESTABLISHED and CLOSE_WAIT.
            may_have_finished: !matches!(header.state, 1 | 8),
            user: header.uid,
            inode: header.inode,
            cgroup: None,
            unread: header.recv_queue,
            unacked: header.send_queue,
            info: None,
        };
        let attributes = payload.get(size_of::<InetResponseBuffer>()..);
        for attribute in NlasIterator::new(attributes.unwrap_or_default()) {
            let attribute = attribute.map_err(netlink::invalid)?;
            let value = attribute.value();
            match attribute.kind() {
                INET_DIAG_INFO => socket.info = TcpInfo::parse(value),
                INET_DIAG_SKV6ONLY => socket.is_v6_only = value == [1],
                CGROUP_ID => socket.cgroup = value.try_into().ok().map(u64::from_ne_bytes),
                _ => {}
            }
        }
        Ok(socket)
    }

    /// A request about the other socket at the same addresses and ports.
    fn request(&self) -> InetRequest {
        InetRequest {
            family: match self.local.ip() {
                IpAddr::V4(_) => AF_INET,
                IpAddr::V6(_) => AF_INET6,
            },
            protocol: IPPROTO_TCP,
            extensions: ExtensionFlags::empty(),
            states: StateFlags::all(),
            socket_id: SocketId {
                source_port: self.local.port(),
                destination_port: self.remote.port(),
                source_address: self.local.ip(),
                destination_address: self.remote.ip(),
                interface_id: self.interface,
                // The socket that waits has a cookie of its own.
                cookie: [0xff; 8],
            },
        }
    }
}

/// Connections to the kernel in one network namespace: that of the thread that opened them.
#[derive(Debug)]
pub(super) struct SockDiag {
    requests: Socket,
    /// The number of the last request.
    sequence: u32,
    destroyed: Socket,
    ends_interval: Duration,
    buffer: Vec<u8>,
}

impl SockDiag {
    /// # Errors
    /// If the kernel has no `sock_diag`, or refuses it to this process.
    pub(super) fn open() -> io::Result<SockDiag> {
        let mut destroyed = Socket::new(NETLINK_SOCK_DIAG)?;
        destroyed.bind_auto()?;
        destroyed.set_non_blocking(true)?;
        // Beyond the limit of net.core.rmem_max with CAP_NET_ADMIN.
        let forced =
            sockopt::set_socket_recv_buffer_size_force(destroyed.as_fd(), RECEIVE_BUFFER_BYTES);
        if forced.is_err() {
            sockopt::set_socket_recv_buffer_size(destroyed.as_fd(), RECEIVE_BUFFER_BYTES)?;
        }
        let granted = sockopt::socket_recv_buffer_size(destroyed.as_fd())?;
        for group in DESTROY_GROUPS {
            destroyed.add_membership(group)?;
        }
        let mut requests = Socket::new(NETLINK_SOCK_DIAG)?;
        requests.bind_auto()?;
        Ok(SockDiag {
            requests,
            sequence: 0,
            destroyed,
            ends_interval: match granted >= RECEIVE_BUFFER_BYTES {
                true => ENDS_INTERVAL,
                false => ENDS_INTERVAL_SMALL_BUFFER,
            },
            buffer: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Becomes readable when sockets have ended.
    pub(super) fn destroyed_fd(&self) -> BorrowedFd<'_> {
        self.destroyed.as_fd()
    }

    /// How long the messages about sockets that have ended may wait until they are read.
    pub(super) fn ends_interval(&self) -> Duration {
        self.ends_interval
    }

    /// Calls `each` with all TCP sockets that listen, or whose connection was answered and is not over.
    pub(super) fn dump(&mut self, mut each: impl FnMut(TcpSocket)) -> io::Result<()> {
        for family in [AF_INET, AF_INET6] {
            let mut request = Vec::new();
            let all = InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::INFO,
                states: LISTED,
                socket_id: match family {
                    AF_INET => SocketId::new_v4(),
                    _ => SocketId::new_v6(),
                },
            };
            let sequence = self.push(&mut request, all, NLM_F_REQUEST | NLM_F_DUMP);
            self.requests.send(&request, 0)?;
            while self.read_dump(sequence, &mut each)? {}
        }
        Ok(())
    }

    /// Reads once. Returns whether more of the dump follows.
    fn read_dump(&mut self, sequence: u32, each: &mut impl FnMut(TcpSocket)) -> io::Result<bool> {
        netlink::receive(&self.requests, &mut self.buffer, 0)?;
        for message in netlink::messages(&self.buffer) {
            let message = message?;
            match message.content {
                // It answers a request before, which was given up.
                _ if message.sequence != sequence => {}
                Content::Payload(payload) => each(TcpSocket::parse(payload)?),
                Content::Done => return Ok(false),
                Content::Failed(error) => return Err(error),
                Content::Nothing => {}
            }
        }
        Ok(true)
    }

    /// Of each of these sockets, whose connections are over: whether this end waits in `TIME_WAIT` or `FIN_WAIT2`. Then it
    /// has sent the first FIN.
    pub(super) fn have_finished_first(&mut self, sockets: &[&TcpSocket]) -> io::Result<Vec<bool>> {
        let mut have = Vec::with_capacity(sockets.len());
        for some in sockets.chunks(REQUESTS_AT_ONCE) {
            for (socket, answer) in some.iter().zip(self.ask(some)?) {
                let answer = match answer {
                    // There was no room for the answer. There is for one.
                    None => self.ask(&[*socket])?.pop().flatten(),
                    answer => answer,
                };
                have.push(answer.ok_or(ErrorKind::TimedOut)?);
            }
        }
        Ok(have)
    }

    /// Asks the same about a few sockets at once. `None` where no answer has come.
    fn ask(&mut self, sockets: &[&TcpSocket]) -> io::Result<Vec<Option<bool>>> {
        let first = self.sequence.wrapping_add(1);
        let mut requests = Vec::new();
        for socket in sockets {
            self.push(&mut requests, socket.request(), NLM_F_REQUEST);
        }
        // The kernel has answered all of them when this returns.
        self.requests.send(&requests, 0)?;
        let mut answers = vec![None; sockets.len()];
        while answers.contains(&None) {
            match netlink::receive(&self.requests, &mut self.buffer, DONT_WAIT) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if netlink::is_overrun(&error) => continue,
                Err(error) => return Err(error),
            }
            for message in netlink::messages(&self.buffer) {
                let message = message?;
                let index = message.sequence.wrapping_sub(first) as usize;
                let Some(answer) = answers.get_mut(index) else {
                    continue;
                };
                match message.content {
                    Content::Payload(payload) => {
                        *answer = Some(TcpSocket::parse(payload)?.inode == 0);
                    }
                    Content::Failed(error) if error.kind() == ErrorKind::NotFound => {
                        *answer = Some(false);
                    }
                    Content::Failed(error) => return Err(error),
                    Content::Done | Content::Nothing => {}
                }
            }
        }
        Ok(answers)
    }

    /// Calls `each` with the sockets that have ended. Returns whether messages about others were lost, because
    /// they were not read in time.
    pub(super) fn read_destroyed(&mut self, mut each: impl FnMut(TcpSocket)) -> io::Result<bool> {
        let mut have_lost = false;
        loop {
            match netlink::receive(&self.destroyed, &mut self.buffer, 0) {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(have_lost),
                Err(error) if netlink::is_overrun(&error) => {
                    have_lost = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            for message in netlink::messages(&self.buffer) {
                match message?.content {
                    Content::Payload(payload) => each(TcpSocket::parse(payload)?),
                    Content::Failed(error) => return Err(error),
                    Content::Done | Content::Nothing => {}
                }
            }
        }
    }

    /// Appends a request. Returns its number.
    fn push(&mut self, requests: &mut Vec<u8>, request: InetRequest, flags: u16) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        let request = SockDiagMessage::InetRequest(request);
        netlink::push(requests, request, flags, self.sequence);
        self.sequence
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::Read as _;
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use netlink_packet_core::{DefaultNla, Emitable as _};
    use netlink_packet_sock_diag::inet::InetResponse;
    use netlink_packet_sock_diag::inet::nlas::Nla;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(60);

    #[test]
    fn a_message_is_parsed_in_place() {
        let mut tcp_info = vec![0; 240];
        // `tcpi_bytes_received`
        tcp_info[128..136].copy_from_slice(&300_u64.to_ne_bytes());
        let response = InetResponse {
            header: InetResponseHeader {
                family: AF_INET6,
                state: 8,
                timer: None,
                socket_id: SocketId {
                    source_port: 40_000,
                    destination_port: 443,
                    source_address: "::ffff:10.0.0.1".parse().unwrap(),
                    destination_address: "fd00::7".parse().unwrap(),
                    interface_id: 3,
                    cookie: 77_u64.to_ne_bytes(),
                },
                recv_queue: 5,
                send_queue: 6,
                uid: 33,
                inode: 1234,
            },
            nlas: [
                Nla::Shutdown(1),
                Nla::TcpInfo(tcp_info),
                Nla::SkV6Only(true),
                Nla::Other(DefaultNla::new(CGROUP_ID, 9_u64.to_ne_bytes().to_vec())),
            ]
            .into_iter()
            .collect(),
        };
        let mut bytes = vec![0; response.buffer_len()];
        response.emit(&mut bytes);
        let socket = TcpSocket::parse(&bytes).unwrap();
        assert_eq!(socket.cookie, 77);
        assert_eq!(socket.local, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(socket.remote, "[fd00::7]:443".parse().unwrap());
        assert_eq!(socket.state, State::PeerHasFinished);
        assert!(!socket.may_have_finished);
        assert_eq!((socket.unread, socket.unacked), (5, 6));
        assert_eq!((socket.user, socket.inode), (33, 1234));
        assert_eq!((socket.interface, socket.cgroup), (3, Some(9)));
        assert_eq!(socket.info.unwrap().received, 300);
        assert!(socket.is_v6_only);
        // Cut anywhere, it is an error or lacks attributes, and never panics.
        for length in 0..bytes.len() {
            match TcpSocket::parse(&bytes[..length]) {
                Ok(socket) => assert!(length >= 72 && socket.cgroup.is_none(), "{length}"),
                Err(error) => assert_eq!(error.kind(), ErrorKind::InvalidData, "{length}"),
            }
        }
    }

    /// Some are closed at this end first, the others at that end.
    #[test]
    fn the_kernel_tells_which_end_has_finished_first() {
        let Ok(mut kernel) = SockDiag::open() else {
            println!("watch: NOT TESTED, the kernel does not tell about sockets");
            return;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let pair = |_| {
            let near = TcpStream::connect(address).unwrap();
            (near, listener.accept().unwrap().0)
        };
        let pairs: Vec<_> = (0..2 * REQUESTS_AT_ONCE + 5).map(pair).collect();
        let (mut listening, mut connected) = (0, 0);
        let count = |socket: TcpSocket| {
            listening += usize::from(socket.local == address && socket.state == State::Listening);
            connected += usize::from(socket.remote == address && socket.info.is_some());
        };
        kernel.dump(count).unwrap();
        assert_eq!((listening, connected), (1, pairs.len()));

        let count = pairs.len();
        let mut near_first = HashSet::new();
        for (number, (near, far)) in pairs.into_iter().enumerate() {
            let (first, mut second) = match number % 3 {
                0 => {
                    near_first.insert(near.local_addr().unwrap());
                    (near, far)
                }
                _ => (far, near),
            };
            drop(first);
            assert_eq!(second.read(&mut [0]).unwrap(), 0);
        }
        let mut ended: Vec<TcpSocket> = Vec::new();
        let began = Instant::now();
        while ended.len() < count {
            assert!(began.elapsed() < DEADLINE, "{} ends", ended.len());
            let add = |socket: TcpSocket| {
                if socket.remote == address {
                    ended.push(socket);
                }
            };
            kernel.read_destroyed(add).unwrap();
            std::thread::sleep(Duration::from_millis(10));
        }
        let sockets: Vec<&TcpSocket> = ended.iter().collect();
        let first = kernel.have_finished_first(&sockets).unwrap();
        for (socket, is_first) in ended.iter().zip(first) {
            assert_eq!(is_first, near_first.contains(&socket.local), "{socket:?}");
        }
    }
}
