//! What the service answers when a receipt is asked for.

/// A receipt or a note that was asked for by its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReceiptInfo {
    /// When its batch was taken: seconds since the epoch.
    pub time_s: u64,
    pub note: Option<Box<str>>,
}
