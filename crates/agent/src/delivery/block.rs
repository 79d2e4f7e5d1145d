//! Batches that whoever sends them has made, under keys of their own: of files, which are cut by what is
//! in them.

use super::closing::compress;
use super::queue::Entry;
use super::{SendError, Sender};

/// A batch that is whole.
#[derive(Clone, Debug)]
pub struct Block {
    /// Its idempotency key.
    pub key: String,
    /// What is to be kept beside its receipt, as the header `Receipt-Notes` has it; may be empty.
    pub notes: String,
    /// Where the service takes only flows of earlier hours.
    pub if_late: Option<IfLate>,
    pub flows: usize,
    /// An array of flows.
    pub json: Vec<u8>,
}

/// For a batch of which the service takes only flows of earlier hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IfLate {
    /// The notes of the batch then, but for the hour from which on flows are left out: that is added.
    pub notes: String,
    /// It has only flows that were left out before: nothing is sent where none is taken.
    pub is_again: bool,
}

impl Sender {
    /// A key that no other batch has.
    pub fn random_key() -> String {
        uuid::Uuid::now_v7().simple().to_string()
    }

    /// Adds a batch, behind all others. Waits while the queue is full.
    ///
    /// # Errors
    /// [`SendError::Conflict`] where a batch before it was not taken because of what its notes say: it
    /// was not counted, and neither is any after it.
    pub fn push_block(&self, block: Block) -> Result<(), SendError> {
        let shared = &*self.shared;
        let body = if shared.options.compress {
            compress(&block.json)
                .map_err(|e| SendError::Options(format!("cannot compress: {e}")))?
        } else {
            block.json
        };
        let entry = Entry {
            key: block.key,
            notes: block.notes,
            if_late: block.if_late,
            flows: block.flows,
            is_block: true,
            compressed: shared.options.compress,
        };
        let mut state = shared.state();
        loop {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if state.queue.is_full() {
                state = shared.wait(state, std::time::Duration::from_secs(1));
                continue;
            }
            match state.queue.push(entry.clone(), body.clone())? {
                None => break,
                Some(lack) => state = shared.wait_for_room(state, lack),
            }
        }
        shared.changed.notify_all();
        Ok(())
    }
}
