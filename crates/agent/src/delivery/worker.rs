//! The thread that takes batches from the front of the queue and sends each until the service has
//! answered it.

use std::path::Path;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::value::RawValue;

use super::attempt::{self, Outcome};
use super::queue::Entry;
use super::spool::First;
use super::status::Fault;
use super::{Refused, Rejected, SendError, Shared, State};
use crate::client::Client;

/// First and longest pause between two tries, before jitter.
const PAUSE_MIN: Duration = Duration::from_millis(100);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);

pub(super) type OnRejected = dyn FnMut(Rejected) -> Result<(), String>;

/// What to do after a try.
enum Next {
    /// The batch is done with, and goes from the queue.
    Forget,
    /// It is not in the queue any more.
    Gone,
    TryAgain {
        why: String,
        after: Option<Duration>,
        /// What to do when that lasts for as long as it may.
        at_last: AtLast,
        /// Others may be taken meanwhile.
        others_first: bool,
    },
    Fail(SendError),
}

/// What becomes of a batch that was tried for `--retry-for`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum AtLast {
    /// It waits for the next sender. A spool keeps it, so while flows still come it is tried again here.
    GiveUp,
    /// It is set aside.
    PutAside(Fault),
    /// It waits for the next sender, too. But nothing is given up while flows still come: whoever gives them
    /// may not be able to give them again, and the address or the token can be mended meanwhile.
    Refused,
}

