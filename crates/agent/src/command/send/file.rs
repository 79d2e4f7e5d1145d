//! A file to a service: in batches that are cut by what is in it, so that each flow counts once.

use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::super::identity::{self, Frontier, Known, LookUp, Stop};
use super::super::say;
use super::super::source::{Event, Source};
use super::{Sending, said, with_remedy};
use crate::arguments::Send;
use crate::delivery::{Block, Receipts, SendError, Sender};
use crate::inputs::{Part, Place, Skipped, to_json};
use crate::terminal::printable;
use flow::{IdempotencyKey, ReceiptInfo};

/// Pause between two looks at how far it has come.
const TICK: Duration = Duration::from_millis(200);

/// What came of a file.
#[derive(Default)]
pub(super) struct Transferred {
    pub(super) skipped: Skipped,
    pub(super) known: Known,
}

/// The blocks that are on their way, and where their flows are.
#[derive(Debug, Default)]
pub(super) struct Blocks(Mutex<VecDeque<OnItsWay>>);

#[derive(Debug)]
struct OnItsWay {
    key: String,
    path: PathBuf,
    places: Vec<Place>,
}

impl Blocks {
    /// More than a queue in memory has.
    const COUNT_MAX: usize = 16;

    fn add(&self, key: &str, path: &Path, places: Vec<Place>) {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if blocks.len() == Blocks::COUNT_MAX {
            blocks.pop_front();
        }
        blocks.push_back(OnItsWay {
            key: key.to_owned(),
            path: path.to_owned(),
            places,
        });
    }

    /// Where these flows of a block are, which is then without them.
    pub(super) fn take_out(&self, key: &str, flows: &[usize]) -> Vec<String> {
        let mut blocks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(block) = blocks.iter_mut().rev().find(|block| block.key == key) else {
            return flows.iter().map(|flow| format!("flow {flow}")).collect();
        };
        let place = |&flow: &usize| {
            let place = block.places.get(flow)?;
            Some(format!("{}: {place}", block.path.display()))
        };
        let found = flows
            .iter()
            .map(|flow| place(flow).unwrap_or_default())
            .collect();
        let out: HashSet<_> = flows.iter().collect();
        let mut number = 0..;
        block
            .places
            .retain(|_| number.next().is_none_or(|n| !out.contains(&n)));
        found
    }
}

/// Why the rest of a file was not sent.
pub(super) enum Failure {
    /// Another command sends the same file; a second look tells what is left.
    Conflict(String),
    Error(String),
}

impl LookUp for Asking<'_> {
    fn look_up(
        &mut self,
        keys: &[IdempotencyKey],
    ) -> Result<Option<Vec<Option<ReceiptInfo>>>, String> {
        let texts: Vec<&str> = keys.iter().map(IdempotencyKey::as_str).collect();
        let show = |why: &str| {
            let message = format!("asking what was counted, trying again: {}", printable(why));
            self.sending.bar.set_message(message);
        };
        let known = self.receipts.of(&texts, show).map_err(|e| e.to_string())?;
        let kept = |known: std::collections::HashMap<_, crate::delivery::Receipt>| {
            let kept = texts.iter().map(|&key| {
                let receipt = known.get(key)?;
                Some(ReceiptInfo {
                    time_s: receipt.taken_at,
                    note: receipt.note.as_deref().map(Into::into),
                })
            });
            kept.collect()
        };
        Ok(known.map(kept))
    }
}

struct Asking<'a> {
    receipts: Receipts,
    sending: &'a Sending,
}

impl Sending {
    /// Sends what is new of a file.
    pub(super) fn transfer_file(
        &self,
        arguments: &Send,
        source: Source,
        sender: &Sender,
        receipts: Receipts,
    ) -> (Transferred, Result<(), Failure>) {
        let path = &arguments.file;
        let identity = source.identity(&arguments.input, path);
        let once = identity.is_some();
        let asking = Asking {
            receipts,
            sending: self,
        };
        let mut file = FileTransfer {
            sending: self,
            path,
            sender,
            is_file: source.is_file,
            frontier: Frontier::new(identity, asking),
            skipped: Skipped::default(),
            upto: None,
        };
        let result = file.run(arguments, source);
        // What was cut is delivered, also where the rest cannot be read.
        let finished = match &result {
            Err(Failure::Conflict(_)) => Ok(()),
            _ => sender.finish(|| self.show(sender)).map_err(failure),
        };
        let result = match (finished, result) {
            (Err(Failure::Error(error)), _) => {
                let let_go = sender.interrupt().unwrap_or_default();
                let waiting = sender.report().waiting;
                let error = with_remedy(error, false, once, waiting, let_go);
                Err(Failure::Error(error))
            }
            (Err(conflict), _) => Err(conflict),
            (Ok(()), result) => result,
        };
        let transferred = Transferred {
            skipped: file.skipped,
            known: file.frontier.known(),
        };
        (transferred, result)
    }
}

