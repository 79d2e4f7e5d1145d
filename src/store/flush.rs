//! Flush moves sums from the tally to disk; recovery replays the journal into the tally.

use std::path::PathBuf;
use std::sync::{Arc, Condvar, MutexGuard};
use std::time::{Duration, Instant};

use super::codec::{self, HOUR_BYTES};
use super::error::{StoreError, with_context};
use super::families::{NumberedHours, write_settled_hours};
use super::journal::Journal;
use super::rocks::RUNS_MAX;
use super::staging::WRITING;
use super::tallies::Tallies;
use super::tally::Tally;
use super::{Durability, Inner, Recovery, Step, WriteHealth};
use flow::HourRange;

/// Pause before a failed flush is retried.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Interval between write probes while the journal cannot be written.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between releases of journal files while the disk is nearly full.
const RELEASE_PAUSE: Duration = Duration::from_secs(10);
/// Interval between checks whether compaction has caught up.
const COMPACTION_PAUSE: Duration = Duration::from_millis(20);

/// The flusher's locks and signals.
#[derive(Debug, Default)]
pub(super) struct Flusher {
    writes: parking_lot::Mutex<()>,
    /// Signalled when a flush may be due.
    due: Condvar,
    /// Signalled when a flush succeeded or failed.
    ended: Condvar,
}

/// The requests to the flusher, and the result of its last flush. Protected by the lock of the tallies.
#[derive(Debug, Default)]
pub(super) struct FlushState {
    /// Flush the active tally now, whatever its size and age.
    pub(super) is_requested: bool,
    /// Error of the last flush; `None` if it succeeded.
    pub(super) error: Option<String>,
    pub(super) is_closing: bool,
}

type TalliesGuard<'a> = MutexGuard<'a, Tallies>;

impl Flusher {
    /// Locks `flows`: for writers to it, and for readers that need it and the start of the journal not to change.
    pub(super) fn lock_writes(&self) -> parking_lot::MutexGuard<'_, ()> {
        self.writes.lock()
    }

    /// Call this after changing the tallies, if a flush may be due.
    pub(super) fn wake(&self) {
        self.due.notify_all();
    }

    fn wait_until_due<'a>(
        &self,
        tallies: TalliesGuard<'a>,
        time_max: Duration,
    ) -> Result<TalliesGuard<'a>, StoreError> {
        let waited = self.due.wait_timeout(tallies, time_max);
        waited
            .map(|(tallies, _)| tallies)
            .map_err(|_| StoreError::Closed)
    }

    /// Waits until a flush has ended, at most `time_max`.
    pub(super) fn wait_until_ended<'a>(
        &self,
        tallies: TalliesGuard<'a>,
        time_max: Duration,
    ) -> Result<TalliesGuard<'a>, StoreError> {
        let waited = self.ended.wait_timeout(tallies, time_max);
        waited
            .map(|(tallies, _)| tallies)
            .map_err(|_| StoreError::Closed)
    }
}

impl Inner {
    /// Body of the flusher thread: freezes tallies that are due and flushes frozen ones.
    pub(super) fn flush_until_closed(&self) {
        while let Ok(Some(tally)) = self.next_due() {
            let result = self.flush(&tally);
            if let Err(error) = &result {
                self.options.metrics.store().flush_failures.inc();
                tracing::error!(%error, "flush failed; the flows stay in the journal");
            }
            let Ok(mut tallies) = self.tallies() else {
                return;
            };
            match result {
                Ok(()) => {
                    tallies.end_flush(tally.last());
                    // A reader may still copy from it.
                    if let Ok(flushed) = Arc::try_unwrap(tally) {
                        tallies.reuse(flushed, self.tally_bytes_max());
                    }
                    self.flusher.ended.notify_all();
                    drop(tallies);
                    self.compaction_requests.request_audit();
                    if let Err(error) = self.drop_old_hours() {
                        tracing::error!(%error, "too-old hours not dropped; the next flush retries");
                    }
                }
                Err(error) => {
                    tallies.flush.error = Some(error.to_string());
                    self.flusher.ended.notify_all();
                    if tallies.flush.is_closing {
                        return;
                    }
                    let _woken = self.flusher.wait_until_due(tallies, RETRY_PAUSE);
                }
            }
        }
    }

