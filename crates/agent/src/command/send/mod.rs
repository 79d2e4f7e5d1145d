//! `flowtally send`: sends a file or a pipe.

mod file;
mod interruption;
mod pipe;

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::ProgressBar;

use self::file::{Failure, InFlight};
use self::interruption::{ActiveTransfer, TransferHandles, error_text, exit_at_signal};
use super::drain::{Drain, IDLE_AFTER};
use super::identity::AlreadyCounted;
use super::rejects::Rejects;
use super::source::{self, Convert, FlowInput};
use super::{batches, connect, eprint_line, print_result, progress};
use crate::arguments::{Credentials, Send, ServiceUrl};
use crate::delivery::{DeadLetters, Receipts, Rejected, Report, Sender, SenderOptions, shell_word};
use crate::inputs::{Apps, Skipped};
use crate::terminal::printable;

/// A batch of a pipe is sent at this age, full or not.
const PIPE_BATCH_AGE: Duration = Duration::from_secs(1);
/// So a flow without its line end is in a batch when that is due.
const _: () = assert!(IDLE_AFTER.as_millis() < PIPE_BATCH_AGE.as_millis());
/// Attempts for a file that other commands send at the same time.
const TRIES: u32 = 10;

pub fn run(arguments: &Send) -> Result<(), String> {
    let input = &arguments.input;
    let bytes = source::validate_input(&arguments.file, input)?;
    if arguments.file.as_os_str() == "-" && input.source.is_some() && arguments.spool.is_some() {
        return Err(
            "--spool stores a pipe as it is read, but --source expects the same input again from its \
             beginning; give one of them"
                .into(),
        );
    }
    if arguments.file.as_os_str() == "-" && io::stdin().is_terminal() {
        eprint_line(
            "flowtally: reading flows from the terminal until Ctrl-D. To read a file or a pipe, see --help",
        );
    }
    let bar = progress::input_bar(bytes);
    // The spool may hold flows of earlier runs.
    let once = bytes.is_some() && arguments.spool.is_none();
    let rejects = Rejects::open(input.rejects.as_deref(), once, None, bar.clone())?;
    let session = SendSession::new(source::load_apps(input)?, rejects, bar)?;
    let (sent, result) = session.send(arguments);
    // Flows in a spool are sent in the background, maybe later.
    let others_counted = arguments.spool.is_some() || sent.is_some_and(SendTotals::has_counted);
    session.bar.finish_and_clear();
    if let Some(sent) = sent {
        print_result(&sent.to_string(session.rejects.count()));
    }
    session.rejects.sync()?;
    result?;
    session.rejects.verdict(others_counted, &command(arguments))
}

/// State that the inputs of one command share.
#[derive(Debug)]
pub struct SendSession {
    apps: Arc<Apps>,
    pub rejects: Arc<Rejects>,
    pub bar: ProgressBar,
    convert: Option<Convert>,
    active: Arc<ActiveTransfer>,
    /// Batches that may be in flight.
    in_flight: Arc<InFlight>,
    has_warned: AtomicBool,
}

/// Totals of the flows that were sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct SendTotals {
    report: Report,
    skipped: Skipped,
    known: AlreadyCounted,
}

impl SendTotals {
    pub fn add(&mut self, other: SendTotals) {
        self.report.flows += other.report.flows;
        self.report.batches += other.report.batches;
        self.report.replayed += other.report.replayed;
        self.report.expired += other.report.expired;
        self.skipped.add(other.skipped);
        self.known.add(other.known);
    }

    /// Whether any flow was counted, by this command or before.
    pub fn has_counted(self) -> bool {
        self.report.flows > 0 || self.known.flows > 0
    }

    pub fn to_string(self, refused: u64) -> String {
        format!(
            "{} flows sent in {}, {} of which the service had already; {refused} refused{}{}{}",
            self.report.flows,
            batches(self.report.batches),
            self.report.replayed,
            match self.report.expired {
                0 => String::new(),
                n => format!("; {n} are older than what the service keeps"),
            },
            source::describe_counted(self.known),
            source::describe_skipped(&self.skipped)
        )
    }
}

