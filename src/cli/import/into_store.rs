//! Straight into a stopped service's data directory.
//!
//! A thread reads and decodes; this one commits what it makes in groups, each with one fsync. A batch's
//! idempotency key is made of the file's identity and the batch's number: an import that is started
//! again makes the same batches, and finds out of each whether it was taken. One that was taken with
//! other flows, since other applications or another format were given, is an error: the file would
//! count twice otherwise.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use indicatif::ProgressBar;
use signal_hook::consts::{SIGINT, SIGTERM};
use xxhash_rust::xxh3::xxh3_128;

use super::super::rejects::Rejects;
use super::super::source::{self, Source};
use super::super::{batches, print, say, serve};
use crate::config::Import;
use crate::domain::IdempotencyKey;
use crate::input::{Apps, HourLimit, InputError, Part, Place, Skipped};
use crate::store::{Batch, Known, Store, StoreError, StoreOptions, WriteHealth};

/// Batches that are decoded and wait.
const QUEUE_BATCHES_MAX: usize = 4;
/// Committed with one fsync. Larger ones cost more than they save: memory that is new each time.
const GROUP_BYTES_MAX: usize = 4 << 20;
/// Sums in memory, twice. Larger means fewer files to merge later.
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
    let signal = note_signals().map_err(|e| format!("cannot start: {e}"))?;
    let mut load = Load {
        arguments,
        apps,
        rejects,
        bar,
        signal: &signal,
        dir,
        store: None,
        done: Done::default(),
    };
    // At once where it is in use or not ours; one that is absent may be a wrong name, and is made for
    // the first flow.
    if dir.exists() {
        load.store()?;
    }
    let result = arguments.files.iter().try_for_each(|path| load.file(path));
    let done = load.done;
    bar.set_message("moving sums to their files");
    let flushed = match load.store {
        Some(store) => store.flush().map_err(|e| e.to_string()),
        None => Ok(()),
    };
    bar.finish_and_clear();
    print(&format!(
        "{} flows imported in {}; {} were there already; {} refused{}",
        done.flows,
        batches(done.batches),
        done.known,
        rejects.count(),
        source::skipped(&done.skipped)
    ));
    rejects.sync()?;
    let end = match result {
        Err(End::Signal(signal, rest)) => {
            say(&format!("flowtally: stopped; {rest}"));
            std::process::exit(128 + signal);
        }
        Err(End::Error(error) | End::Reused(error)) => Err(error),
        Ok(()) => Ok(()),
    };
    end.and(flushed)?;
    rejects.verdict()
}

fn open(dir: &Path) -> Result<Store, String> {
    let options = StoreOptions {
        // Nobody asks for sums meanwhile: they are flushed when memory is full, and at the end.
        flush_interval: AN_HOUR,
        stall_max: AN_HOUR,
        tally_bytes_max: TALLY_BYTES_MAX,
        ..StoreOptions::in_between()
    };
    match Store::open(dir, options) {
        Ok((store, _)) => Ok(store),
        Err(error @ StoreError::InUse { .. }) => Err(format!(
            "{error}; or import through the service, with --url"
        )),
        Err(error) => Err(error.to_string()),
    }
}

/// Set to the number of the first signal. The second ends the process on the spot, which loses nothing
/// that was committed.
fn note_signals() -> io::Result<Arc<AtomicUsize>> {
    let signal = Arc::new(AtomicUsize::new(0));
    serve::end_at_second_signal()?;
    for number in [SIGTERM, SIGINT] {
        signal_hook::flag::register_usize(number, signal.clone(), number as usize)?;
    }
    Ok(signal)
}

/// Why an import ends early.
enum End {
    /// Its number, and what to do about the rest.
    Signal(i32, String),
    Error(String),
    /// The file was imported otherwise before.
    Reused(String),
}

impl From<String> for End {
    fn from(error: String) -> End {
        End::Error(error)
    }
}

