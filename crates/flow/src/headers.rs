//! Names of the HTTP headers of flowtally's own, and of those that no library has a name for.

/// Identifies a batch, so that it counts once.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// In a response: the batch had counted before.
pub const IDEMPOTENT_REPLAYED: &str = "idempotent-replayed";
/// [`Notes`](crate::Notes) to store with the batch's receipt.
pub const RECEIPT_NOTES: &str = "receipt-notes";
/// In a response: the lag of each partition behind the journal, as in `0=12,1=0`.
pub const FLOWTALLY_LAG: &str = "flowtally-lag";
/// In a response: the partitions that no node serves, as in `3,7`.
pub const FLOWTALLY_MISSING: &str = "flowtally-missing";
/// In a response with hours to another node: the first hours of which rows by hour, and by day, can be queried, as in
/// `2969,1536`.
pub const FLOWTALLY_FINEST_ROWS: &str = "flowtally-finest-rows";
/// In a response with `other=true`: the sum of bytes_tx of all rows.
pub const FLOWTALLY_TOTAL_BYTES_TX: &str = "flowtally-total-bytes-tx";
/// The same of bytes_rx.
pub const FLOWTALLY_TOTAL_BYTES_RX: &str = "flowtally-total-bytes-rx";
/// In a response with hours: the flows that were accepted, minus those in the ledger, as they were compared last.
pub const FLOWTALLY_LEDGER_DIFFERENCE: &str = "flowtally-ledger-difference";
