//! The sending half: what an agent embeds to hand flows to the service, each counted once.
//!
//! [`Sender`] collects flows in batches. Every batch gets an idempotency key and goes into a queue: in
//! memory, or in a [`Spool`](SenderOptions::spool) on disk, which outlives the sender and the
//! service. A thread takes batches from its front and sends each until the service has answered it,
//! with the same key each time. So a batch whose answer got lost is sent again, and counts once. Another
//! thread closes a batch that is [old enough](SenderOptions::batch_age), whatever the service does.

mod attempt;
mod block;
mod closing;
mod hours;
mod queue;
mod receipts;
mod spool;
mod status;
mod worker;

pub use block::{Block, IfLate};
pub use receipts::{Receipt, Receipts};
pub use worker::shell_word;

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::{Client, ClientError, Server};
use flow::decode;
use queue::{Lack, Queue};

/// Room that is reserved beyond a flow, for those that were read with it.
const READ_AHEAD_BYTES: usize = 16 << 10;

/// How a [`Sender`] behaves.
#[derive(Clone, Debug)]
pub struct SenderOptions {
    pub server: Server,
    /// Most flows in a batch.
    pub batch_flows: usize,
    /// A batch is closed before it gets more bytes of JSON than this.
    pub batch_bytes: usize,
    /// A batch that is not full is sent when it is this old; `None` waits until it is full.
    pub batch_age: Option<Duration>,
    /// Compress bodies (zstd).
    pub compress: bool,
    /// Directory for batches that the service has not taken yet; `None` keeps a few in memory.
    pub spool: Option<PathBuf>,
    /// Bytes in the spool at which [`Sender::push`] waits, as it does while the disk is full.
    pub spool_bytes_max: u64,
    /// Where batches go that the service will never take.
    pub refused: Refused,
    /// Gives up when nothing could be delivered for this long. With a spool this counts from
    /// [`Sender::finish`] on: until then the flows are kept, and sent again.
    pub retry_for: Duration,
}

/// What becomes of a batch that the service will never take: the rest is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Its flows are handed over, to be kept.
    HandOver,
    /// It goes into the directory `refused` in the spool, with the reason and this command, which sends a
    /// file again and gets its name as the last argument.
    SetAside(String),
    /// Nobody keeps it. So the sender ends, unless the service names a flow that is wrong: that one would
    /// be refused again.
    NotKept,
}

/// A batch that the service will not take, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Its flows as they were sent, a JSON text each.
    Flows { flows: Vec<String>, why: String },
    /// Flows of a block, each with its number from 0: their hours are too far ahead of the service's clock.
    /// The rest of it is sent, with those numbers taken out.
    OfBlock {
        key: String,
        flows: Vec<(usize, String)>,
        why: String,
    },
    /// It was set aside, in this file.
    File {
        path: PathBuf,
        flows: usize,
        why: String,
    },
}

/// What became of the flows so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Flows that the service has taken, now or before.
    pub flows: u64,
    /// Batches, and how many of them it had taken before.
    pub batches: u64,
    pub replayed: u64,
    /// Flows that were older than what the service keeps, and do not count.
    pub expired: u64,
    /// Tries that failed and were repeated.
    pub retries: u64,
    /// Batches that wait.
    pub waiting: u64,
}

/// Why a sender does not go on. What it was given and has not delivered is in the spool, if it has one.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SendError {
    #[error("{url} has not taken anything for {} seconds: {why}", .after.as_secs())]
    GaveUp {
        url: String,
        after: Duration,
        why: String,
    },
    /// It takes nothing until something is changed: a wrong token, a wrong URL.
    #[error("{url} refuses: {why}")]
    Refused { url: String, why: String },
    #[error("{}: {why}", path.display())]
    Spool { path: PathBuf, why: String },
    #[error("{0}")]
    Options(String),
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A part of a batch of a file was counted meanwhile, by another who sends the same file.
    #[error("{url} refuses: {why}")]
    Conflict { url: String, why: String },
    /// Flows that were rejected could not be put aside.
    #[error("{0}")]
    NotKept(String),
    /// [`Sender::interrupt`] was called.
    #[error("interrupted")]
    Interrupted,
}

/// Collects flows and delivers them. Dropping it abandons what is not in the spool: see
/// [`Sender::finish`].
#[derive(Debug)]
pub struct Sender {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the sender and its delivering thread share.
#[derive(Debug)]
struct Shared {
    options: SenderOptions,
    state: Mutex<State>,
    /// Signalled at every change that the other side may wait for.
    changed: Condvar,
    notice: Notice,
}

/// Tells the user what the sender waits for.
struct Notice(Box<dyn Fn(&str) + Send + Sync>);

impl fmt::Debug for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Notice")
    }
}

