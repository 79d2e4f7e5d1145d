//! The hours that are left to settle, and the spans that are left to sum.

/// The work that is left for the settler, as of its last search for cold hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Hours that have gone cold and are not settled, without those of which only a few late rows are not. If there are
    /// thousands, some may be missing.
    pub cold_hours: u64,
    /// Days with settled rows that are over and not summed.
    pub unsummed_days: u64,
    /// The same of thirty days.
    pub unsummed_thirty_days: u64,
    /// Hours whose rows could not be read since the store was opened. They are not settled.
    pub unreadable_hours: u64,
    /// The same of spans. They are not summed.
    pub unreadable_spans: u64,
}

impl Backlog {
    /// The larger figure of each kind.
    #[must_use]
    pub fn or_larger(self, other: Backlog) -> Backlog {
        Backlog {
            cold_hours: self.cold_hours.max(other.cold_hours),
            unsummed_days: self.unsummed_days.max(other.unsummed_days),
            unsummed_thirty_days: self.unsummed_thirty_days.max(other.unsummed_thirty_days),
            unreadable_hours: self.unreadable_hours.max(other.unreadable_hours),
            unreadable_spans: self.unreadable_spans.max(other.unreadable_spans),
        }
    }
}
