//! The result of looking up a receipt.

/// A receipt or a note, as returned by a lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptInfo {
    /// When its batch was accepted: seconds since the epoch.
    pub time_s: u64,
    pub note: Option<Box<str>>,
}
