//! Files and pipes as inputs of commands.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Once, Weak};

use indicatif::ProgressBar;

use super::checked::CheckedFile;
use super::drain::{Drain, Drained};
use super::eprint_line;
use super::identity::{AlreadyCounted, Identity};
use super::rejects::Rejects;
use super::resumed::{self, Resumed};
use crate::arguments::{self, Input};
use crate::delivery::Sender;
use crate::inputs::{
    Apps, Chunk, GivenFields, HourLimit, InputError, InputFormat, Reader, Skipped,
};

/// Maximum number of decoded chunks in the channel.
const QUEUE_CHUNKS_MAX: usize = 4;

const PIPE_GROWS: &str = "--growing leaves an incomplete last line for the next run, which reads a file again; what is \
     read from a pipe is read only once, so leave --growing out (or give --source NAME as well, if the next run \
     reads the same flows from their beginning)";

/// Whether this process has already warned that the sums may be misleading.
static WARNED: Once = Once::new();

/// Recognises a file in a format that only some commands read, and makes text of it. `None` for any other file, which is
/// read from its current position. An error is text for the user, without the path.
pub type Convert = fn(&Path, &File, &ProgressBar) -> Result<Option<Converted>, String>;

/// A file as text, with a record on each line.
pub struct Converted {
    /// The format of the file, for messages.
    pub of: &'static str,
    /// Reading it advances the progress bar by the bytes of the file.
    pub text: Box<dyn Read + Send>,
    pub records: ConvertedRecords,
}

/// The records of a converted file.
#[derive(Clone, Debug)]
pub enum ConvertedRecords {
    /// Flows in JSON.
    Flows,
    /// Records of AWS's flow logs, with these fields, which are separated by blanks.
    VpcFlowLogs { fields: String },
}

impl fmt::Debug for Converted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Converted")
            .field("of", &self.of)
            .field("records", &self.records)
            .finish_non_exhaustive()
    }
}

impl Converted {
    /// # Errors
    /// If an argument about the format contradicts that of the file.
    fn validate(&self, input: &Input) -> Result<(), String> {
        let is_right = match self.records {
            ConvertedRecords::Flows => input.format.is_none(),
            ConvertedRecords::VpcFlowLogs { .. } => {
                matches!(
                    input.format,
                    None | Some(arguments::InputFormat::VpcFlowLogs)
                )
            }
        };
        match is_right && input.fields.is_none() {
            true => Ok(()),
            false => Err(format!(
                "it is {}, whose columns have names; leave --format and --fields out",
                self.of
            )),
        }
    }
}

/// An open file or pipe.
#[derive(Debug)]
pub struct FlowInput {
    input: File,
    /// Set for a file that is read as other text.
    converted: Option<Converted>,
    /// Set for a pipe whose reading can be stopped.
    stop: Option<PipeStop>,
    /// A regular file, which can be read again.
    pub is_file: bool,
    /// The name ends in `.ndjson` or `.jsonl`.
    has_ndjson_name: bool,
}

/// Stops reading a pipe, and keeps an unfinished flow in the spool of `sender`.
#[derive(Debug)]
struct PipeStop {
    drain: Arc<Drain>,
    sender: Weak<Sender>,
    rejects: Arc<Rejects>,
}

impl PipeStop {
    /// Reads the unfinished flow that an earlier command kept, then the pipe.
    fn into_reader(self, input: File) -> Box<dyn Read + Send> {
        let PipeStop {
            drain,
            sender,
            rejects,
        } = self;
        let kept = sender.upgrade().map(|sender| sender.unfinished());
        let kept = match kept {
            Some(Ok(kept)) => kept,
            Some(Err(error)) => {
                rejects.eprint_line(&format!("flowtally: {error}"));
                Vec::new()
            }
            None => Vec::new(),
        };
        let pipe = Drained::new(input, drain, sender.clone(), kept.len());
        let has_flow = resumed::has_flow(&kept);
        let text = String::from_utf8_lossy(&kept).into_owned();
        Box::new(Resumed::new(pipe, kept, move |continues| {
            if !continues && has_flow {
                let why = "this flow is unfinished, and the pipe does not continue it";
                let location = "the end of the previous pipe";
                rejects
                    .write(location, &[text], why)
                    .map_err(io::Error::other)?;
            }
            match sender.upgrade() {
                Some(sender) => sender
                    .keep_unfinished(b"")
                    .map_err(io::Error::other)
                    .map(drop),
                None => Ok(()),
            }
        }))
    }
}

