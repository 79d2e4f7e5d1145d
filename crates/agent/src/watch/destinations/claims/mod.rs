//! What this host claims: which of its applications listens at which of its addresses and ports, and since when.
//!
//! An endpoint is an address and a port. The kernel tells when addresses come and go, so the times of each are known. It
//! does not tell when a socket begins to listen: what is certain about ports between two looks is in [`between`]. A claim
//! is what both have in common. It is about the past, and grows with each look.

mod between;
mod file;

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use self::between::{Between, Certain};
use super::super::addresses::{Held, Lost};
use super::super::clock::Span;
use super::super::stopped::StoppedListeners;
use super::super::watched::KnownAddresses;

pub(in crate::watch) use self::between::Listener;
pub(in crate::watch) use self::file::ClaimsFile;

/// How long a claim is repeated after its end.
const KEPT_MS: u64 = flow::directory::CLAIM_KEPT_MS;
/// Claims of this host. Further endpoints are not claimed.
const CLAIMS_MAX: usize = flow::directory::CLAIMS_MAX;

/// An application had an endpoint from one moment to another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::watch) struct OwnClaim {
    pub(super) app: Arc<str>,
    pub(super) endpoint: SocketAddr,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What a look at a namespace has found.
#[derive(Debug)]
pub(super) struct Look {
    /// When the sockets were listed. At its beginning, no message about a change of addresses was unread.
    pub(super) at: Span,
    pub(super) held: HashMap<IpAddr, Held>,
    /// The addresses that were lost since the last look.
    pub(super) lost: Vec<Lost>,
    pub(super) listeners: Vec<Listener>,
    /// The sockets that have ended since the last look. All that had ended when `listeners` were listed are in it.
    pub(super) stopped: StoppedListeners,
}

/// What was seen at the last look at a namespace.
#[derive(Debug)]
struct LastLook {
    at: Span,
    held: HashMap<IpAddr, Held>,
    listeners: Vec<Listener>,
    /// By the agent that has run before this one.
    is_before_restart: bool,
}

/// An address was there since one moment, and until another one, or still is.
#[derive(Clone, Copy, Debug)]
struct Stay {
    since: u64,
    until: Option<u64>,
}

/// The claims of this host.
#[derive(Debug, Default)]
pub(in crate::watch) struct Claims {
    /// By network namespace and endpoint: those that were there at the last look.
    open: HashMap<u64, HashMap<SocketAddr, OwnClaim>>,
    closed: Vec<OwnClaim>,
    looks: HashMap<u64, LastLook>,
    has_changed: bool,
    is_unsaved: bool,
}

impl Claims {
    /// Takes in what a look at a namespace has found.
    pub(super) fn look(&mut self, namespace: u64, look: Look) {
        let last = self.looks.remove(&namespace);
        let open = self.follow_all(namespace, last.as_ref(), &look);
        self.open.insert(namespace, open);
        let is_as_saved = last.is_some_and(|last| {
            !last.is_before_restart
                && (&last.held, &last.listeners) == (&look.held, &look.listeners)
        });
        self.is_unsaved |= !is_as_saved;
        let last = LastLook {
            at: look.at,
            held: look.held,
            listeners: look.listeners,
            is_before_restart: false,
        };
        self.looks.insert(namespace, last);
    }

    /// Follows the claims of a namespace to this look. Returns those that are open then.
    fn follow_all(
        &mut self,
        namespace: u64,
        last: Option<&LastLook>,
        look: &Look,
    ) -> HashMap<SocketAddr, OwnClaim> {
        let mut room = CLAIMS_MAX.saturating_sub(self.open_len());
        let mut before = self.open.remove(&namespace).unwrap_or_default();
        let mut open = HashMap::with_capacity(before.len());
        let mut between = Between::new(look.at, &look.listeners, &look.stopped);
        if let Some(last) = last {
            between = between.since(last.at, &last.listeners, last.is_before_restart);
        }
        let ports = between.ports();
        for (address, stays) in stays(&look.held, &look.lost) {
            for port in &ports {
                let endpoint = SocketAddr::new(address, *port);
                let Some(certain) = between.certain(endpoint) else {
                    continue;
                };
                let mut claim = before.remove(&endpoint);
                if claim.is_none() {
                    if room == 0 {
                        continue;
                    }
                    room -= 1;
                }
                for stay in &stays {
                    claim = self.follow(claim, endpoint, &certain, *stay, look.at.from);
                }
                if let Some(claim) = claim {
                    open.insert(endpoint, claim);
                }
            }
        }
        // Nothing is certain about their endpoints since the last look.
        for (_, claim) in before {
            self.close(claim);
        }
        open
    }

