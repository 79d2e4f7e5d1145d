//! The query for hours, and the rows of its response.

use serde::Deserialize;

use crate::{HourRange, Partition};

/// A query for hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoursQuery {
    pub hours: HourRange,
    /// Only these partitions, which must be on this node; `None` means all partitions on all nodes.
    pub partitions: Option<Vec<Partition>>,
    /// Leave out partitions that no node serves, instead of failing.
    pub partial: bool,
}

impl HoursQuery {
    /// All hours.
    pub const ALL: HoursQuery = HoursQuery {
        hours: HourRange::ALL,
        partitions: None,
        partial: false,
    };
}

/// An hour and its totals, as in `GET /hours`.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct HourRow {
    pub hour: u64,
    pub flows: u64,
    pub bytes_tx: u128,
    pub bytes_rx: u128,
}

impl HourRow {
    /// Sum of both directions.
    pub fn bytes(&self) -> u128 {
        self.bytes_tx.saturating_add(self.bytes_rx)
    }
}
