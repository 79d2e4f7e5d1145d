//! What the directory has answered, by this system's clock.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use super::super::clock::Span;

/// Names of endpoints, and when each had them.
#[derive(Debug, Default)]
pub(super) struct Answers {
    names: HashMap<SocketAddr, Vec<(Span, Arc<str>)>>,
    /// There will be no other names for the time before.
    complete_until: u64,
    /// The questions that were answered.
    asked: HashMap<SocketAddr, Span>,
}

impl Answers {
    pub(super) fn new(asked: HashMap<SocketAddr, Span>, complete_until: u64) -> Answers {
        Answers {
            names: HashMap::new(),
            complete_until,
            asked,
        }
    }

    /// Whether there will be no other answer about an endpoint at this moment.
    pub(super) fn are_complete(&self, endpoint: SocketAddr, moment: Span) -> bool {
        let covers = |asked: &Span| asked.from <= moment.from && moment.to <= asked.to;
        moment.to < self.complete_until && self.asked.get(&endpoint).is_some_and(covers)
    }

    pub(super) fn add(&mut self, endpoint: SocketAddr, span: Span, app: Arc<str>) {
        self.names.entry(endpoint).or_default().push((span, app));
    }

    /// The name that the endpoint had during all of `moment`.
    pub(super) fn name(&self, endpoint: SocketAddr, moment: Span) -> Option<&Arc<str>> {
        let names = self.names.get(&endpoint)?;
        let covers = |span: &Span| span.from <= moment.from && moment.to <= span.to;
        let mut names = names.iter().filter(|(span, _)| covers(span));
        names.next().map(|(_, app)| app)
    }
}
