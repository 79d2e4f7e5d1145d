//! Group commit: one thread takes all batches that wait, commits them with one fsync, and responds to each. Under
//! light load, a batch waits for one fsync; under heavy load, hundreds share it.
//!
//! The thread of the request removes flows that are too old already, since the only committing thread should not copy
//! batches.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::ingest::Permit;
use crate::service::{Committed, ServiceError};
use crate::store::{self, Outcome, Store, StoreError};
use crate::telemetry::Metrics;
use flow::Batch;

/// Maximum number of batches that wait for the committer. Admission bounds their bytes.
const QUEUE_BATCHES_MAX: usize = 4096;
/// Maximum bytes of a group of several batches, including the memory of its hours in a tally; and the minimum number of
/// groups per tally, so that a group exceeds a tally's bound by little.
const GROUP_BYTES_MAX: usize = 8 << 20;
const GROUPS_PER_TALLY: usize = 4;

/// Larger batches are copied on a blocking thread.
const COPY_INLINE_BYTES_MAX: usize = 512 << 10;

type CommitResult = Result<Committed, ServiceError>;
type Responder = oneshot::Sender<CommitResult>;

enum Job {
    /// The permit covers the batch until it is committed, even if the client disconnects.
    Commit(Batch, Permit, Responder),
    /// The last job: no job after it is accepted.
    Finish,
}

