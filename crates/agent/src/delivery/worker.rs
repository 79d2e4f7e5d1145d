//! The thread that takes the oldest batch from the queue and sends it until the service has responded.

use parking_lot::MutexGuard;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::value::RawValue;

use super::attempt::{self, AttemptOutcome};
use super::queue::BatchMeta;
use super::reason::{not_kept, reason, smaller};
use super::spool::OldestBatch;
use super::status::RejectReason;
use super::{DeadLetters, Rejected, SendError, SenderState, State, hours};
use crate::client::Client;

/// The shortest and the longest pause between two attempts, before jitter.
const PAUSE_MIN: Duration = Duration::from_millis(100);
pub(super) const RETRY_PAUSE_MAX: Duration = Duration::from_secs(30);

pub(super) type OnRejected = dyn FnMut(Rejected) -> Result<(), String>;

/// What to do after an attempt.
enum NextStep {
    /// Remove the batch from the queue.
    Forget,
    /// The batch has left the queue already.
    Gone,
    TryAgain {
        why: String,
        after: Option<Duration>,
        /// What to do when retries have lasted for `--retry-for`.
        on_timeout: OnTimeout,
        /// The service may accept other batches meanwhile.
        others_first: bool,
    },
    Fail(SendError),
}

/// What to do with a batch that was retried for `--retry-for`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum OnTimeout {
    /// Leave it in the queue for the next sender. With a spool and while flows arrive, this sender tries it again.
    GiveUp,
    /// Move it to the refused batches.
    SetAside(RejectReason),
    /// Leave it for the next sender, but do not give up while flows still arrive: the caller may be unable to
    /// provide them again, and the URL or the token may be corrected meanwhile.
    KeepForNext,
}

impl SenderState {
    /// Body of the delivery thread.
    pub(super) fn deliver_until_abandoned(
        &self,
        client: &Client,
        mut on_rejected: impl FnMut(Rejected) -> Result<(), String> + 'static,
    ) {
        let mut pauses = pauses();
        let mut failing_since: Option<Instant> = None;
        // The user has been notified that nothing is delivered.
        let mut has_notified = false;
        // Consecutive batches that were moved to the end of the queue.
        let mut postponed = 0;
        while let Some(OldestBatch { meta, body }) = self.next_batch() {
            let mut next = match &body {
                Ok(body) => self.try_once(client, &meta, body, &mut on_rejected),
                Err(damage) => self.set_aside(&meta, damage, None, &mut on_rejected),
            };
            let others_first = matches!(
                next,
                NextStep::TryAgain {
                    others_first: true,
                    ..
                }
            );
            if others_first {
                match self.postpone(&mut postponed) {
                    Ok(true) => continue,
                    Ok(false) => {}
                    Err(error) => next = NextStep::Fail(error),
                }
            }
            let since = *failing_since.get_or_insert_with(Instant::now);
            let mut left = self.options.retry_for.saturating_sub(since.elapsed());
            if let NextStep::TryAgain {
                why, on_timeout, ..
            } = &next
            {
                if *on_timeout == OnTimeout::KeepForNext {
                    self.notify_refused(client, why);
                }
                if self.outlasts(*on_timeout) {
                    if left.is_zero() && *on_timeout == OnTimeout::GiveUp && !has_notified {
                        has_notified = true;
                        self.notify_unreachable(client, why);
                    }
                    left = match self.state().ended_at {
                        None => RETRY_PAUSE_MAX,
                        Some(ended_at) => {
                            let failing = since.max(ended_at).elapsed();
                            self.options.retry_for.saturating_sub(failing)
                        }
                    };
                }
                if left.is_zero() {
                    next = self.give_up(client, &meta, &body, (why, *on_timeout), &mut on_rejected);
                }
            }
            let mut state = self.state();
            let done = matches!(next, NextStep::Forget | NextStep::Gone);
            match next {
                NextStep::Forget => {
                    if let Err(error) = state.queue.pop() {
                        state.failed = Some(error);
                    }
                }
                NextStep::Gone => {}
                NextStep::TryAgain { why, after, .. } => {
                    state.report.retries += 1;
                    state.last_error = Some(why);
                    let pause = pauses.next().unwrap_or(RETRY_PAUSE_MAX);
                    let pause = pause.max(after.unwrap_or_default());
                    state = self.pause(state, pause.min(left));
                }
                NextStep::Fail(error) => {
                    state.failed.get_or_insert(error);
                }
            }
            if done {
                state.last_error = None;
                pauses = self::pauses();
                failing_since = None;
                postponed = 0;
                has_notified = false;
            }
            self.changed.notify_all();
            if state.failed.is_some() || state.abandoned {
                return;
            }
        }
    }

