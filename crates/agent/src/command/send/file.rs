//! Sends a file in batches that are cut by its content, so that each flow counts once.

use parking_lot::Mutex;
use std::collections::{HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use super::super::eprint_line;
use super::super::identity::{self, AlreadyCounted, Frontier, FrontierError, ReceiptLookup};
use super::super::source::{FlowInput, ReaderEvent};
use super::interruption::error_text;
use super::{SendSession, with_remedy};
use crate::arguments::Send;
use crate::delivery::{KeyedBatch, Receipts, SendError, Sender};
use crate::inputs::{Chunk, Location, Skipped, to_json};
use crate::terminal::printable;
use flow::{IdempotencyKey, ReceiptInfo};

/// Interval between updates of the progress bar.
const TICK: Duration = Duration::from_millis(200);

/// Result of sending a file.
#[derive(Default)]
pub(super) struct Transferred {
    pub(super) skipped: Skipped,
    pub(super) known: AlreadyCounted,
}

/// The batches that are in flight, and the locations of their flows.
#[derive(Debug, Default)]
pub(super) struct InFlight(Mutex<VecDeque<InFlightBatch>>);

#[derive(Debug)]
struct InFlightBatch {
    key: String,
    path: PathBuf,
    locations: Vec<Location>,
}

impl InFlight {
    /// More than the queue in memory holds.
    const COUNT_MAX: usize = 16;

    fn add(&self, key: &str, path: &Path, locations: Vec<Location>) {
        let mut in_flight = self.0.lock();
        if in_flight.len() == InFlight::COUNT_MAX {
            in_flight.pop_front();
        }
        in_flight.push_back(InFlightBatch {
            key: key.to_owned(),
            path: path.to_owned(),
            locations,
        });
    }

    /// Removes these flows from a batch and returns their locations.
    pub(super) fn take_out(&self, key: &str, flows: &[usize]) -> Vec<String> {
        let mut in_flight = self.0.lock();
        let Some(batch) = in_flight.iter_mut().rev().find(|batch| batch.key == key) else {
            return flows.iter().map(|flow| format!("flow {flow}")).collect();
        };
        let location = |&flow: &usize| {
            let location = batch.locations.get(flow)?;
            Some(format!("{}: {location}", batch.path.display()))
        };
        let found = flows
            .iter()
            .map(|flow| location(flow).unwrap_or_default())
            .collect();
        let out: HashSet<_> = flows.iter().collect();
        let mut number = 0..;
        batch
            .locations
            .retain(|_| number.next().is_none_or(|n| !out.contains(&n)));
        found
    }
}

/// The reason why the rest of a file was not sent.
pub(super) enum Failure {
    /// Another command sends the same file; another lookup of the receipts finds the rest.
    Conflict(String),
    Error(String),
}

impl ReceiptLookup for ServiceReceipts<'_> {
    fn look_up(
        &mut self,
        keys: &[IdempotencyKey],
    ) -> Result<Option<Vec<Option<ReceiptInfo>>>, String> {
        let texts: Vec<&str> = keys.iter().map(IdempotencyKey::as_str).collect();
        let show = |why: &str| {
            let message = format!(
                "looking up what was counted, trying again: {}",
                printable(why)
            );
            self.session.bar.set_message(message);
        };
        let known = self
            .receipts
            .look_up(&texts, show)
            .map_err(|e| e.to_string())?;
        let kept = |known: std::collections::HashMap<_, crate::delivery::FoundReceipt>| {
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

struct ServiceReceipts<'a> {
    receipts: Receipts,
    session: &'a SendSession,
}

impl SendSession {
    /// Sends the new flows of a file.
    pub(super) fn transfer_file(
        &self,
        arguments: &Send,
        source: FlowInput,
        sender: &Sender,
        receipts: Receipts,
    ) -> (Transferred, Result<(), Failure>) {
        let path = &arguments.file;
        let identity = source.identity(&arguments.input, path);
        let once = identity.is_some();
        let lookup = ServiceReceipts {
            receipts,
            session: self,
        };
        let mut file = FileTransfer {
            session: self,
            path,
            sender,
            is_file: source.is_file,
            frontier: Frontier::new(identity, lookup),
            skipped: Skipped::default(),
            upto: None,
        };
        let result = file.run(arguments, source);
        // Deliver the batches that were queued, even if the rest of the file cannot be read.
        let finished = match &result {
            Err(Failure::Conflict(_)) => Ok(()),
            _ => sender.finish(|| self.show(sender)).map_err(failure),
        };
        let result = match (finished, result) {
            (Err(Failure::Error(error)), _) => {
                let dropped = sender.interrupt().unwrap_or_default();
                let waiting = sender.report().waiting;
                let error = with_remedy(error, false, once, waiting, dropped);
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
    session: &'a SendSession,
    path: &'a Path,
    sender: &'a Sender,
    is_file: bool,
    frontier: Frontier<ServiceReceipts<'a>>,
    skipped: Skipped,
    /// The end of the records that were counted or are in flight.
    upto: Option<Location>,
}

impl FileTransfer<'_> {
    fn run(&mut self, arguments: &Send, source: FlowInput) -> Result<(), Failure> {
        let events = source
            // The service applies its own clock.
            .read_in_chunks(
                &arguments.input,
                &self.session.apps,
                &self.session.bar,
                None,
            )
            .map_err(Failure::Error)?;
        loop {
            self.session.show(self.sender);
            let read = match events.recv_timeout(TICK) {
                Ok(ReaderEvent::Chunk(chunk)) => {
                    self.send_chunk(*chunk)?;
                    continue;
                }
                Ok(ReaderEvent::Ended(read)) => read,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => {
                    let what = "the reader thread has panicked; this is a bug";
                    return Err(Failure::Error(what.into()));
                }
            };
            read.map_err(|e| self.stopped(&e.to_string()))?;
            return self.frontier.finish().map_err(|error| self.explain(error));
        }
    }

    fn send_chunk(&mut self, mut chunk: Chunk) -> Result<(), Failure> {
        self.skipped.add(chunk.skipped);
        let refused = std::mem::take(&mut chunk.refused);
        let was_supported = !self.frontier.lookup_unsupported();
        let new_flows = self.frontier.push(chunk);
        let new_flows = new_flows.map_err(|error| self.explain(error))?;
        for refused in refused.into_iter().chain(new_flows.refused) {
            let location = format!("{}: {}", self.path.display(), refused.location);
            let rejects = &self.session.rejects;
            rejects
                .write(&location, &[refused.text], &refused.why)
                .map_err(Failure::Error)?;
        }
        if was_supported && self.frontier.lookup_unsupported() {
            self.session.warn_once(identity::LOOKUP_UNSUPPORTED);
        }
        if let Some(since_s) = new_flows.changed_since_s {
            let text = identity::changed_copy(self.path, since_s);
            self.session.bar.suspend(|| eprint_line(&text));
        }
        if let Some((location, flow)) = new_flows.unfinished.filter(|_| self.is_file) {
            let text = identity::unfinished_line(self.path, location, &flow);
            self.session.bar.suspend(|| eprint_line(&text));
        }
        let locations = new_flows.locations.into_iter().zip(new_flows.if_late);
        for (batch, (locations, if_late)) in new_flows.batches.into_iter().zip(locations) {
            let keyed = KeyedBatch {
                key: match batch.receipt() {
                    Some((key, _)) => key.as_str().to_owned(),
                    None => Sender::random_key(),
                },
                notes: batch.notes().map(ToString::to_string).unwrap_or_default(),
                if_late,
                flows: batch.flows(),
                json: to_json(&batch).map_err(|e| Failure::Error(e.to_string()))?,
            };
            self.session.in_flight.add(&keyed.key, self.path, locations);
            self.sender.push_keyed(keyed).map_err(failure)?;
        }
        self.upto = new_flows.upto.or(self.upto);
        Ok(())
    }

    fn explain(&self, error: FrontierError) -> Failure {
        match error {
            FrontierError::Failed(why) => Failure::Error(why),
            error => self.stopped(&error.explain()),
        }
    }

    /// The rest of the file cannot be counted.
    fn stopped(&self, why: &str) -> Failure {
        let rest = match self.upto {
            None => "none of it is counted".into(),
            Some(location) => format!(
                "it is counted up to {location}; when the corrected or complete file is sent again, only what comes \
                 after that counts"
            ),
        };
        Failure::Error(format!("{}: {why}; {rest}", self.path.display()))
    }
}

fn failure(error: SendError) -> Failure {
    match error {
        SendError::Conflict { .. } => Failure::Conflict(error.to_string()),
        error => Failure::Error(error_text(error)),
    }
}
