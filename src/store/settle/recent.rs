//! The hours that flows came for recently, which are not cold.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use flow::Hour;

/// Upper bound of the hours that are remembered because flows came for them.
const RECENT_HOURS_MAX: usize = 1 << 20;

/// The hours of recent flushes.
#[derive(Debug, Default)]
pub(super) struct RecentHours {
    /// Ascending by time, each with its hours in ascending order.
    writes: VecDeque<(Instant, Vec<Hour>)>,
    hours: usize,
    /// There were more hours than can be remembered: all hours count as recent as of this time.
    overflow: Option<Instant>,
    /// When the running settlement began to read rows.
    settling_since: Option<Instant>,
}

impl RecentHours {
    pub(super) fn add(&mut self, hours: Vec<Hour>, keep: Duration) {
        let now = Instant::now();
        self.hours += hours.len();
        self.writes.push_back((now, hours));
        let settling_since = self.settling_since;
        // A settlement may take longer than hours are kept. It must not miss one that was written meanwhile.
        let is_needed = |at| now - at <= keep || settling_since.is_some_and(|since| at >= since);
        while let Some((at, hours)) = self.writes.front()
            && (!is_needed(*at) || self.hours > RECENT_HOURS_MAX)
        {
            if is_needed(*at) {
                self.overflow = Some(*at);
            }
            self.hours -= hours.len();
            self.writes.pop_front();
        }
    }

    /// Whether `hour` was written at `since` or later.
    pub(super) fn contains(&self, hour: Hour, since: Instant) -> bool {
        let mut writes = self.writes.iter().rev().take_while(|(at, _)| *at >= since);
        self.overflow.is_some_and(|at| at >= since)
            || writes.any(|(_, hours)| hours.binary_search(&hour).is_ok())
    }
}

/// Remembers all hours that are written while a settlement reads rows.
pub(super) struct RememberHours<'a>(&'a Mutex<RecentHours>);

impl<'a> RememberHours<'a> {
    pub(super) fn new(recent: &'a Mutex<RecentHours>, since: Instant) -> RememberHours<'a> {
        recent.lock().settling_since = Some(since);
        RememberHours(recent)
    }
}

impl Drop for RememberHours<'_> {
    fn drop(&mut self) {
        self.0.lock().settling_since = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hour: u32) -> Hour {
        Hour::new(hour.into()).unwrap()
    }

    #[test]
    fn more_hours_than_can_be_remembered_are_all_recent() {
        let mut recent = RecentHours::default();
        let keep = Duration::from_secs(3600);
        let start = Instant::now();
        recent.add(vec![hour(1), hour(3)], keep);
        assert!(recent.contains(hour(3), start) && !recent.contains(hour(2), start));
        let later = Instant::now();
        assert!(!recent.contains(hour(3), later + Duration::from_secs(1)));
        recent.add((10..10 + RECENT_HOURS_MAX as u32).map(hour).collect(), keep);
        assert!(recent.contains(hour(2), start) && recent.hours == RECENT_HOURS_MAX);
    }

    /// A settlement may take longer than an hour takes to go cold.
    #[test]
    fn hours_written_during_a_settlement_are_remembered() {
        let mut recent = RecentHours::default();
        let start = Instant::now();
        recent.settling_since = Some(start);
        recent.add(vec![hour(1)], Duration::ZERO);
        std::thread::sleep(Duration::from_millis(2));
        recent.add(vec![hour(2)], Duration::ZERO);
        assert!(recent.contains(hour(1), start) && recent.contains(hour(2), start));
        recent.settling_since = None;
        std::thread::sleep(Duration::from_millis(2));
        recent.add(vec![hour(3)], Duration::ZERO);
        assert!(!recent.contains(hour(1), start) && recent.contains(hour(3), start));
    }
}
