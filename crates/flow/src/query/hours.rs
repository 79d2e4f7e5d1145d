//! The query for hours, and the rows of its response.

use serde::{Deserialize, Serialize};

use crate::{Hour, HourRange, Partition, Totals};

/// A query for hours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HoursQuery {
    pub hours: HourRange,
    /// Hours are added up in steps of this many, which begin at its multiples; an entry's hour is the first of its step.
    pub step: u32,
    /// Only these partitions, which must be on this node; `None` means all partitions on all nodes.
    pub partitions: Option<Vec<Partition>>,
    /// Leave out partitions that no node serves, instead of failing.
    pub partial: bool,
}

impl HoursQuery {
    /// All hours.
    pub const ALL: HoursQuery = HoursQuery {
        hours: HourRange::ALL,
        step: 1,
        partitions: None,
        partial: false,
    };
}

/// An hour, or the first one of a step, with its totals.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HourTotals {
    pub hour: Hour,
    pub totals: Totals,
    /// The smallest step in which its rows can be queried: 1, or more if they are only kept in longer spans.
    pub finest_step: u32,
}

/// An hour and its totals, as in `GET /hours`.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct HourRow {
    pub hour: u64,
    pub flows: u64,
    pub bytes_tx: u128,
    pub bytes_rx: u128,
    /// [`HourTotals::finest_step`]; left out if it is 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub finest_step: u32,
}

fn one() -> u32 {
    1
}

fn is_one(step: &u32) -> bool {
    *step == 1
}

impl HourRow {
    pub fn new(of: HourTotals) -> HourRow {
        HourRow {
            hour: of.hour.get().into(),
            flows: of.totals.flows,
            bytes_tx: of.totals.tx,
            bytes_rx: of.totals.rx,
            finest_step: of.finest_step,
        }
    }

    /// The hour and its totals; `None` if there is no such hour.
    pub fn totals(&self) -> Option<HourTotals> {
        let totals = Totals {
            flows: self.flows,
            tx: self.bytes_tx,
            rx: self.bytes_rx,
        };
        Some(HourTotals {
            hour: Hour::new(self.hour)?,
            totals,
            finest_step: self.finest_step,
        })
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
        for (finest_step, more) in [(1, ""), (24, r#","finest_step":24"#)] {
            let totals = HourTotals {
                hour: Hour::new(7).unwrap(),
                totals: Totals {
                    flows: 1,
                    tx: u128::MAX,
                    rx: 0,
                },
                finest_step,
            };
            let mut json = Vec::new();
            HourRow::new(totals).write(&mut json);
            let text = format!(
                r#"{{"hour":7,"flows":1,"bytes_tx":340282366920938463463374607431768211455,"bytes_rx":0{more}}}"#
            );
            assert_eq!(json, text.as_bytes());
            let row: HourRow = serde_json::from_slice(&json).unwrap();
            assert_eq!(row.totals(), Some(totals));
        }
    }
}
