//! Options of a sender.

use std::path::PathBuf;
use std::time::Duration;

use crate::client::Server;

/// Options of a [`Sender`](super::Sender).
#[derive(Clone, Debug)]
pub(crate) struct SenderOptions {
    pub(crate) server: Server,
    /// Maximum number of flows in a batch.
    pub(crate) batch_flows: usize,
    /// Maximum bytes of JSON in a batch.
    pub(crate) batch_bytes: usize,
    /// The age at which a batch is sent even if it is not full; `None`: only full batches are sent.
    pub(crate) batch_age: Option<Duration>,
    /// Compress bodies with zstd.
    pub(crate) compress: bool,
    /// Directory for batches that the service has not accepted yet; `None` keeps a few in memory.
    pub(crate) spool: Option<PathBuf>,
    /// The spool's size at which [`Sender::push`](super::Sender::push) blocks. It also blocks while the disk is full.
    pub(crate) spool_bytes_max: u64,
    /// What to do with batches that the service will never accept.
    pub(crate) refused: DeadLetters,
    /// Give up when nothing could be delivered for this long. With a spool, the time counts from
    /// [`Sender::finish`](super::Sender::finish) on: until then the flows are kept, and sent again.
    pub(crate) retry_for: Duration,
}

/// What to do with a batch that the service will never accept. Other batches are sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeadLetters {
    /// Pass its flows to the callback, which keeps them.
    PassOn,
    /// Move it to the directory `refused` in the spool, with the reason and this command, to which the name
    /// of the file is appended.
    SetAside(String),
    /// Fail, because the batch cannot be kept. But if the service names an invalid flow, which it would refuse every
    /// time, pass the flows to the callback.
    NotKept,
}
