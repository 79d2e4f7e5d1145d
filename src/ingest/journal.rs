//! What makes batches durable, as those see it who take them in.

use std::fmt::Debug;
use std::pin::Pin;

use super::{IngestError, Permit};
use crate::domain::{Hour, IdempotencyKey, Totals};
use crate::store::{Batch, Kept, StoreError};

/// How a batch came to be durable and visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It was committed.
    Now,
    /// One under the same idempotency key was, before: this one was not counted again.
    Before,
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    pub taken: Taken,
    /// Flows of it that count.
    pub flows: u64,
    /// Flows of it that were too old to count.
    pub expired: u64,
}

pub type Answer = Result<Committed, IngestError>;
pub type Promise<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Takes batches, and answers when they are durable.
pub trait Journal: Debug + Send + Sync {
    /// Resolves once every flow of `batch` is durable; with `until_visible`, once the next question sees it
    /// too, whoever is asked.
    ///
    /// A caller that goes away before the answer leaves the batch on its way: it is then committed, or
    /// not, like one whose answer got lost.
    fn commit(&self, batch: Batch, permit: Permit, until_visible: bool) -> Promise<'_, Answer>;

    /// Whether a commit can be expected to succeed, and a question to be answered; if not, why.
    fn accepts(&self) -> Result<(), String>;

    /// Why batches are refused, where that is for want of space on the disk.
    fn lacks_space(&self) -> Option<&'static str>;

    /// Why batches are refused, where a new start helps: "…, for so long".
    fn fails(&self) -> Option<&'static str>;

    /// Drops an hour, and returns what it held; `None` where it held nothing. Blocks on the disk.
    fn delete_hour(&self, hour: Hour) -> Result<Option<Totals>, IngestError>;

    /// The newest hour that has flows; `None` where none has, or it is not known.
    fn newest_hour(&self) -> Option<Hour>;

    /// What is kept under each of these idempotency keys. Blocks on the disk.
    fn receipts(&self, _keys: &[IdempotencyKey]) -> Result<Vec<Option<Kept>>, IngestError> {
        let what = "receipts of a service of many nodes are with the partitions of the flows; \
                    a batch that is sent again under its key counts once all the same";
        Err(IngestError::NotHere(what))
    }

    /// Sets the gauges.
    fn observe(&self) -> Result<(), StoreError>;

    /// Takes what has been handed over, and nothing from then on. Blocks.
    fn finish(&self);

    /// For other nodes: resolves when the sums of these partitions, which have to be this node's, have
    /// everything up to these offsets; to `false` when that takes long.
    fn has_applied(&self, _upto: Vec<(i32, u64)>) -> Promise<'_, bool> {
        Box::pin(std::future::ready(false))
    }
}