impl Shared {
    /// The delivering thread's life.
    pub(super) fn deliver_until_abandoned(
        &self,
        client: &Client,
        mut on_rejected: impl FnMut(Rejected) -> Result<(), String> + 'static,
    ) {
        let mut pauses = pauses();
        let mut failing_since: Option<Instant> = None;
        // The user knows that nothing is taken.
        let mut has_told = false;
        // Batches in a row that are to be tried after the others.
        let mut postponed = 0;
        while let Some(First { entry, body }) = self.next_batch() {
            let mut next = match &body {
                Ok(body) => self.try_once(client, &entry, body, &mut on_rejected),
                Err(damage) => self.set_aside(&entry, damage, None, &mut on_rejected),
            };
            let others_first = matches!(
                next,
                Next::TryAgain {
                    others_first: true,
                    ..
                }
            );
            if others_first {
                match self.postpone(&mut postponed) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => next = Next::Fail(error),
                }
            }
            let since = *failing_since.get_or_insert_with(Instant::now);
            let mut left = self.options.retry_for.saturating_sub(since.elapsed());
            if let Next::TryAgain { why, at_last, .. } = &next {
                if *at_last == AtLast::Refused {
                    self.tell_refused(client, why);
                }
                if self.outlasts(*at_last) {
                    if left.is_zero() && *at_last == AtLast::GiveUp && !has_told {
                        has_told = true;
                        self.tell_away(client, why);
                    }
                    left = match self.state().ended_at {
                        None => PAUSE_MAX,
                        Some(ended_at) => {
                            let failing = since.max(ended_at).elapsed();
                            self.options.retry_for.saturating_sub(failing)
                        }
                    };
                }
                if left.is_zero() {
                    next = self.give_up(client, &entry, &body, (why, *at_last), &mut on_rejected);
                }
            }
            let mut state = self.state();
            let done = matches!(next, Next::Forget | Next::Gone);
            match next {
                Next::Forget => {
                    if let Err(error) = state.queue.pop() {
                        state.failed = Some(error);
                    }
                }
                Next::Gone => {}
                Next::TryAgain { why, after, .. } => {
                    state.report.retries += 1;
                    state.trouble = Some(why);
                    let pause = pauses.next().unwrap_or(PAUSE_MAX);
                    let pause = pause.max(after.unwrap_or_default());
                    state = self.pause(state, pause.min(left));
                }
                Next::Fail(error) => {
                    state.failed.get_or_insert(error);
                }
            }
            if done {
                state.trouble = None;
                pauses = self::pauses();
                failing_since = None;
                postponed = 0;
                has_told = false;
            }
            self.changed.notify_all();
            if state.failed.is_some() || state.abandoned {
                return;
            }
        }
    }

    /// What to do with a batch that was tried for long enough.
    fn give_up(
        &self,
        client: &Client,
        entry: &Entry,
        body: &Result<Vec<u8>, String>,
        (why, at_last): (&str, AtLast),
        on_rejected: &mut OnRejected,
    ) -> Next {
        let (url, why) = (client.url(attempt::PATH), why.to_owned());
        match (at_last, body) {
            (AtLast::PutAside(fault), Ok(body)) => {
                self.put_aside(client, entry, body, (&why, fault), on_rejected)
            }
            (AtLast::Refused, _) => Next::Fail(SendError::Refused { url, why }),
            _ => Next::Fail(SendError::GaveUp {
                url,
                after: self.options.retry_for,
                why,
            }),
        }
    }

    /// Tells the user, once, why the service takes nothing.
    fn tell_refused(&self, client: &Client, why: &str) {
        if self.state().trouble.as_deref() != Some(why) {
            let url = client.url(attempt::PATH);
            let text = format!("{url} refuses: {why}; the flows are kept, and sent again later");
            (self.notice.0)(&text);
        }
    }

    /// Whether a batch is kept and tried for as long as flows come, and for `--retry-for` after that.
    fn outlasts(&self, at_last: AtLast) -> bool {
        match at_last {
            AtLast::GiveUp => self.options.spool.is_some(),
            AtLast::PutAside(_) => false,
            AtLast::Refused => true,
        }
    }

    /// Tells the user why nothing is taken, while the spool keeps it.
    fn tell_away(&self, client: &Client, why: &str) {
        let error = SendError::GaveUp {
            url: client.url(attempt::PATH),
            after: self.options.retry_for,
            why: why.to_owned(),
        };
        (self.notice.0)(&format!(
            "{error}; the flows are kept in the spool, and sent again later"
        ));
    }

    /// Moves a batch behind the others, if it is in a spool. Whether there is one that has not been tried since
    /// the last pause.
    fn postpone(&self, postponed: &mut usize) -> Result<bool, SendError> {
        let mut state = self.state();
        state.queue.put_last()?;
        *postponed += 1;
        let others_wait = state.queue.is_spool() && *postponed < state.queue.len();
        if !others_wait {
            *postponed = 0;
        }
        Ok(others_wait)
    }

    fn try_once(
        &self,
        client: &Client,
        entry: &Entry,
        body: &[u8],
        on_rejected: &mut OnRejected,
    ) -> Next {
        match attempt::deliver(client, entry, body) {
            Outcome::Taken { replayed, expired } => {
                let report = &mut self.state().report;
                report.flows += (entry.flows - expired) as u64;
                report.expired += expired as u64;
                report.batches += 1;
                report.replayed += u64::from(replayed);
                Next::Forget
            }
            Outcome::Rejected { why, of } => {
                self.put_aside(client, entry, body, (&why, of), on_rejected)
            }
            Outcome::Conflict { why } => Next::Fail(SendError::Conflict {
                url: client.url(attempt::PATH),
                why,
            }),
            // A file is read again by the next command.
            Outcome::Refused { why, .. } if self.options.batch_age.is_none() => {
                Next::Fail(SendError::Refused {
                    url: client.url(attempt::PATH),
                    why,
                })
            }
            Outcome::Refused { why, after } => Next::TryAgain {
                why,
                after,
                at_last: AtLast::Refused,
                others_first: false,
            },
            Outcome::Unreadable { why, after } => match flows_of(entry, body) {
                Ok(_) => Next::TryAgain {
                    why,
                    after,
                    at_last: AtLast::PutAside(Fault::Body),
                    others_first: false,
                },
                Err(damage) => self.set_aside(entry, &damage, None, on_rejected),
            },
            // Without a spool nothing else can be sent meanwhile, and the clock may not be what is wrong.
            Outcome::Later { why, index } if self.options.spool.is_none() => {
                let index = index.filter(|_| entry.is_block);
                match index.map(|index| self.leave_out(entry, body, index, &why, on_rejected)) {
                    Some(Ok(true)) => Next::Gone,
                    Some(Err(error)) => Next::Fail(error),
                    None | Some(Ok(false)) => Next::Fail(SendError::Refused {
                        url: client.url(attempt::PATH),
                        why,
                    }),
                }
            }
            Outcome::Later { why, .. } => Next::TryAgain {
                why,
                after: None,
                at_last: AtLast::GiveUp,
                others_first: true,
            },
            Outcome::TryAgain { why, after } => Next::TryAgain {
                why,
                after,
                at_last: AtLast::GiveUp,
                others_first: false,
            },
        }
    }

    /// Keeps a batch that the service will never take where it holds up no other.
    fn put_aside(
        &self,
        client: &Client,
        entry: &Entry,
        body: &[u8],
        (why, of): (&str, Fault),
        on_rejected: &mut OnRejected,
    ) -> Next {
        match &self.options.refused {
            Refused::SetAside(command) => {
                self.set_aside(entry, why, Some((command, of)), on_rejected)
            }
            Refused::NotKept if of != Fault::Flow => Next::Fail(SendError::Refused {
                url: client.url(attempt::PATH),
                why: format!(
                    "{why}; --rejects FILE or --spool DIR keeps such a batch and sends the rest"
                ),
            }),
            Refused::HandOver | Refused::NotKept => match flows_of(entry, body) {
                Ok(flows) => {
                    let why = why.to_owned();
                    match on_rejected(Rejected::Flows { flows, why }) {
                        Ok(()) => Next::Forget,
                        Err(why) => Next::Fail(SendError::NotKept(why)),
                    }
                }
                Err(damage) => self.set_aside(entry, &damage, None, on_rejected),
            },
        }
    }

    /// Moves the first batch of the spool out of the way. `again` says how to send it again, if it can be.
    fn set_aside(
        &self,
        entry: &Entry,
        why: &str,
        again: Option<(&str, Fault)>,
        on_rejected: &mut OnRejected,
    ) -> Next {
        let moved = self
            .state()
            .queue
            .set_aside(|path| reason(path, entry, why, again));
        let path = match moved {
            Ok(Some(path)) => path,
            Ok(None) => {
                return Next::TryAgain {
                    why: format!("{why}; and the disk has no room to set the batch aside"),
                    after: None,
                    at_last: AtLast::GiveUp,
                    others_first: false,
                };
            }
            Err(error) => return Next::Fail(error),
        };
        let (flows, why) = (entry.flows, why.to_owned());
        match on_rejected(Rejected::File { path, flows, why }) {
            Ok(()) => Next::Gone,
            Err(why) => Next::Fail(SendError::NotKept(why)),
        }
    }

    /// Waits for the batch that is first in the queue; `None` when the sender is gone.
    fn next_batch(&self) -> Option<First> {
        let mut state = self.state();
        loop {
            if state.abandoned || state.failed.is_some() {
                return None;
            }
            match state.queue.first() {
                Ok(Some(first)) => return Some(first),
                Ok(None) => {}
                Err(error) => {
                    state.failed = Some(error);
                    self.changed.notify_all();
                    return None;
                }
            }
            state = self.wait(state, Duration::from_secs(60));
        }
    }

    /// Waits, unless the sender goes away. The end of the flows cuts it short: how long is left counts from
    /// there.
    fn pause<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        pause: Duration,
    ) -> MutexGuard<'a, State> {
        let end = Instant::now() + pause;
        let had_ended = state.ended_at.is_some();
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.abandoned || state.ended_at.is_some() != had_ended {
                return state;
            }
            state = self.wait(state, left);
        }
    }
}

