//! The query for hours, and the rows of its response.

use serde::{Deserialize, Serialize};

use crate::{Hour, HourRange, Partition, Totals};

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
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct HourRow {
    pub hour: u64,
    pub flows: u64,
    pub bytes_tx: u128,
    pub bytes_rx: u128,
}

impl HourRow {
    pub fn new(hour: Hour, totals: Totals) -> HourRow {
        HourRow {
            hour: hour.get().into(),
            flows: totals.flows,
            bytes_tx: totals.tx,
            bytes_rx: totals.rx,
        }
    }

    /// The hour and its totals; `None` if there is no such hour.
    pub fn totals(&self) -> Option<(Hour, Totals)> {
        let totals = Totals {
            flows: self.flows,
            tx: self.bytes_tx,
            rx: self.bytes_rx,
        };
        Some((Hour::new(self.hour)?, totals))
    }

    /// Appends it as JSON.
    pub fn write(&self, out: &mut Vec<u8>) {
        // Integers always serialise, and memory can be written.
        let _infallible = serde_json::to_writer(out, self);
    }

    /// Sum of both directions.
    pub fn bytes(&self) -> u128 {
        self.bytes_tx.saturating_add(self.bytes_rx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let hour = Hour::new(7).unwrap();
        let totals = Totals {
            flows: 1,
            tx: u128::MAX,
            rx: 0,
        };
        let mut json = Vec::new();
        HourRow::new(hour, totals).write(&mut json);
        let text = r#"{"hour":7,"flows":1,"bytes_tx":340282366920938463463374607431768211455,"bytes_rx":0}"#;
        assert_eq!(json, text.as_bytes());
        let row: HourRow = serde_json::from_slice(&json).unwrap();
        assert_eq!(row.totals(), Some((hour, totals)));
    }
}
