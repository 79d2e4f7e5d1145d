//! Opening a data directory: to write to it, or only to read it.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use rocksdb::DB;

use super::abort_on_panic;
use super::compact::CompactionDue;
use super::health::Health;
use super::rocks::RocksOptions;
use super::tally::Tally;
use super::views::ViewBudget;
use super::{DataDir, Inner, MARKER_CHANGES, Store, StoreError, StoreOptions, Tallies, wal};
use flow::Totals;

/// What [`Store::open`] found in the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Batches that the sums on disk did not contain yet.
    pub batches: u64,
    /// Flows in them.
    pub flows: u64,
    /// What reading them into the tally took.
    pub time: Duration,
}

impl Store {
    /// Opens the data directory at `path`, or makes one where nothing is: [`DataDir::open`], then
    /// [`Store::open_dir`].
    pub fn open(path: &Path, options: StoreOptions) -> Result<(Store, Recovery), StoreError> {
        Store::open_dir(DataDir::open(path)?, options)
    }

    /// Opens the database in `dir` and replays the journal.
    ///
    /// # Errors
    /// A database that does not open, or stored bytes that are damaged.
    pub fn open_dir(dir: DataDir, options: StoreOptions) -> Result<(Store, Recovery), StoreError> {
        let mut rocks = RocksOptions::new(&options);
        let fresh = dir.is_fresh().map_err(|source| StoreError::Directory {
            path: dir.path().to_owned(),
            source,
        })?;
        rocks.database.create_if_missing(fresh);
        // A start that was killed may have left some out; where there are files, there were all.
        rocks
            .database
            .create_missing_column_families(fresh || !dir.has_files());
        if !fresh && let Some(torn) = wal::cut_torn(&dir.rocks())? {
            tracing::warn!("{torn}");
        }
        let db = DB::open_cf_descriptors(&rocks.database, dir.rocks(), rocks.families())
            .map_err(does_not_open(&dir))?;
        let inner = Inner::new(db, dir, rocks, options);
        let recovery = inner.recover()?;
        inner.note_recovery(&recovery);
        let inner = Arc::new(inner);
        let start = |name: &str, life: fn(&Inner)| {
            let inner = inner.clone();
            std::thread::Builder::new()
                .name(name.into())
                .spawn(move || abort_on_panic(|| life(&inner)))
                .map_err(|source| StoreError::Io {
                    doing: "starting a thread",
                    source,
                })
        };
        let mut store = Store {
            flusher: Some(start("flusher", Inner::flush_until_closed)?),
            compactor: None,
            inner: inner.clone(),
        };
        store.compactor = Some(start("compactor", Inner::compact_until_closed)?);
        Ok((store, recovery))
    }

    /// Opens the data directory at `path` only to read it, together with others that only read. That
    /// needs no right to write, and changes nothing; commits and flushes are errors. What the sums on
    /// disk do not contain yet is added up in memory: about as much as the service had that wrote it.
    ///
    /// # Errors
    /// A directory that is in use, not ours or not there, a database that does not open, or stored
    /// bytes that are damaged.
    pub fn open_to_read(path: &Path) -> Result<Store, StoreError> {
        let options = StoreOptions {
            // Nothing could be flushed on the way.
            tally_bytes_max: usize::MAX,
            journal_bytes_max: usize::MAX,
            ..StoreOptions::default()
        };
        let dir = DataDir::open_to_read(path)?;
        let rocks = RocksOptions::new(&options);
        let db = database_to_read(&dir, &rocks)?;
        let inner = Inner::new(db, dir, rocks, options);
        inner.recover()?;
        Ok(Store {
            inner: Arc::new(inner),
            flusher: None,
            compactor: None,
        })
    }
}

/// The database in `dir`, to read it: RocksDB writes nothing then, not even a log of its own.
pub(super) fn database_to_read(dir: &DataDir, rocks: &RocksOptions) -> Result<DB, StoreError> {
    if let Some(torn) = wal::check(&dir.rocks())? {
        return Err(StoreError::Torn {
            what: torn.to_string(),
        });
    }
    DB::open_cf_descriptors_read_only(&rocks.database, dir.rocks(), rocks.families(), false)
        .map_err(does_not_open(dir))
}

fn does_not_open(dir: &DataDir) -> impl FnOnce(rocksdb::Error) -> StoreError {
    let path = dir.path().to_owned();
    move |source| StoreError::Open { path, source }
}

impl Inner {
    fn new(db: DB, dir: DataDir, rocks: RocksOptions, options: StoreOptions) -> Inner {
        Inner {
            db,
            dir,
            database_options: rocks.database,
            flows_options: rocks.flows,
            views: ViewBudget::new(options.view_bytes_max),
            options,
            commit: Mutex::new(Vec::new()),
            tallies: Mutex::new(Tallies {
                active: Tally::new(0),
                frozen: None,
                flushed: 0,
                newest: None,
                expected: Totals::default(),
                flush_now: false,
                flush_error: None,
                closing: false,
            }),
            marker: AtomicU64::new(MARKER_CHANGES),
            writer: Mutex::new(()),
            drops: AtomicU64::new(0),
            tags: std::hash::RandomState::new(),
            horizon: AtomicU32::new(0),
            clock_hour: AtomicU32::new(0),
            flush_due: Condvar::new(),
            flush_ended: Condvar::new(),
            compaction_due: CompactionDue::default(),
            expiry: rocks.expiry,
            journal_is_wide: AtomicBool::new(false),
            stopped: rocks.stopped,
            health: Health::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::BatchBuilder;
    use flow::{Counters, Hour};

    fn commit(store: &Store, tx: u64) -> Result<(), StoreError> {
        let mut batch = BatchBuilder::with_capacity(0);
        let hour = Hour::new(7).unwrap();
        batch.push(hour, [b"s", b"d", b"v"], Counters { tx, rx: 0 });
        store.commit(vec![batch.finish()]).map(drop)
    }

    #[test]
    fn readers_see_sums_and_journal_together_and_cannot_write() {
        let dir = tempfile::tempdir().unwrap();
        let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        commit(&store, 1).unwrap();
        store.flush().unwrap();
        commit(&store, 2).unwrap();
        let opened = Store::open_to_read(dir.path());
        assert!(matches!(opened, Err(StoreError::InUse { .. })));
        drop(store);
        let readers = [0, 1].map(|_| Store::open_to_read(dir.path()).unwrap());
        for reader in &readers {
            let mut scan = reader.scan(Hour::new(7).unwrap()).unwrap();
            assert_eq!(scan.next().unwrap().unwrap().1, Counters { tx: 3, rx: 0 });
            let mut ledger = reader.ledger(0..u32::MAX).unwrap();
            assert_eq!(ledger.next().unwrap().unwrap().1.flows, 2);
            assert!(ledger.next().is_none());
            assert!(matches!(reader.flush(), Err(StoreError::OnlyRead)));
            assert!(commit(reader, 4).is_err());
        }
        let opened = Store::open(dir.path(), StoreOptions::default());
        assert!(matches!(opened, Err(StoreError::InUse { .. })));
        drop(readers);
        let (store, recovery) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        assert_eq!(recovery.flows, 1);
        let first = store.ledger(7..8).unwrap().next();
        assert_eq!(first.unwrap().unwrap().1.tx, 3);
    }
}