    /// Handles a batch that was retried for long enough.
    fn give_up(
        &self,
        client: &Client,
        meta: &BatchMeta,
        body: &Result<Vec<u8>, String>,
        (why, on_timeout): (&str, OnTimeout),
        on_rejected: &mut OnRejected,
    ) -> NextStep {
        let (url, why) = (client.url(attempt::PATH), why.to_owned());
        match (on_timeout, body) {
            (OnTimeout::SetAside(reject_reason), Ok(body)) => {
                self.reject_batch(client, meta, body, (&why, reject_reason), on_rejected)
            }
            (OnTimeout::KeepForNext, _) => NextStep::Fail(SendError::Refused { url, why }),
            _ => NextStep::Fail(SendError::GaveUp {
                url,
                after: self.options.retry_for,
                why,
            }),
        }
    }

    /// Notifies the user once why the service accepts nothing.
    fn notify_refused(&self, client: &Client, why: &str) {
        if self.state().last_error.as_deref() != Some(why) {
            let url = client.url(attempt::PATH);
            let text = format!("{url} refuses: {why}; the flows are kept and will be sent later");
            (self.notice.0)(&text);
        }
    }

    /// Whether a batch is kept and retried for as long as flows arrive, and for `--retry-for` after that.
    fn outlasts(&self, on_timeout: OnTimeout) -> bool {
        match on_timeout {
            OnTimeout::GiveUp => self.options.spool.is_some(),
            OnTimeout::SetAside(_) => false,
            OnTimeout::KeepForNext => true,
        }
    }

    /// Notifies the user why nothing is delivered, while the spool keeps the flows.
    fn notify_unreachable(&self, client: &Client, why: &str) {
        let error = SendError::GaveUp {
            url: client.url(attempt::PATH),
            after: self.options.retry_for,
            why: why.to_owned(),
        };
        (self.notice.0)(&format!(
            "{error}; the flows are kept in the spool, and sent again later"
        ));
    }

    /// Moves a batch to the end of the queue, if it is in a spool. Returns whether there is a batch that has
    /// not been tried since the last pause.
    fn postpone(&self, postponed: &mut usize) -> Result<bool, SendError> {
        let mut state = self.state();
        state.queue.move_to_back()?;
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
        meta: &BatchMeta,
        body: &[u8],
        on_rejected: &mut OnRejected,
    ) -> NextStep {
        match attempt::deliver(client, meta, body) {
            AttemptOutcome::Accepted { replayed, expired } => {
                let report = &mut self.state().report;
                report.flows += (meta.flows - expired) as u64;
                report.expired += expired as u64;
                report.batches += 1;
                report.replayed += u64::from(replayed);
                NextStep::Forget
            }
            AttemptOutcome::Rejected { why, reason } => {
                self.reject_batch(client, meta, body, (&why, reason), on_rejected)
            }
            AttemptOutcome::Conflict { why } => NextStep::Fail(SendError::Conflict {
                url: client.url(attempt::PATH),
                why,
            }),
            // The next command reads the file again.
            AttemptOutcome::Refused { why, .. } if self.options.batch_age.is_none() => {
                NextStep::Fail(SendError::Refused {
                    url: client.url(attempt::PATH),
                    why,
                })
            }
            AttemptOutcome::Refused { why, after } => NextStep::TryAgain {
                why,
                after,
                on_timeout: OnTimeout::KeepForNext,
                others_first: false,
            },
            AttemptOutcome::Unreadable { why, after } => match flows_of(meta, body) {
                Ok(_) => NextStep::TryAgain {
                    why,
                    after,
                    on_timeout: OnTimeout::SetAside(RejectReason::Body),
                    others_first: false,
                },
                Err(damage) => self.set_aside(meta, &damage, None, on_rejected),
            },
            // Without a spool, nothing else can be sent meanwhile, and the clock may not be the cause.
            AttemptOutcome::Later { why, index } if self.options.spool.is_none() => {
                let index = index.filter(|_| meta.is_keyed);
                match index.map(|index| self.drop_late_flows(meta, body, index, &why, on_rejected))
                {
                    Some(Ok(true)) => NextStep::Gone,
                    Some(Err(error)) => NextStep::Fail(error),
                    None | Some(Ok(false)) => NextStep::Fail(SendError::Refused {
                        url: client.url(attempt::PATH),
                        why,
                    }),
                }
            }
            AttemptOutcome::Later { why, index } => {
                match hours::in_another_unit(meta, body, index, &why) {
                    None => NextStep::TryAgain {
                        why,
                        after: None,
                        on_timeout: OnTimeout::GiveUp,
                        others_first: true,
                    },
                    Some(split) if split.rest.is_empty() => self.reject_batch(
                        client,
                        meta,
                        body,
                        (&why, RejectReason::Flow),
                        on_rejected,
                    ),
                    Some(split) => match self.reject_flows(meta, split, &why, on_rejected) {
                        Ok(true) => NextStep::Gone,
                        Ok(false) => no_room(&why),
                        Err(error) => NextStep::Fail(error),
                    },
                }
            }
            AttemptOutcome::TryAgain { why, after } => NextStep::TryAgain {
                why,
                after,
                on_timeout: OnTimeout::GiveUp,
                others_first: false,
            },
        }
    }

