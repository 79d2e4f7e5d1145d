//! Opens a data directory, for writing or read-only.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rocksdb::DB;

use super::abort_on_panic;
use super::audit::Audit;
use super::compact::CompactionRequests;
use super::error::with_context;
use super::families::Families;
use super::flush::Flusher;
use super::health::Health;
use super::journal::JournalMemtable;
use super::known_keys::KnownKeys;
use super::pacer::Pacer;
use super::retention::RetentionState;
use super::rocks::{RocksOptions, set_dynamic_options};
use super::settle::Settler;
use super::tallies::Tallies;
use super::view_budget::ViewBudget;
use super::visibility::Visibility;
use super::{DataDir, Inner, Store, StoreError, StoreOptions, codec, wal};

/// The batches that [`Store::open`] replayed from the journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Recovery {
    /// Batches that the sums on disk did not contain.
    pub batches: u64,
    /// Flows in them.
    pub flows: u64,
    /// Time that the replay took.
    pub time: Duration,
}

impl Store {
    /// Opens the data directory at `path`, or creates it if it does not exist: [`DataDir::open`], then
    /// [`Store::open_dir`].
    pub fn open(path: &Path, options: StoreOptions) -> Result<(Store, Recovery), StoreError> {
        Store::open_dir(DataDir::open(path)?, options)
    }

    /// Opens the database in `dir` and replays the journal.
    ///
    /// # Errors
    /// If the database does not open, or stored data is corrupt.
    pub fn open_dir(dir: DataDir, options: StoreOptions) -> Result<(Store, Recovery), StoreError> {
        let mut rocks = RocksOptions::new(&options);
        let fresh = dir.is_fresh().map_err(|source| StoreError::Directory {
            path: dir.path().to_owned(),
            source,
        })?;
        rocks.database.create_if_missing(fresh);
        // If an earlier start was killed, some column families may be missing. If there are files, all families
        // exist, except for one that older formats do not have.
        let is_older = dir.format() < codec::FORMAT_WITH_SETTLED;
        let lacks_some = fresh || !dir.has_files() || is_older && lacks_only_settled(&dir)?;
        rocks.database.create_missing_column_families(lacks_some);
        if !fresh && let Some(torn) = wal::truncate_torn_writes(&dir.rocks())? {
            tracing::warn!("{torn}");
        }
        let db = DB::open_cf_descriptors(&rocks.database, dir.rocks(), rocks.families())
            .map_err(does_not_open(&dir))?;
        // An older flowtally does not open a directory with this family, whatever the version is.
        dir.upgrade().map_err(|source| StoreError::Directory {
            path: dir.path().to_owned(),
            source,
        })?;
        set_dynamic_options(&db).map_err(with_context("setting options"))?;
        let inner = Inner::new(db, dir, rocks, options)?;
        inner.finish_steps()?;
        let recovery = inner.recover()?;
        inner.record_recovery(&recovery);
        let inner = Arc::new(inner);
        let start = |name: &str, life: fn(&Arc<Inner>)| {
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
            flusher: Some(start("flusher", |inner| inner.flush_until_closed())?),
            compactor: None,
            settler: None,
            inner: inner.clone(),
        };
        store.compactor = Some(start("compactor", Inner::compact_until_closed)?);
        store.settler = Some(start("settler", Inner::settle_until_closed)?);
        Ok((store, recovery))
    }

    /// Opens the data directory at `path` read-only; other readers can open it at the same time. This needs no write
    /// permission and changes nothing; commits and flushes return an error. The journal beyond the marker is replayed
    /// into memory, which takes about as much memory as it took the service that wrote it.
    ///
    /// # Errors
    /// If the directory is in use, is not a data directory or does not exist, if the database does not open, or if
    /// stored data is corrupt.
    pub fn open_read_only(path: &Path) -> Result<Store, StoreError> {
        let options = StoreOptions {
            // A read-only store cannot flush.
            tally_bytes_max: usize::MAX,
            journal_bytes_max: usize::MAX,
            ..StoreOptions::default()
        };
        let dir = DataDir::open_read_only(path)?;
        let rocks = RocksOptions::new(&options);
        let db = open_database_read_only(&dir, &rocks)?;
        let inner = Inner::new(db, dir, rocks, options)?;
        inner.recover()?;
        Ok(Store {
            inner: Arc::new(inner),
            flusher: None,
            compactor: None,
            settler: None,
        })
    }
}

