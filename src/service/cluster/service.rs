//! The implementation of [`Service`] by a node.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::ClusterNode;
use super::peer::{FrameEncoder, Request};
use crate::backup;
use crate::directory::Directory;
use crate::ingest::Permit;
use crate::query::{Hours, QueryError, RowFormat, Rows};
use crate::service::{ClaimsRefused, Committed, Health, PeerRequest, Service, ServiceError};
use crate::store::StoreError;
use flow::directory::DirectoryRequest;
use flow::query::text::BadQuery;
use flow::query::{HoursQuery, Query};
use flow::{Batch, Hour, HourRange, IdempotencyKey, Partition, ReceiptInfo, Totals};

impl Service for ClusterNode {
    fn commit(
        &self,
        batch: Batch,
        permit: Permit,
        until_visible: bool,
    ) -> BoxFuture<'_, Result<Committed, ServiceError>> {
        Box::pin(self.writer.commit(batch, permit, until_visible))
    }

    fn ask(&self, query: &Query, cancel: CancellationToken) -> Result<Rows, QueryError> {
        if query.compare.is_some() {
            return (self.engine).compare(query, |period| self.ask(period, cancel.clone()));
        }
        let time_max = self.engine.time_max();
        let open = || self.scatter_gather.rows(query, time_max, &cancel);
        self.engine.ask_sources(query, cancel.clone(), open)
    }

    fn hours(&self, query: &HoursQuery, cancel: CancellationToken) -> Result<Hours, QueryError> {
        let mut hours = Hours::new(self.engine.time_max(), cancel.clone()).in_steps_of(query.step);
        self.scatter_gather.hours(query, &mut hours, &cancel)?;
        Ok(hours)
    }

    /// The newest hour of the local partitions: an hour's flows are spread over all partitions, so it is that of all.
    fn newest_hour(&self) -> Option<Hour> {
        self.state.local.newest_hour()
    }

    fn readable_partitions(&self) -> Option<Vec<Partition>> {
        let (local, progress) = (&self.state.local, self.state.progress());
        let readable = progress
            .iter()
            .filter(|(partition, progress)| local.readable(**partition, progress).is_some());
        Some(readable.map(|(partition, _)| *partition).collect())
    }

    fn receipts(&self, _keys: &[IdempotencyKey]) -> Result<Vec<Option<ReceiptInfo>>, ServiceError> {
        let what = "in a cluster, receipts are stored with the partitions of the flows, and cannot be looked up; \
                    a batch that is sent again under its key counts once all the same";
        Err(ServiceError::Unsupported(what))
    }

    fn delete_hours(&self, _hours: HourRange) -> Result<Option<Totals>, ServiceError> {
        Err(ServiceError::Unsupported(
            "in a cluster, hours are dropped by age: start the nodes with --retain-hours",
        ))
    }

    fn health(&self) -> Health {
        let state = &self.state;
        if state.has_failed.load(Ordering::Relaxed) || self.writer.has_ended() {
            return Health::Failing {
                ready: "the Kafka client has stopped after a fatal error; see the log".into(),
                cause: "the Kafka client has stopped after a fatal error, so the journal could not be used",
            };
        }
        if !state.connected.load(Ordering::Relaxed) {
            return Health::NotReady("Kafka does not respond".into());
        }
        match state.local.require_readable(&state.progress()) {
            Ok(()) => Health::Ready,
            Err(why) => Health::NotReady(why),
        }
    }

    fn observe(&self) -> Result<(), StoreError> {
        let state = &self.state;
        self.addresses.directory.observe(&state.store.metrics);
        state.local.backlog().observe(state.store.metrics.store());
        let metrics = state.store.metrics.cluster();
        let progress = state.progress();
        metrics.partitions.set(progress.len() as i64);
        // Partitions that were revoked have no figures any more.
        metrics.position.reset();
        metrics.lag.reset();
        for (partition, position) in state.local.positions() {
            let label = partition.to_string();
            metrics
                .position
                .with_label_values(&[&label])
                .set(position.as_i64());
            if let Some(end) = progress.get(&partition).and_then(|p| p.end) {
                let lag = end.since(position);
                metrics.lag.with_label_values(&[&label]).set(lag as i64);
            }
        }
        Ok(())
    }

    fn directory(&self) -> &Arc<Directory> {
        &self.addresses.directory
    }

    fn is_directory_current(&self) -> bool {
        self.addresses.is_current()
    }

    fn renew_claims(&self, request: DirectoryRequest) -> BoxFuture<'_, Result<(), ClaimsRefused>> {
        Box::pin(self.addresses.renew(request))
    }

    fn backups(&self) -> Result<Arc<backup::Sessions>, ServiceError> {
        Err(ServiceError::Unsupported(
            "a node rebuilds its sums from checkpoints and from the messages in Kafka after them: \
             see --checkpoint-url",
        ))
    }

    /// Flushes and closes the stores. The group keeps this node's partitions for `SESSION_TIMEOUT`, and then assigns
    /// them to other nodes. Messages that are still being sent are not waited for: their batches are not acknowledged.
    fn close(&self, _time_max: Duration) -> Result<(), StoreError> {
        self.tasks.lock().abort_all();
        let consumer = self.consumer.lock().take();
        drop(consumer);
        Ok(())
    }

    fn peer_request(&self, path: &str, query: &str) -> Option<Result<PeerRequest<'_>, BadQuery>> {
        let request = Request::parse(path, query)?;
        Some(request.map(|request| match request {
            Request::Rows(query) => PeerRequest::Rows(query, RowFormat::Other(&FrameEncoder)),
            Request::Hours(query) => PeerRequest::Hours(query),
            Request::Applied(upto) => PeerRequest::Applied(Box::pin(self.writer.has_applied(upto))),
        }))
    }
}
