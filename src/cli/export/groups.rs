//! Hours that are read together.

use std::fmt::Display;

use super::Failed;
use flow::HourRange;
use flow::query::{HourTotals, Query};

/// Maximum number of flows, and so of rows, of hours that are read together, unless it is a single hour. A response in
/// progress keeps files from being deleted, so each should be short.
const GROUP_FLOWS_MAX: u64 = 1_000_000;

/// Hours that are read together, in rows of `step` hours each.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group {
    pub(super) hours: HourRange,
    pub(super) step: u32,
}

impl Group {
    /// The rows of the group. Those of steps have the first hour of each.
    pub(super) fn query(self) -> Query {
        Query {
            step: self.step,
            ..Query::all_of(self.hours)
        }
    }

    /// The same as path and query.
    pub(super) fn target(self) -> String {
        let (from, to) = (self.hours.start(), self.hours.end());
        let mut target = format!("/flows?from={from}&to={to}");
        if self.step > 1 {
            let step = self.step;
            target += &format!("&group_by=src_app,dest_app,vpc_id,hour&step={step}");
        }
        target
    }

    /// The rows could not be read.
    pub(super) fn failed(self, why: &dyn Display) -> Failed {
        let (from, to) = (self.hours.start(), self.hours.end());
        Failed::Source(match self.hours.len() {
            1 => format!("hour {from}: {why}"),
            _ => format!("hours {from} to {}: {why}", to - 1),
        })
    }
}

/// Groups hours, which are in ascending order.
pub(super) struct Groups {
    groups: Vec<Group>,
    flows: u64,
    /// No group is longer, whatever the hours consist of.
    of: HourRange,
}

impl Groups {
    pub(super) fn new(of: HourRange) -> Groups {
        Groups {
            groups: Vec::new(),
            flows: 0,
            of,
        }
    }

    pub(super) fn add(&mut self, of: HourTotals) {
        let step = of.finest_step;
        let last = self.groups.last();
        if last.is_some_and(|last| of.hour.get() < last.hours.end()) {
            // It is in a longer span that begins before it.
            self.flows = self.flows.saturating_add(of.totals.flows);
            return;
        }
        // If only sums of days are left, whole days are read.
        let first = of.hour.get() - of.hour.get() % step;
        let end = first.saturating_add(step).min(self.of.end());
        self.flows = self.flows.saturating_add(of.totals.flows);
        match self.groups.last_mut() {
            Some(last) if last.step == step && self.flows <= GROUP_FLOWS_MAX => {
                last.hours = (last.hours.start()..end).into();
            }
            _ => {
                let hours = (first.max(self.of.start())..end).into();
                self.groups.push(Group { hours, step });
                self.flows = of.totals.flows;
            }
        }
    }

    pub(super) fn finish(self) -> Vec<Group> {
        self.groups
    }
}
