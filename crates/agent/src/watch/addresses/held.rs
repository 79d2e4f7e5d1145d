//! Which addresses a network namespace has, and since when.
//!
//! The kernel marks each address with the time at which it was made. So an address that has the same mark as before is
//! the same one, and was there all the time, even if nobody watched: while the agent did not run, or while the kernel's
//! messages were lost. One that was removed and added again has another mark.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Addresses that are lost between two looks. Nothing is claimed for further ones from the last look on.
const LOST_MAX: usize = 10_000;

/// The kernel's mark of an address: when it was made and changed, in hundredths of a second by the kernel's own count, and
/// the interface that has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::watch) struct Stamp {
    pub(super) made: u32,
    /// Of IPv4. There, `ifconfig` turns an address into another one, which keeps the time at which the first was made.
    /// Renewing a lease of DHCP changes it, too.
    pub(super) changed: u32,
    pub(super) interface: u32,
}

/// An address that is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::watch) struct Held {
    /// Since when it is known to be there.
    pub(in crate::watch) since: u64,
    /// `None` if the kernel has none.
    pub(in crate::watch) stamp: Option<Stamp>,
}

/// An address that was there for some time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::watch) struct Lost {
    pub(in crate::watch) address: IpAddr,
    pub(in crate::watch) since: u64,
    /// The last time at which it was known to be there.
    pub(in crate::watch) until: u64,
}

/// What has happened to addresses since they were read last.
#[derive(Debug)]
pub(super) enum Changes {
    /// These were removed, and may have been added again. No other one was.
    Removed(HashSet<IpAddr>),
    /// Messages were lost.
    Unknown,
}

/// All of them.
#[derive(Debug)]
pub(super) struct HeldAddresses {
    held: HashMap<IpAddr, Held>,
    /// In the order in which they were lost.
    lost: Vec<Lost>,
    /// There was no unread message about a change at this time.
    pub(super) quiet_at: u64,
}

impl HeldAddresses {
    /// `all`: those that are there `now`. `known`: those that were there when an agent looked last.
    pub(super) fn new(
        all: HashMap<IpAddr, Option<Stamp>>,
        known: &HashMap<IpAddr, Held>,
        quiet_at: u64,
        now: u64,
    ) -> HeldAddresses {
        let held = all.into_iter().map(|(address, stamp)| {
            let known = known.get(&address);
            let same = known.filter(|known| is_same(known.stamp, stamp));
            let since = same.map_or(now, |known| known.since);
            (address, Held { since, stamp })
        });
        HeldAddresses {
            held: held.collect(),
            lost: Vec::new(),
            quiet_at,
        }
    }

    pub(super) fn held(&self) -> &HashMap<IpAddr, Held> {
        &self.held
    }

    /// Those that were lost since the last call, in this order.
    pub(super) fn take_lost(&mut self) -> Vec<Lost> {
        std::mem::take(&mut self.lost)
    }

    /// Takes in all that are there `now`.
    pub(super) fn replace(
        &mut self,
        all: HashMap<IpAddr, Option<Stamp>>,
        changes: &Changes,
        now: u64,
    ) {
        let is_gone = |address: &IpAddr, held: &Held| match (all.get(address), changes) {
            (None, _) => true,
            (Some(_), Changes::Removed(removed)) => removed.contains(address),
            (Some(stamp), Changes::Unknown) => !is_same(held.stamp, *stamp),
        };
        for (address, held) in self.held.extract_if(|address, held| is_gone(address, held)) {
            if self.lost.len() < LOST_MAX {
                self.lost.push(Lost {
                    address,
                    since: held.since,
                    until: self.quiet_at,
                });
            }
        }
        for (address, stamp) in all {
            let held = self.held.entry(address);
            let held = held.or_insert(Held { since: now, stamp });
            held.stamp = stamp;
        }
    }
}

