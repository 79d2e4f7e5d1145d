//! From a request's bytes to an acknowledged batch: [`decode`] reads and validates, [`Admission`]
//! bounds what is in memory, the [`Committer`] shares one fsync among all that wait.

mod admission;
mod committer;
pub mod decode;

pub use admission::{Admission, Permit};
pub use committer::{Committed, Committer, Taken};

use std::sync::Arc;

use crate::store::StoreError;

/// Why a valid batch was not taken.
#[derive(Clone, Debug, thiserror::Error)]
pub enum IngestError {
    /// Too much is in flight, or the disk does not keep up: the sender should try again shortly.
    #[error("{0}")]
    Overloaded(String),
    /// The journal could not be written; the batch is not promised.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// Whether a batch was taken under this one's idempotency key cannot be told: what is stored is
    /// damaged, and trying again does not help.
    #[error(transparent)]
    Receipt(Arc<StoreError>),
    /// An hour could not be deleted: it is there as a whole, or gone as a whole.
    #[error(transparent)]
    NotDeleted(Arc<StoreError>),
    /// Another batch was taken under this one's idempotency key.
    #[error("other flows were taken under this idempotency key")]
    KeyReused,
    /// The service is stopping.
    #[error("the service is shutting down")]
    Closed,
}
