//! One process with a store of its own: the committer writes, the query engine reads, and backup sessions copy.

mod committer;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::{ClaimsRefused, Committed, Health, OpenError, Service, ServiceError, ServiceOptions};
use crate::backup;
use crate::directory::Directory;
use crate::ingest::Permit;
use crate::query::{Engine, Hours, QueryError, Rows};
use crate::store::{DataDir, Recovery, Store, StoreError, WriteHealth};
use crate::telemetry::Metrics;
use committer::Committer;
use flow::directory::DirectoryRequest;
use flow::query::{HoursQuery, Query};
use flow::{Batch, Hour, HourRange, IdempotencyKey, ReceiptInfo, Totals};

/// The service of a single process.
#[derive(Debug)]
pub struct Standalone {
    store: Arc<Store>,
    committer: Committer,
    engine: Engine,
    backups: Arc<backup::Sessions>,
    directory: Arc<Directory>,
    metrics: Metrics,
    /// Logged when the API is open.
    recovery: Recovery,
    open_time: Duration,
    data_dir: PathBuf,
}

impl Standalone {
    /// Opens the store in `dir`, which replays its journal.
    ///
    /// # Errors
    /// A store that does not open, or a thread that does not start.
    pub fn open(dir: DataDir, options: &ServiceOptions) -> Result<Standalone, OpenError> {
        let start = Instant::now();
        let (store, recovery) = Store::open_dir(dir, options.store.clone())?;
        let store = Arc::new(store);
        let committer = Committer::start(store.clone(), options.metrics.clone());
        Ok(Standalone {
            committer: committer.map_err(OpenError::Thread)?,
            engine: Engine::new(options.query),
            backups: Arc::new(backup::Sessions::new(store.clone())),
            directory: Arc::new(Directory::new(options.directory_bytes_max)),
            metrics: options.metrics.clone(),
            store,
            recovery,
            open_time: start.elapsed(),
            data_dir: options.data_dir.clone(),
        })
    }
}

impl Service for Standalone {
    /// A batch is visible when it is durable, so `until_visible` changes nothing.
    fn commit(
        &self,
        batch: Batch,
        permit: Permit,
        _until_visible: bool,
    ) -> BoxFuture<'_, Result<Committed, ServiceError>> {
        Box::pin(self.committer.commit(batch, permit))
    }

    fn admit_batch(&self) -> Result<(), ServiceError> {
        self.committer.admit_batch()
    }

    fn ask(&self, query: &Query, cancel: CancellationToken) -> Result<Rows, QueryError> {
        self.engine.ask(&self.store, query, cancel)
    }

    fn hours(&self, query: &HoursQuery, cancel: CancellationToken) -> Result<Hours, QueryError> {
        self.engine.hours(&self.store, query, cancel)
    }

    fn ledger_difference(&self) -> Option<i64> {
        self.store.ledger_difference()
    }

    fn newest_hour(&self) -> Option<Hour> {
        self.store.newest_hour()
    }

    fn receipts(&self, keys: &[IdempotencyKey]) -> Result<Vec<Option<ReceiptInfo>>, ServiceError> {
        let kept = self.store.receipts(keys);
        kept.map_err(|error| ServiceError::Receipt(Arc::new(error)))
    }

    fn delete_hours(&self, hours: HourRange) -> Result<Option<Totals>, ServiceError> {
        let deleted = self.store.delete_hours(hours);
        deleted.map_err(|error| match error {
            StoreError::TooCoarse { tier, finer_from } => ServiceError::TooCoarse(format!(
                "hours before {finer_from} are kept only in sums of {0} hours; delete whole ones: from and to must be multiples of \
                 {0}",
                tier.hours()
            )),
            error => ServiceError::NotDeleted(Arc::new(error)),
        })
    }

    fn log_ready(&self) {
        tracing::info!(
            data_dir = %self.data_dir.display(),
            replayed_batches = self.recovery.batches,
            replayed_flows = self.recovery.flows,
            replay_ms = self.recovery.time.as_millis() as u64,
            ms = self.open_time.as_millis() as u64,
            "ready"
        );
    }

    fn health(&self) -> Health {
        let health = self.store.write_health();
        match health {
            WriteHealth::Good => return Health::Ready,
            WriteHealth::Gone => {
                let why = "the data directory is gone; see the log";
                return Health::NotReady(why.into());
            }
            _ => {}
        }
        let ready = match health.lacks_space().or(health.fails()) {
            Some(why) => format!("batches are refused: {why}; see the log"),
            None => "batches are refused; see the log".into(),
        };
        match health.fails() {
            Some(cause) => Health::Failing { ready, cause },
            None => Health::NotReady(ready),
        }
    }

    fn observe(&self) -> Result<(), StoreError> {
        self.committer.observe();
        self.directory.observe(&self.metrics);
        self.store.observe()
    }

    fn directory(&self) -> &Arc<Directory> {
        &self.directory
    }

    fn renew_claims(&self, request: DirectoryRequest) -> BoxFuture<'_, Result<(), ClaimsRefused>> {
        let directory = self.directory.clone();
        let renew = move || directory.renew(request);
        Box::pin(async {
            let renewed = tokio::task::spawn_blocking(renew).await;
            let renewed = renewed.map_err(|e| ClaimsRefused(e.to_string()))?;
            renewed.map_err(|full| ClaimsRefused(full.to_string()))
        })
    }

    fn backups(&self) -> Result<Arc<backup::Sessions>, ServiceError> {
        Ok(self.backups.clone())
    }

    fn close(&self, time_max: Duration) -> Result<(), StoreError> {
        self.backups.end_all();
        self.committer.finish();
        self.store.flush_within(time_max)?;
        if self.store.sums_saturated() > 0 {
            tracing::warn!(
                times = self.store.sums_saturated(),
                "sums saturated at 2^64-1"
            );
        }
        Ok(())
    }
}
