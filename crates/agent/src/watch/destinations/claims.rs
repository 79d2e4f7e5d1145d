//! What this host claims: which of its applications listens at which of its addresses and ports, and since when.
//!
//! Between two looks, nobody watches. So a claim begins and ends with a look, or with a message of the kernel about the
//! address, unless what was there before and after leaves only one possibility: if a port was free at the last look, has a
//! listener now, and the kernel has not told that a socket of this port was closed, it had no other listener in between.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::super::clock::Span;
use super::super::connections::StoppedListeners;

/// How long a claim is repeated after its end.
const KEPT_MS: u64 = flow::directory::CLAIM_KEPT_MS;
/// Claims of this host. Further endpoints are not claimed.
const CLAIMS_MAX: usize = flow::directory::CLAIMS_MAX;

/// A socket that listens, with its application if that is known.
#[derive(Clone, Debug)]
pub(super) struct Listener {
    pub(super) local: SocketAddr,
    pub(super) app: Option<Arc<str>>,
}

/// An application had an endpoint from one moment to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OwnClaim {
    pub(super) app: Arc<str>,
    pub(super) endpoint: SocketAddr,
    pub(super) from: u64,
    pub(super) to: u64,
}

/// What was seen at the last look at a namespace.
#[derive(Debug, Default)]
struct LastLook {
    at: Span,
    /// The application that listens at a port; `None` if it is unknown, or there are several.
    ports: HashMap<u16, Option<Arc<str>>>,
}

/// The claims of this host.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// By network namespace and endpoint: those that were there at the last look.
    open: HashMap<(u64, SocketAddr), OwnClaim>,
    closed: Vec<OwnClaim>,
    looks: HashMap<u64, LastLook>,
    has_changed: bool,
}

impl Claims {
    /// Takes in what a look at a namespace has found. `at`: when that was. `held`: its addresses, and since when each is
    /// there. `lost`: those that were lost since the last look, and until when each was there. `stopped`: ports of sockets
    /// that were closed since the last look.
    pub(super) fn look(
        &mut self,
        namespace: u64,
        at: Span,
        held: &HashMap<IpAddr, u64>,
        lost: &HashMap<IpAddr, u64>,
        listeners: &[Listener],
        stopped: &StoppedListeners,
    ) {
        let ports = by_port(listeners);
        let last = self.looks.remove(&namespace);
        let now = endpoints(held, listeners);
        let is_of_other = |claim: &OwnClaim| {
            let app = ports.get(&claim.endpoint.port());
            app.is_some_and(|app| app.as_ref() != Some(&claim.app))
        };
        let is_still = |claim: &OwnClaim| {
            now.get(&claim.endpoint) == Some(&claim.app) && !lost.contains_key(&claim.endpoint.ip())
        };
        for ((of, _), claim) in &mut self.open {
            if *of == namespace && is_still(claim) {
                claim.to = claim.to.max(at.from);
            }
        }
        let ended = self
            .open
            .extract_if(|(of, _), claim| *of == namespace && !is_still(claim));
        for (_, mut claim) in ended {
            // If another application has the port now, or had it, nobody knows since when.
            if !is_of_other(&claim) && !stopped.contain(claim.endpoint.port()) {
                let until = lost.get(&claim.endpoint.ip()).copied().unwrap_or(at.from);
                claim.to = claim.to.max(until);
            }
            self.closed.push(claim);
            self.has_changed = true;
        }
        for (endpoint, app) in now {
            if self.open.contains_key(&(namespace, endpoint)) || self.open.len() >= CLAIMS_MAX {
                continue;
            }
            let was_possible = |last: &LastLook| match last.ports.get(&endpoint.port()) {
                _ if stopped.contain(endpoint.port()) => false,
                None => true,
                Some(before) => before.as_ref() == Some(&app),
            };
            let since_last = last.as_ref().filter(|last| was_possible(last));
            let from = since_last.map_or(at.to, |last| last.at.to);
            let address_since = held.get(&endpoint.ip()).copied().unwrap_or(at.to);
            let from = from.max(address_since);
            let claim = OwnClaim {
                app,
                endpoint,
                from,
                to: from.max(at.from),
            };
            self.open.insert((namespace, endpoint), claim);
            self.has_changed = true;
        }
        self.looks.insert(namespace, LastLook { at, ports });
        self.closed.retain(|claim| claim.to + KEPT_MS >= at.from);
        let excess = (self.closed.len() + self.open.len()).saturating_sub(CLAIMS_MAX);
        self.closed.drain(..excess.min(self.closed.len()));
    }

