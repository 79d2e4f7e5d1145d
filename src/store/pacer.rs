//! Slows commits down when compaction falls behind, so that they need not stop.
//!
//! A commit waits in proportion to the time that it took and to the number of runs beyond what compaction usually
//! leaves. The rate of commits then settles where compaction keeps up. Only at [`RUNS_MAX`] do flushes wait, and then
//! commits too. ScyllaDB's controllers do the same with shares of the CPU.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::rocks::{RUNS_MANY, RUNS_MAX};

/// Upper bound of a delay.
const DELAY_MAX: Duration = Duration::from_millis(100);

#[derive(Debug, Default)]
pub(super) struct Pacer {
    /// Number of runs at the last look.
    runs: AtomicU64,
}

impl Pacer {
    pub(super) fn set_runs(&self, runs: u64) {
        self.runs.store(runs, Ordering::Relaxed);
    }

    /// How long to wait after a commit that took `busy`.
    pub(super) fn delay(&self, busy: Duration) -> Duration {
        let excess = self.runs.load(Ordering::Relaxed).saturating_sub(RUNS_MANY);
        let left = (RUNS_MAX - RUNS_MANY).saturating_sub(excess).max(1);
        (busy * excess.min(RUNS_MAX) as u32 / left as u32).min(DELAY_MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::store::{Store, StoreError, StoreOptions};
    use flow::{BatchBuilder, Counters, Hour};

    #[test]
    fn the_delay_grows_with_the_runs() {
        let pacer = Pacer::default();
        let busy = Duration::from_millis(4);
        let mut before = Duration::ZERO;
        for runs in 0..2 * RUNS_MAX {
            pacer.set_runs(runs);
            let delay = pacer.delay(busy);
            assert!(delay >= before && delay <= DELAY_MAX, "{runs}: {delay:?}");
            assert_eq!(delay.is_zero(), runs <= RUNS_MANY);
            before = delay;
        }
        assert!(pacer.delay(Duration::from_secs(1)) == DELAY_MAX);
        // Half way, commits take twice as long.
        pacer.set_runs((RUNS_MANY + RUNS_MAX) / 2);
        assert_eq!(pacer.delay(busy), busy);
    }

    /// Without compaction, commits first get slower and are refused only when there are too many runs.
    #[test]
    fn commits_slow_down_before_they_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            // Each commit fills a tally.
            tally_bytes_max: 1,
            stall_max: Duration::from_secs(2),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let inner = &store.inner;
        let held = [("disable_auto_compactions", "true")];
        let flows = inner.flows().unwrap();
        inner.db.set_options_cf(flows, &held).unwrap();
        let commit = |hour: u64| {
            let mut batch = BatchBuilder::with_capacity(0);
            let hour = Hour::new(hour).unwrap();
            batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 2 });
            store.commit(vec![batch.finish()])
        };
        let delayed = || inner.options.metrics.store().pacing_seconds.get();
        let mut delays = Vec::new();
        let refused = (0..).find_map(|number| {
            // A new hour each time: a flush that adds to a small one would have all runs merged.
            let before = delayed();
            let committed = commit(number);
            delays.push(delayed() - before);
            committed.err()
        });
        assert!(
            matches!(refused, Some(StoreError::WriteStalled)),
            "{refused:?}"
        );
        let commits = delays.len() as u64;
        assert!((RUNS_MAX..RUNS_MAX + 4).contains(&commits), "{commits}");
        let slow = delays.iter().skip(RUNS_MANY as usize + 2);
        assert!(
            slow.clone().take(20).all(|delay| *delay > 0.0),
            "{delays:?}"
        );
        assert!(
            delays[..RUNS_MANY as usize]
                .iter()
                .all(|delay| *delay == 0.0)
        );

        let released = [("disable_auto_compactions", "false")];
        inner.db.set_options_cf(flows, &released).unwrap();
        let give_up = Instant::now() + Duration::from_secs(120);
        while commit(0).is_err() {
            assert!(Instant::now() < give_up);
        }
    }
}