/// Sent by the reader thread.
#[derive(Debug)]
pub enum ReaderEvent {
    Chunk(Box<Chunk>),
    Ended(Result<(), InputError>),
}

impl FlowInput {
    pub fn open(path: &Path) -> Result<FlowInput, String> {
        let cannot = |e: io::Error| format!("{}: {e}", path.display());
        if path.as_os_str() == "-" {
            let input = io::stdin().as_fd().try_clone_to_owned().map_err(cannot)?;
            return Ok(FlowInput {
                input: input.into(),
                converted: None,
                stop: None,
                is_file: false,
                has_ndjson_name: false,
            });
        }
        let file = File::open(path).map_err(cannot)?;
        let data = file.metadata().map_err(cannot)?;
        reject_directory(path, &data)?;
        Ok(FlowInput {
            input: file,
            converted: None,
            stop: None,
            is_file: data.is_file(),
            has_ndjson_name: has_ndjson_name(path),
        })
    }

    /// The same, with files that `convert` recognises as text.
    ///
    /// # Errors
    /// If the file cannot be opened, or is one that `convert` recognises and cannot read.
    pub fn open_with(
        convert: Convert,
        path: &Path,
        input: &Input,
        bar: &ProgressBar,
    ) -> Result<FlowInput, String> {
        let opened = FlowInput::open(path)?;
        if !opened.is_file {
            return Ok(opened);
        }
        let of_path = |why| format!("{}: {why}", path.display());
        let converted = convert(path, &opened.input, bar).map_err(of_path)?;
        if let Some(converted) = &converted {
            converted.validate(input).map_err(of_path)?;
        }
        Ok(FlowInput {
            converted,
            ..opened
        })
    }

    /// Makes `drain` able to stop reading; a failure of `sender` ends it too.
    pub(crate) fn stopped_by(
        self,
        drain: Arc<Drain>,
        sender: &Arc<Sender>,
        rejects: Arc<Rejects>,
    ) -> FlowInput {
        FlowInput {
            stop: Some(PipeStop {
                drain,
                sender: Arc::downgrade(sender),
                rejects,
            }),
            ..self
        }
    }

    /// The identity that deduplicates this input; `None` if it counts every time.
    pub fn identity(&self, input: &Input, path: &Path) -> Option<Identity> {
        let is_deduplicated = self.is_file || input.source.is_some();
        (is_deduplicated && !input.again).then(|| Identity::new(input.source.as_deref(), path))
    }

    /// Reads the input on a thread of its own, in chunks that are cut by content. The thread ends when the
    /// receiver is dropped. If it is blocked on a pipe then, it ends with the process.
    pub fn read_in_chunks(
        self,
        input: &Input,
        apps: &Arc<Apps>,
        bar: &ProgressBar,
        hour_limit: Option<HourLimit>,
    ) -> Result<Receiver<ReaderEvent>, String> {
        let reader = self.reader(input, apps, bar).with_hour_limit(hour_limit);
        let (events, received) = sync_channel(QUEUE_CHUNKS_MAX);
        let pass_on = move |event| match events.send(event) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        };
        std::thread::Builder::new()
            .name("reader".into())
            .spawn(move || {
                let read =
                    reader.read_batches(|chunk| pass_on(ReaderEvent::Chunk(Box::new(chunk))));
                let _if_received = pass_on(ReaderEvent::Ended(read));
            })
            .map_err(|e| format!("cannot start a thread: {e}"))?;
        Ok(received)
    }

    /// A reader of the input's flows, which advances the progress bar.
    pub(crate) fn reader(
        self,
        input: &Input,
        apps: &Arc<Apps>,
        bar: &ProgressBar,
    ) -> Reader<impl Read + Send + use<>> {
        let names = input.fields.clone();
        let mut fields = names.map(|names| GivenFields {
            names,
            origin: "--fields",
        });
        let of_fields = fields.as_ref().map(|_| InputFormat::VpcFlowLogs);
        let mut format = input.format.map(Into::into).or(of_fields);
        let warn_bar = bar.clone();
        let bytes: Box<dyn Read + Send> = match (self.converted, self.stop) {
            (Some(converted), _) => {
                (format, fields) = match converted.records {
                    ConvertedRecords::Flows => (Some(InputFormat::Ndjson), None),
                    ConvertedRecords::VpcFlowLogs { fields: names } => {
                        let origin = "its columns";
                        let fields = Some(GivenFields { names, origin });
                        (Some(InputFormat::VpcFlowLogs), fields)
                    }
                };
                converted.text
            }
            (None, Some(stop)) => Box::new(bar.wrap_read(stop.into_reader(self.input))),
            (None, None) if self.is_file => {
                Box::new(bar.wrap_read(CheckedFile::new(self.input, bar.clone())))
            }
            (None, None) => Box::new(bar.wrap_read(self.input)),
        };
        Reader::new(bytes, format)
            .with_apps(apps.clone())
            .with_count(input.count.into())
            .with_fields(fields)
            .with_growing(input.growing)
            .with_line_delimited(self.has_ndjson_name)
            .with_warning(move |what| {
                // Warn once per command, not once per file.
                WARNED.call_once(|| warn_bar.suspend(|| eprint_line(&format!("warning: {what}"))));
            })
    }
}

