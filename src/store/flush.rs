//! Flush and recovery: how sums move from the tally to disk, and from the journal to the tally.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rocksdb::{IngestExternalFileOptions, SstFileWriter};

use super::codec::{self, HOUR_BYTES};
use super::compact::Added;
use super::error::{StoreError, database};
use super::journal::Journal;
use super::rocks::L0_FILES_MAX;
use super::tally::Tally;
use super::{Durability, Inner, Recovery, Step, WriteHealth};
use flow::Hour;

/// Pause after a failed flush, before the next try.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Pause between two tries to write, while the journal cannot be written.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Pause between two times that the journal's dead files are let go because the disk is nearly full.
const RELEASE_PAUSE: Duration = Duration::from_secs(10);
/// Pause between two looks at whether compaction has caught up.
const COMPACTION_PAUSE: Duration = Duration::from_millis(20);

impl Inner {
    /// The flusher's life: freezes tallies that are due and flushes frozen ones.
    pub(super) fn flush_until_closed(&self) {
        while let Ok(Some(tally)) = self.next_due() {
            let result = self.flush(&tally);
            if let Err(error) = &result {
                self.options.metrics.store().flush_failures.inc();
                tracing::error!(%error, "flush failed, the journal keeps the flows");
            }
            let Ok(mut tallies) = self.tallies.lock() else {
                return;
            };
            match result {
                Ok(()) => {
                    tallies.frozen = None;
                    tallies.flushed = tally.last();
                    tallies.flush_error = None;
                    self.flush_ended.notify_all();
                    drop(tallies);
                    if let Err(error) = self.drop_old_hours() {
                        tracing::error!(%error, "hours that are too old stay on disk until the next flush");
                    }
                }
                Err(error) => {
                    tallies.flush_error = Some(error.to_string());
                    self.flush_ended.notify_all();
                    if tallies.closing {
                        return;
                    }
                    let _woken = self.flush_due.wait_timeout(tallies, RETRY_PAUSE);
                }
            }
        }
    }

    /// Waits for the next tally to flush; `None` when the store is closing.
    fn next_due(&self) -> Result<Option<Arc<Tally>>, StoreError> {
        let mut tallies = self.tallies()?;
        let mut looked_at_disk: Option<Instant> = None;
        let mut released: Option<Instant> = None;
        loop {
            if tallies.closing {
                return Ok(None);
            }
            if looked_at_disk.is_none_or(|at| at.elapsed() >= PROBE_INTERVAL) {
                looked_at_disk = Some(Instant::now());
                drop(tallies);
                let (reserve, needed) =
                    (self.options.disk_reserve_bytes, self.options.flush_bytes());
                self.health.note_space(self.dir.path(), reserve, needed);
                let _it_is_in_the_health = self.look_for_dir();
                tallies = self.tallies()?;
                let is_idle = tallies.frozen.is_none() && tallies.active.since().is_none();
                if is_idle && released.is_none_or(|at| at.elapsed() >= RELEASE_PAUSE) {
                    drop(tallies);
                    if self.health.space_is_low() {
                        released = Some(Instant::now());
                        self.release_journal();
                    }
                    tallies = self.tallies()?;
                }
            }
            if self.health.last_write() != WriteHealth::Good {
                drop(tallies);
                self.probe();
                tallies = self.tallies()?;
            }
            if let Some(frozen) = &tallies.frozen {
                return Ok(Some(frozen.clone()));
            }
            let wait = match tallies.active.since() {
                None => PROBE_INTERVAL,
                Some(since) => {
                    let left = self.options.flush_interval.saturating_sub(since.elapsed());
                    if left.is_zero() || tallies.flush_now || self.is_full(&tallies.active) {
                        tallies.freeze();
                        continue;
                    }
                    left.min(PROBE_INTERVAL)
                }
            };
            (tallies, _) = self
                .flush_due
                .wait_timeout(tallies, wait)
                .map_err(|_| StoreError::Closed)?;
        }
    }

    /// Lets go of the journal's files, when nothing in them is needed any more: as long as batches come,
    /// RocksDB does so by itself, but below the reserve none are taken.
    fn release_journal(&self) {
        let released = Journal::new(&self.db).and_then(|journal| journal.release());
        match released {
            Ok(()) => {
                tracing::debug!("the journal's files are let go, since the disk is nearly full")
            }
            Err(error) => {
                tracing::warn!(%error, "the journal's files stay, though the disk is nearly full")
            }
        }
    }

    /// Writes to the journal without changing it: trims, synced, what is trimmed already.
    fn probe(&self) {
        let probe = || {
            let flushed = self.tallies()?.flushed;
            Journal::new(&self.db)?.trim(flushed, Durability::Fsync)
        };
        let written = probe();
        self.note_write(&written);
        if written.is_ok() {
            tracing::info!("the journal can be written again");
        }
    }