    /// Waits until a tally is due for flushing, and returns it; `None` when the store is closing.
    fn next_due(&self) -> Result<Option<Arc<Tally>>, StoreError> {
        let mut tallies = self.tallies()?;
        let mut looked_at_disk: Option<Instant> = None;
        let mut released: Option<Instant> = None;
        loop {
            if tallies.flush.is_closing {
                return Ok(None);
            }
            if looked_at_disk.is_none_or(|at| at.elapsed() >= PROBE_INTERVAL) {
                looked_at_disk = Some(Instant::now());
                drop(tallies);
                let (reserve, needed) =
                    (self.options.disk_reserve_bytes, self.options.flush_bytes());
                self.health
                    .update_free_space(self.dir.path(), reserve, needed);
                let _reported_by_health = self.require_dir();
                if let Err(error) = self.update_pace() {
                    tracing::warn!(%error, "the number of runs is not known");
                }
                tallies = self.tallies()?;
                let is_idle = tallies.are_empty();
                if is_idle {
                    tallies.active_mut().free_spare();
                }
                if is_idle && released.is_none_or(|at| at.elapsed() >= RELEASE_PAUSE) {
                    drop(tallies);
                    if self.health.space_is_low() {
                        released = Some(Instant::now());
                        self.release_journal_space();
                    }
                    tallies = self.tallies()?;
                }
            }
            if self.health.last_write() != WriteHealth::Good {
                drop(tallies);
                self.probe();
                tallies = self.tallies()?;
            }
            if let Some(frozen) = tallies.frozen() {
                return Ok(Some(frozen.clone()));
            }
            let wait = match tallies.active().since() {
                None => PROBE_INTERVAL,
                Some(since) => {
                    let left = self.options.flush_interval.saturating_sub(since.elapsed());
                    if left.is_zero()
                        || tallies.flush.is_requested
                        || self.is_full(tallies.active())
                    {
                        tallies.freeze(self.tally_bytes_max());
                        continue;
                    }
                    left.min(PROBE_INTERVAL)
                }
            };
            tallies = self.flusher.wait_until_due(tallies, wait)?;
        }
    }

    /// Deletes journal files that are no longer needed. RocksDB does this by itself while batches are written, but
    /// below the disk reserve none are accepted.
    fn release_journal_space(&self) {
        let released = Journal::new(&self.db).and_then(|journal| journal.release_space());
        match released {
            Ok(()) => {
                tracing::debug!("journal files released because the disk is nearly full")
            }
            Err(error) => {
                tracing::warn!(%error, "journal files not released although the disk is nearly full")
            }
        }
    }

    /// Probes whether the journal can be written: repeats the last trim with a sync, which changes nothing.
    fn probe(&self) {
        let probe = || {
            let flushed = self.tallies()?.flushed();
            Journal::new(&self.db)?.trim(flushed, Durability::Fsync)
        };
        let written = probe();
        self.record_write(&written);
        if written.is_ok() {
            tracing::info!("the journal can be written again");
        }
    }

    /// Moves `tally` to disk. Can be retried after a failure at any point.
    fn flush(&self, tally: &Tally) -> Result<(), StoreError> {
        let start = Instant::now();
        self.step(Step::Frozen);
        // An earlier attempt may have ingested the file and failed later.
        let is_due = self.marker()? < tally.last();
        if is_due {
            self.wait_for_compaction()?;
        }
        let _write_lock = self.flusher.lock_writes();
        if is_due {
            self.finish_last_drop()?;
            let settlement = self.unfinished_settlement()?;
            self.write_receipts(tally)?;
            let (path, rows_added, new_hours) = self.write_file(tally, settlement.as_ref())?;
            self.step(Step::Written);
            self.tallies()?.start_flush(tally.last(), new_hours);
            let ingest = || {
                let ingest = || self.ingest(self.flows()?, &[&path], "ingesting a flushed file");
                self.visibility.update_marker(&self.db, ingest)
            };
            let ingested = match &settlement {
                Some(settlement) => self.finish_settlement_by(settlement, ingest),
                None => ingest(),
            };
            // Also after an error: the file may have been ingested.
            self.settler.hours_written(tally.hours(), &self.options);
            ingested?;
            self.step(Step::Ingested);
            self.receipt_expiry.advance_journal_time(tally);
            if rows_added > 0 {
                self.compaction_requests.request_merge(rows_added);
            }
        }
        let trimmed = Journal::new(&self.db)?.trim(tally.last(), self.options.durability);
        self.count_sync(&trimmed);
        trimmed?;
        self.journal_memtable.shrink(&self.db)?;
        if self.receipts_exceed_bound()? {
            self.compaction_requests.request_receipts();
        }
        self.step(Step::Trimmed);
        let metrics = self.options.metrics.store();
        metrics.flush_seconds.observe(start.elapsed().as_secs_f64());
        metrics.flush_rows.inc_by(tally.keys() as u64);
        tracing::debug!(
            keys = tally.keys(),
            journal_bytes = tally.journal_bytes(),
            ms = start.elapsed().as_millis() as u64,
            "flushed"
        );
        Ok(())
    }