/// Commits the batches of many concurrent requests on one thread.
#[derive(Debug)]
pub(super) struct Committer {
    store: Arc<Store>,
    queue: mpsc::Sender<Job>,
    metrics: Metrics,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Starts the committing thread.
    pub(super) fn start(store: Arc<Store>, metrics: Metrics) -> std::io::Result<Committer> {
        let (queue, jobs) = mpsc::channel(QUEUE_BATCHES_MAX);
        let (store_of_thread, metrics_of_thread) = (store.clone(), metrics.clone());
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || {
                store::abort_on_panic(|| run(&store_of_thread, &metrics_of_thread, jobs));
            })?;
        Ok(Committer {
            store,
            queue,
            metrics,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Resolves when `batch` is durable and visible.
    pub(super) async fn commit(&self, batch: Batch, permit: Permit) -> CommitResult {
        let batch = self.without_too_old(batch).await?;
        let (responder, response) = oneshot::channel();
        self.queue
            .send(Job::Commit(batch, permit, responder))
            .await
            .map_err(|_| ServiceError::Closed)?;
        response.await.map_err(|_| ServiceError::Closed)?
    }

    async fn without_too_old(&self, batch: Batch) -> Result<Batch, ServiceError> {
        let is_large = batch.bytes().len() > COPY_INLINE_BYTES_MAX;
        if !is_large || !self.store.has_too_old(&batch) {
            return Ok(self.store.remove_too_old(batch));
        }
        let store = self.store.clone();
        let copied = tokio::task::spawn_blocking(move || store.remove_too_old(batch));
        copied.await.map_err(|_| ServiceError::Closed)
    }

    /// See [`Service::admit_batch`](crate::service::Service::admit_batch).
    pub(super) fn admit_batch(&self) -> Result<(), ServiceError> {
        match self.store.write_health().lacks_space() {
            Some(why) => Err(ServiceError::NoSpace { why }),
            None => Ok(()),
        }
    }

    /// Sets the gauges.
    pub(super) fn observe(&self) {
        let queued = self.queue.max_capacity() - self.queue.capacity();
        self.metrics.ingest().queued_batches.set(queued as i64);
    }

    /// Commits the queued batches, and refuses later ones. Blocks.
    pub(super) fn finish(&self) {
        // An error means that the thread has ended already.
        let _ended = self.queue.blocking_send(Job::Finish);
        let thread = self.thread.lock().take();
        if let Some(thread) = thread {
            // A panic of the thread has been printed by then; there is nothing to add.
            let _ended = thread.join();
        }
    }
}

impl Drop for Committer {
    /// Ends the thread, if [`Committer::finish`] was not called: it uses the database, which has to be closed before
    /// the process ends.
    fn drop(&mut self) {
        let (closed, _) = mpsc::channel(1);
        self.queue = closed;
        if let Some(thread) = self.thread.get_mut().take() {
            let _a_panic_is_printed = thread.join();
        }
    }
}

fn run(store: &Store, metrics: &Metrics, mut jobs: mpsc::Receiver<Job>) {
    let bytes_max = GROUP_BYTES_MAX.min(store.tally_bytes_max() / GROUPS_PER_TALLY);
    // The job that did not fit into the previous group.
    let mut postponed = None;
    while let Some(first) = postponed.take().or_else(|| jobs.blocking_recv()) {
        let (mut batches, mut requests) = (Vec::new(), Vec::new());
        let mut next = Some(first);
        let mut bytes = 0;
        while let Some(job) = next {
            match job {
                Job::Commit(batch, permit, responder) => {
                    let cost = store::batch_memory_bytes(&batch);
                    if bytes > 0 && bytes + cost > bytes_max {
                        postponed = Some(Job::Commit(batch, permit, responder));
                        break;
                    }
                    bytes += cost;
                    batches.push(batch);
                    requests.push((permit, responder));
                }
                Job::Finish => jobs.close(),
            }
            next = if bytes < bytes_max {
                jobs.try_recv().ok()
            } else {
                None
            };
        }
        commit(store, metrics, batches, requests);
    }
}

/// Commits the batches together, and responds to each request. One that replays a batch of the group waits for
/// it, too.
fn commit(
    store: &Store,
    metrics: &Metrics,
    batches: Vec<Batch>,
    requests: Vec<(Permit, Responder)>,
) {
    let start = Instant::now();
    match store.commit(batches) {
        Ok(outcomes) => {
            observe(metrics, start, &outcomes);
            for (request, outcome) in requests.into_iter().zip(outcomes) {
                respond(request, result(outcome));
            }
        }
        Err(error) => {
            let error = service_error(store, error);
            for request in requests {
                respond(request, Err(error.clone()));
            }
        }
    }
}

fn result(outcome: Outcome) -> CommitResult {
    let committed = |replayed, flows, too_old| {
        Ok(Committed {
            replayed,
            flows,
            too_old,
        })
    };
    match outcome {
        Outcome::Counted { flows, too_old, .. } => committed(false, flows, too_old),
        Outcome::Replayed { flows, too_old } => committed(true, flows, too_old),
        Outcome::KeyReused => Err(ServiceError::KeyReused),
        Outcome::ReceiptExists => Err(ServiceError::ReceiptExists),
        Outcome::Unknown(error) => Err(ServiceError::Receipt(Arc::new(error))),
    }
}

fn observe(metrics: &Metrics, start: Instant, outcomes: &[Outcome]) {
    let metrics = metrics.ingest();
    let mut written = 0_u64;
    for outcome in outcomes {
        match outcome {
            Outcome::Counted {
                flows,
                too_old,
                bytes,
            } => {
                written += u64::from(*bytes > 0);
                metrics.bytes.inc_by(*bytes as u64);
                metrics.flows.inc_by(*flows);
                metrics.expired.inc_by(*too_old);
            }
            Outcome::Replayed { .. } => metrics.replayed.inc(),
            Outcome::KeyReused | Outcome::ReceiptExists | Outcome::Unknown(_) => {}
        }
    }
    if written > 0 {
        metrics.batches.inc_by(written);
        metrics
            .commit_seconds
            .observe(start.elapsed().as_secs_f64());
        metrics.commit_batches.observe(written as f64);
    }
}

fn respond((_permit, responder): (Permit, Responder), result: CommitResult) {
    // Fails if the client has disconnected.
    let _disconnected = responder.send(result);
}

fn service_error(store: &Store, error: StoreError) -> ServiceError {
    match error {
        StoreError::WriteStalled => ServiceError::Overloaded(error.to_string()),
        StoreError::Closed => ServiceError::Closed,
        error => match store.write_health().lacks_space() {
            Some(why) => ServiceError::NoSpace { why },
            None => ServiceError::Store(Arc::new(error)),
        },
    }
}
