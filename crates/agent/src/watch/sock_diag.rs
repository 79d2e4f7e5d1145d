//! The kernel's interface for sockets (`man 7 sock_diag`): all TCP sockets of a network namespace, and a message for
//! each one that ends.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{DefaultNla, NLM_F_DUMP, NLM_F_REQUEST, Nla as _};
use netlink_packet_sock_diag::SockDiagMessage;
use netlink_packet_sock_diag::constants::{AF_INET, AF_INET6, IPPROTO_TCP};
use netlink_packet_sock_diag::inet::nlas::Nla;
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::net::sockopt;

use super::netlink::{self, READ_BYTES};
use super::tcp_info::TcpInfo;

/// `SKNLGRP_INET_TCP_DESTROY` and `SKNLGRP_INET6_TCP_DESTROY` of include/uapi/linux/sock_diag.h.
const DESTROY_GROUPS: [u32; 2] = [1, 3];
/// `INET_DIAG_CGROUP_ID` of include/uapi/linux/inet_diag.h.
const CGROUP_ID: u16 = 21;
/// Room for about 20,000 sockets that end before their messages are read.
const RECEIVE_BUFFER_BYTES: usize = 16 << 20;

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

impl From<InetResponse> for TcpSocket {
    fn from(response: InetResponse) -> TcpSocket {
        let header = response.header;
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
        for attribute in &response.nlas {
            match attribute {
                Nla::TcpInfo(bytes) => socket.info = TcpInfo::parse(bytes),
                Nla::SkV6Only(is_only) => socket.is_v6_only = *is_only,
                Nla::Other(other) if other.kind() == CGROUP_ID => socket.cgroup = number(other),
                _ => {}
            }
        }
        socket
    }
}

fn number(attribute: &DefaultNla) -> Option<u64> {
    let mut bytes = vec![0; attribute.value_len()];
    attribute.emit_value(&mut bytes);
    bytes.try_into().ok().map(u64::from_ne_bytes)
}

/// Connections to the kernel in one network namespace: that of the thread that opened them.
#[derive(Debug)]
pub(super) struct SockDiag {
    requests: Socket,
    destroyed: Socket,
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
        for group in DESTROY_GROUPS {
            destroyed.add_membership(group)?;
        }
        let mut requests = Socket::new(NETLINK_SOCK_DIAG)?;
        requests.bind_auto()?;
        Ok(SockDiag {
            requests,
            destroyed,
            buffer: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Becomes readable when sockets have ended.
    pub(super) fn destroyed_fd(&self) -> BorrowedFd<'_> {
        self.destroyed.as_fd()
    }

    /// Calls `each` with all TCP sockets but those in `TIME_WAIT`.
    pub(super) fn dump(&mut self, mut each: impl FnMut(TcpSocket)) -> io::Result<()> {
        for family in [AF_INET, AF_INET6] {
            let id = match family {
                AF_INET => SocketId::new_v4(),
                _ => SocketId::new_v6(),
            };
            let states = StateFlags::all() - StateFlags::TIME_WAIT;
            self.request(
                InetRequest {
                    family,
                    protocol: IPPROTO_TCP,
                    extensions: ExtensionFlags::INFO,
                    states,
                    socket_id: id,
                },
                NLM_F_REQUEST | NLM_F_DUMP,
            )?;
            while read(&self.requests, &mut self.buffer, &mut each)? {}
        }
        Ok(())
    }

    /// Whether this end of a connection that is over waits in `TIME_WAIT` or `FIN_WAIT2`: it has sent the first FIN.
    pub(super) fn has_finished_first(&mut self, socket: &TcpSocket) -> io::Result<bool> {
        let family = match socket.local.ip() {
            IpAddr::V4(_) => AF_INET,
            IpAddr::V6(_) => AF_INET6,
        };
        let id = SocketId {
            source_port: socket.local.port(),
            destination_port: socket.remote.port(),
            source_address: socket.local.ip(),
            destination_address: socket.remote.ip(),
            interface_id: socket.interface,
            // The socket that waits has a cookie of its own.
            cookie: [0xff; 8],
        };
        self.request(
            InetRequest {
                family,
                protocol: IPPROTO_TCP,
                extensions: ExtensionFlags::empty(),
                states: StateFlags::all(),
                socket_id: id,
            },
            NLM_F_REQUEST,
        )?;
        let mut is_found = false;
        match read(&self.requests, &mut self.buffer, |found| {
            is_found |= found.inode == 0
        }) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
            result => result.map(|_| is_found),
        }
    }

    /// Calls `each` with the sockets that have ended. Returns whether messages about others were lost, because
    /// they were not read in time.
    pub(super) fn read_destroyed(&mut self, mut each: impl FnMut(TcpSocket)) -> io::Result<bool> {
        let mut have_lost = false;
        loop {
            match read(&self.destroyed, &mut self.buffer, &mut each) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(have_lost),
                Err(error) if netlink::is_overrun(&error) => have_lost = true,
                Err(error) => return Err(error),
            }
        }
    }

    fn request(&mut self, request: InetRequest, flags: u16) -> io::Result<()> {
        netlink::send(&self.requests, SockDiagMessage::InetRequest(request), flags)
    }
}

/// Reads once, and calls `each` with the sockets. Returns whether more of a dump follows.
fn read(
    socket: &Socket,
    buffer: &mut Vec<u8>,
    mut each: impl FnMut(TcpSocket),
) -> io::Result<bool> {
    netlink::read(socket, buffer, |message| {
        if let SockDiagMessage::InetResponse(response) = message {
            each(TcpSocket::from(*response));
        }
    })
}
