//! Imports directly into a stopped service's data directory.
//!
//! One thread reads and decodes; this one commits the new flows in groups, each with one fsync. The receipts in the
//! directory, including those of a service, determine which flows are new.

use std::cell::OnceCell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use indicatif::ProgressBar;

use super::super::serve;
use super::parquet_file;
use crate::config::Import;
use crate::store::{Outcome, Store, StoreError, StoreOptions};
use agent::command::identity::{AlreadyCounted, Frontier, FrontierError, ReceiptLookup};
use agent::command::rejects::Rejects;
use agent::command::source::{FlowInput, ReaderEvent};
use agent::command::{batches, eprint_line, identity, print_result, shell_word, signals, source};
use agent::inputs::{Apps, Chunk, HourLimit, Location, RejectedFlow, Skipped};
use flow::{Batch, IdempotencyKey, ReceiptInfo};

/// Size of a group that is committed with one fsync. Larger groups cost more than they save, since each needs newly
/// allocated memory.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Size of each of the two tallies. Larger means fewer files to merge later.
const TALLY_BYTES_MAX: usize = 64 << 20;
/// Longest wait before a signal is noticed.
const TICK: Duration = Duration::from_millis(100);
const AN_HOUR: Duration = Duration::from_secs(3600);

pub(super) fn run(
    arguments: &Import,
    dir: &Path,
    apps: Arc<Apps>,
    rejects: &Rejects,
    bar: &ProgressBar,
) -> Result<(), String> {
    let signal = register_signals().map_err(|e| format!("cannot start: {e}"))?;
    let mut load = Load {
        arguments,
        apps,
        rejects,
        bar,
        signal: &signal,
        dir,
        store: Rc::default(),
        done: Done::default(),
    };
    // Fails early if the directory is in use or is not a data directory. One that is absent may be a typing error, so
    // it is created only for the first flow.
    if dir.exists() {
        load.store()?;
    }
    let result = arguments.files.iter().try_for_each(|path| load.file(path));
    let done = load.done;
    bar.set_message("moving sums to their files");
    let flushed = match load.store.get() {
        Some(store) => store.flush().map_err(|e| e.to_string()),
        None => Ok(()),
    };
    bar.finish_and_clear();
    print_result(&format!(
        "{} flows imported in {}; {} refused{}{}",
        done.flows,
        batches(done.batches),
        rejects.count(),
        source::describe_counted(done.known),
        source::describe_skipped(&done.skipped)
    ));
    rejects.sync()?;
    let end = match result {
        Err(EarlyEnd::Signal(signal, rest)) => {
            eprint_line(&format!("flowtally: stopped; {rest}"));
            std::process::exit(128 + signal);
        }
        Err(EarlyEnd::Error(error)) => Err(error),
        Ok(()) => Ok(()),
    };
    end.and(flushed)?;
    let dir = shell_word(&dir.display().to_string());
    let again = format!("flowtally import --data-dir {dir} -");
    rejects.verdict(done.flows > 0 || done.known.flows > 0, &again)
}

