//! Group commit: one thread takes all batches that wait, commits them with one fsync, and responds to each. Under
//! light load, a batch waits for one fsync; under heavy load, hundreds share it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::ingest::Permit;
use crate::service::{Committed, ServiceError};
use crate::store::{self, Known, Retention, Store, StoreError};
use crate::telemetry::Metrics;
use flow::{Batch, IdempotencyKey};

/// Batches that may wait for the committer. Their bytes are bounded by admission.
const QUEUE_BATCHES_MAX: usize = 4096;
/// Most bytes of a group of several batches, including what its hours take in a tally; and most that it may be of a
/// tally's size, so that a group exceeds a tally's bound by little.
const GROUP_BYTES_MAX: usize = 8 << 20;
const GROUPS_PER_TALLY: usize = 4;

type CommitResult = Result<Committed, ServiceError>;
type Responder = oneshot::Sender<CommitResult>;

enum Job {
    /// The permit covers the batch until it is committed, even if the client disconnects.
    Commit(Batch, Permit, Responder),
    /// Nothing after this one is taken.
    Finish,
}

/// Commits the batches of many concurrent requests on one thread.
#[derive(Debug)]
pub(super) struct Committer {
    queue: mpsc::Sender<Job>,
    metrics: Metrics,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Starts the committing thread.
    pub(super) fn start(store: Arc<Store>, metrics: Metrics) -> std::io::Result<Committer> {
        let (queue, jobs) = mpsc::channel(QUEUE_BATCHES_MAX);
        let metrics_of_thread = metrics.clone();
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || {
                store::abort_on_panic(|| run(&store, &metrics_of_thread, jobs));
            })?;
        Ok(Committer {
            queue,
            metrics,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Resolves when `batch` is durable and visible.
    pub(super) async fn commit(&self, batch: Batch, permit: Permit) -> CommitResult {
        let (responder, response) = oneshot::channel();
        self.queue
            .send(Job::Commit(batch, permit, responder))
            .await
            .map_err(|_| ServiceError::Closed)?;
        response.await.map_err(|_| ServiceError::Closed)?
    }

    /// Sets the gauges.
    pub(super) fn observe(&self) {
        let queued = self.queue.max_capacity() - self.queue.capacity();
        self.metrics.ingest().queued_batches.set(queued as i64);
    }

    /// Commits what is queued, and refuses what comes later. Blocks.
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

fn run(store: &Store, metrics: &Metrics, mut jobs: mpsc::Receiver<Job>) {
    let bytes_max = GROUP_BYTES_MAX.min(store.tally_bytes_max() / GROUPS_PER_TALLY);
    let mut group = Group::default();
    // The job that did not fit into the previous group.
    let mut postponed = None;
    while let Some(first) = postponed.take().or_else(|| jobs.blocking_recv()) {
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
                    group.admit(store, batch, (permit, responder));
                }
                Job::Finish => jobs.close(),
            }
            next = if bytes < bytes_max {
                jobs.try_recv().ok()
            } else {
                None
            };
        }
        group.commit(store, metrics);
    }
}

/// Batches that are committed together, and the requests that wait for them.
#[derive(Default)]
struct Group {
    batches: Vec<Batch>,
    waiting: Vec<((Permit, Responder), Committed)>,
    /// Fingerprints by idempotency key, and how many flows were too old.
    keys: HashMap<IdempotencyKey, (u128, u64)>,
    /// Keys of notes.
    noted: HashSet<IdempotencyKey>,
    /// Which hours are kept, with those of this group; `None` before its first batch.
    retention: Option<Retention>,
}