    /// Follows a claim, if there was one, through a stay of its address. Returns the claim that is still open then. `until`:
    /// the time up to which the look has seen everything.
    fn follow(
        &mut self,
        claim: Option<OwnClaim>,
        endpoint: SocketAddr,
        certain: &Certain,
        stay: Stay,
        until: u64,
    ) -> Option<OwnClaim> {
        let to = stay.until.unwrap_or(until).min(until);
        let goes_on = |claim: &OwnClaim| {
            certain.is_still && claim.app == certain.app && stay.since <= claim.to
        };
        let claim = match claim {
            Some(mut claim) if goes_on(&claim) => {
                claim.to = claim.to.max(to);
                claim
            }
            other => {
                if let Some(other) = other {
                    self.close(other);
                }
                let from = certain.from.max(stay.since);
                self.change();
                OwnClaim {
                    app: certain.app.clone(),
                    endpoint,
                    from,
                    to: from.max(to),
                }
            }
        };
        if stay.until.is_none() && certain.is_there {
            return Some(claim);
        }
        self.close(claim);
        None
    }

    fn close(&mut self, claim: OwnClaim) {
        self.change();
        if claim.from < claim.to {
            self.closed.push(claim);
        }
    }

    fn change(&mut self) {
        self.has_changed = true;
        self.is_unsaved = true;
    }

    /// To be called after a look at all namespaces. Keeps only the claims of these open: the others are gone.
    pub(super) fn keep(&mut self, namespaces: &HashSet<u64>, now: u64) {
        self.looks.retain(|id, _| namespaces.contains(id));
        let gone = self.open.extract_if(|id, _| !namespaces.contains(id));
        let gone: Vec<OwnClaim> = gone.flat_map(|(_, claims)| claims.into_values()).collect();
        for claim in gone {
            self.close(claim);
        }
        self.closed.retain(|claim| claim.to + KEPT_MS >= now);
        let excess = (self.closed.len() + self.open_len()).saturating_sub(CLAIMS_MAX);
        self.closed.drain(..excess.min(self.closed.len()));
    }

    fn open_len(&self) -> usize {
        self.open.values().map(HashMap::len).sum()
    }

    /// The moment up to which the claims of all namespaces are complete.
    pub(super) fn complete_until(&self) -> Option<u64> {
        self.looks.values().map(|look| look.at.from).min()
    }

    /// All claims that the directory may be asked for.
    pub(super) fn all(&self) -> impl Iterator<Item = &OwnClaim> {
        let open = self.open.values().flat_map(HashMap::values);
        open.chain(&self.closed)
    }

    /// Whether any began or ended since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }

    /// The addresses that were there when the agent looked last that has run before this one.
    pub(in crate::watch) fn known_addresses(&self) -> KnownAddresses {
        let looks = self.looks.iter().filter(|(_, look)| look.is_before_restart);
        looks.map(|(id, look)| (*id, look.held.clone())).collect()
    }

    /// Without those of addresses that are not unique among the hosts.
    pub(super) fn without(mut self, is_private: impl Fn(IpAddr) -> bool) -> Claims {
        for claims in self.open.values_mut() {
            claims.retain(|endpoint, _| !is_private(endpoint.ip()));
        }
        (self.closed).retain(|claim| !is_private(claim.endpoint.ip()));
        self
    }
}

/// The stays of each address since the last look, in their order.
fn stays(held: &HashMap<IpAddr, Held>, lost: &[Lost]) -> HashMap<IpAddr, Vec<Stay>> {
    let mut stays: HashMap<IpAddr, Vec<Stay>> = HashMap::with_capacity(held.len());
    let mut add = |address, since, until| {
        let of_address: &mut Vec<Stay> = stays.entry(address).or_default();
        of_address.push(Stay { since, until });
    };
    for lost in lost {
        add(lost.address, lost.since, Some(lost.until));
    }
    for (address, held) in held {
        add(*address, held.since, None);
    }
    stays
}

#[cfg(test)]
mod tests;
