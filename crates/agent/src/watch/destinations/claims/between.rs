//! What is certain about an endpoint between two looks, although nobody has watched.
//!
//! A look lists all sockets that listen, and the kernel tells about each socket that has ended. So a socket that has
//! listened since the last look is in one of three places: it listened then, it listens now, or a message tells that it has
//! ended. If all of them belong to one application, nobody else had the endpoint. The kernel does not tell when a socket
//! begins to listen.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::super::super::clock::Span;
use super::super::super::stopped::StoppedListeners;

/// A socket that listens, with its application if that is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::watch) struct Listener {
    pub(in crate::watch) cookie: u64,
    pub(in crate::watch) local: SocketAddr,
    pub(in crate::watch) is_v6_only: bool,
    pub(in crate::watch) app: Option<Arc<str>>,
}

impl Listener {
    fn is_wildcard(&self) -> bool {
        self.local.ip().is_unspecified()
    }

    /// Whether it takes connections to this address, unless another socket comes before it.
    fn takes(&self, address: IpAddr) -> bool {
        match (self.is_wildcard(), self.local.ip()) {
            (true, IpAddr::V4(_)) => address.is_ipv4(),
            (true, IpAddr::V6(_)) => address.is_ipv6() || !self.is_v6_only,
            (false, local) => local == address,
        }
    }

    fn is_of(&self, app: &Arc<str>) -> bool {
        self.app.as_ref() == Some(app)
    }
}

/// The sockets that listen, by port.
#[derive(Debug)]
struct Ports<'a>(HashMap<u16, Vec<&'a Listener>>);

/// The sockets that may take a connection to an endpoint.
#[derive(Debug)]
struct Takers<'a> {
    all: Vec<&'a Listener>,
    /// Those that do: a socket that is bound to an address comes before one that takes all of them.
    first: Vec<&'a Listener>,
}

impl<'a> Ports<'a> {
    fn new(listeners: &'a [Listener]) -> Ports<'a> {
        let mut ports: HashMap<u16, Vec<&Listener>> = HashMap::new();
        for listener in listeners {
            ports
                .entry(listener.local.port())
                .or_default()
                .push(listener);
        }
        Ports(ports)
    }

    fn of(&self, port: u16) -> &[&'a Listener] {
        let listeners = self.0.get(&port);
        listeners.map(Vec::as_slice).unwrap_or_default()
    }

    fn takers(&self, endpoint: SocketAddr) -> Takers<'a> {
        let of_port = self.of(endpoint.port()).iter().copied();
        let all: Vec<&Listener> = of_port.filter(|of| of.takes(endpoint.ip())).collect();
        let bound = all.iter().copied().filter(|of| !of.is_wildcard());
        let bound: Vec<&Listener> = bound.collect();
        let first = match bound.is_empty() {
            true => all.clone(),
            false => bound,
        };
        Takers { all, first }
    }
}

impl<'a> Takers<'a> {
    /// The application that has the endpoint; `None` if it is unknown, or there are several.
    fn app(&self) -> Option<&'a Arc<str>> {
        let app = self.first.first()?.app.as_ref()?;
        let is_only = self.first.iter().all(|of| of.is_of(app));
        is_only.then_some(app)
    }

    fn are_of(&self, app: &Arc<str>) -> bool {
        self.all.iter().all(|of| of.is_of(app))
    }

    /// Whether the same sockets have the endpoint.
    fn are_same(&self, other: &Takers<'_>) -> bool {
        let cookies = |takers: &Takers<'_>| -> HashSet<u64> {
            takers.first.iter().map(|of| of.cookie).collect()
        };
        match (&self.first[..], &other.first[..]) {
            ([one], [other]) => one.cookie == other.cookie,
            _ => cookies(self) == cookies(other),
        }
    }
}

/// What was seen at the last look.
#[derive(Debug)]
struct Last<'a> {
    at: Span,
    ports: Ports<'a>,
    /// No agent has run between that look and the first one of this process.
    is_before_restart: bool,
}

/// Two looks at a namespace, and what has ended in between.
#[derive(Debug)]
pub(super) struct Between<'a> {
    /// `None`: this is the first one.
    last: Option<Last<'a>>,
    at: Span,
    now: Ports<'a>,
    stopped: &'a StoppedListeners,
}