    /// Writes one sorted file: every row, then the ledger, then the marker. If rows of a `settlement` are still in `flows`,
    /// the file deletes them.
    ///
    /// A row is written as a merge operand. If `flows` does not have its key ([`super::known_keys`]), it is written as a
    /// plain value: reading it then needs no merge, which halves the cost of a row. This is safe because the caller
    /// holds the write lock of `flows`, so the iterator sees all rows.
    ///
    /// Returns the file, the number of rows that it adds to hours in `flows`, and the number of its hours that are not in the
    /// ledger on disk.
    fn write_file(
        &self,
        tally: &Tally,
        settlement: Option<&NumberedHours>,
    ) -> Result<(PathBuf, usize, u64), StoreError> {
        const DOING: &str = WRITING;
        let (path, mut file) = self.open_staged(&self.flows_options, &tally.last().to_string())?;
        let mut ledger = self.db.raw_iterator_cf(self.flows()?);
        let mut on_disk = self.db.raw_iterator_cf(self.flows()?);
        on_disk.seek_to_first();
        let mut key = Vec::new();
        let mut known_keys = self.known_keys.lock();
        known_keys.begin_flush();
        let mut rows_added = 0;
        let mut new_hours = 0;
        for (hour, mut run) in tally.runs() {
            key.clear();
            codec::push_hour(&mut key, hour);
            if on_disk.key().is_some_and(|next| next < key.as_slice()) {
                on_disk.seek(&key);
            }
            on_disk.status().map_err(with_context(DOING))?;
            let is_new = on_disk.key().is_none_or(|next| !next.starts_with(&key));
            if is_new {
                // Its rows may all be settled.
                let entry = codec::ledger_key(hour);
                ledger.seek(entry);
                ledger.status().map_err(with_context(DOING))?;
                new_hours += u64::from(ledger.key() != Some(entry.as_slice()));
            }
            if !is_new {
                rows_added += run.len();
            }
            known_keys.begin_hour(hour, run.len(), is_new);
            let mut known = 0;
            let mut rows = 0;
            while let Some((suffix, counters)) = run.peek() {
                if rows == 0 {
                    rows = run.upcoming().len();
                    known = known_keys.add(hour, run.upcoming());
                }
                key.truncate(HOUR_BYTES);
                key.extend_from_slice(suffix);
                let value = codec::encode_counters(counters);
                if known & 1 == 0 {
                    file.put(&key, value)
                } else {
                    file.merge(&key, value)
                }
                .map_err(with_context(DOING))?;
                known >>= 1;
                rows -= 1;
                run.advance();
            }
        }
        for hour in tally.hours() {
            let totals = codec::encode_totals(tally.totals(hour));
            file.merge(codec::ledger_key(hour), totals)
                .map_err(with_context(DOING))?;
        }
        file.put(codec::MARKER_KEY, codec::encode_marker(tally.last()))
            .map_err(with_context(DOING))?;
        if let Some(settlement) = settlement {
            write_settled_hours(&mut file, settlement)?;
        }
        file.finish().map_err(with_context(DOING))?;
        Ok((path, rows_added, new_hours))
    }

    /// Tells the pacer how far compaction is behind. Returns the number of runs.
    fn update_pace(&self) -> Result<u64, StoreError> {
        let runs = self.runs()?;
        self.pacer.set_runs(runs);
        Ok(runs)
    }

    /// Waits while compaction cannot keep up with ingested files, since reads would slow down. The tally then fills
    /// and commits stall: the back-pressure reaches the senders.
    fn wait_for_compaction(&self) -> Result<(), StoreError> {
        while !self.tallies()?.flush.is_closing {
            if self.update_pace()? < RUNS_MAX {
                break;
            }
            let _reported_by_health = self.require_dir();
            std::thread::sleep(COMPACTION_PAUSE);
        }
        Ok(())
    }

    /// Replays the journal beyond the marker into a new tally. Runs before the flusher starts.
    pub(super) fn recover(&self) -> Result<Recovery, StoreError> {
        // Loads the cached marker.
        self.visibility.update_marker(&self.db, || Ok(()))?;
        let marker = self.marker()?;
        let journal = Journal::new(&self.db)?;
        let mut recovery = Recovery::default();
        let mut tally = Tally::new(marker);
        let start = Instant::now();
        journal.replay(marker, |batch| {
            recovery.flows += tally.replay(batch)? as u64;
            recovery.batches += 1;
            self.step(Step::Replayed);
            if self.is_full(&tally) {
                self.flush(&tally)?;
                tally = Tally::new(tally.last());
            }
            Ok(())
        })?;
        recovery.time = start.elapsed();
        let mut tallies = self.tallies()?;
        tallies.recover(tally, self.marker()?, self.ledger_on_disk(HourRange::ALL)?)?;
        self.retention.update(tallies.newest());
        drop(tallies);
        // An earlier process may have been killed before it dropped hours that had become too old.
        self.drop_old_hours()?;
        Ok(recovery)
    }
}
