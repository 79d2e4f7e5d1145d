//! `flowtally send`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::Send;
use crate::input::Reader;
use crate::send::{Keys, Rejected, SendError, Sender, SenderOptions, Server};

/// A batch of a pipe is sent when it is this old, full or not.
const PIPE_BATCH_AGE: Duration = Duration::from_secs(1);
/// Read of the input at once.
const READ_BYTES: usize = 16 << 10;
/// What `fdatasync` of something answers that cannot be synced.
const EINVAL: i32 = 22;

pub(super) fn run(arguments: &Send) -> Result<(), String> {
    let source = Source::open(&arguments.file)?;
    let bar = source.progress();
    if let Some(path) = &arguments.rejects
        && source.is_same_file(path)
    {
        return Err(format!(
            "{}: --rejects is the file that is sent",
            path.display()
        ));
    }
    let rejects = Arc::new(Rejects::open(arguments.rejects.as_deref(), bar.clone())?);
    let options = SenderOptions {
        server: Server {
            url: arguments.url.clone(),
            token: arguments.token_file.as_deref().map(token).transpose()?,
            ca: arguments.ca.clone(),
            certificate: arguments.cert.clone().zip(arguments.key.clone()),
        },
        batch_flows: arguments.batch_flows as usize,
        batch_bytes: 1 << 20,
        batch_age: source.identity.is_none().then_some(PIPE_BATCH_AGE),
        compress: !arguments.no_compress,
        spool: arguments.spool.clone(),
        spool_bytes_max: u64::from(arguments.spool_max) << 20,
        retry_for: arguments.retry_for,
        keys: match &source.identity {
            Some(identity) if !arguments.again => Keys::Derived(identity.clone()),
            _ => Keys::Random,
        },
    };
    let refused = rejects.clone();
    let once = matches!(options.keys, Keys::Derived(_));
    let sender = Sender::start(options, move |rejected| {
        refused.write("the service", &rejected)?;
        refused.sync()
    })
    .map_err(|e| e.to_string())?;
    let sender = Arc::new(sender);
    let has_spool = arguments.spool.is_some();
    end_at_signal(sender.clone(), has_spool, once).map_err(|e| format!("cannot start: {e}"))?;

    let show = || {
        let report = sender.report();
        let mut message = format!("{} flows sent", report.flows);
        if report.waiting > 1 {
            message += &format!(", {} wait", batches(report.waiting));
        }
        if let Some(why) = sender.trouble() {
            message += &format!(", trying again: {why}");
        }
        bar.set_message(message);
    };
    let mut failed = None;
    let mut count = 0_u64;
    let input: Box<dyn BufRead> = Box::new(BufReader::with_capacity(
        READ_BYTES,
        bar.wrap_read(source.input),
    ));
    let read = Reader::new(input, arguments.format.map(Into::into)).read(|unit| {
        let pushed = match unit.fault {
            Some(why) => Ok(Err(why)),
            None => sender.push(unit.text),
        };
        let kept = match pushed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => {
                let flows = vec![unit.text.to_owned()];
                rejects.write(&unit.place, &Rejected { flows, why })
            }
            Err(error) => Err(said(error)),
        };
        count += 1;
        if count.is_multiple_of(1024) {
            show();
        }
        match kept {
            Ok(()) => ControlFlow::Continue(()),
            Err(error) => {
                failed = Some(error);
                ControlFlow::Break(())
            }
        }
    });
    // What has been read is delivered, also where the rest cannot be.
    let finished = match failed {
        Some(error) => Err(error),
        None => sender.finish(show).map_err(said),
    };
    // What cannot be goes into the spool, the batch that was being filled too.
    let let_go = match finished {
        Ok(()) => 0,
        Err(_) => sender.interrupt().unwrap_or_default(),
    };
    bar.finish_and_clear();
    let report = sender.report();
    let refused = rejects.count();
    // Whoever does not read it has closed it.
    let _best_effort = writeln!(
        io::stdout(),
        "{} flows sent in {}, {} of which the service had already; {refused} refused",
        report.flows,
        batches(report.batches),
        report.replayed
    );
    rejects.sync()?;
    let waiting = report.waiting;
    finished.map_err(|error| match waiting {
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
    })?;
    read.map_err(|e| {
        let rest = match count {
            0 => "nothing was sent",
            _ => "the flows before that were sent, the rest was not read",
        };
        format!("{}: {e}; {rest}", arguments.file.display())
    })?;
    match (refused, &arguments.rejects) {
        (0, _) => Ok(()),
        (n, Some(path)) => Err(format!(
            "{n} flows were refused; they are in {}",
            path.display()
        )),
        (n, None) => Err(format!("{n} flows were refused; --rejects FILE keeps them")),
    }
}

/// As text; an interrupted sender has nothing more to say here, since [`end_at_signal`] does, and ends
/// the process.
fn said(error: SendError) -> String {
    if matches!(error, SendError::Interrupted) {
        loop {
            std::thread::park();
        }
    }
    error.to_string()
}

fn batches(n: u64) -> String {
    match n {
        1 => "1 batch".into(),
        n => format!("{n} batches"),
    }
}

/// What is sent.
struct Source {
    input: Box<dyn io::Read>,
    bytes: Option<u64>,
    /// Names a file that can be sent again and is the same; a pipe cannot.
    identity: Option<String>,
    /// Device and inode.
    file: Option<(u64, u64)>,
}

