//! What agents and the service agree on: flows, the encoding of batches, and the two decoders. No I/O except reading
//! the clock, and no threads.
//!
//! - [`Hour`], [`Counters`], [`Totals`], [`Field`]: a flow, in the terms of the API. [`HourLimit`] and [`HourUnit`]
//!   validate hours against the clock.
//! - [`IdempotencyKey`] identifies a batch, so that it counts once; [`Notes`] are stored with its receipt.
//! - [`HostName`]: a host in `Host` and in the service's URL.
//! - [`Batch`]: validated flows in the encoding that the journal stores, which [`codec`] owns.
//! - [`query`]: queries, and their encoding in a URL. [`headers`]: names of headers. [`ProblemDocument`]: errors.
//! - [`decode`]: decodes request bodies into batches. [`gzip`] reads compressed ones.
//! - [`directory`]: which application has which address and port, as agents tell each other through the service.

mod counters;
mod encoding;
mod field;
mod host_name;
mod hour;
mod hour_limit;
mod hour_unit;
mod idempotency_key;
mod misspelling;
mod notes;
mod partition;
mod problem;
mod receipt;

/// Upper bound of a request's body, and so of a batch, whatever a configuration allows: sizes in a batch have 32 bits,
/// and so have offsets in the sums that it is added to.
pub const BODY_BYTES_MAX: usize = 1 << 30;

mod batch;
pub mod decode;
pub mod directory;
pub mod gzip;
pub mod headers;
pub mod query;

pub use counters::{Counters, Totals};
pub use encoding::Encoding;
pub use field::{Field, NAME_BYTES_MAX};
pub use host_name::HostName;
pub use hour::{Hour, HourRange};
pub use hour_limit::{ClockBehind, HourLimit, TooFarAhead};
pub use hour_unit::HourUnit;
pub use idempotency_key::IdempotencyKey;
pub use notes::{Note, Notes};
pub use partition::{Offset, OutOfRange, Partition, PartitionCount};
pub use problem::{PROBLEM_MEDIA_TYPE, PROBLEM_TYPE_PREFIX, ProblemDocument, TOO_COARSE};
pub use receipt::ReceiptInfo;

pub use batch::{Batch, BatchBuilder, BatchLedger, KeyHasher, ValidBatch, ValidRecord, codec};
