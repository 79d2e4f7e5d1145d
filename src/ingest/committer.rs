//! Group commit: one thread takes every batch that waits, commits them with one fsync, and answers
//! all of them. Alone, a batch waits for one fsync; under load, hundreds share it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot};

use super::{Answer, Committed, IngestError, Journal, Permit, Promise, Taken};
use crate::domain::{Hour, IdempotencyKey, Totals};
use crate::store::{self, Batch, Kept, Known, Retention, Store, StoreError, WriteHealth};
use crate::telemetry::Metrics;

/// Batches that may wait for the committer. Their bytes are bounded by admission.
const QUEUE_BATCHES_MAX: usize = 4096;
/// Most bytes of a group of several batches, with what their hours take in a tally; and most that it may be of a
/// tally's size, so that a group passes a tally's bound by little.
const GROUP_BYTES_MAX: usize = 8 << 20;
const GROUPS_PER_TALLY: usize = 4;

type Done = oneshot::Sender<Answer>;

enum Job {
    /// The permit covers the batch until it is committed, also when nobody waits any more.
    Commit(Batch, Permit, Done),
    /// Nothing after this one is taken.
    Finish,
}

/// The way into the store for many concurrent requests.
#[derive(Debug)]
pub struct Committer {
    queue: mpsc::Sender<Job>,
    store: Arc<Store>,
    metrics: Metrics,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Starts the committing thread.
    pub fn start(store: Arc<Store>, metrics: Metrics) -> std::io::Result<Committer> {
        let (queue, jobs) = mpsc::channel(QUEUE_BATCHES_MAX);
        let (store_of_thread, metrics_of_thread) = (store.clone(), metrics.clone());
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || {
                store::abort_on_panic(|| run(&store_of_thread, &metrics_of_thread, jobs));
            })?;
        Ok(Committer {
            queue,
            store,
            metrics,
            thread: Mutex::new(Some(thread)),
        })
    }
}

impl Journal for Committer {
    /// What is durable is visible here.
    fn commit(&self, batch: Batch, permit: Permit, _until_visible: bool) -> Promise<'_, Answer> {
        Box::pin(async {
            let (done, answer) = oneshot::channel();
            self.queue
                .send(Job::Commit(batch, permit, done))
                .await
                .map_err(|_| IngestError::Closed)?;
            answer.await.map_err(|_| IngestError::Closed)?
        })
    }

    fn accepts(&self) -> Result<(), String> {
        let health = self.store.write_health();
        match health {
            WriteHealth::Good => Ok(()),
            WriteHealth::Gone => {
                Err("the data directory is gone; the log says what was found".into())
            }
            _ => Err(match health.lacks_space().or(health.fails()) {
                Some(why) => format!("no batch is taken: {why}; the log says more"),
                None => "no batch is taken; the log says why".into(),
            }),
        }
    }

    fn lacks_space(&self) -> Option<&'static str> {
        self.store.write_health().lacks_space()
    }

    fn fails(&self) -> Option<&'static str> {
        self.store.write_health().fails()
    }

    fn delete_hour(&self, hour: Hour) -> Result<Option<Totals>, IngestError> {
        let deleted = self.store.delete_hour(hour);
        deleted.map_err(|error| IngestError::NotDeleted(Arc::new(error)))
    }

    fn newest_hour(&self) -> Option<Hour> {
        self.store.newest_hour()
    }

    fn receipts(&self, keys: &[IdempotencyKey]) -> Result<Vec<Option<Kept>>, IngestError> {
        let kept = self.store.receipts(keys);
        kept.map_err(|error| IngestError::Receipt(Arc::new(error)))
    }

    /// Those of the store too.
    fn observe(&self) -> Result<(), StoreError> {
        let queued = self.queue.max_capacity() - self.queue.capacity();
        self.metrics.ingest().queued_batches.set(queued as i64);
        self.store.observe()
    }

    fn finish(&self) {
        // An error means that the thread has ended already.
        let _ended = self.queue.blocking_send(Job::Finish);
        if let Ok(Some(thread)) = self.thread.lock().map(|mut thread| thread.take()) {
            // A panic of the thread has been printed by then; there is nothing to add.
            let _ended = thread.join();
        }
    }
}

