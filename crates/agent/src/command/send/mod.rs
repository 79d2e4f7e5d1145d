//! `flowtally send`.

mod file;

use std::io::{self, IsTerminal};
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use indicatif::ProgressBar;
use signal_hook::iterator::Signals;

use self::file::{Blocks, Failure};
use super::drain::Drain;
use super::identity::Known;
use super::rejects::Rejects;
use super::resumed;
use super::source::{self, Source};
use super::{batches, connect, print, say, signals};
use crate::arguments::Send;
use crate::delivery::{
    Receipts, Refused, Rejected, Report, SendError, Sender, SenderOptions, shell_word,
};
use crate::inputs::{Apps, Fault, InputError, Skipped};
use crate::terminal::printable;

/// A batch of a pipe is sent when it is this old, full or not.
const PIPE_BATCH_AGE: Duration = Duration::from_secs(1);
/// How often a file is looked at anew that others send at the same time.
const TRIES: u32 = 10;
/// How long the end waits, after a signal, for what was read to be put into the spool.
const DRAIN_MAX: Duration = Duration::from_secs(2);

pub fn run(arguments: &Send) -> Result<(), String> {
    let input = &arguments.input;
    let bytes = source::check(&arguments.file, input.rejects.as_deref())?;
    if arguments.file.as_os_str() == "-" && input.source.is_some() && arguments.spool.is_some() {
        return Err(
            "--spool keeps what a pipe gives as it comes, and --source has it read again from its \
             beginning; give one of them"
                .into(),
        );
    }
    if arguments.file.as_os_str() == "-" && io::stdin().is_terminal() {
        say(
            "flowtally: reading flows from the terminal; Ctrl-D ends them. A FILE or a pipe is read too",
        );
    }
    let bar = source::progress(bytes);
    // A spool has flows of other runs.
    let once = bytes.is_some() && arguments.spool.is_none();
    let rejects = Rejects::open(input.rejects.as_deref(), once, None, bar.clone())?;
    let sending = Sending::new(source::apps(input)?, rejects, bar)?;
    let (sent, result) = sending.send(arguments);
    // What a spool takes is sent by a thread of its own, maybe later.
    let others_count = arguments.spool.is_some() || sent.is_some_and(Sent::has_counted);
    sending.bar.finish_and_clear();
    if let Some(sent) = sent {
        print(&sent.to_string(sending.rejects.count()));
    }
    sending.rejects.sync()?;
    result?;
    sending.rejects.verdict(others_count)
}

/// What the files of one command share.
#[derive(Debug)]
pub struct Sending {
    apps: Arc<Apps>,
    pub rejects: Arc<Rejects>,
    pub bar: ProgressBar,
    under_way: Arc<UnderWay>,
    /// Blocks that may be on their way.
    blocks: Arc<Blocks>,
    has_said: AtomicBool,
}

/// What was sent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sent {
    report: Report,
    skipped: Skipped,
    known: Known,
}

impl Sent {
    pub fn add(&mut self, other: Sent) {
        self.report.flows += other.report.flows;
        self.report.batches += other.report.batches;
        self.report.replayed += other.report.replayed;
        self.report.expired += other.report.expired;
        self.skipped.add(other.skipped);
        self.known.add(other.known);
    }

    /// Whether any flow counts, now or before.
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
            source::known(self.known),
            source::skipped(&self.skipped)
        )
    }
}

impl Sending {
    pub fn new(apps: Arc<Apps>, rejects: Rejects, bar: ProgressBar) -> Result<Sending, String> {
        let under_way = Arc::new(UnderWay::default());
        end_at_signal(under_way.clone()).map_err(|e| format!("cannot start: {e}"))?;
        Ok(Sending {
            apps,
            rejects: Arc::new(rejects),
            bar,
            under_way,
            blocks: Arc::default(),
            has_said: AtomicBool::new(false),
        })
    }

