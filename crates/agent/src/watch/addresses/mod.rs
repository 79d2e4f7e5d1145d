//! The addresses of a network namespace (`man 7 rtnetlink`), and since when it has each.

mod held;

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use self::held::{Changes, HeldAddresses, Stamp};
use super::clock::now_ms;
use super::netlink::{self, READ_BYTES};
use crate::command::eprint_line;

pub(super) use self::held::{Held, Lost};

/// `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR` of include/uapi/linux/rtnetlink.h.
const GROUPS: [u32; 2] = [5, 9];

/// The addresses by which other hosts reach this namespace.
#[derive(Debug)]
pub(super) struct Addresses {
    kernel: Kernel,
    held: HeldAddresses,
    /// Times that messages about changes were lost since [`Addresses::take_overruns`].
    overruns: u64,
}

/// Connections to the kernel.
#[derive(Debug)]
struct Kernel {
    requests: Socket,
    changes: Socket,
    buffer: Vec<u8>,
}

impl Addresses {
    /// Opens connections to the kernel in the namespace of this thread, and reads its addresses. `known`: those that were
    /// there when an agent looked last. `None` with a line about it if that fails: then connections are counted as always,
    /// and nothing is claimed for this namespace.
    pub(super) fn open_or_print(known: HashMap<IpAddr, Held>) -> Option<Addresses> {
        match Addresses::open(&known) {
            Ok(addresses) => Some(addresses),
            Err(error) => {
                print_error(&error);
                None
            }
        }
    }

    fn open(known: &HashMap<IpAddr, Held>) -> io::Result<Addresses> {
        let mut kernel = Kernel::open()?;
        let quiet_at = now_ms();
        let all = kernel.read_all()?;
        Ok(Addresses {
            kernel,
            held: HeldAddresses::new(all, known, quiet_at, now_ms()),
            overruns: 0,
        })
    }

    /// Becomes readable when addresses have changed.
    pub(super) fn changes_fd(&self) -> BorrowedFd<'_> {
        self.kernel.changes.as_fd()
    }

    /// Each address that is there, and since when.
    pub(super) fn held(&self) -> &HashMap<IpAddr, Held> {
        self.held.held()
    }

    /// There was no unread message about a change at this time.
    pub(super) fn quiet_at(&self) -> u64 {
        self.held.quiet_at
    }

    /// The addresses that were lost since the last call, in this order. One may be there twice, and may be held again.
    pub(super) fn take_lost(&mut self) -> Vec<Lost> {
        self.held.take_lost()
    }

    /// Times that messages about changes were lost since the last call.
    pub(super) fn take_overruns(&mut self) -> u64 {
        std::mem::take(&mut self.overruns)
    }

    /// Reads what has changed. To be called often: what happened since the last call may have happened right after it.
    /// Returns false, with a line about it, if that fails: these addresses are of no use then.
    pub(super) fn update(&mut self) -> bool {
        match self.try_update() {
            Ok(()) => true,
            Err(error) => {
                print_error(&error);
                false
            }
        }
    }

    fn try_update(&mut self) -> io::Result<()> {
        let now = now_ms();
        let (mut removed, mut has_changed, mut is_overrun) = (HashSet::new(), false, false);
        loop {
            let read = self.kernel.read_changes(|message| {
                has_changed = true;
                if let RouteNetlinkMessage::DelAddress(message) = message {
                    removed.extend(address(&message));
                }
            });
            match read {
                Ok(()) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if netlink::is_overrun(&error) => {
                    is_overrun = true;
                    self.overruns += 1;
                }
                Err(error) => return Err(error),
            }
        }
        if has_changed || is_overrun {
            let all = self.kernel.read_all()?;
            let changes = match is_overrun {
                true => Changes::Unknown,
                false => Changes::Removed(removed),
            };
            self.held.replace(all, &changes, now_ms());
        }
        self.held.quiet_at = now;
        Ok(())
    }
}

impl Kernel {
    fn open() -> io::Result<Kernel> {
        let mut changes = Socket::new(NETLINK_ROUTE)?;
        changes.bind_auto()?;
        changes.set_non_blocking(true)?;
        for group in GROUPS {
            changes.add_membership(group)?;
        }
        let mut requests = Socket::new(NETLINK_ROUTE)?;
        requests.bind_auto()?;
        Ok(Kernel {
            requests,
            changes,
            buffer: Vec::with_capacity(READ_BYTES),
        })
    }

    /// Reads messages about changes once.
    fn read_changes(&mut self, each: impl FnMut(RouteNetlinkMessage)) -> io::Result<()> {
        netlink::read(&self.changes, &mut self.buffer, each).map(drop)
    }

    /// Reads all addresses. If several interfaces have one, with the mark of the one that has had it for longest.
    fn read_all(&mut self) -> io::Result<HashMap<IpAddr, Option<Stamp>>> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        netlink::send(&self.requests, request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut all: HashMap<IpAddr, Option<Stamp>> = HashMap::new();
        let mut add = |message| {
            if let RouteNetlinkMessage::NewAddress(message) = message
                && let Some(address) = address(&message)
            {
                let stamp = stamp(&message);
                let known = all.entry(address).or_insert(stamp);
                *known = (*known).min(stamp);
            }
        };
        while netlink::read(&self.requests, &mut self.buffer, &mut add)? {}
        Ok(all)
    }
}

fn print_error(error: &io::Error) {
    eprint_line(&format!(
        "flowtally: the kernel does not tell about addresses ({error}): they are not claimed in the directory"
    ));
}

/// The address in a message, if other hosts may reach this one by it.
fn address(message: &AddressMessage) -> Option<IpAddr> {
    let header = &message.header;
    let is_global = matches!(header.scope, AddressScope::Universe | AddressScope::Site);
    // Another host may turn out to have it.
    let is_tentative = header.flags.contains(AddressHeaderFlags::Tentative);
    if !is_global || is_tentative {
        return None;
    }
    let attributes = || message.attributes.iter();
    // Where the two differ, the other one is that of the peer.
    let local = attributes().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        attributes().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// The kernel's mark of the address in a message.
fn stamp(message: &AddressMessage) -> Option<Stamp> {
    let mut attributes = message.attributes.iter();
    let info = attributes.find_map(|attribute| match attribute {
        AddressAttribute::CacheInfo(info) => Some(info),
        _ => None,
    })?;
    let is_v4 = message.header.family == AddressFamily::Inet;
    Some(Stamp {
        made: info.cstamp,
        // Each advertisement of a router changes one of IPv6, which stays the same address.
        changed: if is_v4 { info.tstamp } else { 0 },
        interface: message.header.index,
    })
}