    /// Moves `tally` to disk. May be repeated after a failure at any point.
    fn flush(&self, tally: &Tally) -> Result<(), StoreError> {
        let start = Instant::now();
        self.step(Step::Frozen);
        // A try before this one may have got this far and failed afterwards.
        let is_due = self.marker()? < tally.last();
        if is_due {
            self.wait_for_compaction()?;
        }
        let _nobody_else_writes = self.writer.lock().map_err(|_| StoreError::Closed)?;
        if is_due {
            let path = self.dir.staging().join(format!("{}.sst", tally.last()));
            self.remove_staged(&path)?;
            self.write_receipts(tally)?;
            let added = self.write_file(&path, tally)?;
            self.step(Step::Written);
            self.change_marker(|| self.ingest(&[&path], "ingesting a flushed file"))?;
            self.step(Step::Ingested);
            self.expiry.note_flushed(tally);
            if let Some(added) = added {
                self.compaction_due.note(added);
            }
        }
        Journal::new(&self.db)?.trim(tally.last(), self.options.durability)?;
        self.narrow_journal()?;
        if self.receipts_pass_their_bound()? {
            self.compaction_due.note_receipts();
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

    /// Has RocksDB take files from the staging directory: by a second name, or where the file system has
    /// none, by a copy.
    pub(super) fn ingest(&self, files: &[&Path], doing: &'static str) -> Result<(), StoreError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(self.dir.has_links());
        self.db
            .ingest_external_file_cf_opts(self.flows()?, &options, files.to_vec())
            .map_err(database(doing))?;
        if !self.dir.has_links() {
            // What is left there takes space; the next open removes it in any case.
            let _best_effort = files.iter().try_for_each(|file| self.remove_staged(file));
        }
        Ok(())
    }

    /// A try before this one may have left its file there, or a second name of a file that RocksDB has
    /// taken: writing into that would be writing into the database.
    pub(super) fn remove_staged(&self, path: &Path) -> Result<(), StoreError> {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Io {
                doing: "removing an old staged file",
                source,
            }),
            _ => Ok(()),
        }
    }

    /// One sorted file: every row, then the ledger, then the marker, whose key sorts last.
    ///
    /// A row is a merge operand, to be added to what is on disk. In an hour of which nothing is on
    /// disk yet it is the whole sum, and goes in as such: reading it then needs no merge, which
    /// halves what a row costs until compaction comes by. Nobody else writes to `flows`, so what
    /// the iterator does not see is not there.
    ///
    /// Returns what it adds to hours on disk, if it does.
    fn write_file(&self, path: &Path, tally: &Tally) -> Result<Option<Added>, StoreError> {
        const DOING: &str = "writing a file to ingest";
        let mut file = SstFileWriter::create(&self.flows_options);
        file.open(path).map_err(database(DOING))?;
        let mut on_disk = self.db.raw_iterator_cf(self.flows()?);
        on_disk.seek_to_first();
        let mut key = Vec::new();
        let mut busiest: Option<(u32, usize)> = None;
        let (mut first, mut last) = (None, 0);
        for (hour, mut run) in tally.runs() {
            key.clear();
            key.extend_from_slice(&hour.to_be_bytes());
            if on_disk.key().is_some_and(|next| next < key.as_slice()) {
                on_disk.seek(&key);
            }
            on_disk.status().map_err(database(DOING))?;
            let is_new = on_disk.key().is_none_or(|next| !next.starts_with(&key));
            first.get_or_insert(hour);
            last = hour;
            if !is_new && busiest.is_none_or(|(_, rows)| run.len() > rows) {
                busiest = Some((hour, run.len()));
            }
            while let Some((suffix, counters)) = run.peek() {
                key.truncate(HOUR_BYTES);
                key.extend_from_slice(suffix);
                let value = codec::encode_counters(counters);
                if is_new {
                    file.put(&key, value)
                } else {
                    file.merge(&key, value)
                }
                .map_err(database(DOING))?;
                run.advance();
            }
        }
        for hour in tally.hours() {
            let totals = codec::encode_totals(tally.totals(hour));
            file.merge(codec::ledger_key(hour), totals)
                .map_err(database(DOING))?;
        }
        file.put(codec::MARKER_KEY, codec::encode_marker(tally.last()))
            .map_err(database(DOING))?;
        file.finish().map_err(database(DOING))?;
        let hour = |hour: u32| Hour::new(u64::from(hour));
        Ok(busiest.and_then(|(busiest, rows)| {
            Some(Added {
                first: hour(first?)?,
                last: hour(last)?,
                busiest: hour(busiest)?,
                rows,
            })
        }))
    }

    /// Ingested files pile up where compaction cannot keep up, and reads would slow down. Then the
    /// flusher waits, the tally fills, and commits wait: the pressure reaches the senders.
    fn wait_for_compaction(&self) -> Result<(), StoreError> {
        let flows = self.flows()?;
        while !self.tallies()?.closing {
            let files = self
                .db
                .property_int_value_cf(flows, rocksdb::properties::num_files_at_level(0))
                .map_err(database("reading a property"))?;
            if files.unwrap_or(0) < L0_FILES_MAX {
                break;
            }
            let _it_is_in_the_health = self.look_for_dir();
            std::thread::sleep(COMPACTION_PAUSE);
        }
        Ok(())
    }

    /// Replays into a fresh tally what the journal has beyond the marker. Runs before the flusher.
    pub(super) fn recover(&self) -> Result<Recovery, StoreError> {
        // Nothing changes it here; this learns it.
        self.change_marker(|| Ok(()))?;
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
        tallies.flushed = self.marker()?;
        for entry in self.ledger_on_disk(0, u32::MAX)? {
            tallies.note_ledger([entry?]);
        }
        tallies.note_ledger(tally.ledger());
        self.set_horizon(&tallies);
        tallies.active = tally;
        drop(tallies);
        // A kill may have come between the flow that made them too old, and the drop.
        self.drop_old_hours()?;
        Ok(recovery)
    }
}