    /// Keeps only the claims of these namespaces open: the others are gone.
    pub(super) fn keep(&mut self, namespaces: &HashSet<u64>) {
        self.looks.retain(|id, _| namespaces.contains(id));
        let gone = self.open.extract_if(|(id, _), _| !namespaces.contains(id));
        let before = self.closed.len();
        self.closed.extend(gone.map(|(_, claim)| claim));
        self.has_changed |= self.closed.len() > before;
    }

    /// The moment up to which the claims of all namespaces are complete.
    pub(super) fn complete_until(&self) -> Option<u64> {
        self.looks.values().map(|look| look.at.from).min()
    }

    /// All claims that the directory may be asked for.
    pub(super) fn all(&self) -> impl Iterator<Item = &OwnClaim> {
        self.open.values().chain(&self.closed)
    }

    /// Whether any began or ended since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.has_changed)
    }
}

/// The application that listens at a port, at any address.
fn by_port(listeners: &[Listener]) -> HashMap<u16, Option<Arc<str>>> {
    let mut ports: HashMap<u16, Option<Arc<str>>> = HashMap::new();
    for listener in listeners {
        let known = ports.entry(listener.local.port());
        let known = known.or_insert_with(|| listener.app.clone());
        if *known != listener.app {
            *known = None;
        }
    }
    ports
}

