//! The outcome of a delivery: counts, rejected batches, and the error that ends it.

use std::path::PathBuf;
use std::time::Duration;

use crate::client::ClientError;

/// A batch that the service does not accept, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Rejected {
    /// The flows as they were sent, each as JSON text.
    Flows {
        flows: Vec<String>,
        why: String,
        /// If the batch was too large: the flows of a smaller one.
        smaller_batch: Option<usize>,
    },
    /// Flows of a keyed batch, each with its number from 0, whose hours are too far ahead of the service's
    /// clock. The batch is sent without them.
    FromKeyedBatch {
        key: String,
        flows: Vec<(usize, String)>,
        why: String,
    },
    /// The batch was moved to this file.
    File {
        path: PathBuf,
        flows: usize,
        why: String,
    },
}

/// Counts of what was delivered so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// Flows that the service has accepted, now or earlier.
    pub(crate) flows: u64,
    /// Batches, and how many of them the service had accepted earlier.
    pub(crate) batches: u64,
    pub(crate) replayed: u64,
    /// Flows that do not count, because they are older than the service's retention.
    pub(crate) expired: u64,
    /// Failed attempts that were repeated.
    pub(crate) retries: u64,
    /// Batches in the queue.
    pub(crate) waiting: u64,
}

/// The reason why a sender has stopped. Flows that were pushed and not delivered are in the spool, if it has one.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("{url} has accepted nothing for {} seconds: {why}", .after.as_secs())]
    GaveUp {
        url: String,
        after: Duration,
        why: String,
    },
    /// The service accepts nothing until something is changed: a wrong token or a wrong URL.
    #[error("{url} refuses: {why}")]
    Refused { url: String, why: String },
    #[error("{}: {why}", path.display())]
    Spool { path: PathBuf, why: String },
    #[error("{0}")]
    Options(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Another client that sends the same file has counted a part of this batch.
    #[error("{url} refuses: {why}")]
    Conflict { url: String, why: String },
    /// Rejected flows could not be stored.
    #[error("{0}")]
    NotKept(String),
    /// [`Sender::interrupt`](super::Sender::interrupt) was called.
    #[error("interrupted")]
    Interrupted,
}