impl SendSession {
    pub fn new(apps: Arc<Apps>, rejects: Rejects, bar: ProgressBar) -> Result<SendSession, String> {
        let active = Arc::new(ActiveTransfer::default());
        exit_at_signal(active.clone()).map_err(|e| format!("cannot start: {e}"))?;
        Ok(SendSession {
            apps,
            rejects: Arc::new(rejects),
            bar,
            convert: None,
            active,
            in_flight: Arc::default(),
            has_warned: AtomicBool::new(false),
        })
    }

    /// Reads files that `convert` recognises, too.
    #[must_use]
    pub fn with_conversion(self, convert: Convert) -> SendSession {
        SendSession {
            convert: Some(convert),
            ..self
        }
    }

    /// Sends one input and waits until the service has accepted all of it. The totals are `None` if sending
    /// did not start; if it failed midway, they cover the part that was sent.
    pub fn send(&self, arguments: &Send) -> (Option<SendTotals>, Result<(), String>) {
        let mut all = None;
        let mut tries = 0;
        loop {
            let (sent, result) = self.send_once(arguments);
            if let Some(mut sent) = sent {
                let all = all.get_or_insert_with(SendTotals::default);
                // This attempt finds flows of earlier attempts as already counted: do not report them as such.
                let flows = sent.known.flows.saturating_sub(all.report.flows);
                sent.known.flows = flows;
                if tries > 0 {
                    sent.skipped = Skipped::default();
                }
                all.add(sent);
            }
            tries += 1;
            let error = match result {
                Ok(()) => return (all, Ok(())),
                Err(Failure::Conflict(_)) if tries < TRIES && arguments.file.is_file() => continue,
                Err(Failure::Conflict(error)) => {
                    format!("{error}; run it again: what was counted is skipped")
                }
                Err(Failure::Error(error)) => error,
            };
            return (all, Err(error));
        }
    }

    fn send_once(&self, arguments: &Send) -> (Option<SendTotals>, Result<(), Failure>) {
        let (path, input) = (&arguments.file, &arguments.input);
        let opened = match self.convert {
            Some(convert) => FlowInput::open_with(convert, path, input, &self.bar),
            None => FlowInput::open(path),
        };
        let opened = opened.and_then(|source| {
            let by_content = source.is_file || arguments.input.source.is_some();
            if by_content && arguments.spool.is_some() {
                // Deliver the batches that earlier commands left in the spool; the file itself does not use
                // it.
                self.deliver_spool(arguments)?;
            }
            let sender = self.start(self.options(arguments, by_content)?)?;
            Ok((source, sender, by_content))
        });
        let (source, sender, by_content) = match opened {
            Ok(opened) => opened,
            Err(error) => return (None, Err(Failure::Error(error))),
        };
        let drain = Arc::new(Drain::default());
        self.active.set(Some(TransferHandles {
            sender: sender.clone(),
            drain: drain.clone(),
            has_spool: arguments.spool.is_some() && !by_content,
            once: source.identity(&arguments.input, &arguments.file).is_some(),
        }));
        let mut sent = SendTotals::default();
        let result = if by_content {
            let receipts = connect::server(&arguments.service.url, &arguments.credentials)
                .and_then(|s| {
                    Receipts::new(&s, arguments.retry.retry_for).map_err(|e| e.to_string())
                });
            match receipts {
                Ok(receipts) => {
                    let (done, result) = self.transfer_file(arguments, source, &sender, receipts);
                    (sent.skipped, sent.known) = (done.skipped, done.known);
                    result
                }
                Err(error) => Err(Failure::Error(error)),
            }
        } else {
            let source = source.stopped_by(drain.clone(), &sender, self.rejects.clone());
            let (skipped, result) = self.transfer_pipe(arguments, source, &sender, &drain);
            sent.skipped = skipped;
            result.map_err(Failure::Error)
        };
        self.active.set(None);
        sent.report = sender.report();
        (Some(sent), result)
    }

    fn start(&self, options: SenderOptions) -> Result<Arc<Sender>, String> {
        let (rejects, notices) = (self.rejects.clone(), self.rejects.clone());
        let in_flight = self.in_flight.clone();
        let on_rejected = move |rejected| match rejected {
            Rejected::Flows {
                flows,
                why,
                smaller_batch,
            } => {
                if let Some(flows) = smaller_batch {
                    rejects.note_smaller_batch(flows);
                }
                rejects.write("the service", &flows, &why)?;
                rejects.sync()
            }
            Rejected::FromKeyedBatch { key, flows, why } => {
                let numbers: Vec<usize> = flows.iter().map(|(number, _)| *number).collect();
                let locations = in_flight.take_out(&key, &numbers);
                for ((_, flow), location) in flows.into_iter().zip(locations) {
                    rejects.write(&location, &[flow], &why)?;
                }
                rejects.sync()
            }
            Rejected::File { path, flows, why } => rejects.set_aside(&path, flows, &why),
        };
        let on_notice = move |text: &str| notices.eprint_line(&format!("flowtally: {text}"));
        let sender = Sender::start(options, on_rejected, on_notice);
        sender.map(Arc::new).map_err(|e| e.to_string())
    }