    /// Moves a batch that the service will never accept aside, so that it does not block the others.
    fn reject_batch(
        &self,
        client: &Client,
        meta: &BatchMeta,
        body: &[u8],
        (why, reason): (&str, RejectReason),
        on_rejected: &mut OnRejected,
    ) -> NextStep {
        match &self.options.refused {
            DeadLetters::SetAside(command) => {
                self.set_aside(meta, why, Some((command, reason)), on_rejected)
            }
            DeadLetters::NotKept if reason != RejectReason::Flow => {
                NextStep::Fail(SendError::Refused {
                    url: client.url(attempt::PATH),
                    why: format!("{why}; {}", not_kept(meta, reason)),
                })
            }
            DeadLetters::PassOn | DeadLetters::NotKept => match flows_of(meta, body) {
                Ok(flows) => {
                    let rejected = Rejected::Flows {
                        flows,
                        why: why.to_owned(),
                        smaller_batch: (reason == RejectReason::Size).then(|| smaller(meta)),
                    };
                    match on_rejected(rejected) {
                        Ok(()) => NextStep::Forget,
                        Err(why) => NextStep::Fail(SendError::NotKept(why)),
                    }
                }
                Err(damage) => self.set_aside(meta, &damage, None, on_rejected),
            },
        }
    }

    /// Moves the first batch of the spool to the refused ones. `again` describes how to send it again, if
    /// that is possible.
    fn set_aside(
        &self,
        meta: &BatchMeta,
        why: &str,
        again: Option<(&str, RejectReason)>,
        on_rejected: &mut OnRejected,
    ) -> NextStep {
        let moved = self
            .state()
            .queue
            .set_aside(|path| reason(path, meta, why, again));
        let path = match moved {
            Ok(Some(path)) => path,
            Ok(None) => return no_room(why),
            Err(error) => return NextStep::Fail(error),
        };
        let (flows, why) = (meta.flows, why.to_owned());
        match on_rejected(Rejected::File { path, flows, why }) {
            Ok(()) => NextStep::Gone,
            Err(why) => NextStep::Fail(SendError::NotKept(why)),
        }
    }

    /// Waits for the oldest batch in the queue; `None` if the sender was dropped.
    fn next_batch(&self) -> Option<OldestBatch> {
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

    /// Waits. Returns early if the sender was dropped, or if the input ends, because the time to retry counts from its
    /// end.
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

/// Exponential backoff with jitter, so that a fleet does not reconnect simultaneously.
pub(super) fn pauses() -> impl Iterator<Item = Duration> {
    ExponentialBuilder::new()
        .with_min_delay(PAUSE_MIN)
        .with_max_delay(RETRY_PAUSE_MAX)
        .without_max_times()
        .with_jitter()
        .build()
}

/// What to do if the disk is too full to set a batch aside.
fn no_room(why: &str) -> NextStep {
    NextStep::TryAgain {
        why: format!("{why}; the disk has no room to set the batch aside"),
        after: None,
        on_timeout: OnTimeout::GiveUp,
        others_first: false,
    }
}

/// The flows in a body, each as JSON text. The body may be their only copy.
pub(super) fn flows_of(meta: &BatchMeta, body: &[u8]) -> Result<Vec<String>, String> {
    let damaged = |why: String| format!("the batch {} is damaged: {why}", meta.key);
    let json = if meta.compressed {
        zstd::decode_all(body).map_err(|e| damaged(e.to_string()))?
    } else {
        body.to_vec()
    };
    let flows: Vec<Box<RawValue>> =
        serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
    Ok(flows.iter().map(|flow| flow.get().to_owned()).collect())
}
