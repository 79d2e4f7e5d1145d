//! Bytes whose destination has no name yet: they wait until the directory has heard from all agents.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use flow::Counters;
use serde::{Deserialize, Serialize};

use super::super::clock::Span;
use super::super::saved::SocketId;
use super::answers::Answers;

/// How long bytes wait.
const WAIT_MS_MAX: u64 = 60_000;
/// Connections, or groups of short ones, that wait. Bytes of further ones do not.
const WAITING_MAX: usize = 100_000;
/// Moments that are remembered of a connection: one for each look of a minute.
const MOMENTS_MAX: usize = 12;

/// What waits together.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(in crate::watch) enum Waiter {
    /// A connection.
    Socket(SocketId),
    /// Connections of an application to an endpoint that ended in the same second, and were not seen before.
    Ended {
        src_app: Arc<str>,
        remote: SocketAddr,
        second: u64,
    },
}

/// Bytes that wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::watch) struct Waited {
    pub(in crate::watch) remote: SocketAddr,
    since: u64,
    /// When the other end was heard. A connection has one other end, so its name at any of these moments will do.
    moments: Vec<Span>,
    /// By source and hour.
    bytes: Vec<(Arc<str>, u32, u64, u64)>,
}

/// All bytes that wait.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    all: HashMap<Waiter, Waited>,
}

impl Waiter {
    /// A short connection, whose other end was heard last in this moment.
    pub(super) fn ended(src_app: &Arc<str>, remote: SocketAddr, heard: Span) -> Waiter {
        Waiter::Ended {
            src_app: src_app.clone(),
            remote,
            second: heard.to / 1000,
        }
    }
}

impl Waited {
    /// The bytes, by source and hour.
    pub(super) fn bytes(&self) -> impl Iterator<Item = (&Arc<str>, u32, Counters)> {
        self.bytes
            .iter()
            .map(|(src_app, hour, tx, rx)| (src_app, *hour, Counters { tx: *tx, rx: *rx }))
    }

    fn add(&mut self, src_app: &Arc<str>, hour: u32, bytes: Counters) {
        let sum = self
            .bytes
            .iter_mut()
            .find(|(src, of, ..)| (&*src, *of) == (src_app, hour));
        match sum {
            Some((_, _, tx, rx)) => {
                *tx = tx.saturating_add(bytes.tx);
                *rx = rx.saturating_add(bytes.rx);
            }
            None => self.bytes.push((src_app.clone(), hour, bytes.tx, bytes.rx)),
        }
    }
}