impl Source {
    fn open(path: &Path) -> Result<Source, String> {
        if path.as_os_str() == "-" {
            return Ok(Source {
                input: Box::new(io::stdin()),
                bytes: None,
                identity: None,
                file: None,
            });
        }
        let cannot = |e: io::Error| format!("{}: {e}", path.display());
        let file = File::open(path).map_err(cannot)?;
        let data = file.metadata().map_err(cannot)?;
        if data.is_dir() {
            return Err(format!(
                "{}: is a directory; give a file, or - for a pipe",
                path.display()
            ));
        }
        let identity = data.is_file().then(|| {
            let (time, nanos) = (data.mtime(), data.mtime_nsec());
            format!(
                "{} {} {} {time}.{nanos}",
                data.dev(),
                data.ino(),
                data.len()
            )
        });
        Ok(Source {
            input: Box::new(file),
            bytes: data.is_file().then_some(data.len()),
            identity,
            file: data.is_file().then_some((data.dev(), data.ino())),
        })
    }

    fn is_same_file(&self, path: &Path) -> bool {
        let other = path.metadata().map(|data| (data.dev(), data.ino()));
        self.file.is_some() && self.file == other.ok()
    }

    /// On a terminal; elsewhere nothing is drawn.
    fn progress(&self) -> ProgressBar {
        if !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let (bar, template) = match self.bytes {
            Some(bytes) => (
                ProgressBar::new(bytes),
                "{bar:30} {bytes}/{total_bytes} {eta} {wide_msg}",
            ),
            None => (ProgressBar::no_length(), "{spinner} {bytes} {wide_msg}"),
        };
        match ProgressStyle::with_template(template) {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        }
    }
}

/// The first line of the file that is neither blank nor a comment: the file can be the service's own.
fn token(path: &Path) -> Result<String, String> {
    let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let token = text
        .lines()
        .map(str::trim)
        .find(|line| !line.is_empty() && !line.starts_with('#'));
    match token {
        Some(token) if token.bytes().all(|b| b.is_ascii_graphic()) => Ok(token.to_owned()),
        Some(_) => Err(format!(
            "{}: what is in it is not a token: one has visible ASCII only",
            path.display()
        )),
        None => Err(format!("{}: no token is in it", path.display())),
    }
}

/// To the terminal, if it is still there.
fn say(line: &str) {
    let _best_effort = writeln!(io::stderr(), "{line}");
}

/// Flows that are refused: to a file, or at least to the terminal.
struct Rejects {
    file: Option<Mutex<File>>,
    count: std::sync::atomic::AtomicU64,
    bar: ProgressBar,
}

impl Rejects {
    fn open(path: Option<&Path>, bar: ProgressBar) -> Result<Rejects, String> {
        let file = path.map(|path| {
            let file = File::options().append(true).create(true).open(path);
            file.map(Mutex::new)
                .map_err(|e| format!("{}: {e}", path.display()))
        });
        Ok(Rejects {
            file: file.transpose()?,
            count: 0.into(),
            bar,
        })
    }

    /// As NDJSON that can be mended and sent again: each flow's text as it was, and why not.
    fn write(&self, place: &str, rejected: &Rejected) -> Result<(), String> {
        let before = self.count.fetch_add(
            rejected.flows.len() as u64,
            std::sync::atomic::Ordering::Relaxed,
        );
        if before < 10 {
            let line = format!("refused: {place}: {}", rejected.why);
            self.bar.suspend(|| say(&line));
        }
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut lines = String::new();
        for flow in &rejected.flows {
            let line = serde_json::json!({ "flow": flow, "place": place, "why": rejected.why });
            lines += &format!("{line}\n");
        }
        let mut file = file.lock().map_err(|_| "a thread panicked".to_owned())?;
        let written = file.write_all(lines.as_bytes());
        written.map_err(|e| format!("cannot write what was refused: {e}"))
    }

    fn sync(&self) -> Result<(), String> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let file = file.lock().map_err(|_| "a thread panicked".to_owned())?;
        match file.sync_data() {
            // Not a file on a disk.
            Err(error) if error.raw_os_error() == Some(EINVAL) => Ok(()),
            synced => synced.map_err(|e| format!("cannot write what was refused: {e}")),
        }
    }

    fn count(&self) -> u64 {
        self.count.load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// A signal ends the process, and keeps for the next one what is not in a file that it reads again.
fn end_at_signal(sender: Arc<Sender>, has_spool: bool, once: bool) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    let wait = move || {
        let Some(signal) = signals.forever().next() else {
            return;
        };
        let kept = sender.interrupt();
        let waiting = sender.report().waiting;
        match kept {
            Err(error) => say(&format!("flowtally: {error}")),
            Ok(_) if once => say("flowtally: stopped; run it again to send the rest"),
            Ok(0) if has_spool => say(&format!(
                "flowtally: stopped; in the spool: {}; of the pipe, up to {} KiB more were read and are \
                 not kept",
                batches(waiting),
                READ_BYTES >> 10
            )),
            Ok(lost) => say(&format!(
                "flowtally: stopped; {} and {lost} flows may not have been sent",
                batches(waiting)
            )),
        }
        std::process::exit(128 + signal);
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)?;
    Ok(())
}