fn run(store: &Store, metrics: &Metrics, mut jobs: mpsc::Receiver<Job>) {
    let bytes_max = GROUP_BYTES_MAX.min(store.tally_bytes_max() / GROUPS_PER_TALLY);
    let mut group = Group::default();
    // What did not fit into the group before.
    let mut left = None;
    while let Some(first) = left.take().or_else(|| jobs.blocking_recv()) {
        let mut next = Some(first);
        let mut bytes = 0;
        while let Some(job) = next {
            match job {
                Job::Commit(batch, permit, done) => {
                    let cost = batch.cost_bytes();
                    if bytes > 0 && bytes + cost > bytes_max {
                        left = Some(Job::Commit(batch, permit, done));
                        break;
                    }
                    bytes += cost;
                    group.take(store, batch, (permit, done));
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

/// Batches that are committed together, and who waits for them.
#[derive(Default)]
struct Group {
    batches: Vec<Batch>,
    waiting: Vec<((Permit, Done), Committed)>,
    /// Fingerprints by idempotency key, and how many flows were too old.
    keys: HashMap<IdempotencyKey, (u128, u64)>,
    /// What there are notes under.
    noted: HashSet<IdempotencyKey>,
    /// Which hours are kept, with those of this group; `None` before its first batch.
    retention: Option<Retention>,
}

impl Group {
    /// One thread takes all batches, so of two under one key, the second finds the first: in this
    /// group, or by its receipt.
    fn take(&mut self, store: &Store, batch: Batch, waits: (Permit, Done)) {
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
            Ok(Known::New) => match self.is_beside_another(store, &batch) {
                Ok(true) => answer(waits, Err(IngestError::ReceiptExists)),
                Ok(false) => match self.keep(store, batch) {
                    Ok(committed) => self.waiting.push((waits, committed)),
                    Err(error) => answer(waits, Err(ingest_error(error))),
                },
                Err(error) => answer(waits, Err(IngestError::Receipt(Arc::new(error)))),
            },
            // Also one whose first is durable already waits for this group: it is a rare one.
            Ok(Known::Taken { expired }) => {
                let committed = Committed {
                    taken: Taken::Before,
                    flows: flows.saturating_sub(expired),
                    expired,
                };
                self.waiting.push((waits, committed));
            }
            Ok(Known::Reused) => answer(waits, Err(IngestError::KeyReused)),
            Err(error) => answer(waits, Err(IngestError::Receipt(Arc::new(error)))),
        }
    }

    /// Whether there is a receipt or a note that `batch` is not to be counted beside.
    fn is_beside_another(&self, store: &Store, batch: &Batch) -> Result<bool, StoreError> {
        let Some(key) = batch.notes().and_then(|notes| notes.unless.as_ref()) else {
            return Ok(false);
        };
        let stored = || store.receipts(std::slice::from_ref(key));
        let in_group = self.keys.contains_key(key) || self.noted.contains(key);
        Ok(in_group || stored()?.iter().any(Option::is_some))
    }

    /// Puts into the group what is not too old of `batch`.
    fn keep(&mut self, store: &Store, batch: Batch) -> Result<Committed, StoreError> {
        let retention = match &mut self.retention {
            Some(retention) => retention,
            none => none.insert(store.retention()?),
        };
        let batch = retention.expire(batch)?;
        let committed = Committed {
            taken: Taken::Now,
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
            store.commit(&self.batches).map_err(ingest_error)
        };
        if result.is_ok() {
            self.count(metrics, start);
        }
        self.batches.clear();
        self.keys.clear();
        self.noted.clear();
        self.retention = None;
        for (waits, committed) in self.waiting.drain(..) {
            answer(waits, result.clone().map(|()| committed));
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
            match committed.taken {
                Taken::Now => {
                    metrics.flows.inc_by(committed.flows);
                    metrics.expired.inc_by(committed.expired);
                }
                Taken::Before => metrics.replayed.inc(),
            }
        }
    }
}

fn answer((_permit, done): (Permit, Done), answer: Answer) {
    // Nobody waits any more where the connection is gone.
    let _gone = done.send(answer);
}

fn ingest_error(error: StoreError) -> IngestError {
    match error {
        StoreError::Behind => IngestError::Overloaded(error.to_string()),
        StoreError::Closed => IngestError::Closed,
        error => IngestError::Store(Arc::new(error)),
    }
}
