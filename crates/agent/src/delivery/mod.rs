//! Delivery of flows to the service, each counted once.
//!
//! [`Sender`] collects flows into batches. Each batch gets an idempotency key and goes into a queue, which is
//! in memory or in a [spool](SenderOptions::spool) on disk. A spool survives restarts of the sender and of
//! the service. One thread takes the oldest batch and sends it until the service has responded, always with
//! the same key, so a batch whose response was lost is sent again and still counts once. Another thread
//! closes batches that are [old enough](SenderOptions::batch_age), whether or not the service is available.

mod attempt;
mod closing;
mod hours;
mod keyed;
mod options;
mod outcome;
mod queue;
mod reason;
mod receipts;
mod reserved;
mod spool;
mod status;
mod stored;
mod worker;

pub(crate) use keyed::{IfLate, KeyedBatch};
pub(crate) use options::{DeadLetters, SenderOptions};
pub(crate) use outcome::{Rejected, Report, SendError};
pub use reason::shell_word;
pub(crate) use receipts::{FoundReceipt, Receipts};
pub(crate) use spool::spool_holds;

use parking_lot::{Condvar, Mutex, MutexGuard};
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::client::Client;
use flow::decode;
use queue::{Queue, QueueFull};

/// Maximum bytes of JSON for one byte of a pipe: reached by a row of CSV with empty names and single digits, or by a
/// control character.
const JSON_PER_BYTE_MAX: usize = 9;
/// Few flows have more bytes.
const FLOW_BYTES: usize = 2 << 10;
/// The brackets of an array.
const BRACKETS: usize = 2;
/// Maximum size of a header that is kept with a part of a flow.
const HEADER_BYTES_MAX: usize = 2 << 10;

/// Collects flows and delivers them. Dropping it abandons the flows that are not in the spool; call
/// [`Sender::finish`] first.
#[derive(Debug)]
pub(crate) struct Sender {
    shared: Arc<SenderState>,
    threads: Vec<JoinHandle<()>>,
}

/// State shared by the sender and its threads.
#[derive(Debug)]
struct SenderState {
    options: SenderOptions,
    state: Mutex<State>,
    /// Notified on every change that another thread may wait for.
    changed: Condvar,
    notice: Notice,
}

/// Callback for messages to the user.
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
    /// Why the last attempt failed.
    last_error: Option<String>,
    failed: Option<SendError>,
    /// See [`Sender::drain_to_spool`].
    is_draining: bool,
    /// The shortage that the user has been notified of.
    full: Option<QueueFull>,
    /// Maximum bytes of JSON of the flows that were read and not pushed yet.
    ahead_bytes: usize,
    /// When the input was read last.
    read_at: Option<Instant>,
    /// When the last flow was pushed.
    ended_at: Option<Instant>,
    /// The sender was dropped: stop delivering.
    abandoned: bool,
}

/// The batch that is being filled: a JSON array without its closing bracket.
#[derive(Debug, Default)]
struct OpenBatch {
    json: Vec<u8>,
    flows: usize,
    since: Option<Instant>,
}