/// The applications by endpoint. A socket that is bound to an address comes before one that takes all of them. Several
/// sockets of different applications at one endpoint have no name.
fn endpoints(held: &HashMap<IpAddr, u64>, listeners: &[Listener]) -> HashMap<SocketAddr, Arc<str>> {
    let mut endpoints: HashMap<SocketAddr, Option<Arc<str>>> = HashMap::new();
    for is_wildcard in [false, true] {
        let mut found: HashMap<SocketAddr, Option<Arc<str>>> = HashMap::new();
        let of_kind = |listener: &&Listener| listener.local.ip().is_unspecified() == is_wildcard;
        for listener in listeners.iter().filter(of_kind) {
            let local = listener.local;
            let takes = |address: &&IpAddr| match is_wildcard {
                // A socket of IPv6 takes connections of IPv4 as well, unless it was told not to.
                true => local.is_ipv6() || address.is_ipv4(),
                false => **address == local.ip(),
            };
            for address in held.keys().filter(takes) {
                let endpoint = SocketAddr::new(*address, local.port());
                let app = found
                    .entry(endpoint)
                    .or_insert_with(|| listener.app.clone());
                if *app != listener.app {
                    *app = None;
                }
            }
        }
        for (endpoint, app) in found {
            endpoints.entry(endpoint).or_insert(app);
        }
    }
    let known = endpoints.into_iter();
    known
        .filter_map(|(endpoint, app)| Some((endpoint, app?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener(local: &str, app: &str) -> Listener {
        Listener {
            local: local.parse().unwrap(),
            app: (!app.is_empty()).then(|| app.into()),
        }
    }

    fn at(moment: u64) -> Span {
        Span {
            from: moment,
            to: moment + 1,
        }
    }

    fn held(addresses: &[(&str, u64)]) -> HashMap<IpAddr, u64> {
        let addresses = addresses.iter();
        addresses
            .map(|(address, since)| (address.parse().unwrap(), *since))
            .collect()
    }

    fn all(claims: &Claims) -> Vec<(String, String, u64, u64)> {
        let all = claims.all();
        let mut all: Vec<_> = all
            .map(|c| (c.app.to_string(), c.endpoint.to_string(), c.from, c.to))
            .collect();
        all.sort();
        all
    }

    const NONE: &[(&str, u64)] = &[];

    fn stopped(ports: &[u16]) -> StoppedListeners {
        StoppedListeners {
            ports: ports.iter().copied().collect(),
            all: false,
        }
    }

    #[test]
    fn a_claim_lasts_from_look_to_look() {
        let mut claims = Claims::default();
        let held = held(&[("10.0.0.7", 5)]);
        let web = [listener("0.0.0.0:80", "web")];
        let mut look = |moment, listeners: &[Listener], ports: &[u16]| {
            let lost = HashMap::new();
            claims.look(1, at(moment), &held, &lost, listeners, &stopped(ports));
            all(&claims)
        };
        let claim = |from, to| ("web".to_owned(), "10.0.0.7:80".to_owned(), from, to);
        // Since when it is there is not known at the first look.
        assert_eq!(look(100, &web, &[]), [claim(101, 101)]);
        assert_eq!(look(200, &web, &[]), [claim(101, 200)]);
        // It was closed some time after the look, and others may have had the port for a moment.
        assert_eq!(look(300, &[], &[80]), [claim(101, 200)]);
        assert_eq!(look(400, &[], &[]), [claim(101, 200)]);
        // The port was free, so it was this one in between.
        assert_eq!(look(500, &web, &[]), [claim(101, 200), claim(401, 500)]);
        // Nobody knows since when it is another one.
        let other = [listener("0.0.0.0:80", "other")];
        let found = look(600, &other, &[80]);
        assert_eq!(found[0].0, "other");
        assert_eq!((found[0].2, found[0].3), (601, 601));
        assert_eq!(found[2], claim(401, 500));
        // Free, somebody for a moment, and then this one.
        look(700, &[], &[80]);
        let found = look(800, &web, &[80]);
        assert_eq!(found[3], claim(801, 801));
    }

    #[test]
    fn an_address_that_is_lost_ends_its_claims() {
        let mut claims = Claims::default();
        let web = [listener("0.0.0.0:80", "web")];
        let none = stopped(&[]);
        claims.look(
            1,
            at(100),
            &held(&[("10.0.0.7", 5)]),
            &held(NONE),
            &web,
            &none,
        );
        claims.look(
            1,
            at(200),
            &held(NONE),
            &held(&[("10.0.0.7", 150)]),
            &web,
            &none,
        );
        let claim = |from, to| ("web".to_owned(), "10.0.0.7:80".to_owned(), from, to);
        assert_eq!(all(&claims), [claim(101, 150)]);
        // Back again, and lost and regained within one interval.
        let back = held(&[("10.0.0.7", 250)]);
        claims.look(1, at(300), &back, &held(NONE), &web, &none);
        assert_eq!(all(&claims), [claim(101, 150), claim(250, 300)]);
        let again = held(&[("10.0.0.7", 360)]);
        claims.look(1, at(400), &again, &held(&[("10.0.0.7", 340)]), &web, &none);
        assert_eq!(
            all(&claims),
            [claim(101, 150), claim(250, 340), claim(360, 400)]
        );
        assert_eq!(claims.complete_until(), Some(400));
        claims.keep(&HashSet::new());
        assert_eq!(claims.complete_until(), None);
        assert!(claims.take_changed() && !claims.take_changed());
        assert_eq!(claims.closed.len(), 3);
    }

    #[test]
    fn the_socket_that_takes_the_connection_has_the_name() {
        let held = held(&[("10.0.0.7", 0), ("fd00::7", 0)]);
        let of = |listeners: &[Listener]| {
            let mut names: Vec<_> = endpoints(&held, listeners)
                .into_iter()
                .map(|(endpoint, app)| format!("{endpoint} {app}"))
                .collect();
            names.sort();
            names
        };
        let specific = [
            listener("0.0.0.0:80", "any"),
            listener("10.0.0.7:80", "one"),
            listener("127.0.0.1:81", "local"),
        ];
        assert_eq!(of(&specific), ["10.0.0.7:80 one"]);
        assert_eq!(
            of(&[listener("[::]:443", "web")]),
            ["10.0.0.7:443 web", "[fd00::7]:443 web"]
        );
        let shared = [
            listener("0.0.0.0:90", "a"),
            listener("0.0.0.0:90", "b"),
            listener("0.0.0.0:91", ""),
        ];
        assert_eq!(of(&shared), [""; 0]);
    }
}