/// Whether the name ends in `.ndjson` or `.jsonl`, with or without `.gz` or `.zst`.
fn has_ndjson_name(path: &Path) -> bool {
    let name = path.to_string_lossy().to_ascii_lowercase();
    let plain = [".gz", ".zst"]
        .iter()
        .find_map(|end| name.strip_suffix(end));
    let plain = plain.unwrap_or(&name);
    plain.ends_with(".ndjson") || plain.ends_with(".jsonl")
}

fn reject_directory(path: &Path, data: &Metadata) -> Result<(), String> {
    if data.is_dir() {
        return Err(format!(
            "{}: is a directory; give a file, or - for a pipe",
            path.display()
        ));
    }
    Ok(())
}

/// Checks a file without opening it, since opening a named pipe blocks until a writer opens it. Returns the
/// length of a regular file.
///
/// # Errors
/// If the file cannot be read, is the file of `--rejects`, or is a pipe with `--growing`.
pub fn validate_input(path: &Path, input: &Input) -> Result<Option<u64>, String> {
    let is_flow_log = matches!(
        input.format,
        None | Some(arguments::InputFormat::VpcFlowLogs)
    );
    if input.fields.is_some() && !is_flow_log {
        return Err("--fields is for --format vpc-flow-logs only".into());
    }
    // With a source, the next run gets the same input from its beginning, and with it the line that was left.
    let is_read_once = |is_file: bool| !is_file && input.growing && input.source.is_none();
    if path.as_os_str() == "-" {
        return match is_read_once(false) {
            true => Err(PIPE_GROWS.into()),
            false => Ok(None),
        };
    }
    let data = path
        .metadata()
        .map_err(|e| format!("{}: {e}", path.display()))?;
    reject_directory(path, &data)?;
    if is_read_once(data.is_file()) {
        return Err(format!("{}: {PIPE_GROWS}", path.display()));
    }
    let of_rejects = input
        .rejects
        .as_deref()
        .and_then(|path| path.metadata().ok());
    let is_same = |other: Metadata| (other.dev(), other.ino()) == (data.dev(), data.ino());
    if data.is_file() && of_rejects.is_some_and(is_same) {
        return Err(format!(
            "{}: --rejects is also an input file; give another file",
            path.display()
        ));
    }
    Ok(data.is_file().then_some(data.len()))
}

/// Loads the file of `--apps`, if it is given.
pub fn load_apps(input: &Input) -> Result<Arc<Apps>, String> {
    let Some(path) = &input.apps else {
        return Ok(Arc::default());
    };
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let apps = Apps::read(file).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Arc::new(apps))
}

/// The part of a command's result about records that were skipped.
pub fn describe_skipped(skipped: &Skipped) -> String {
    let mut text = String::new();
    let without_traffic = skipped.without_traffic();
    if without_traffic > 0 {
        text += &format!(
            "; {without_traffic} records without traffic skipped ({} NODATA, {} SKIPDATA, {} REJECT)",
            skipped.no_data, skipped.skip_data, skipped.reject
        );
    }
    if skipped.other_end > 0 {
        text += &format!("; {} records of the other end skipped", skipped.other_end);
    }
    text
}

/// The part of a command's result about flows that were counted before.
pub fn describe_counted(known: AlreadyCounted) -> String {
    match known {
        AlreadyCounted { flows: 0, .. } => String::new(),
        AlreadyCounted { flows, since_s } => format!(
            "; {flows} {} counted before, first on {}",
            match flows {
                1 => "flow skipped, which was",
                _ => "flows skipped, which were",
            },
            rfc3339(since_s.unwrap_or(0))
        ),
    }
}

/// Formats seconds since the epoch as RFC 3339.
pub(crate) fn rfc3339(seconds: u64) -> String {
    let time = i64::try_from(seconds).ok();
    let time = time.and_then(|time| jiff::Timestamp::from_second(time).ok());
    time.map_or_else(|| format!("second {seconds}"), |time| time.to_string())
}