impl Sender {
    /// Opens the spool and starts delivering its batches. Batches that the service does not accept are passed to
    /// `on_rejected` and removed from the queue when it returns; an error from it stops the sender. `on_notice` gets a
    /// message for the user when the sender has to wait for room.
    pub(crate) fn start(
        options: SenderOptions,
        on_rejected: impl FnMut(Rejected) -> Result<(), String> + Send + 'static,
        on_notice: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Sender, SendError> {
        let client = Client::new(&options.server)?;
        if options.spool.is_none() && matches!(options.refused, DeadLetters::SetAside(_)) {
            let why = "there is no spool to set batches aside in";
            return Err(SendError::Options(why.into()));
        }
        let queue = match &options.spool {
            Some(path) => Queue::open(path, options.spool_bytes_max)?,
            None => Queue::in_memory(),
        };
        let batch_age = options.batch_age;
        let shared = Arc::new(SenderState {
            options,
            state: Mutex::new(State {
                open: OpenBatch::default(),
                queue,
                report: Report::default(),
                last_error: None,
                failed: None,
                is_draining: false,
                full: None,
                ahead_bytes: 0,
                read_at: None,
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

    /// Adds one flow as JSON text. Blocks while the queue is full.
    ///
    /// # Errors
    /// Returns `Ok(Err(why))` for a flow that the service would not accept; the flow is skipped.
    pub(crate) fn push(&self, flow: &str) -> Result<Result<(), String>, SendError> {
        if let Err(why) = decode::validate_flow(flow) {
            return Ok(Err(why));
        }
        let shared = &*self.shared;
        let options = &shared.options;
        if flow.len() + 2 > options.batch_bytes {
            let (bytes, most) = (flow.len(), options.batch_bytes);
            return Ok(Err(format!(
                "it has {bytes} bytes; the limit of a batch is {most}"
            )));
        }
        let mut state = shared.state();
        let bytes = flow.len() + 2;
        let full = |open: &OpenBatch| {
            open.flows > 0
                && (open.flows >= options.batch_flows
                    || open.json.len() + bytes > options.batch_bytes)
        };
        while full(&state.open) && !state.is_draining {
            state = shared.close_batch(state)?;
        }
        loop {
            if state.is_draining {
                // The room is reserved for one batch, which may have more flows than others.
                if state.open.json.len() + bytes > options.batch_bytes {
                    // If there is no room, the flows stay in the open batch and are counted at the end.
                    shared.try_to_close(&mut state)?;
                }
                break;
            }
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            let most = closing::body_bytes_max(state.open.json.len() + bytes);
            match state.queue.reserve(most)? {
                None => break,
                Some(full) => state = shared.wait_for_room(state, full),
            }
        }
        let read_at = state.read_at;
        let open = &mut state.open;
        open.json.push(if open.flows == 0 { b'[' } else { b',' });
        open.json.extend_from_slice(flow.as_bytes());
        open.flows += 1;
        if open.since.is_none() {
            open.since = Some(read_at.unwrap_or_else(Instant::now));
            shared.changed.notify_all();
        }
        Ok(Ok(()))
    }

    /// Waits until the result of a read can be stored, and returns the maximum size of that read: one of `sizes`, the
    /// larger of which comes first. `held` bytes were read before and not pushed yet. Does not wait without a spool,
    /// nor when the sender ends.
    pub(crate) fn wait_for_read(&self, held: usize, sizes: [usize; 2]) -> Result<usize, SendError> {
        let shared = &*self.shared;
        let mut state = shared.state();
        loop {
            // First the room for a flow of the next batch: without it, nothing could be sent.
            let batch = closing::body_bytes_max(state.open.json.len() + FLOW_BYTES);
            let mut full = match state.is_draining || state.failed.is_some() {
                true => None,
                false => state.queue.reserve(batch)?,
            };
            if full.is_none() {
                for size in sizes {
                    if state.is_draining || state.failed.is_some() {
                        return Ok(size);
                    }
                    state.ahead_bytes = (held + size) * JSON_PER_BYTE_MAX;
                    let body = closing::body_bytes_max(state.ahead_bytes + BRACKETS);
                    let text = (held + size + HEADER_BYTES_MAX) as u64;
                    full = state.queue.reserve_ahead(body, text)?;
                    if full.is_none() {
                        if size == sizes[0] {
                            state.full = None;
                        }
                        return Ok(size);
                    }
                }
            }
            if let Some(full) = full {
                state = shared.wait_for_room(state, full);
            }
        }
    }

    /// Records that input was read; a batch's age counts from then.
    pub(crate) fn record_read(&self) {
        self.shared.state().read_at = Some(Instant::now());
    }

    /// The reason why the service did not accept the last batch; `None` if it did.
    pub(crate) fn last_error(&self) -> Option<String> {
        self.shared.state().last_error.clone()
    }

    /// The error that stopped delivery, which the next [`Sender::push`] would return.
    pub(crate) fn failure(&self) -> Option<SendError> {
        self.shared.state().failed.clone()
    }

    /// The text that an earlier sender has [kept](Sender::keep_unfinished) in the spool.
    pub(crate) fn unfinished(&self) -> Result<Vec<u8>, SendError> {
        match &self.shared.state().queue {
            Queue::Memory(_) => Ok(Vec::new()),
            Queue::Spool(spool) => spool.unfinished_text(),
        }
    }

    /// Keeps the start of a flow in the spool, in place of an earlier one, until the rest of it is read; an empty
    /// text removes it. False if there is no spool.
    pub(crate) fn keep_unfinished(&self, text: &[u8]) -> Result<bool, SendError> {
        match &mut self.shared.state().queue {
            Queue::Memory(_) => Ok(false),
            Queue::Spool(spool) => spool.set_unfinished_text(text).map(|()| true),
        }
    }

    /// Counts of what was delivered so far.
    pub(crate) fn report(&self) -> Report {
        let state = self.shared.state();
        Report {
            waiting: state.queue.len() as u64 + u64::from(state.open.flows > 0),
            ..state.report
        }
    }

    /// Prepares for the end of the process when the input cannot be read again: from now on, pushes into the
    /// spool neither wait for room nor for the service. Room for them is already reserved. Returns false if
    /// there is no spool.
    pub(crate) fn drain_to_spool(&self) -> bool {
        let shared = &*self.shared;
        let mut state = shared.state();
        let most = closing::body_bytes_max(state.open.json.len() + state.ahead_bytes + BRACKETS);
        let State { queue, failed, .. } = &mut *state;
        let Queue::Spool(spool) = queue else {
            return false;
        };
        if let Err(error) = spool.use_ahead(most) {
            failed.get_or_insert(error);
        }
        state.is_draining = true;
        shared.changed.notify_all();
        true
    }

    /// Ends the sender without waiting: moves the open batch into the queue if there is room. Afterwards, every push
    /// and delivery fails with [`SendError::Interrupted`]. Returns the number of flows that were dropped.
    pub(crate) fn interrupt(&self) -> Result<usize, SendError> {
        let shared = &*self.shared;
        let mut state = shared.state();
        let kept = !state.queue.is_full() && shared.try_to_close(&mut state)?.is_none();
        let dropped = match kept {
            true => 0,
            false => std::mem::take(&mut state.open).flows,
        };
        state.is_draining = false;
        if let Queue::Spool(spool) = &mut state.queue {
            spool.release();
        }
        state.failed.get_or_insert(SendError::Interrupted);
        shared.changed.notify_all();
        Ok(dropped)
    }

    /// Closes the last batch and waits until all are delivered. Calls `tick` several times a second while
    /// waiting.
    pub(crate) fn finish(&self, mut tick: impl FnMut()) -> Result<(), SendError> {
        let shared = &*self.shared;
        shared.state().ended_at.get_or_insert_with(Instant::now);
        shared.changed.notify_all();
        let mut state = shared.close_batch(shared.state())?;
        if let Queue::Spool(spool) = &mut state.queue {
            spool.release();
        }
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
            let _ended = thread.join(); // if it panicked, the message was printed
        }
    }
}

impl SenderState {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    fn wait<'a>(&self, mut state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        let _in_any_case = self.changed.wait_for(&mut state, most);
        state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Server;

    const FLOW: &str =
        r#"{"src_app":"a","dest_app":"b","vpc_id":"v","bytes_tx":1,"bytes_rx":2,"hour":3}"#;

    /// A sender with a spool in `dir`, whose service cannot be reached.
    fn sender(dir: &std::path::Path, batch_age: Option<Duration>) -> Sender {
        let options = SenderOptions {
            server: Server {
                url: "http://127.0.0.1:9".into(),
                ..Server::default()
            },
            batch_flows: 2,
            batch_bytes: 1 << 20,
            batch_age,
            compress: false,
            spool: Some(dir.to_owned()),
            spool_bytes_max: 1 << 20,
            refused: DeadLetters::NotKept,
            retry_for: Duration::from_secs(60),
        };
        Sender::start(options, |_| Ok(()), |_| ()).unwrap()
    }

    /// A flow without its line end is pushed late: when nothing has followed it for a while.
    #[test]
    fn the_age_of_a_batch_counts_from_when_it_was_read() {
        const AGE: Duration = Duration::from_secs(3600);
        let dir = tempfile::tempdir().unwrap();
        let sender = sender(dir.path(), Some(AGE));
        sender.shared.state().read_at = Instant::now().checked_sub(AGE);
        assert!(matches!(sender.push(FLOW), Ok(Ok(()))));
        // It is due at once, and not in an hour.
        let mut state = sender.shared.state();
        while state.queue.is_empty() {
            let closed = sender.shared.changed.wait_for(&mut state, AGE / 60);
            assert!(!closed.timed_out(), "the batch is still open");
        }
    }

    /// A reader that continued during shutdown would fill a batch that starts in the middle of another one
    /// and has a key of its own, so its flows would count twice.
    #[test]
    fn push_fails_after_an_interrupt() {
        let dir = tempfile::tempdir().unwrap();
        let sender = sender(dir.path(), None);
        assert!(matches!(sender.push(FLOW), Ok(Ok(()))));
        assert_eq!(sender.interrupt().unwrap(), 0);
        for _ in 0..3 {
            assert!(matches!(sender.push(FLOW), Err(SendError::Interrupted)));
        }
        assert!(matches!(sender.finish(|| {}), Err(SendError::Interrupted)));
        assert_eq!(sender.report().waiting, 1);
    }
}
