//! Data points that do not count, by reason.

use super::metrics::NAMES;
use crate::NAME_BYTES_MAX;

/// Why a data point does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// It is of another metric than those of flows.
    OtherMetric,
    /// It is of a metric of flows that is not a sum.
    NotASum,
    /// It has no attribute for the name of one end.
    NoName,
    /// A name has more than [`NAME_BYTES_MAX`] bytes.
    LongName,
    /// It has no time.
    NoTime,
    /// Its value is missing, or is not an integer from 0 to 2^64−1.
    BadValue,
}

impl Reason {
    pub const ALL: [Reason; 6] = [
        Reason::OtherMetric,
        Reason::NotASum,
        Reason::NoName,
        Reason::LongName,
        Reason::NoTime,
        Reason::BadValue,
    ];

    /// Its label in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::OtherMetric => "other-metric",
            Reason::NotASum => "not-a-sum",
            Reason::NoName => "no-name",
            Reason::LongName => "long-name",
            Reason::NoTime => "no-time",
            Reason::BadValue => "bad-value",
        }
    }

    /// Completes "N data points …".
    fn explain(self) -> String {
        match self {
            Reason::OtherMetric => "of other metrics".into(),
            Reason::NotASum => "of a metric of flows that is not a sum".into(),
            Reason::NoName => {
                let [src, dst, _] = NAMES.map(|names| names.join(", "));
                format!("without one of the attributes {src}, or of {dst}")
            }
            Reason::LongName => format!("with a name of more than {NAME_BYTES_MAX} bytes"),
            Reason::NoTime => "without a time".into(),
            Reason::BadValue => "with a value that is not an integer from 0 to 2^64-1".into(),
        }
    }
}

/// Numbers of data points of an export that do not count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rejected([u64; Reason::ALL.len()]);

impl Rejected {
    pub(super) fn add(&mut self, reason: Reason) {
        self.0[reason as usize] += 1;
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The reasons that occurred, with the number of their data points.
    pub fn reasons(&self) -> impl Iterator<Item = (Reason, u64)> {
        let counts = Reason::ALL.into_iter().zip(self.0);
        counts.filter(|(_, points)| *points > 0)
    }

    /// The message for the sender; empty if there are none. `too_old` flows were dropped by their age.
    pub fn explain(&self, too_old: u64) -> String {
        let reasons = self.reasons().map(|(reason, n)| (n, reason.explain()));
        let too_old = (too_old, "older than everything that is kept".to_owned());
        let all = reasons.chain(Some(too_old).filter(|(n, _)| *n > 0));
        let parts: Vec<String> = all.map(|(n, why)| format!("{n} {why}")).collect();
        match parts.is_empty() {
            true => String::new(),
            false => format!("data points that do not count: {}", parts.join("; ")),
        }
    }
}
