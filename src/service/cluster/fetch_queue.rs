//! What has been read of a partition and is not in its sums yet. It is bounded: where it is full, the
//! partition is paused, and the others go on.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::service::cluster::kafka::{Control, Record};

/// Beyond this, nothing more is read. What Kafka's client hands over at a time comes on top of it.
const BYTES_MAX: usize = 2 << 20;

/// A message, taken out of the client's memory.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) offset: u64,
    pub(super) time_s: u64,
    pub(super) payload: Vec<u8>,
}

/// How a partition goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// To be flushed first.
    InOrder,
    /// Another node may have it already.
    Lost,
}

#[derive(Debug, Default)]
struct Queue {
    groups: VecDeque<Vec<Message>>,
    bytes: usize,
    paused: bool,
    end: Option<End>,
}

#[derive(Debug, Default)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    more: Condvar,
}

impl Inbox {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing is left half done under it.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn put(&self, control: &Control, partition: i32, records: &[Record<'_>]) {
        let group: Vec<_> = records
            .iter()
            .map(|record| Message {
                offset: record.offset,
                time_s: record.time_s,
                payload: record.payload.to_vec(),
            })
            .collect();
        let mut queue = self.lock();
        queue.bytes += bytes(&group);
        queue.groups.push_back(group);
        // Under the lock, so that it cannot come after the resumption.
        if queue.bytes > BYTES_MAX && !queue.paused {
            queue.paused = true;
            control.pause(partition);
        }
        self.more.notify_all();
    }

    /// The next messages; `None` when the partition goes, whatever is left: whoever has it next reads that.
    pub(super) fn take(&self, control: &Control, partition: i32) -> Option<Vec<Message>> {
        let mut queue = self.lock();
        loop {
            if queue.end.is_some() {
                return None;
            }
            if let Some(group) = queue.groups.pop_front() {
                queue.bytes -= bytes(&group);
                if queue.paused && queue.bytes < BYTES_MAX / 2 {
                    queue.paused = false;
                    control.resume(partition);
                }
                return Some(group);
            }
            queue = (self.more.wait(queue)).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(super) fn end(&self, end: End) {
        self.lock().end = Some(end);
        self.more.notify_all();
    }

    pub(super) fn ended(&self) -> Option<End> {
        self.lock().end
    }

    /// Waits for the end, `time_max` at most; whether it has come.
    pub(super) fn ends_within(&self, time_max: Duration) -> bool {
        let goes_on = |queue: &mut Queue| queue.end.is_none();
        let waited = (self.more).wait_timeout_while(self.lock(), time_max, goes_on);
        let (queue, _) = waited.unwrap_or_else(PoisonError::into_inner);
        queue.end.is_some()
    }

    /// Waits for the end, and lets go what comes until then.
    pub(super) fn await_end(&self) {
        let mut queue = self.lock();
        while queue.end.is_none() {
            queue.groups.clear();
            queue = (self.more.wait(queue)).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn bytes(group: &[Message]) -> usize {
    group.iter().map(|message| message.payload.len()).sum()
}