/// Opens the database in `dir` read-only: RocksDB then writes nothing, not even its info log.
pub(super) fn open_database_read_only(
    dir: &DataDir,
    rocks: &RocksOptions,
) -> Result<DB, StoreError> {
    if let Some(torn) = wal::find_torn_writes(&dir.rocks())? {
        return Err(StoreError::Torn {
            what: torn.to_string(),
        });
    }
    // A directory of an older format lacks one.
    let mut families = rocks.families();
    let lacks_settled = dir.format() < codec::FORMAT_WITH_SETTLED && lacks_only_settled(dir)?;
    families.retain(|family| !lacks_settled || family.name() != codec::SETTLED);
    DB::open_cf_descriptors_read_only(&rocks.database, dir.rocks(), families, false)
        .map_err(does_not_open(dir))
}

/// Whether the database in `dir` has all families except for that of settled rows.
fn lacks_only_settled(dir: &DataDir) -> Result<bool, StoreError> {
    let names = DB::list_cf(&rocksdb::Options::default(), dir.rocks());
    let names = names.map_err(does_not_open(dir))?;
    let has = |family: &str| names.iter().any(|name| name == family);
    let older = [codec::JOURNAL, codec::RECEIPTS, codec::FLOWS];
    Ok(older.into_iter().all(has) && !has(codec::SETTLED))
}

fn does_not_open(dir: &DataDir) -> impl FnOnce(rocksdb::Error) -> StoreError {
    let path = dir.path().to_owned();
    move |source| StoreError::Open { path, source }
}

impl Inner {
    fn new(
        db: DB,
        dir: DataDir,
        rocks: RocksOptions,
        options: StoreOptions,
    ) -> Result<Inner, StoreError> {
        let families = Families::read(&db)?;
        let retention = RetentionState::new(&options);
        if let Some(summed) = families.summed_at_open() {
            retention.note_thinned(summed.finest);
        }
        Ok(Inner {
            db,
            dir,
            #[cfg(test)]
            database_options: rocks.database,
            flows_options: rocks.flows,
            settled_options: rocks.settled,
            views: ViewBudget::new(options.view_bytes_max),
            commit: Mutex::new(Vec::new()),
            tallies: Mutex::new(Tallies::new()),
            visibility: Visibility::new(),
            families,
            known_keys: parking_lot::Mutex::new(KnownKeys::new(options.known_keys_bytes)),
            flusher: Flusher::default(),
            pacer: Pacer::default(),
            retention,
            compaction_requests: CompactionRequests::default(),
            settler: Settler::new(),
            receipt_expiry: rocks.expiry,
            journal_memtable: JournalMemtable::new(options.memtable_bytes),
            saturated: rocks.saturated,
            audit: Audit::default(),
            health: Health::new(),
            options,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Selection;
    use flow::BatchBuilder;
    use flow::{Counters, Hour, HourRange};

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
        let opened = Store::open_read_only(dir.path());
        assert!(matches!(opened, Err(StoreError::InUse { .. })));
        drop(store);
        let readers = [0, 1].map(|_| Store::open_read_only(dir.path()).unwrap());
        for reader in &readers {
            let mut scan = reader
                .select(Selection::hour(Hour::new(7).unwrap()))
                .unwrap();
            assert_eq!(scan.next().unwrap().unwrap().1, Counters { tx: 3, rx: 0 });
            let mut ledger = reader.ledger(HourRange::ALL).unwrap();
            assert_eq!(ledger.next().unwrap().unwrap().1.flows, 2);
            assert!(ledger.next().is_none());
            assert!(matches!(reader.flush(), Err(StoreError::ReadOnly)));
            assert!(commit(reader, 4).is_err());
        }
        let opened = Store::open(dir.path(), StoreOptions::default());
        assert!(matches!(opened, Err(StoreError::InUse { .. })));
        drop(readers);
        let (store, recovery) = Store::open(dir.path(), StoreOptions::default()).unwrap();
        assert_eq!(recovery.flows, 1);
        let first = store.ledger((7..8).into()).unwrap().next();
        assert_eq!(first.unwrap().unwrap().1.tx, 3);
    }
}