    fn deliver_spool(&self, arguments: &Send) -> Result<(), String> {
        let options = SenderOptions {
            // No pipe fills batches here.
            batch_age: None,
            ..self.options(arguments, false)?
        };
        let sender = self.start(options)?;
        let drain = Arc::new(Drain::default());
        drain.end();
        self.active.set(Some(TransferHandles {
            sender: sender.clone(),
            drain,
            has_spool: true,
            once: false,
        }));
        let finished = sender.finish(|| self.show(&sender)).map_err(error_text);
        self.active.set(None);
        let waiting = sender.report().waiting;
        finished.map_err(|error| with_remedy(error, true, true, waiting, 0))
    }

    /// Prints a line to standard error, the first time only.
    fn warn_once(&self, text: &str) {
        if !self.has_warned.swap(true, Ordering::Relaxed) {
            self.bar.suspend(|| eprint_line(text));
        }
    }

    fn options(&self, arguments: &Send, by_content: bool) -> Result<SenderOptions, String> {
        let spool = arguments.spool.clone().filter(|_| !by_content);
        Ok(SenderOptions {
            server: connect::server(&arguments.service.url, &arguments.credentials)?,
            batch_flows: arguments.batch_flows as usize,
            batch_bytes: 1 << 20,
            batch_age: (!by_content).then_some(PIPE_BATCH_AGE),
            compress: !arguments.no_compress,
            refused: match spool {
                _ if self.rejects.are_kept() => DeadLetters::PassOn,
                Some(_) => DeadLetters::SetAside(command(arguments)),
                None => DeadLetters::NotKept,
            },
            spool,
            spool_bytes_max: u64::from(arguments.spool_max) << 20,
            retry_for: arguments.retry.retry_for,
        })
    }

    fn show(&self, sender: &Sender) {
        let report = sender.report();
        let mut message = format!("{} flows sent", report.flows);
        if report.waiting > 1 {
            message += &format!(", {} wait", batches(report.waiting));
        }
        if let Some(why) = sender.last_error() {
            message += &format!(", trying again: {}", printable(&why));
        }
        self.bar.set_message(message);
    }
}

/// The command that sends a file, or a pipe, to the same service.
pub fn command(arguments: &Send) -> String {
    let mut command = command_to(&arguments.service, &arguments.credentials);
    if arguments.no_compress {
        command += " --no-compress";
    }
    command
}

/// The command that sends to this service.
pub(crate) fn command_to(service: &ServiceUrl, credentials: &Credentials) -> String {
    let files = [
        ("--token-file", &credentials.token_file),
        ("--ca", &credentials.ca),
        ("--cert", &credentials.cert),
        ("--key", &credentials.key),
    ];
    let mut command = format!("flowtally send --url {}", shell_word(&service.url));
    for (flag, file) in files {
        if let Some(file) = file {
            command += &format!(" {flag} {}", shell_word(&file.display().to_string()));
        }
    }
    command
}

/// Adds to an error what happens to unsent batches and to flows that had no room in the spool.
fn with_remedy(error: String, has_spool: bool, once: bool, waiting: u64, dropped: usize) -> String {
    match waiting {
        0 => error,
        n if has_spool => format!(
            "{error}; in the spool: {}; run it again to send them{}",
            batches(n),
            match (once, dropped) {
                (true, _) => ", and the rest".into(),
                (false, 0) => "; the rest of the pipe is not read".into(),
                (false, n) =>
                    format!("; {n} flows had no room, and the rest of the pipe is not read"),
            }
        ),
        _ if once => {
            format!("{error}; run it again to send the rest: flows that were sent count once")
        }
        _ => format!("{error}; unsent flows are lost; flowtally send --spool DIR keeps them"),
    }
}
