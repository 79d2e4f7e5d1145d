//! The addresses of a network namespace (`man 7 rtnetlink`), and since when it has each.

use std::collections::{HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope,
};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::clock::now_ms;
use super::netlink::{self, READ_BYTES};
use crate::command::eprint_line;

/// `RTNLGRP_IPV4_IFADDR` and `RTNLGRP_IPV6_IFADDR` of include/uapi/linux/rtnetlink.h.
const GROUPS: [u32; 2] = [5, 9];

/// The addresses by which other hosts reach this namespace.
#[derive(Debug)]
pub(super) struct Addresses {
    requests: Socket,
    changes: Socket,
    buffer: Vec<u8>,
    /// Each address, and since when it is known to be there.
    held: HashMap<IpAddr, u64>,
    /// Addresses that were lost since [`Addresses::take_lost`], and until when they were known to be there.
    lost: HashMap<IpAddr, u64>,
    /// There was no unread message about a change at this time.
    quiet_at: u64,
}

impl Addresses {
    /// Opens connections to the kernel in the namespace of this thread, and reads its addresses. `None` with a line about
    /// it if that fails: then connections are counted as always, and nothing is claimed for this namespace.
    pub(super) fn open_or_print() -> Option<Addresses> {
        match Addresses::open() {
            Ok(addresses) => Some(addresses),
            Err(error) => {
                print_error(&error);
                None
            }
        }
    }

    fn open() -> io::Result<Addresses> {
        let mut changes = Socket::new(NETLINK_ROUTE)?;
        changes.bind_auto()?;
        changes.set_non_blocking(true)?;
        for group in GROUPS {
            changes.add_membership(group)?;
        }
        let mut requests = Socket::new(NETLINK_ROUTE)?;
        requests.bind_auto()?;
        let mut addresses = Addresses {
            requests,
            changes,
            buffer: Vec::with_capacity(READ_BYTES),
            held: HashMap::new(),
            lost: HashMap::new(),
            quiet_at: now_ms(),
        };
        addresses.read_all(&HashSet::new())?;
        Ok(addresses)
    }

    /// Becomes readable when addresses have changed.
    pub(super) fn changes_fd(&self) -> BorrowedFd<'_> {
        self.changes.as_fd()
    }

    /// Each address, and since when it is known to be there.
    pub(super) fn held(&self) -> &HashMap<IpAddr, u64> {
        &self.held
    }

    /// There was no unread message about a change at this time.
    pub(super) fn quiet_at(&self) -> u64 {
        self.quiet_at
    }

    /// The addresses that were lost since the last call, and until when they were known to be there. An address may be
    /// held again.
    pub(super) fn take_lost(&mut self) -> HashMap<IpAddr, u64> {
        std::mem::take(&mut self.lost)
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
        let (mut removed, mut has_changed) = (HashSet::new(), false);
        loop {
            let read = netlink::read(&self.changes, &mut self.buffer, |message| {
                has_changed = true;
                if let RouteNetlinkMessage::DelAddress(message) = message {
                    removed.extend(address(&message));
                }
            });
            match read {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Any address may have been lost in between.
                Err(error) if netlink::is_overrun(&error) => {
                    has_changed = true;
                    removed.extend(self.held.keys());
                }
                Err(error) => return Err(error),
            }
        }
        if has_changed {
            self.read_all(&removed)?;
        }
        self.quiet_at = now;
        Ok(())
    }

    /// Reads all addresses. Those that were `removed` meanwhile are not the same any more.
    fn read_all(&mut self, removed: &HashSet<IpAddr>) -> io::Result<()> {
        let request = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        netlink::send(&self.requests, request, NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut all = HashSet::new();
        let mut add = |message| {
            if let RouteNetlinkMessage::NewAddress(message) = message {
                all.extend(address(&message));
            }
        };
        while netlink::read(&self.requests, &mut self.buffer, &mut add)? {}
        let now = now_ms();
        let is_gone = |address: &IpAddr| removed.contains(address) || !all.contains(address);
        for (address, _) in self.held.extract_if(|address, _| is_gone(address)) {
            // If it was lost twice, the first time counts.
            self.lost.entry(address).or_insert(self.quiet_at);
        }
        for address in all {
            self.held.entry(address).or_insert(now);
        }
        Ok(())
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
