//! Group commit: one thread takes every batch that waits, commits them with one fsync, and answers
//! all of them. Alone, a batch waits for one fsync; under load, hundreds share it.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use tokio::sync::{mpsc, oneshot};

use super::IngestError;
use crate::store::{Batch, Store, StoreError};

/// Batches that may wait for the committer. Their bytes are bounded by admission.
const QUEUE_BATCHES_MAX: usize = 4096;
/// A group takes no further batch once it holds this many bytes.
const GROUP_BYTES_MAX: usize = 8 << 20;

type Done = oneshot::Sender<Result<(), IngestError>>;

enum Job {
    Commit(Batch, Done),
    /// Nothing after this one is taken.
    Finish,
}

/// The way into the store for many concurrent requests.
#[derive(Debug)]
pub struct Committer {
    queue: mpsc::Sender<Job>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Committer {
    /// Starts the committing thread.
    pub fn start(store: Arc<Store>) -> std::io::Result<Committer> {
        let (queue, jobs) = mpsc::channel(QUEUE_BATCHES_MAX);
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || run(&store, jobs))?;
        Ok(Committer {
            queue,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Returns once every flow of `batch` is durable and visible.
    ///
    /// A caller that goes away before the answer leaves the batch in the queue: it is then
    /// committed, or not, like one whose answer got lost on the way.
    pub async fn commit(&self, batch: Batch) -> Result<(), IngestError> {
        let (done, answer) = oneshot::channel();
        self.queue
            .send(Job::Commit(batch, done))
            .await
            .map_err(|_| IngestError::Closed)?;
        answer.await.map_err(|_| IngestError::Closed)?
    }

    /// Commits what is in the queue and ends the thread; what comes later is refused. Blocks.
    pub fn finish(&self) {
        // An error means that the thread has ended already.
        let _ended = self.queue.blocking_send(Job::Finish);
        if let Ok(Some(thread)) = self.thread.lock().map(|mut thread| thread.take()) {
            // A panic of the thread has been printed by then; there is nothing to add.
            let _ended = thread.join();
        }
    }
}

fn run(store: &Store, mut jobs: mpsc::Receiver<Job>) {
    let (mut group, mut waiting): (Vec<Batch>, Vec<Done>) = (Vec::new(), Vec::new());
    while let Some(first) = jobs.blocking_recv() {
        let mut next = Some(first);
        let mut bytes = 0;
        while let Some(job) = next {
            match job {
                Job::Commit(batch, done) => {
                    bytes += batch.bytes().len();
                    group.push(batch);
                    waiting.push(done);
                }
                Job::Finish => jobs.close(),
            }
            next = if bytes < GROUP_BYTES_MAX {
                jobs.try_recv().ok()
            } else {
                None
            };
        }
        if group.is_empty() {
            continue;
        }
        let result = store.commit(&group).map_err(ingest_error);
        group.clear();
        for done in waiting.drain(..) {
            // Nobody waits any more where the connection is gone.
            let _gone = done.send(result.clone());
        }
    }
}

fn ingest_error(error: StoreError) -> IngestError {
    match error {
        StoreError::Behind => IngestError::Overloaded(error.to_string()),
        StoreError::Closed => IngestError::Closed,
        error => IngestError::Store(Arc::new(error)),
    }
}