/// The time since the last look for which the application at an endpoint is certain. It ends with this look.
#[derive(Debug)]
pub(super) struct Certain {
    pub(super) app: Arc<str>,
    pub(super) from: u64,
    /// It had the endpoint at the last look, too.
    pub(super) is_still: bool,
    /// It has the endpoint now.
    pub(super) is_there: bool,
}

impl<'a> Between<'a> {
    /// `at`, `listeners`: of this look.
    pub(super) fn new(at: Span, listeners: &'a [Listener], stopped: &'a StoppedListeners) -> Self {
        Between {
            last: None,
            at,
            now: Ports::new(listeners),
            stopped,
        }
    }

    /// With what was seen at the last look.
    pub(super) fn since(
        self,
        at: Span,
        listeners: &'a [Listener],
        is_before_restart: bool,
    ) -> Self {
        let last = Last {
            at,
            ports: Ports::new(listeners),
            is_before_restart,
        };
        Between {
            last: Some(last),
            ..self
        }
    }

    /// The ports on which sockets listen, or did at the last look.
    pub(super) fn ports(&self) -> HashSet<u16> {
        let last = self.last.iter().flat_map(|last| last.ports.0.keys());
        self.now.0.keys().chain(last).copied().collect()
    }

    /// For how long it is certain which application has, or had, this endpoint. Its address is another matter.
    pub(super) fn certain(&self, endpoint: SocketAddr) -> Option<Certain> {
        let now = self.now.takers(endpoint);
        let Some(last) = &self.last else {
            return Some(Certain {
                app: now.app()?.clone(),
                from: self.at.to,
                is_still: false,
                is_there: true,
            });
        };
        let before = last.ports.takers(endpoint);
        let strangers_until = self.strangers_until(endpoint.port(), last);
        let is_there = !now.all.is_empty();
        let app = match is_there {
            true => now.app()?,
            false => before.app()?,
        };
        let is_same = before.are_same(&now);
        let is_alone = before.are_of(app) && now.are_of(app);
        // A socket that may share its port with others, which came and went, is one of several, or was.
        let is_proven = match self.lost_until(last) {
            None => is_same || is_alone,
            Some(_) => is_same && now.first.len() == 1,
        };
        let is_still = before.app() == Some(app) && strangers_until.is_none() && is_proven;
        let from = match is_still {
            true => last.at.to,
            false if is_there => self.free_since(app, &before, &now, last, strangers_until),
            // Nobody knows when it has stopped.
            false => return None,
        };
        Some(Certain {
            app: app.clone(),
            from,
            is_still,
            is_there,
        })
    }

    /// Since when nobody but this application, which has the endpoint now, can have had it.
    fn free_since(
        &self,
        app: &Arc<str>,
        before: &Takers<'_>,
        now: &Takers<'_>,
        last: &Last<'_>,
        strangers_until: Option<u64>,
    ) -> u64 {
        if !now.are_of(app) {
            return self.at.to;
        }
        let others = before.all.iter().filter(|of| !of.is_of(app));
        let others = others.map(|other| {
            let stopped = self.stopped.of_port(other.local.port()).iter();
            let stopped = stopped.filter(|of| of.cookie == other.cookie);
            stopped.map(|of| of.at).max().unwrap_or(self.at.to)
        });
        let times = others.chain(strangers_until).chain(self.lost_until(last));
        times.fold(last.at.to, u64::max)
    }

    /// When the last socket had ended that may have listened at this port, and that no look has seen.
    fn strangers_until(&self, port: u16, last: &Last<'_>) -> Option<u64> {
        let is_known = |cookie: u64| {
            let mut listeners = last.ports.of(port).iter().chain(self.now.of(port));
            listeners.any(|of| of.cookie == cookie)
        };
        let stopped = self.stopped.of_port(port).iter();
        let strangers = stopped.filter(|of| !is_known(of.cookie));
        strangers.map(|of| of.at).max()
    }

    /// Until when messages about sockets that have ended are missing.
    fn lost_until(&self, last: &Last<'_>) -> Option<u64> {
        match last.is_before_restart {
            true => Some(self.at.to),
            false => self.stopped.lost_until(),
        }
    }
}