#[derive(Debug)]
struct State {
    open: OpenBatch,
    queue: Queue,
    report: Report,
    /// Why the last try failed.
    trouble: Option<String>,
    failed: Option<SendError>,
    /// See [`Sender::take_the_rest`].
    taking_the_rest: bool,
    /// What there is no room in, which the user has been told.
    lack: Option<Lack>,
    /// Since when nothing more is pushed.
    ended_at: Option<Instant>,
    /// The sender is gone: nothing is delivered any more.
    abandoned: bool,
}

/// The batch that flows are being added to: a JSON array without its end.
#[derive(Debug, Default)]
struct OpenBatch {
    json: Vec<u8>,
    flows: usize,
    since: Option<Instant>,
}

impl Sender {
    /// Takes up what a spool holds, and begins to deliver. Batches that the service does not take are
    /// handed to `on_rejected`, and forgotten once that returns; its error ends the sender. `on_notice`
    /// gets a sentence for the user when it has to wait for room.
    pub fn start(
        options: SenderOptions,
        on_rejected: impl FnMut(Rejected) -> Result<(), String> + Send + 'static,
        on_notice: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Sender, SendError> {
        let client = Client::new(&options.server)?;
        if options.spool.is_none() && matches!(options.refused, Refused::SetAside(_)) {
            let why = "there is no spool to set batches aside in";
            return Err(SendError::Options(why.into()));
        }
        let queue = match &options.spool {
            Some(path) => Queue::open(path, options.spool_bytes_max)?,
            None => Queue::in_memory(),
        };
        let batch_age = options.batch_age;
        let shared = Arc::new(Shared {
            options,
            state: Mutex::new(State {
                open: OpenBatch::default(),
                queue,
                report: Report::default(),
                trouble: None,
                failed: None,
                taking_the_rest: false,
                lack: None,
                ended_at: None,
                abandoned: false,
            }),
            changed: Condvar::new(),
            notice: Notice(Box::new(on_notice)),
        });
        let mut sender = Sender {
            shared: shared.clone(),
            threads: Vec::new(),
        };
        if let Some(age) = batch_age {
            let shared = shared.clone();
            sender.spawn("ager", move || shared.close_aged_batches(age))?;
        }
        sender.spawn("sender", move || {
            shared.deliver_until_abandoned(&client, on_rejected);
        })?;
        Ok(sender)
    }

    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> Result<(), SendError> {
        let thread = std::thread::Builder::new().name(name.into()).spawn(body);
        let cannot = |e| SendError::Options(format!("cannot start a thread: {e}"));
        self.threads.push(thread.map_err(cannot)?);
        Ok(())
    }

    /// Adds one flow, as JSON text. Waits while the queue is full.
    ///
    /// # Errors
    /// `Ok(Err(why))` where the service would not take it: it is left out.
    pub fn push(&self, flow: &str) -> Result<Result<(), String>, SendError> {
        if let Err(why) = decode::validate_flow(flow) {
            return Ok(Err(why));
        }
        let shared = &*self.shared;
        let options = &shared.options;
        if flow.len() + 2 > options.batch_bytes {
            let (bytes, most) = (flow.len(), options.batch_bytes);
            return Ok(Err(format!(
                "it has {bytes} bytes, and a batch may have {most}"
            )));
        }
        let mut state = shared.state();
        let bytes = flow.len() + 2;
        let full = |open: &OpenBatch| {
            open.flows > 0
                && (open.flows >= options.batch_flows
                    || open.json.len() + bytes > options.batch_bytes)
        };
        while full(&state.open) && !state.taking_the_rest {
            state = shared.close_batch(state)?;
        }
        loop {
            if state.taking_the_rest {
                if full(&state.open) {
                    // What has no room stays in the open batch, and is counted at the end.
                    shared.try_to_close(&mut state)?;
                }
                break;
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            let most = closing::body_bytes_max(state.open.json.len() + bytes + READ_AHEAD_BYTES);
            match state.queue.reserve(most)? {
                None => {
                    state.lack = None;
                    break;
                }
                Some(lack) => state = shared.wait_for_room(state, lack),
            }
        }
        let open = &mut state.open;
        open.json.push(if open.flows == 0 { b'[' } else { b',' });
        open.json.extend_from_slice(flow.as_bytes());
        open.flows += 1;
        if open.since.is_none() {
            open.since = Some(Instant::now());
            shared.changed.notify_all();
        }
        Ok(Ok(()))
    }

    /// Why the service did not take what was sent last; `None` when it did.
    pub fn trouble(&self) -> Option<String> {
        self.shared.state().trouble.clone()
    }

    /// Why nothing is delivered any more, which the next [`Sender::push`] would say.
    pub fn failure(&self) -> Option<SendError> {
        self.shared.state().failed.clone()
    }

    /// What an earlier sender has [kept](Sender::keep_unfinished) in the spool.
    pub fn unfinished(&self) -> Result<Vec<u8>, SendError> {
        match &self.shared.state().queue {
            Queue::Memory(_) => Ok(Vec::new()),
            Queue::Spool(spool) => spool.unfinished_text(),
        }
    }

    /// Keeps the beginning of a flow in the spool, in place of another, until the rest of it comes; an empty
    /// one forgets it. False where there is no spool.
    pub fn keep_unfinished(&self, text: &[u8]) -> Result<bool, SendError> {
        match &self.shared.state().queue {
            Queue::Memory(_) => Ok(false),
            Queue::Spool(spool) => spool.set_unfinished_text(text).map(|()| true),
        }
    }

    /// What became of the flows so far.
    pub fn report(&self) -> Report {
        let state = self.shared.state();
        Report {
            waiting: state.queue.len() as u64 + u64::from(state.open.flows > 0),
            ..state.report
        }
    }

    /// For the end of the process, where what was read is not read again: from here on, the spool takes
    /// what is pushed without waiting for room, or for the service. Room is reserved for so much. False where
    /// there is no spool.
    pub fn take_the_rest(&self) -> bool {
        let shared = &*self.shared;
        let mut state = shared.state();
        let takes = state.queue.is_spool();
        state.taking_the_rest = takes;
        shared.changed.notify_all();
        takes
    }

    /// For the end of the process, at once: puts the batch that is being filled into the queue where
    /// that needs no waiting. From here on nothing is taken or sent any more:
    /// [`SendError::Interrupted`]. Returns how many flows were let go.
    pub fn interrupt(&self) -> Result<usize, SendError> {
        let shared = &*self.shared;
        let mut state = shared.state();
        let kept = !state.queue.is_full() && shared.try_to_close(&mut state)?.is_none();
        let let_go = match kept {
            true => 0,
            false => std::mem::take(&mut state.open).flows,
        };
        state.taking_the_rest = false;
        state.failed.get_or_insert(SendError::Interrupted);
        shared.changed.notify_all();
        Ok(let_go)
    }

    /// Closes the last batch, and waits until all are delivered. Calls `tick` several times a second
    /// meanwhile.
    pub fn finish(&self, mut tick: impl FnMut()) -> Result<(), SendError> {
        let shared = &*self.shared;
        shared.state().ended_at.get_or_insert_with(Instant::now);
        shared.changed.notify_all();
        let mut state = shared.close_batch(shared.state())?;
        loop {
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            if state.queue.is_empty() {
                return Ok(());
            }
            drop(state);
            tick();
            state = shared.wait(shared.state(), Duration::from_millis(100));
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.shared.state().abandoned = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            let _ended = thread.join(); // a panic of its has been printed
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is complete before the lock is let go.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        let waited = self.changed.wait_timeout(state, most);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that went on while the process ends would fill a batch that begins in the middle of
    /// another, under a key of its own, and its flows would count twice.
    #[test]
    fn after_an_interrupt_nothing_is_taken() {
        let dir = tempfile::tempdir().unwrap();
        let options = SenderOptions {
            server: Server {
                url: "http://127.0.0.1:9".into(),
                ..Server::default()
            },
            batch_flows: 2,
            batch_bytes: 1 << 20,
            batch_age: None,
            compress: false,
            spool: Some(dir.path().to_owned()),
            spool_bytes_max: 1 << 20,
            refused: Refused::NotKept,
            retry_for: Duration::from_secs(60),
        };
        let sender = Sender::start(options, |_| Ok(()), |_| ()).unwrap();
        let flow =
            r#"{"src_app":"a","dest_app":"b","vpc_id":"v","bytes_tx":1,"bytes_rx":2,"hour":3}"#;
        assert!(matches!(sender.push(flow), Ok(Ok(()))));
        assert_eq!(sender.interrupt().unwrap(), 0);
        for _ in 0..3 {
            assert!(matches!(sender.push(flow), Err(SendError::Interrupted)));
        }
        assert!(matches!(sender.finish(|| {}), Err(SendError::Interrupted)));
        assert_eq!(sender.report().waiting, 1);
    }
}