/// A file that is being sent.
struct FileTransfer<'a> {
    sending: &'a Sending,
    path: &'a Path,
    sender: &'a Sender,
    is_file: bool,
    frontier: Frontier<Asking<'a>>,
    skipped: Skipped,
    /// Up to where it was counted, or is on its way.
    upto: Option<Place>,
}

impl FileTransfer<'_> {
    fn run(&mut self, arguments: &Send, source: Source) -> Result<(), Failure> {
        let events = source
            // The service goes by its own clock.
            .read_in_parts(
                &arguments.input,
                &self.sending.apps,
                &self.sending.bar,
                None,
            )
            .map_err(Failure::Error)?;
        loop {
            self.sending.show(self.sender);
            let read = match events.recv_timeout(TICK) {
                Ok(Event::Part(part)) => {
                    self.take(*part)?;
                    continue;
                }
                Ok(Event::Ended(read)) => read,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    let what = "the reading thread has ended; this is a bug";
                    return Err(Failure::Error(what.into()));
                }
            };
            read.map_err(|e| self.stopped(&e.to_string()))?;
            return self.frontier.finish().map_err(|stop| self.explain(stop));
        }
    }

    fn take(&mut self, mut part: Part) -> Result<(), Failure> {
        self.skipped.add(part.skipped);
        let refused = std::mem::take(&mut part.refused);
        let was_asking = !self.frontier.cannot_ask();
        let taken = self.frontier.take(part);
        let taken = taken.map_err(|stop| self.explain(stop))?;
        for refused in refused.into_iter().chain(taken.refused) {
            let place = format!("{}: {}", self.path.display(), refused.place);
            let rejects = &self.sending.rejects;
            rejects
                .write(&place, &[refused.text], &refused.why)
                .map_err(Failure::Error)?;
        }
        if was_asking && self.frontier.cannot_ask() {
            self.sending.say_once(identity::CANNOT_ASK);
        }
        if let Some(since_s) = taken.changed_since_s {
            let text = identity::changed_copy(self.path, since_s);
            self.sending.bar.suspend(|| say(&text));
        }
        if let Some((place, flow)) = taken.unfinished.filter(|_| self.is_file) {
            let text = identity::unfinished_line(self.path, place, &flow);
            self.sending.bar.suspend(|| say(&text));
        }
        let places = taken.places.into_iter().zip(taken.if_late);
        for (batch, (places, if_late)) in taken.batches.into_iter().zip(places) {
            let block = Block {
                key: match batch.receipt() {
                    Some((key, _)) => key.as_str().to_owned(),
                    None => Sender::random_key(),
                },
                notes: batch.notes().map(ToString::to_string).unwrap_or_default(),
                if_late,
                flows: batch.flows(),
                json: to_json(&batch).map_err(|e| Failure::Error(e.to_string()))?,
            };
            self.sending.blocks.add(&block.key, self.path, places);
            self.sender.push_block(block).map_err(failure)?;
        }
        self.upto = taken.upto.or(self.upto);
        Ok(())
    }

    fn explain(&self, stop: Stop) -> Failure {
        match stop {
            Stop::Failed(why) => Failure::Error(why),
            stop => self.stopped(&stop.explain()),
        }
    }

    /// The rest of the file cannot be counted.
    fn stopped(&self, why: &str) -> Failure {
        let rest = match self.upto {
            None => "nothing of it is counted".into(),
            Some(place) => format!(
                "it is counted up to {place}; when it is sent again, mended or complete, only what comes \
                 after that counts"
            ),
        };
        Failure::Error(format!("{}: {why}; {rest}", self.path.display()))
    }
}

fn failure(error: SendError) -> Failure {
    match error {
        SendError::Conflict { .. } => Failure::Conflict(error.to_string()),
        error => Failure::Error(said(error)),
    }
}
