//! Messages of a partition that were fetched and are not in its sums yet. The queue is bounded: when it is full, its
//! partition is paused, while the others continue.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

use super::kafka::{ConsumedMessage, Control};
use flow::{Offset, Partition};

/// The partition is paused beyond this. One handover of Kafka's client may exceed it.
const BYTES_MAX: usize = 2 << 20;

/// A message, copied out of the client's memory.
#[derive(Debug)]
pub(super) struct FetchedMessage {
    pub(super) offset: Offset,
    pub(super) time_s: u64,
    pub(super) payload: Vec<u8>,
}

/// The way in which this node's ownership of a partition ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PartitionEnd {
    /// The next owner waits until this node has closed the store.
    Revoked,
    /// Another node may own it already.
    Lost,
}

#[derive(Debug, Default)]
struct State {
    groups: VecDeque<Vec<FetchedMessage>>,
    bytes: usize,
    paused: bool,
    end: Option<PartitionEnd>,
}

/// The queue of one partition.
#[derive(Debug, Default)]
pub(super) struct FetchQueue {
    state: Mutex<State>,
    changed: Condvar,
    /// Cancelled at the end.
    stop: CancellationToken,
}

impl FetchQueue {
    pub(super) fn push(
        &self,
        control: &Control,
        partition: Partition,
        messages: &[ConsumedMessage<'_>],
    ) {
        let group: Vec<_> = messages
            .iter()
            .map(|message| FetchedMessage {
                offset: message.offset,
                time_s: message.time_s,
                payload: message.payload.to_vec(),
            })
            .collect();
        let mut state = self.state.lock();
        state.bytes += bytes(&group);
        state.groups.push_back(group);
        // Under the lock, so that it cannot overtake the resumption.
        if state.bytes > BYTES_MAX && !state.paused {
            state.paused = true;
            control.pause(partition);
        }
        self.changed.notify_all();
    }

    /// Waits for the next messages. Returns `None` when the partition is revoked or lost; the next owner fetches the
    /// messages that are left.
    pub(super) fn pop(
        &self,
        control: &Control,
        partition: Partition,
    ) -> Option<Vec<FetchedMessage>> {
        let mut state = self.state.lock();
        loop {
            if state.end.is_some() {
                return None;
            }
            if let Some(group) = state.groups.pop_front() {
                state.bytes -= bytes(&group);
                if state.paused && state.bytes < BYTES_MAX / 2 {
                    state.paused = false;
                    control.resume(partition);
                }
                return Some(group);
            }
            self.changed.wait(&mut state);
        }
    }

    pub(super) fn end(&self, end: PartitionEnd) {
        self.state.lock().end = Some(end);
        self.changed.notify_all();
        self.stop.cancel();
    }

    /// Cancelled when the partition is revoked or lost.
    pub(super) fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    pub(super) fn ended(&self) -> Option<PartitionEnd> {
        self.state.lock().end
    }

    /// Waits for the end, at most `time_max`. Returns whether the ownership has ended.
    pub(super) fn ends_within(&self, time_max: Duration) -> bool {
        let deadline = Instant::now() + time_max;
        let mut state = self.state.lock();
        while state.end.is_none() {
            if self.changed.wait_until(&mut state, deadline).timed_out() {
                break;
            }
        }
        state.end.is_some()
    }

    /// Waits for the end, and discards messages until then.
    pub(super) fn await_end(&self) {
        let mut state = self.state.lock();
        while state.end.is_none() {
            state.groups.clear();
            self.changed.wait(&mut state);
        }
    }
}

fn bytes(group: &[FetchedMessage]) -> usize {
    group.iter().map(|message| message.payload.len()).sum()
}
