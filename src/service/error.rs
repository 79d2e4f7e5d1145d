//! The errors of the service.

use std::sync::Arc;

use crate::store::StoreError;

/// The reason why a batch, a deletion or a look-up failed. Queries fail with [`QueryError`](crate::query::QueryError).
#[derive(Clone, Debug, thiserror::Error)]
pub enum ServiceError {
    /// Too much is in flight, or the disk does not keep up: the sender should try again shortly.
    #[error("{0}")]
    Overloaded(String),
    /// The disk is full, or nearly full: nothing is stored until there is space.
    #[error("{why}")]
    NoSpace { why: &'static str },
    /// The journal could not be written; the batch is not acknowledged.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// A receipt cannot be read because it is damaged. So it is unknown whether a batch was counted under the
    /// idempotency key, and trying again does not help.
    #[error(transparent)]
    Receipt(Arc<StoreError>),
    /// An hour could not be deleted: it is either complete or deleted.
    #[error(transparent)]
    NotDeleted(Arc<StoreError>),
    /// An hour cannot be deleted alone, since its rows are only kept in longer spans.
    #[error("{0}")]
    TooCoarse(String),
    /// Another batch was counted under this one's idempotency key.
    #[error("other flows were counted under this idempotency key")]
    KeyReused,
    /// There is a receipt under a key that the batch's notes require to have none.
    #[error("there is a receipt under a key that the notes require to have none")]
    ReceiptExists,
    /// Parts of the batch may be durable, and others not. `keyed`: the batch has an idempotency key.
    #[error("{why}")]
    OutcomeUnknown { why: String, keyed: bool },
    /// The batch is durable, but did not become visible in time.
    #[error("{0}")]
    NotVisible(String),
    /// This mode cannot do it; the text names the alternative.
    #[error("{0}")]
    Unsupported(&'static str),
    /// The service is stopping.
    #[error("the service is shutting down")]
    Closed,
}
