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
    pub(super) complete_until: u64,
}

impl Answers {
    pub(super) fn complete_until(complete_until: u64) -> Answers {
        Answers {
            names: HashMap::new(),
            complete_until,
        }
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