impl Group {
    /// Adds a batch to the group, or responds at once if it is refused. One thread handles all batches, so of two
    /// with the same key, the second always finds the first: in this group, or by its receipt.
    fn admit(&mut self, store: &Store, batch: Batch, request: (Permit, Responder)) {
        let flows = batch.flows() as u64;
        let known = match batch.receipt() {
            None => Ok(Known::New),
            Some((key, fingerprint)) => match self.keys.get(key) {
                Some((of_first, expired)) if *of_first == fingerprint => {
                    Ok(Known::Taken { expired: *expired })
                }
                Some(_) => Ok(Known::Reused),
                None => store.known(&batch),
            },
        };
        match known {
            Ok(Known::New) => match self.conflicts_with_receipt(store, &batch) {
                Ok(true) => respond(request, Err(ServiceError::ReceiptExists)),
                Ok(false) => match self.push(store, batch) {
                    Ok(committed) => self.waiting.push((request, committed)),
                    Err(error) => respond(request, Err(service_error(error))),
                },
                Err(error) => respond(request, Err(ServiceError::Receipt(Arc::new(error)))),
            },
            // It waits for this group even if the first is durable already: retries are rare.
            Ok(Known::Taken { expired }) => {
                let committed = Committed {
                    replayed: true,
                    flows: flows.saturating_sub(expired),
                    expired,
                };
                self.waiting.push((request, committed));
            }
            Ok(Known::Reused) => respond(request, Err(ServiceError::KeyReused)),
            Err(error) => respond(request, Err(ServiceError::Receipt(Arc::new(error)))),
        }
    }

    /// Whether there is a receipt or a note under the key that excludes `batch` (`!KEY` in its notes).
    fn conflicts_with_receipt(&self, store: &Store, batch: &Batch) -> Result<bool, StoreError> {
        let Some(key) = batch.notes().and_then(|notes| notes.unless.as_ref()) else {
            return Ok(false);
        };
        let stored = || store.receipts(std::slice::from_ref(key));
        let in_group = self.keys.contains_key(key) || self.noted.contains(key);
        Ok(in_group || stored()?.iter().any(Option::is_some))
    }

    /// Adds `batch` to the group, without its flows that are too old.
    fn push(&mut self, store: &Store, batch: Batch) -> Result<Committed, StoreError> {
        let retention = match &mut self.retention {
            Some(retention) => retention,
            none => none.insert(store.retention()?),
        };
        let batch = retention.expire(batch)?;
        let committed = Committed {
            replayed: false,
            flows: batch.flows() as u64,
            expired: batch.expired(),
        };
        if let Some((key, fingerprint)) = batch.receipt() {
            let known = (fingerprint, batch.expired());
            self.keys.insert(key.clone(), known);
            let notes = batch.notes().into_iter().flat_map(|notes| &notes.others);
            self.noted.extend(notes.map(|(key, _)| key.clone()));
        }
        if committed.flows > 0 || batch.receipt().is_some() {
            self.batches.push(batch);
        }
        Ok(committed)
    }

    fn commit(&mut self, store: &Store, metrics: &Metrics) {
        let start = Instant::now();
        let result = if self.batches.is_empty() {
            Ok(())
        } else {
            store.commit(&self.batches).map_err(service_error)
        };
        if result.is_ok() {
            self.count(metrics, start);
        }
        self.batches.clear();
        self.keys.clear();
        self.noted.clear();
        self.retention = None;
        for (request, committed) in self.waiting.drain(..) {
            respond(request, result.clone().map(|()| committed));
        }
    }

    fn count(&self, metrics: &Metrics, start: Instant) {
        let metrics = metrics.ingest();
        if !self.batches.is_empty() {
            metrics
                .commit_seconds
                .observe(start.elapsed().as_secs_f64());
            metrics.commit_batches.observe(self.batches.len() as f64);
        }
        for batch in &self.batches {
            metrics.batches.inc();
            metrics.bytes.inc_by(batch.bytes().len() as u64);
        }
        for (_, committed) in &self.waiting {
            if committed.replayed {
                metrics.replayed.inc();
            } else {
                metrics.flows.inc_by(committed.flows);
                metrics.expired.inc_by(committed.expired);
            }
        }
    }
}

fn respond((_permit, responder): (Permit, Responder), result: CommitResult) {
    // Fails if the client has disconnected.
    let _disconnected = responder.send(result);
}

fn service_error(error: StoreError) -> ServiceError {
    match error {
        StoreError::Behind => ServiceError::Overloaded(error.to_string()),
        StoreError::Closed => ServiceError::Closed,
        error => ServiceError::Store(Arc::new(error)),
    }
}
