//! From a request's bytes to an acknowledged batch: [`decode`] reads and validates, [`Admission`]
//! bounds what is in memory, [`HourGuard`] refuses hours that cannot be, and a [`Journal`] makes batches durable: the [`Committer`], which shares one
//! fsync among all that wait, or one that many nodes share.

mod admission;
mod committer;
pub mod decode;
pub mod gzip;
mod hour_guard;
mod journal;

pub use crate::store::Kept;
pub use admission::{Admission, Permit};
pub use committer::Committer;
pub use hour_guard::{HourGuard, HourLimit, TooFarAhead};
pub use journal::{Answer, Committed, Journal, Promise, Taken};

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
    /// There is a receipt under the key that the batch's notes say there must be none under.
    #[error("there is a receipt that the batch is not to be counted beside")]
    ReceiptExists,
    /// Parts of the batch may be durable, and others not. `keyed`: under an idempotency key.
    #[error("{why}")]
    Unsure { why: String, keyed: bool },
    /// The batch is durable; that it is visible could not be waited for.
    #[error("{0}")]
    NotVisible(String),
    /// There is no such thing here; says what there is instead.
    #[error("{0}")]
    NotHere(&'static str),
    /// The service is stopping.
    #[error("the service is shutting down")]
    Closed,
}