    /// Sends one input, and waits until the service has it. What was sent is `None` where it did not
    /// begin; it may be something although the rest was not sent.
    pub fn send(&self, arguments: &Send) -> (Option<Sent>, Result<(), String>) {
        let mut all = None;
        let mut tries = 0;
        loop {
            let (sent, result) = self.send_once(arguments);
            if let Some(mut sent) = sent {
                let all = all.get_or_insert_with(Sent::default);
                // What a try before this one sent is known to this one.
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

    fn send_once(&self, arguments: &Send) -> (Option<Sent>, Result<(), Failure>) {
        let begun = Source::open(&arguments.file).and_then(|source| {
            let by_content = source.is_file || arguments.input.source.is_some();
            if by_content && arguments.spool.is_some() {
                // What earlier commands left there; the file itself can be read again.
                self.deliver_spool(arguments)?;
            }
            let sender = self.start(self.options(arguments, by_content)?)?;
            Ok((source, sender, by_content))
        });
        let (source, sender, by_content) = match begun {
            Ok(begun) => begun,
            Err(error) => return (None, Err(Failure::Error(error))),
        };
        let drain = Arc::new(Drain::default());
        self.under_way.set(Some(Current {
            sender: sender.clone(),
            drain: drain.clone(),
            has_spool: arguments.spool.is_some() && !by_content,
            once: source.identity(&arguments.input, &arguments.file).is_some(),
        }));
        let mut sent = Sent::default();
        let result = if by_content {
            let receipts = connect::server(&arguments.url, &arguments.credentials).and_then(|s| {
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
            let source = source.until(drain.clone(), &sender, self.rejects.clone());
            let (skipped, result) = self.transfer(arguments, source, &sender, &drain);
            sent.skipped = skipped;
            result.map_err(Failure::Error)
        };
        self.under_way.set(None);
        sent.report = sender.report();
        (Some(sent), result)
    }

    fn start(&self, options: SenderOptions) -> Result<Arc<Sender>, String> {
        let (rejects, notices) = (self.rejects.clone(), self.rejects.clone());
        let blocks = self.blocks.clone();
        let on_rejected = move |rejected| match rejected {
            Rejected::Flows { flows, why } => {
                rejects.write("the service", &flows, &why)?;
                rejects.sync()
            }
            Rejected::OfBlock { key, flows, why } => {
                let numbers: Vec<usize> = flows.iter().map(|(number, _)| *number).collect();
                let places = blocks.take_out(&key, &numbers);
                for ((_, flow), place) in flows.into_iter().zip(places) {
                    rejects.write(&place, &[flow], &why)?;
                }
                rejects.sync()
            }
            Rejected::File { path, flows, why } => rejects.set_aside(&path, flows, &why),
        };
        let on_notice = move |text: &str| notices.say(&format!("flowtally: {text}"));
        let sender = Sender::start(options, on_rejected, on_notice);
        sender.map(Arc::new).map_err(|e| e.to_string())
    }

    fn deliver_spool(&self, arguments: &Send) -> Result<(), String> {
        let options = SenderOptions {
            // No pipe feeds it.
            batch_age: None,
            ..self.options(arguments, false)?
        };
        let sender = self.start(options)?;
        let drain = Arc::new(Drain::default());
        drain.end();
        self.under_way.set(Some(Current {
            sender: sender.clone(),
            drain,
            has_spool: true,
            once: false,
        }));
        let finished = sender.finish(|| self.show(&sender)).map_err(said);
        self.under_way.set(None);
        let waiting = sender.report().waiting;
        finished.map_err(|error| with_remedy(error, true, true, waiting, 0))
    }

    /// To the terminal, the first time only.
    fn say_once(&self, text: &str) {
        if !self.has_said.swap(true, Ordering::Relaxed) {
            self.bar.suspend(|| say(text));
        }
    }

    fn options(&self, arguments: &Send, by_content: bool) -> Result<SenderOptions, String> {
        let spool = arguments.spool.clone().filter(|_| !by_content);
        Ok(SenderOptions {
            server: connect::server(&arguments.url, &arguments.credentials)?,
            batch_flows: arguments.batch_flows as usize,
            batch_bytes: 1 << 20,
            batch_age: (!by_content).then_some(PIPE_BATCH_AGE),
            compress: !arguments.no_compress,
            refused: match spool {
                _ if self.rejects.are_kept() => Refused::HandOver,
                Some(_) => Refused::SetAside(command(arguments)),
                None => Refused::NotKept,
            },
            spool,
            spool_bytes_max: u64::from(arguments.spool_max) << 20,
            retry_for: arguments.retry.retry_for,
        })
    }

    fn transfer(
        &self,
        arguments: &Send,
        source: Source,
        sender: &Sender,
        drain: &Drain,
    ) -> (Skipped, Result<(), String>) {
        let mut failed = None;
        let (mut count, mut skipped) = (0_u64, Skipped::default());
        let reader = source.reader(&arguments.input, &self.apps, &self.bar);
        let mut read = reader.read(|unit| {
            let pushed = match unit.fault {
                Some(Fault::Wrong(why)) => Ok(Err(why)),
                Some(Fault::NoTraffic(why)) => {
                    skipped.count(why);
                    Ok(Ok(()))
                }
                None => sender.push(unit.text).or_else(|error| {
                    // A spool keeps what was read already, also where nothing more can be sent.
                    if matches!(error, SendError::Interrupted) || !sender.take_the_rest() {
                        return Err(error);
                    }
                    drain.stop();
                    failed.get_or_insert(error.to_string());
                    sender.push(unit.text)
                }),
            };
            let kept = match pushed {
                Ok(Ok(())) => Ok(()),
                Ok(Err(why)) => {
                    let place = format!("{}: {}", arguments.file.display(), unit.place);
                    self.rejects.write(&place, &[unit.text.to_owned()], &why)
                }
                Err(error) => Err(said(error)),
            };
            count += 1;
            if count.is_multiple_of(1024) {
                self.show(sender);
            }
            match kept {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed.get_or_insert(error);
                    ControlFlow::Break(())
                }
            }
        });
        if let Err(InputError::Io(error)) = &mut read {
            self.keep_unfinished(sender, &resumed::unfinished(error));
        }
        drain.end();
        if failed.is_none() && drain.is_stopped() {
            // The sender has given up, and what was read until then is handed over.
            failed = sender.failure().map(said);
        }
        if failed.is_none() && drain.is_stopped() {
            // The thread that got the signal does the rest, and ends the process.
            forever();
        }
        // What has been read is delivered, also where the rest cannot be.
        let finished = match failed {
            Some(error) => Err(error),
            None => sender.finish(|| self.show(sender)).map_err(said),
        };
        // What cannot be goes into the spool, the batch that was being filled too.
        let finished = finished.map_err(|error| {
            let let_go = sender.interrupt().unwrap_or_default();
            let waiting = sender.report().waiting;
            with_remedy(error, arguments.spool.is_some(), false, waiting, let_go)
        });
        let read = read.or_else(|e| match drain.is_stopped() {
            true => Ok(()),
            false => Err(e),
        });
        let read = read.map_err(|e| {
            let rest = match count {
                0 => "nothing was sent",
                _ => "the flows before that were sent, the rest was not read",
            };
            format!("{}: {e}; {rest}", arguments.file.display())
        });
        (skipped, finished.and(read))
    }

    /// What is not a whole flow, of a pipe that is not read on: the next command reads it first.
    fn keep_unfinished(&self, sender: &Sender, text: &[u8]) {
        let bytes = text.len();
        let lost = match text {
            b"" => return,
            text => match sender.keep_unfinished(text) {
                Ok(true) => return,
                Ok(false) if !resumed::has_flow(text) => return,
                Ok(false) => String::new(),
                Err(error) => format!("{error}; "),
            },
        };
        self.rejects.say(&format!(
            "flowtally: {lost}{bytes} bytes of a flow that was not read whole are not kept"
        ));
    }

    fn show(&self, sender: &Sender) {
        let report = sender.report();
        let mut message = format!("{} flows sent", report.flows);
        if report.waiting > 1 {
            message += &format!(", {} wait", batches(report.waiting));
        }
        if let Some(why) = sender.trouble() {
            message += &format!(", trying again: {}", printable(&why));
        }
        self.bar.set_message(message);
    }
}

/// What sends a file to the same service.
fn command(arguments: &Send) -> String {
    let credentials = &arguments.credentials;
    let files = [
        ("--token-file", &credentials.token_file),
        ("--ca", &credentials.ca),
        ("--cert", &credentials.cert),
        ("--key", &credentials.key),
    ];
    let mut command = format!("flowtally send --url {}", shell_word(&arguments.url));
    for (flag, file) in files {
        if let Some(file) = file {
            command += &format!(" {flag} {}", shell_word(&file.display().to_string()));
        }
    }
    command
}

/// What to do about batches that were not sent, and the flows that were let go.
fn with_remedy(error: String, has_spool: bool, once: bool, waiting: u64, let_go: usize) -> String {
    match waiting {
        0 => error,
        n if has_spool => format!(
            "{error}; in the spool: {}; run it again to send what is there{}",
            batches(n),
            match (once, let_go) {
                (true, _) => ", and the rest".into(),
                (false, 0) => "; the rest of the pipe is not read".into(),
                (false, n) =>
                    format!("; {n} flows had no room, and the rest of the pipe is not read"),
            }
        ),
        _ if once => format!("{error}; run it again to send the rest: what was sent counts once"),
        _ => format!("{error}; what was not sent by then is not kept: --spool keeps it"),
    }
}

/// As text; an interrupted sender has nothing more to say here, since [`end_at_signal`] does, and ends
/// the process.
fn said(error: SendError) -> String {
    if matches!(error, SendError::Interrupted) {
        forever();
    }
    error.to_string()
}

fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

/// The file that is being sent, for the thread that waits for a signal.
#[derive(Debug, Default)]
struct UnderWay(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    current: Option<Current>,
    /// A signal has come: the process is about to end.
    is_stopped: bool,
}

#[derive(Debug)]
struct Current {
    sender: Arc<Sender>,
    drain: Arc<Drain>,
    has_spool: bool,
    /// It can be sent again, and counts once.
    once: bool,
}

impl UnderWay {
    /// Before anything of it is read. After a signal it does not return, so nothing is.
    fn set(&self, current: Option<Current>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.is_stopped && current.is_some() {
            drop(state);
            forever();
        }
        state.current = current;
    }

    /// Ends what is under way, and keeps for the next process what is not in a file that it reads
    /// again. What there is to say of it.
    fn stop(&self) -> String {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.is_stopped = true;
        let current = state.current.take();
        drop(state);
        let Some(current) = current else {
            return "stopped; run it again to send the rest".into();
        };
        // First, so that nothing more is read for which no room is reserved.
        if current.has_spool {
            current.drain.stop();
        }
        if current.sender.take_the_rest() {
            current.drain.wait(DRAIN_MAX);
        }
        let kept = current.sender.interrupt();
        let waiting = current.sender.report().waiting;
        let unfinished = match current.sender.unfinished() {
            Ok(text) if resumed::has_flow(&text) => format!(
                "; and {} bytes of a flow that was not read whole, for the next run on this pipe",
                text.len()
            ),
            _ => String::new(),
        };
        match kept {
            Err(error) => error.to_string(),
            Ok(_) if current.once => "stopped; run it again to send the rest".into(),
            Ok(0) if current.has_spool => {
                format!("stopped; in the spool: {}{unfinished}", batches(waiting))
            }
            Ok(lost) if current.has_spool => format!(
                "stopped; in the spool: {}{unfinished}; {lost} flows had no room",
                batches(waiting)
            ),
            Ok(lost) => format!(
                "stopped; {} and {lost} flows may not have been sent",
                batches(waiting)
            ),
        }
    }
}

/// A signal ends the process.
fn end_at_signal(under_way: Arc<UnderWay>) -> io::Result<()> {
    let mut signals = Signals::new(signals::ending())?;
    let wait = move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        say(&format!("flowtally: {}", under_way.stop()));
        std::process::exit(128 + signal);
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)?;
    Ok(())
}