/// What came into the store, of all files.
#[derive(Clone, Copy, Default)]
struct Done {
    flows: u64,
    batches: u64,
    /// Flows that were there before.
    known: u64,
    skipped: Skipped,
}

struct Load<'a> {
    arguments: &'a Import,
    apps: Arc<Apps>,
    rejects: &'a Rejects,
    bar: &'a ProgressBar,
    signal: &'a AtomicUsize,
    dir: &'a Path,
    /// `None` as long as there is no directory.
    store: Option<Store>,
    done: Done,
}

/// What the reading thread says.
enum Event {
    Part(Part),
    Ended(Result<(), InputError>),
}

impl Load<'_> {
    fn store(&mut self) -> Result<&Store, String> {
        match &mut self.store {
            Some(store) => Ok(store),
            none => {
                let is_new = !self.dir.exists();
                let store = none.insert(open(self.dir)?);
                if is_new {
                    let made = format!("made a new data directory at {}", self.dir.display());
                    self.bar.suspend(|| say(&made));
                }
                Ok(store)
            }
        }
    }

    /// By the clock, unless what is stored shows that it is wrong.
    fn hour_limit(&self) -> Option<HourLimit> {
        let limit = HourLimit::now(self.arguments.hours.ahead_max()?);
        let newest = self.store.as_ref().and_then(Store::newest_hour);
        match newest.filter(|newest| !limit.has(*newest)) {
            None => Some(limit),
            Some(newest) => {
                let what = format!(
                    "flowtally: the clock is behind the newest stored hour, {newest}, so every hour is taken; set the \
                     clock, or delete that hour if its flows are wrong"
                );
                self.bar.suspend(|| say(&what));
                None
            }
        }
    }

    fn file(&mut self, path: &Path) -> Result<(), End> {
        let source = Source::open(path)?;
        let identity = source.identity.clone();
        let reader = source.reader(&self.arguments.input, &self.apps, self.bar);
        let reader = reader.with_hour_limit(self.hour_limit());
        let (events, received) = sync_channel(QUEUE_BATCHES_MAX);
        std::thread::Builder::new()
            .name("reader".into())
            .spawn(move || {
                let read = reader.read_batches(|part| hand_over(&events, Event::Part(part)));
                let _nobody_waits = hand_over(&events, Event::Ended(read));
            })
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        let mut file = FileLoad {
            path,
            identity: identity.filter(|_| !self.arguments.input.again),
            batches: 0,
            group: Group::default(),
            imported: None,
        };
        let path = path.display();
        self.take(&received, &mut file).map_err(|end| match end {
            End::Signal(signal, _) => End::Signal(signal, file.rest_after_signal()),
            End::Error(error) => End::Error(format!("{path}: {error}; {}", file.rest())),
            End::Reused(error) => End::Reused(format!("{path}: {error}")),
        })
    }

    /// Takes what the reading thread makes of a file. Where this ends early, so does the thread, unless
    /// it waits for a pipe: then it ends with the process.
    fn take(&mut self, events: &Receiver<Event>, file: &mut FileLoad<'_>) -> Result<(), End> {
        loop {
            if let signal @ 1.. = self.signal.load(Ordering::SeqCst) {
                self.commit(file)?;
                return Err(End::Signal(signal as i32, String::new()));
            }
            match events.recv_timeout(TICK) {
                Ok(Event::Part(part)) => self.take_part(part, file)?,
                Ok(Event::Ended(read)) => {
                    self.commit(file)?;
                    return Ok(read.map_err(|e| e.to_string())?);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    let what = "the reading thread has ended; this is a bug";
                    return Err(End::Error(what.into()));
                }
            }
        }
    }

    fn take_part(&mut self, part: Part, file: &mut FileLoad<'_>) -> Result<(), End> {
        for refused in part.refused {
            let place = format!("{}: {}", file.path.display(), refused.place);
            let written = self.rejects.write(&place, &[refused.text], &refused.why);
            if let Err(error) = written {
                self.commit(file)?;
                return Err(End::Error(error));
            }
        }
        if let Some(batch) = part.batch {
            let batch = file.with_key(batch);
            self.take_batch(batch, file)?;
        }
        self.done.skipped.add(part.skipped);
        file.group.last = Some(part.last);
        if file.group.bytes >= GROUP_BYTES_MAX {
            self.commit(file)?;
        }
        Ok(())
    }

    fn take_batch(&mut self, batch: Batch, file: &mut FileLoad<'_>) -> Result<(), End> {
        match self.store()?.known(&batch).map_err(|e| e.to_string())? {
            Known::New => {
                file.group.bytes += batch.bytes().len();
                file.group.batches.push(batch);
            }
            Known::Taken { .. } => {
                self.done.known += batch.flows() as u64;
            }
            Known::Reused => {
                self.commit(file)?;
                let what = "it was imported before and gave other flows then: with another --apps, \
                            --format or version of flowtally; give what was given then, or --again \
                            to count it once more";
                return Err(End::Reused(what.into()));
            }
        }
        Ok(())
    }

    /// Makes the group durable.
    fn commit(&mut self, file: &mut FileLoad<'_>) -> Result<(), String> {
        let group = std::mem::take(&mut file.group);
        if !group.batches.is_empty() {
            let store = self.store()?;
            if store.write_health() == WriteHealth::NoSpace {
                return Err("the disk is full, or nearly; make room, and run it again".into());
            }
            let committed = store.commit(&group.batches);
            committed.map_err(|e| e.to_string())?;
        }
        let flows = group.batches.iter().map(|batch| batch.flows() as u64);
        self.done.flows += flows.sum::<u64>();
        self.done.batches += group.batches.len() as u64;
        file.imported = group.last.or(file.imported);
        self.bar
            .set_message(format!("{} flows imported", self.done.flows));
        Ok(())
    }
}

