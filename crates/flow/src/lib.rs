//! What both ends of a line have to agree on: what a flow is, the batch and its bytes, the two decoders. No I/O
//! but a look at the clock, no threads.
//!
//! - [`Hour`], [`Counters`], [`Totals`], [`Field`]: what a flow is, in the terms of the people who use the
//!   service. [`HourLimit`] and [`HourUnit`] judge an hour by the clock.
//! - [`IdempotencyKey`] names a batch, so that it counts once; [`Notes`] are kept with its receipt.
//! - [`Batch`]: validated flows in the encoding that the journal stores, which [`codec`] owns.
//! - [`query`]: questions, and how they are written in a URL.
//! - [`decode`]: bodies to batches. [`gzip`] reads what comes compressed.

mod counters;
mod field;
mod hour;
mod hour_limit;
mod hour_unit;
mod idempotency_key;
mod misspelling;
mod notes;
mod partition;
mod receipt;

mod batch;
pub mod decode;
pub mod gzip;
pub mod query;

pub use counters::{Counters, Totals};
pub use field::{Field, NAME_BYTES_MAX};
pub use hour::Hour;
pub use hour_limit::{HourLimit, TooFarAhead};
pub use hour_unit::HourUnit;
pub use idempotency_key::IdempotencyKey;
pub use notes::{Note, Notes};
pub use partition::{Offset, OutOfRange, Partition, PartitionCount};
pub use receipt::ReceiptInfo;

pub use batch::{Batch, BatchBuilder, BatchLedger, KeyHasher, codec, ledger, validate_batch};
