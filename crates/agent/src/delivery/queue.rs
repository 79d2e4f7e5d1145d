//! The queue of batches that wait for delivery, in order: a few in memory, or files in a
//! [spool](super::spool).

use std::collections::VecDeque;
use std::path::{Path, PathBuf};

use super::SendError;
use super::keyed::IfLate;
use super::spool::{OldestBatch, Spool};

/// Maximum number of batches in memory, without a spool.
const IN_MEMORY_MAX: usize = 8;

/// The reason why a queue has no room for a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum QueueFull {
    /// The limit on the spool's size.
    Bytes,
    /// The disk, or the user's quota on it.
    Disk,
}

/// The metadata of a batch. In a spool, it is the file's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct BatchMeta {
    pub(super) key: String,
    /// The value of `Receipt-Notes`. Empty for batches in a spool.
    pub(super) notes: String,
    /// See [`KeyedBatch::if_late`](super::KeyedBatch).
    pub(super) if_late: Option<IfLate>,
    pub(super) flows: usize,
    /// The batch was cut from a file, which can be read again.
    pub(super) is_keyed: bool,
    /// The body is compressed with zstd.
    pub(super) compressed: bool,
}

/// A queue of batches.
#[derive(Debug)]
pub(super) enum Queue {
    Memory(VecDeque<(BatchMeta, Vec<u8>)>),
    Spool(Spool),
}

impl Queue {
    pub(super) fn in_memory() -> Queue {
        Queue::Memory(VecDeque::new())
    }

    /// Opens the spool at `path`, and creates it if it does not exist.
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

    /// Whether a closed batch has to wait for room in memory. For a batch that goes into a spool, room is
    /// [reserved](Queue::reserve) in advance.
    pub(super) fn is_full(&self) -> bool {
        matches!(self, Queue::Memory(batches) if batches.len() >= IN_MEMORY_MAX)
    }

    pub(super) fn is_spool(&self) -> bool {
        matches!(self, Queue::Spool(_))
    }

    /// Reserves room for the batch that is being filled, up to `bytes`. Returns the shortage if there is not
    /// enough.
    pub(super) fn reserve(&mut self, bytes: u64) -> Result<Option<QueueFull>, SendError> {
        match self {
            Queue::Memory(_) => Ok(None),
            Queue::Spool(spool) => spool.reserve(bytes),
        }
    }

    /// Reserves room for the next read of a pipe: flows with a body of `body_bytes`, and a part of a flow with
    /// `text_bytes`. Returns the shortage if there is not enough.
    pub(super) fn reserve_ahead(
        &mut self,
        body_bytes: u64,
        text_bytes: u64,
    ) -> Result<Option<QueueFull>, SendError> {
        match self {
            Queue::Memory(_) => Ok(None),
            Queue::Spool(spool) => spool.reserve_ahead(body_bytes, text_bytes),
        }
    }

    /// Appends a batch if there is room.
    pub(super) fn push(
        &mut self,
        meta: BatchMeta,
        body: Vec<u8>,
    ) -> Result<Option<QueueFull>, SendError> {
        match self {
            Queue::Memory(batches) => {
                batches.push_back((meta, body));
                Ok(None)
            }
            Queue::Spool(spool) => spool.push(meta, &body),
        }
    }

    /// The oldest batch.
    pub(super) fn first(&mut self) -> Result<Option<OldestBatch>, SendError> {
        match self {
            Queue::Memory(batches) => {
                Ok(batches.front().cloned().map(|(meta, body)| OldestBatch {
                    meta,
                    body: Ok(body),
                }))
            }
            Queue::Spool(spool) => spool.first(),
        }
    }

    /// Removes the oldest batch. If a crash undoes the removal, the batch is sent again under the same key.
    pub(super) fn pop(&mut self) -> Result<(), SendError> {
        match self {
            Queue::Memory(batches) => {
                batches.pop_front();
                Ok(())
            }
            Queue::Spool(spool) => spool.pop(),
        }
    }

    /// Replaces the oldest batch by a part of it. Returns the shortage if there is no room for that now.
    pub(super) fn replace_first(
        &mut self,
        meta: BatchMeta,
        body: Vec<u8>,
    ) -> Result<Option<QueueFull>, SendError> {
        match self {
            Queue::Memory(batches) => {
                if let Some(first) = batches.front_mut() {
                    *first = (meta, body);
                }
                Ok(None)
            }
            Queue::Spool(spool) => spool.replace_first(meta, &body),
        }
    }

    /// Moves the oldest batch of a spool to the end. Batches in memory keep their order.
    pub(super) fn move_to_back(&mut self) -> Result<(), SendError> {
        match self {
            Queue::Memory(_) => Ok(()),
            Queue::Spool(spool) => spool.move_to_back(),
        }
    }

    /// Moves the oldest batch of a spool to the refused ones, and writes `why` beside it. Returns its new
    /// path, or `None` if the disk has no room for that now.
    pub(super) fn set_aside(
        &mut self,
        why: impl FnOnce(&Path) -> String,
    ) -> Result<Option<PathBuf>, SendError> {
        match self {
            Queue::Memory(_) => Ok(None),
            Queue::Spool(spool) => spool.set_aside(why),
        }
    }

    /// Adds a part of the oldest batch of a spool to the refused ones, and writes `why` beside it. Returns its path, or
    /// `None` if the disk has no room for that now.
    pub(super) fn add_refused(
        &mut self,
        meta: &BatchMeta,
        body: &[u8],
        why: impl FnOnce(&Path) -> String,
    ) -> Result<Option<PathBuf>, SendError> {
        match self {
            Queue::Memory(_) => Ok(None),
            Queue::Spool(spool) => spool.add_refused(meta, body, why),
        }
    }
}