/// Breaks when nobody takes any more.
fn hand_over(events: &SyncSender<Event>, event: Event) -> ControlFlow<()> {
    match events.send(event) {
        Ok(()) => ControlFlow::Continue(()),
        Err(_) => ControlFlow::Break(()),
    }
}

/// A file that is being imported.
struct FileLoad<'a> {
    path: &'a Path,
    /// `None` where each import of it counts.
    identity: Option<String>,
    /// Batches that it has given.
    batches: u64,
    group: Group,
    /// Up to where it is in the store.
    imported: Option<Place>,
}

/// What is committed together.
#[derive(Default)]
struct Group {
    batches: Vec<Batch>,
    bytes: usize,
    /// Where it ends in the file.
    last: Option<Place>,
}

impl FileLoad<'_> {
    fn with_key(&mut self, batch: Batch) -> Batch {
        self.batches += 1;
        let Some(identity) = &self.identity else {
            return batch;
        };
        let number = self.batches;
        let key = xxh3_128(format!("import {identity} {number}").as_bytes());
        match IdempotencyKey::new(format!("{key:032x}").as_bytes()) {
            Some(key) => batch.with_key(key),
            None => batch, // never: it is 32 digits
        }
    }

    /// What an error leaves behind.
    fn rest(&self) -> String {
        match (self.imported, &self.identity) {
            (None, _) => "nothing of it was imported".into(),
            (Some(place), Some(_)) => format!(
                "it is imported up to {place}. Run again, it goes on after that; but a file that is \
                 changed counts anew, as a whole"
            ),
            (Some(place), None) => format!("it is imported up to {place}, and not beyond"),
        }
    }

    /// The same where nothing is wrong with the file.
    fn rest_after_signal(&self) -> String {
        match &self.identity {
            Some(_) => "run it again to import the rest: what was imported counts once".into(),
            None => format!("{}: {}", self.path.display(), self.rest()),
        }
    }
}