/// Exponential, and spread, so that a fleet does not come back all at once.
pub(super) fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(PAUSE_MAX)
        .without_max_times()
        .with_jitter()
        .build()
}

/// What is written beside a batch that is set aside.
fn reason(path: &Path, entry: &Entry, why: &str, again: Option<(&str, Fault)>) -> String {
    let Some((command, fault)) = again else {
        return format!(
            "{why}\n\nThe flows in it, {} of them, were not sent.\n",
            entry.flows
        );
    };
    let path = shell_word(&path.display().to_string());
    // As a file it has the batch's key as its origin, so that it is not taken for an equal one that was
    // counted; as a pipe its batches have the size that is given.
    let by_source = format!("--source {} {path}", entry.key);
    let (first, input) = match fault {
        Fault::Size if entry.flows > 1 => (
            "To send it again, in smaller batches",
            format!("--batch-flows {} - <{path}", (entry.flows / 8).max(1)),
        ),
        Fault::Form if entry.compressed => (
            "Compression, or the way to the service, may be what it does not take. To send it again",
            format!("--no-compress {by_source}"),
        ),
        Fault::Form => (
            "The way to the service (URL, token, proxy) may be what it does not take. To send it again",
            by_source,
        ),
        Fault::Flow if entry.compressed => (
            "Mend or remove the flow that is named; zstd -d makes the file one of text, which is sent in the same \
             way. To send the file again",
            by_source,
        ),
        Fault::Flow => (
            "Mend or remove the flow that is named. To send the file again",
            by_source,
        ),
        _ => ("To send it again", by_source),
    };
    format!(
        "{why}\n\nNone of its {} flows counted. {first}:\n{command} {input}\n",
        entry.flows
    )
}

/// `text` as one word for a shell.
pub fn shell_word(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// The flows in a body, a JSON text each; it may be the only copy of them.
pub(super) fn flows_of(entry: &Entry, body: &[u8]) -> Result<Vec<String>, String> {
    let damaged = |why: String| format!("the batch {} is damaged: {why}", entry.key);
    let json = if entry.compressed {
        zstd::decode_all(body).map_err(|e| damaged(e.to_string()))?
    } else {
        body.to_vec()
    };
    let flows: Vec<Box<RawValue>> =
        serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
    Ok(flows.iter().map(|flow| flow.get().to_owned()).collect())
}