fn open(dir: &Path) -> Result<Store, String> {
    let options = StoreOptions {
        // Nothing reads the sums meanwhile, so they are flushed when memory is full, and at the end.
        flush_interval: AN_HOUR,
        stall_max: AN_HOUR,
        tally_bytes_max: TALLY_BYTES_MAX,
        ..StoreOptions::for_offline_command()
    };
    match Store::open(dir, options) {
        Ok((store, _)) => Ok(store),
        Err(error @ StoreError::InUse { .. }) => Err(format!(
            "{error}; or import through the service, with --url"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// Set to the number of the first signal. The second one ends the process immediately, which loses no committed batch.
fn register_signals() -> io::Result<Arc<AtomicUsize>> {
    let signal = Arc::new(AtomicUsize::new(0));
    serve::end_at_second_signal()?;
    for number in signals::ending() {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
    }
    Ok(signal)
}

/// The reason why an import ends early.
enum EarlyEnd {
    /// The signal's number, and the way to import the rest.
    Signal(i32, String),
    Error(String),
}

impl From<String> for EarlyEnd {
    fn from(error: String) -> EarlyEnd {
        EarlyEnd::Error(error)
    }
}

/// Totals of all files.
#[derive(Clone, Copy, Default)]
struct Done {
    flows: u64,
    batches: u64,
    known: AlreadyCounted,
    skipped: Skipped,
}

struct Load<'a> {
    arguments: &'a Import,
    apps: Arc<Apps>,
    rejects: &'a Rejects,
    bar: &'a ProgressBar,
    signal: &'a AtomicUsize,
    dir: &'a Path,
    /// Empty until the directory exists.
    store: Rc<OnceCell<Store>>,
    done: Done,
}

/// Receipts in the directory.
struct InStore(Rc<OnceCell<Store>>);

impl ReceiptLookup for InStore {
    fn look_up(
        &mut self,
        keys: &[IdempotencyKey],
    ) -> Result<Option<Vec<Option<ReceiptInfo>>>, String> {
        let Some(store) = self.0.get() else {
            return Ok(Some(vec![None; keys.len()]));
        };
        store.receipts(keys).map(Some).map_err(|e| e.to_string())
    }
}

impl Load<'_> {
    fn store(&mut self) -> Result<&Store, String> {
        if self.store.get().is_none() {
            let is_new = !self.dir.exists();
            // Nothing else sets it.
            let _is_set = self.store.set(open(self.dir)?);
            if is_new {
                let made = format!("made a new data directory at {}", self.dir.display());
                self.bar.suspend(|| eprint_line(&made));
            }
        }
        self.store.get().ok_or_else(|| "it is not open".into()) // never
    }

    /// The limit by the clock, unless the stored hours show that the clock is wrong.
    fn hour_limit(&self) -> Option<HourLimit> {
        let limit = HourLimit::now(self.arguments.hours.ahead_max()?);
        let newest = self.store.get().and_then(Store::newest_hour);
        match limit.validate_clock(newest) {
            Ok(()) => Some(limit),
            Err(behind) => {
                let what = format!("flowtally: {behind}");
                self.bar.suspend(|| eprint_line(&what));
                None
            }
        }
    }

    fn file(&mut self, path: &Path) -> Result<(), EarlyEnd> {
        let input = &self.arguments.input;
        let source = FlowInput::open_with(parquet_file::convert, path, input, self.bar)?;
        let identity = source.identity(input, path);
        let mut file = FileLoad {
            path,
            once: identity.is_some(),
            is_file: source.is_file,
            frontier: Frontier::new(identity, InStore(self.store.clone())),
            group: PendingGroup::default(),
            imported: None,
        };
        let hour_limit = self.hour_limit();
        let events = source.read_in_chunks(input, &self.apps, self.bar, hour_limit)?;
        let taken = self.receive_events(&events, &mut file);
        self.done.known.add(file.frontier.known());
        let path = path.display();
        taken.map_err(|end| match end {
            EarlyEnd::Signal(signal, _) => EarlyEnd::Signal(signal, file.rest_after_signal()),
            EarlyEnd::Error(error) => EarlyEnd::Error(format!("{path}: {error}; {}", file.rest())),
        })
    }

    /// Commits the chunks that the reading thread produces from a file. If this ends early, so does that thread, unless
    /// it waits for a pipe: then it ends with the process.
    fn receive_events(
        &mut self,
        events: &Receiver<ReaderEvent>,
        file: &mut FileLoad<'_>,
    ) -> Result<(), EarlyEnd> {
        loop {
            if let signal @ 1.. = self.signal.load(Ordering::SeqCst) {
                self.commit(file)?;
                return Err(EarlyEnd::Signal(signal as i32, String::new()));
            }
            match events.recv_timeout(TICK) {
                Ok(ReaderEvent::Chunk(chunk)) => self.count_chunk(*chunk, file)?,
                Ok(ReaderEvent::Ended(read)) => {
                    self.commit(file)?;
                    read.map_err(|e| e.to_string())?;
                    return Ok(file.frontier.finish().map_err(FrontierError::explain)?);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let what = "the reading thread has ended; this is a bug";
                    return Err(EarlyEnd::Error(what.into()));
                }
            }
        }
    }

    fn count_chunk(&mut self, mut chunk: Chunk, file: &mut FileLoad<'_>) -> Result<(), EarlyEnd> {
        self.done.skipped.add(chunk.skipped);
        self.reject(std::mem::take(&mut chunk.refused), file)?;
        let taken = match file.frontier.push(chunk) {
            Ok(taken) => taken,
            Err(stop) => {
                self.commit(file)?;
                return Err(EarlyEnd::Error(stop.explain()));
            }
        };
        self.reject(taken.refused, file)?;
        if let Some(since_s) = taken.changed_since_s {
            let text = identity::changed_copy(file.path, since_s);
            self.bar.suspend(|| eprint_line(&text));
        }
        if let Some((location, flow)) = taken.unfinished.filter(|_| file.is_file) {
            let text = identity::unfinished_line(file.path, location, &flow);
            self.bar.suspend(|| eprint_line(&text));
        }
        for batch in taken.batches {
            self.store()?;
            file.group.bytes += batch.bytes().len();
            file.group.batches.push(batch);
        }
        file.group.last = taken.upto.or(file.group.last);
        if file.group.bytes >= GROUP_BYTES_MAX {
            self.commit(file)?;
        }
        Ok(())
    }

    fn reject(
        &mut self,
        refused: Vec<RejectedFlow>,
        file: &mut FileLoad<'_>,
    ) -> Result<(), EarlyEnd> {
        for refused in refused {
            let location = format!("{}: {}", file.path.display(), refused.location);
            let written = self.rejects.write(&location, &[refused.text], &refused.why);
            if let Err(error) = written {
                self.commit(file)?;
                return Err(EarlyEnd::Error(error));
            }
        }
        Ok(())
    }

    /// Makes the group durable.
    fn commit(&mut self, file: &mut FileLoad<'_>) -> Result<(), String> {
        let group = std::mem::take(&mut file.group);
        if !group.batches.is_empty() {
            let store = self.store()?;
            if let Some(why) = store.write_health().lacks_space() {
                return Err(format!("{why}; make room, and run it again"));
            }
            let outcomes = store.commit(group.batches).map_err(|e| e.to_string())?;
            for outcome in outcomes {
                self.count(outcome)?;
            }
        }
        file.imported = group.last.or(file.imported);
        self.bar
            .set_message(format!("{} flows imported", self.done.flows));
        Ok(())
    }

    fn count(&mut self, outcome: Outcome) -> Result<(), String> {
        match outcome {
            Outcome::Counted { flows, .. } => {
                self.done.flows += flows;
                // After it has grown, a line may have no flow left that counts.
                self.done.batches += u64::from(flows > 0);
                Ok(())
            }
            Outcome::Replayed { flows, .. } => {
                let since_s = None;
                self.done.known.add(AlreadyCounted { flows, since_s });
                Ok(())
            }
            Outcome::KeyReused | Outcome::ReceiptExists => {
                Err("other flows were counted under the same key; run it again".into())
            }
            Outcome::Unknown(error) => Err(error.to_string()),
        }
    }
}

/// A file that is being imported.
struct FileLoad<'a> {
    path: &'a Path,
    /// It is a regular file: it can be imported again, and counts once.
    once: bool,
    is_file: bool,
    frontier: Frontier<InStore>,
    group: PendingGroup,
    /// The end of its flows that are in the store.
    imported: Option<Location>,
}

/// Batches that are committed together.
#[derive(Default)]
struct PendingGroup {
    batches: Vec<Batch>,
    bytes: usize,
    /// The end of the group in the file.
    last: Option<Location>,
}

impl FileLoad<'_> {
    /// Text for the user: the imported part of the file after an error.
    fn rest(&self) -> String {
        match (self.imported, self.once) {
            (None, _) => "none of it was imported".into(),
            (Some(location), true) => format!(
                "it is imported up to {location}; when the corrected or complete file is imported again, only what \
                 comes after that counts"
            ),
            (Some(location), false) => format!("it is imported up to {location}, and not beyond"),
        }
    }

    /// The same if the file itself is valid.
    fn rest_after_signal(&self) -> String {
        match self.once {
            true => "run it again to import the rest: what was imported counts once".into(),
            false => format!("{}: {}", self.path.display(), self.rest()),
        }
    }
}
