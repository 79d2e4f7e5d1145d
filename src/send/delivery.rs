//! The thread that takes batches from the front of the queue and sends each until the service has
//! answered it.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder, ExponentialBuilder};
use serde_json::value::RawValue;

use super::attempt::{self, Outcome};
use super::queue::Entry;
use super::{Rejected, SendError, Shared, State};
use crate::client::Client;

/// First and longest pause between two tries, before jitter.
const PAUSE_MIN: Duration = Duration::from_millis(100);
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(30);

impl Shared {
    /// The delivering thread's life.
    pub(super) fn deliver_until_abandoned(
        &self,
        client: &Client,
        mut on_rejected: impl FnMut(Rejected) -> Result<(), String>,
    ) {
        let mut pauses = pauses();
        let mut failing_since: Option<Instant> = None;
        loop {
            let Some((entry, body)) = self.next_batch() else {
                return;
            };
            let outcome = attempt::deliver(client, &entry, &body);
            let kept = match &outcome {
                Outcome::Rejected { why } => flows_of(&entry, &body).and_then(|flows| {
                    let why = why.clone();
                    on_rejected(Rejected { flows, why })
                }),
                Outcome::Unreadable { .. } => flows_of(&entry, &body).map(drop),
                _ => Ok(()),
            };
            let mut state = self.state();
            if let Err(why) = kept {
                state.failed = Some(SendError::NotKept(why));
                self.changed.notify_all();
                return;
            }
            let done = match outcome {
                Outcome::Taken { replayed, expired } => {
                    state.report.flows += (entry.flows - expired) as u64;
                    state.report.expired += expired as u64;
                    state.report.batches += 1;
                    state.report.replayed += u64::from(replayed);
                    true
                }
                Outcome::Rejected { .. } => true,
                Outcome::Refused { why } => {
                    let url = client.url(attempt::PATH);
                    state.failed = Some(SendError::Refused { url, why });
                    false
                }
                Outcome::Conflict { why } => {
                    let url = client.url(attempt::PATH);
                    state.failed = Some(SendError::Conflict { url, why });
                    false
                }
                Outcome::TryAgain { why, after } | Outcome::Unreadable { why, after } => {
                    state.report.retries += 1;
                    state.trouble = Some(why.clone());
                    let failing = failing_since.get_or_insert_with(Instant::now).elapsed();
                    let left = self.options.retry_for.saturating_sub(failing);
                    if left.is_zero() {
                        state.failed = Some(SendError::GaveUp {
                            url: client.url(attempt::PATH),
                            after: self.options.retry_for,
                            why,
                        });
                    } else {
                        let pause = pauses
                            .next()
                            .unwrap_or(PAUSE_MAX)
                            .max(after.unwrap_or_default());
                        state = self.pause(state, pause.min(left));
                    }
                    false
                }
            };
            if done {
                state.trouble = None;
                pauses = self::pauses();
                failing_since = None;
                if let Err(error) = state.queue.pop() {
                    state.failed = Some(error);
                }
            }
            self.changed.notify_all();
            if state.failed.is_some() || state.abandoned {
                return;
            }
        }
    }

    /// Waits for the batch that is first in the queue; `None` when the sender is gone.
    fn next_batch(&self) -> Option<(Entry, Vec<u8>)> {
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
            let wait = match (self.options.batch_age, state.open.since) {
                (Some(age), Some(since)) => {
                    let left = age.saturating_sub(since.elapsed());
                    if left.is_zero() {
                        // The queue is empty, so this does not wait.
                        state = self.close_batch(state).ok()?;
                        continue;
                    }
                    left
                }
                _ => Duration::from_secs(60),
            };
            state = self.wait(state, wait);
        }
    }

    /// Waits, unless the sender goes away.
    fn pause<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        pause: Duration,
    ) -> MutexGuard<'a, State> {
        let end = Instant::now() + pause;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.abandoned {
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

/// The flows in a body, a JSON text each; it may be the only copy of them.
fn flows_of(entry: &Entry, body: &[u8]) -> Result<Vec<String>, String> {
    let damaged = |why: String| {
        let key = &entry.key;
        format!(
            "the batch {key} is damaged, and stays where it is: {why}; mend it, or take it away"
        )
    };
    let json = if entry.compressed {
        zstd::decode_all(body).map_err(|e| damaged(e.to_string()))?
    } else {
        body.to_vec()
    };
    let flows: Vec<Box<RawValue>> =
        serde_json::from_slice(&json).map_err(|e| damaged(e.to_string()))?;
    Ok(flows.iter().map(|flow| flow.get().to_owned()).collect())
}