/// Whether these are marks of one address that was there all the time.
fn is_same(before: Option<Stamp>, now: Option<Stamp>) -> bool {
    before.is_some() && before == now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn stamp(made: u32) -> Option<Stamp> {
        Some(Stamp {
            made,
            changed: made,
            interface: 2,
        })
    }

    fn all(addresses: &[(u8, Option<Stamp>)]) -> HashMap<IpAddr, Option<Stamp>> {
        let addresses = addresses.iter();
        addresses
            .map(|(last, stamp)| (address(*last), *stamp))
            .collect()
    }

    fn removed(addresses: &[u8]) -> Changes {
        Changes::Removed(addresses.iter().map(|last| address(*last)).collect())
    }

    fn lost(last: u8, since: u64, until: u64) -> Lost {
        Lost {
            address: address(last),
            since,
            until,
        }
    }

    fn since(addresses: &HeldAddresses, last: u8) -> Option<u64> {
        addresses.held().get(&address(last)).map(|held| held.since)
    }

    #[test]
    fn each_time_that_an_address_was_there_is_known() {
        let mut addresses = HeldAddresses::new(all(&[(1, stamp(1))]), &HashMap::new(), 99, 100);
        // It comes, is lost, comes again, and is lost again before anybody looks.
        let times: [(&[u8], &[u8], u64); 4] = [
            (&[1, 2], &[], 200),
            (&[1], &[2], 300),
            (&[1, 2], &[], 400),
            (&[1], &[2], 500),
        ];
        for (there, gone, at) in times {
            let there: Vec<_> = there.iter().map(|last| (*last, stamp(1))).collect();
            addresses.replace(all(&there), &removed(gone), at);
            addresses.quiet_at = at + 50;
        }
        assert_eq!(
            addresses.take_lost(),
            [lost(2, 200, 250), lost(2, 400, 450)]
        );
        assert_eq!(since(&addresses, 1), Some(100));
        assert_eq!(addresses.take_lost(), []);
        // Removed and added again between two reads.
        addresses.replace(all(&[(1, stamp(1))]), &removed(&[1]), 600);
        assert_eq!(addresses.take_lost(), [lost(1, 100, 550)]);
        assert_eq!(since(&addresses, 1), Some(600));
    }

    /// A lease of DHCP that is renewed, while the agent watches.
    #[test]
    fn a_change_of_an_address_does_not_end_it() {
        let mut addresses = HeldAddresses::new(all(&[(1, stamp(1))]), &HashMap::new(), 99, 100);
        let renewed = stamp(1).map(|stamp| Stamp {
            changed: 9,
            ..stamp
        });
        addresses.replace(all(&[(1, renewed)]), &removed(&[]), 200);
        assert_eq!(since(&addresses, 1), Some(100));
        // The new mark counts from then on.
        addresses.replace(all(&[(1, renewed)]), &Changes::Unknown, 300);
        assert_eq!(since(&addresses, 1), Some(100));
    }

    #[test]
    fn only_marks_tell_what_has_happened_while_messages_were_lost() {
        let before = all(&[(1, stamp(1)), (2, stamp(1)), (3, None), (4, stamp(1))]);
        let mut addresses = HeldAddresses::new(before, &HashMap::new(), 99, 100);
        // 2 was made again, 3 has no mark, 4 is gone.
        let now = all(&[(1, stamp(1)), (2, stamp(5)), (3, None)]);
        addresses.replace(now, &Changes::Unknown, 200);
        let mut gone = addresses.take_lost();
        gone.sort_by_key(|lost| lost.address);
        assert_eq!(gone, [lost(2, 100, 99), lost(3, 100, 99), lost(4, 100, 99)]);
        assert_eq!(
            [1, 2, 3].map(|last| since(&addresses, last)),
            [Some(100), Some(200), Some(200)]
        );
    }

    /// While the agent did not run, the first address stayed, and the second was at another host for some time.
    #[test]
    fn after_a_restart_marks_tell_which_addresses_have_stayed() {
        let known = |made| Held {
            since: 5,
            stamp: stamp(made),
        };
        let known: HashMap<_, _> = [(address(1), known(1)), (address(2), known(2))].into();
        let now = all(&[(1, stamp(1)), (2, stamp(7)), (3, stamp(1))]);
        let mut addresses = HeldAddresses::new(now, &known, 99, 100);
        assert_eq!(
            [1, 2, 3].map(|last| since(&addresses, last)),
            [Some(5), Some(100), Some(100)]
        );
        assert_eq!(addresses.take_lost(), []);
    }
}
