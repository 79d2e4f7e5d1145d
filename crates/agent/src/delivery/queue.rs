//! Batches that wait for delivery, in order: a few in memory, or files in a [spool](super::spool).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::SendError;
use super::block::IfLate;
use super::spool::{First, Spool};

/// Batches that wait in memory, without a spool.
const IN_MEMORY_MAX: usize = 8;

/// What a queue has no room for a batch in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lack {
    /// The most bytes that a spool may have.
    Bytes,
    /// Its disk, or its user's quota there.
    Disk,
}

/// What there is to know of a batch besides its body. In a spool it is the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    /// What is to be kept beside its receipt. Batches in a spool have none.
    pub(super) notes: String,
    /// The same where flows are left out.
    pub(super) if_late: Option<IfLate>,
    pub(super) flows: usize,
    /// It was cut from a file, which can be read again.
    pub(super) is_block: bool,
    /// The body is zstd.
    pub(super) compressed: bool,
}

/// A queue of batches.
#[derive(Debug)]
pub(super) enum Queue {
    Memory(VecDeque<(Entry, Vec<u8>)>),
    Spool(Spool),
}

impl Queue {
    pub(super) fn in_memory() -> Queue {
        Queue::Memory(VecDeque::new())
    }

    /// Opens the spool at `path`, or makes one.
    pub(super) fn open(path: &Path, bytes_max: u64) -> Result<Queue, SendError> {
        Spool::open(path, bytes_max).map(Queue::Spool)
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Queue::Memory(batches) => batches.len(),
            Queue::Spool(spool) => spool.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether a batch that is closed has to wait in memory. One that is to go into a spool has its room
    /// [reserved](Queue::reserve).
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Queue::Memory(batches) if batches.len() >= IN_MEMORY_MAX)
    }

    pub(super) fn is_spool(&self) -> bool {
        matches!(self, Queue::Spool(_))
    }

    /// Makes sure that the batch that is being filled can be kept when it has `bytes`. What there is no
    /// room in, if there is none.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<Option<Lack>, SendError> {
        match self {
            Queue::Memory(_) => Ok(None),
            Queue::Spool(spool) => spool.reserve(bytes),
        }
    }

    /// Adds a batch, unless there is no room.
    pub(super) fn push(&mut self, entry: Entry, body: Vec<u8>) -> Result<Option<Lack>, SendError> {
        match self {
            Queue::Memory(batches) => {
                batches.push_back((entry, body));
                Ok(None)
            }
            Queue::Spool(spool) => spool.push(entry, &body),
        }
    }

    /// The oldest batch.
    pub(super) fn first(&mut self) -> Result<Option<First>, SendError> {
        match self {
            Queue::Memory(batches) => Ok(batches.front().cloned().map(|(entry, body)| First {
                entry,
                body: Ok(body),
            })),
            Queue::Spool(spool) => spool.first(),
        }
    }

    /// Removes the oldest batch. Should the removal get lost in a crash, the batch is sent again, under
    /// its key.
    pub(super) fn pop(&mut self) -> Result<(), SendError> {
        match self {
            Queue::Memory(batches) => {
                batches.pop_front();
                Ok(())
            }
            Queue::Spool(spool) => spool.pop(),
        }
    }

    /// Puts another in place of the oldest batch that waits in memory.
    pub(super) fn replace_first(&mut self, entry: Entry, body: Vec<u8>) {
        if let Queue::Memory(batches) = self
            && let Some(first) = batches.front_mut()
        {
            *first = (entry, body);
        }
    }

    /// Moves the oldest batch of a spool behind the others. Batches that wait in memory keep their order.
    pub(super) fn put_last(&mut self) -> Result<(), SendError> {
        match self {
            Queue::Memory(_) => Ok(()),
            Queue::Spool(spool) => spool.put_last(),
        }
    }

    /// Moves the oldest batch of a spool to those that are not sent any more, and writes `why` beside it.
    /// Where it is then; `None` where the disk has no room for that now.
    pub(super) fn set_aside(
        &mut self,
        why: impl FnOnce(&Path) -> String,
    ) -> Result<Option<PathBuf>, SendError> {
        match self {
            Queue::Memory(_) => Ok(None),
            Queue::Spool(spool) => spool.set_aside(why),
        }
    }
}
