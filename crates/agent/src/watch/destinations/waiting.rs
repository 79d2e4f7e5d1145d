//! Bytes whose destination has no name yet: they wait until the directory has heard from all agents.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use flow::Counters;
use serde::{Deserialize, Serialize};

use super::super::clock::Span;
use super::super::saved::SocketId;
use super::answers::Answers;

/// How long bytes wait for a complete answer. After it, an incomplete one will do.
const WAIT_COMPLETE_MS_MAX: u64 = 45_000;
/// How long bytes wait for any answer.
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
    /// Connections of an application to an endpoint that ended in the same tenth of a second, and were not seen before.
    Ended {
        src_app: Arc<str>,
        remote: SocketAddr,
        /// When the other end was heard, in tenths of a second.
        tenth: u64,
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
            tenth: heard.to / 100,
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

    #[cfg(test)]
    pub(in crate::watch) fn example(remote: SocketAddr, moment: Span) -> Waited {
        Waited {
            remote,
            since: 5,
            moments: vec![moment],
            bytes: vec![("a".into(), 7, 1, 2)],
        }
    }

    fn add(&mut self, src_app: &Arc<str>, hour: u32, bytes: Counters) {
        let sum = self
            .bytes
            .iter_mut()
            .find(|(src, of, ..)| (src, *of) == (src_app, hour));
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

    /// What to ask the directory: each endpoint, and the time from the first to the last moment. At most `max` endpoints:
    /// those that have waited for longest.
    pub(super) fn questions(&self, max: usize) -> HashMap<SocketAddr, Span> {
        let mut since: HashMap<SocketAddr, (u64, Span)> = HashMap::new();
        for waited in self.all.values() {
            for moment in &waited.moments {
                let question = since.entry(waited.remote);
                let (first, span) = question.or_insert((waited.since, *moment));
                *first = waited.since.min(*first);
                *span = span.union(*moment);
            }
        }
        let mut questions: Vec<_> = since.into_iter().collect();
        if questions.len() > max {
            questions.sort_unstable_by_key(|(_, (first, _))| *first);
            questions.truncate(max);
        }
        let questions = questions.into_iter();
        questions
            .map(|(endpoint, (_, span))| (endpoint, span))
            .collect()
    }

    /// Removes what has a name now, and what will have none: for which the answers are complete, or which has waited long
    /// enough. `None`: there is no answer. Calls `settle` with each.
    pub(super) fn resolve(
        &mut self,
        answers: Option<&Answers>,
        now: u64,
        mut settle: impl FnMut(&Waiter, &Waited, Option<&Arc<str>>),
    ) {
        self.all.retain(|waiter, waited| {
            // A time that is later than now is of another clock.
            let has_waited = |max: u64| {
                let time = now.checked_sub(waited.since);
                time.is_none_or(|time| time >= max)
            };
            let (name, is_over) = match answers {
                None => (None, has_waited(WAIT_MS_MAX)),
                Some(answers) => {
                    let will_do = has_waited(WAIT_COMPLETE_MS_MAX);
                    // Until then, another agent may turn out to claim the same.
                    let is_complete = |moment: &Span| answers.are_complete(waited.remote, *moment);
                    let moments = waited.moments.iter();
                    let name = moments
                        .filter(|moment| will_do || is_complete(moment))
                        .find_map(|moment| answers.name(waited.remote, *moment));
                    let are_complete = waited.moments.iter().all(is_complete);
                    (name, name.is_some() || are_complete || will_do)
                }
            };
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
        let asked = [(remote(), span(0, 1000))].into();
        let mut answers = Answers::new(asked, complete_until);
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
        waiting.resolve(Some(answers), now, |_, waited, name| {
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
        assert_eq!(waiting.questions(1), [(remote(), span(100, 210))].into());
        assert_eq!(resolve(&mut waiting, &answers(&[], 0), 1001), []);
        let early = answers(&[("web", 150, 250)], 210);
        assert_eq!(resolve(&mut waiting, &early, 1001), []);
        let web = answers(&[("web", 150, 250)], 211);
        assert_eq!(resolve(&mut waiting, &web, 1001), [("web".into(), 15)]);
        assert_eq!(waiting.len(), 0);
    }

    #[test]
    fn a_group_has_a_name_only_if_all_of_it_has() {
        let group = Waiter::Ended {
            src_app: "src".into(),
            remote: remote(),
            tenth: 0,
        };
        let mut waiting = Waiting::default();
        add(&mut waiting, group.clone(), 10, span(100, 110));
        add(&mut waiting, group, 5, span(200, 210));
        let half = answers(&[("web", 150, 250)], 200);
        assert_eq!(resolve(&mut waiting, &half, 1001), []);
        let whole = answers(&[("web", 90, 250)], 211);
        assert_eq!(resolve(&mut waiting, &whole, 1001), [("web".into(), 15)]);
    }

    #[test]
    fn a_group_of_two_names_has_none() {
        let mut waiting = Waiting::default();
        let group = Waiter::ended(&"src".into(), remote(), span(200, 210));
        add(&mut waiting, group.clone(), 10, span(100, 110));
        add(&mut waiting, group, 5, span(200, 210));
        let two = answers(&[("web", 90, 150), ("db", 150, 250)], 211);
        assert_eq!(resolve(&mut waiting, &two, 1001), [(String::new(), 15)]);
    }

    /// A name that is not certain yet is used at the end.
    #[test]
    fn nothing_waits_for_ever() {
        let waiting = || {
            let mut waiting = Waiting::default();
            add(&mut waiting, Waiter::Socket((1, 2)), 10, span(100, 110));
            waiting
        };
        let web = answers(&[("web", 50, 250)], 0);
        let ends = 1000 + WAIT_COMPLETE_MS_MAX;
        assert_eq!(resolve(&mut waiting(), &web, ends - 1), []);
        assert_eq!(resolve(&mut waiting(), &web, ends), [("web".into(), 10)]);
        let complete = |until| resolve(&mut waiting(), &answers(&[], until), 1001);
        assert_eq!(complete(110), []);
        assert_eq!(complete(111), [(String::new(), 10)]);
        // Without an answer. A time in the future is of another clock.
        for (now, is_over) in [(999, true), (60_999, false), (61_000, true)] {
            let (mut waiting, mut settled) = (waiting(), 0);
            waiting.resolve(None, now, |_, _, name| {
                settled += usize::from(name.is_none())
            });
            assert_eq!(settled, usize::from(is_over), "{now}");
        }
    }

    /// What was not asked, or began to wait after the question, has no answer yet.
    #[test]
    fn an_answer_is_about_what_was_asked() {
        let mut waiting = Waiting::default();
        let other: SocketAddr = "10.0.0.8:80".parse().unwrap();
        let src: Arc<str> = "src".into();
        for (cookie, to, moment) in [(1, remote(), span(100, 110)), (2, other, span(50, 60))] {
            let bytes = (&src, 7, Counters { tx: cookie, rx: 0 });
            assert!(waiting.add(
                Waiter::Socket((1, cookie)),
                to,
                bytes,
                moment,
                1000 - cookie
            ));
        }
        let asked = waiting.questions(1);
        assert_eq!(asked, [(other, span(50, 60))].into());
        add(&mut waiting, Waiter::Socket((1, 2)), 5, span(70, 80));
        let settled = resolve(&mut waiting, &Answers::new(asked, 500), 1001);
        assert_eq!(settled, []);
        assert_eq!(waiting.len(), 2);
        let asked = waiting.questions(9);
        let settled = resolve(&mut waiting, &Answers::new(asked, 500), 1001);
        assert_eq!(settled, [(String::new(), 1), (String::new(), 7)]);
    }
}