impl Waiting {
    /// With what waited before a restart.
    pub(super) fn new(restored: Vec<(Waiter, Waited)>) -> Waiting {
        Waiting {
            all: restored.into_iter().collect(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&Waiter, &Waited)> {
        self.all.iter()
    }

    pub(super) fn has_socket(&self, socket: SocketId) -> bool {
        self.all.contains_key(&Waiter::Socket(socket))
    }

    /// Adds bytes of a connection whose other end was heard in `moment`. Returns false if there is no room.
    pub(super) fn add(
        &mut self,
        waiter: Waiter,
        remote: SocketAddr,
        (src_app, hour, bytes): (&Arc<str>, u32, Counters),
        moment: Span,
        now: u64,
    ) -> bool {
        if self.all.len() >= WAITING_MAX && !self.all.contains_key(&waiter) {
            return false;
        }
        // Different connections: the name has to be right for each of them.
        let is_group = matches!(waiter, Waiter::Ended { .. });
        let waited = self.all.entry(waiter).or_insert_with(|| Waited {
            remote,
            since: now,
            moments: Vec::new(),
            bytes: Vec::new(),
        });
        match waited.moments.last_mut() {
            Some(last) if is_group => *last = last.union(moment),
            _ => {
                if waited.moments.len() == MOMENTS_MAX {
                    waited.moments.remove(0);
                }
                waited.moments.push(moment);
            }
        }
        waited.add(src_app, hour, bytes);
        true
    }

    /// What to ask the directory: each endpoint, and the time from the first to the last moment.
    pub(super) fn questions(&self) -> HashMap<SocketAddr, Span> {
        let mut questions: HashMap<SocketAddr, Span> = HashMap::new();
        for waited in self.all.values() {
            for moment in &waited.moments {
                let span = questions.entry(waited.remote).or_insert(*moment);
                *span = span.union(*moment);
            }
        }
        questions
    }

    /// Removes what has a name now, and what will have none: for which the answers are complete, or which has waited long
    /// enough. Calls `settle` with each.
    pub(super) fn resolve(
        &mut self,
        answers: &Answers,
        now: u64,
        mut settle: impl FnMut(&Waiter, &Waited, Option<&Arc<str>>),
    ) {
        self.all.retain(|waiter, waited| {
            let mut moments = waited.moments.iter();
            let name = moments.find_map(|moment| answers.name(waited.remote, *moment));
            let is_over = name.is_some()
                || (waited.moments.iter()).all(|moment| moment.to < answers.complete_until)
                || now.saturating_sub(waited.since) >= WAIT_MS_MAX;
            if is_over {
                settle(waiter, waited, name);
            }
            !is_over
        });
    }

    /// Removes everything.
    pub(super) fn settle_all(&mut self, mut settle: impl FnMut(&Waiter, &Waited)) {
        for (waiter, waited) in self.all.drain() {
            settle(&waiter, &waited);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(from: u64, to: u64) -> Span {
        Span { from, to }
    }

    fn remote() -> SocketAddr {
        "10.0.0.7:80".parse().unwrap()
    }

    fn answers(leases: &[(&str, u64, u64)], complete_until: u64) -> Answers {
        let mut answers = Answers::complete_until(complete_until);
        for (app, from, to) in leases {
            answers.add(remote(), span(*from, *to), (*app).into());
        }
        answers
    }

    fn add(waiting: &mut Waiting, waiter: Waiter, tx: u64, moment: Span) {
        let bytes = Counters { tx, rx: 1 };
        let src: Arc<str> = "src".into();
        assert!(waiting.add(waiter, remote(), (&src, 7, bytes), moment, 1000));
    }

    fn resolve(waiting: &mut Waiting, answers: &Answers, now: u64) -> Vec<(String, u64)> {
        let mut settled = Vec::new();
        waiting.resolve(answers, now, |_, waited, name| {
            let name = name.map_or_else(String::new, ToString::to_string);
            settled.push((name, waited.bytes().map(|(.., bytes)| bytes.tx).sum()));
        });
        settled.sort();
        settled
    }

    /// One of its moments is before the agent at the other end was there.
    #[test]
    fn a_connection_has_one_name() {
        let mut waiting = Waiting::default();
        add(&mut waiting, Waiter::Socket((1, 2)), 10, span(100, 110));
        add(&mut waiting, Waiter::Socket((1, 2)), 5, span(200, 210));
        assert_eq!(waiting.questions(), [(remote(), span(100, 210))].into());
        assert_eq!(resolve(&mut waiting, &answers(&[], 0), 1001), []);
        let web = answers(&[("web", 150, 250)], 0);
        assert_eq!(resolve(&mut waiting, &web, 1001), [("web".into(), 15)]);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn a_group_has_a_name_only_if_all_of_it_has() {
        let group = Waiter::Ended {
            src_app: "src".into(),
            remote: remote(),
            second: 0,
        };
        let mut waiting = Waiting::default();
        add(&mut waiting, group.clone(), 10, span(100, 110));
        add(&mut waiting, group, 5, span(200, 210));
        let half = answers(&[("web", 150, 250)], 0);
        assert_eq!(resolve(&mut waiting, &half, 1001), []);
        let two = answers(&[("web", 90, 150), ("db", 150, 250)], 0);
        assert_eq!(resolve(&mut waiting, &two, 1001), []);
        let whole = answers(&[("web", 90, 250)], 0);
        assert_eq!(resolve(&mut waiting, &whole, 1001), [("web".into(), 15)]);
    }

    #[test]
    fn nothing_waits_for_ever() {
        for (complete_until, now, is_over) in [
            (110, 1001, false),
            (111, 1001, true),
            (0, 60_999, false),
            (0, 61_000, true),
        ] {
            let mut waiting = Waiting::default();
            add(&mut waiting, Waiter::Socket((1, 2)), 10, span(100, 110));
            let settled = resolve(&mut waiting, &answers(&[], complete_until), now);
            let expected = if is_over {
                vec![(String::new(), 10)]
            } else {
                vec![]
            };
            assert_eq!(settled, expected, "{complete_until} {now}");
        }
    }
}
