//! Flows that are refused: appended to a file, and shown on the terminal.

use parking_lot::Mutex;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use indicatif::ProgressBar;
use xxhash_rust::xxh3::xxh3_128;

use super::eprint_line;
use crate::delivery::shell_word;
use crate::durable;

/// The error of `fdatasync` on something that cannot be synced.
const EINVAL: i32 = 22;
/// Only the first ones are shown on the terminal.
const SHOWN_MAX: u64 = 10;

/// The destination of refused flows.
#[derive(Debug)]
pub struct Rejects {
    file: Option<(PathBuf, Mutex<File>)>,
    /// Fingerprints of the lines that are in the file already and must not be added again.
    known: HashSet<u128>,
    /// The command fails if more flows than this are refused.
    most: Option<u64>,
    count: AtomicU64,
    /// Of flows in batches that were too large: the flows of a smaller batch. 0: there were none.
    smaller_batch: AtomicU64,
    /// A row or record was refused, which can be read only below its header.
    has_rows: AtomicBool,
    /// The directory of the batches that were set aside, if there are any.
    aside: Mutex<Option<PathBuf>>,
    bar: ProgressBar,
}

impl Rejects {
    /// With `once`, for inputs that may be read again, lines that are already in the file are not added again.
    pub fn open(
        path: Option<&Path>,
        once: bool,
        most: Option<u64>,
        bar: ProgressBar,
    ) -> Result<Rejects, String> {
        let open = |path: &Path| {
            let known = match once && path.is_file() {
                true => fingerprints(path)?,
                false => HashSet::new(),
            };
            let is_torn = path.is_file() && ends_within_a_line(path)?;
            let mut file = File::options().append(true).create(true).open(path)?;
            if path.is_file() {
                durable::sync_name(path)?;
            }
            if is_torn {
                file.write_all(b"\n")?;
            }
            Ok((known, (path.to_owned(), Mutex::new(file))))
        };
        let opened =
            path.map(|path| open(path).map_err(|e: io::Error| format!("{}: {e}", path.display())));
        let (known, file) = opened.transpose()?.unzip();
        Ok(Rejects {
            file,
            known: known.unwrap_or_default(),
            most,
            count: AtomicU64::new(0),
            smaller_batch: AtomicU64::new(0),
            has_rows: AtomicBool::new(false),
            aside: Mutex::new(None),
            bar,
        })
    }

    /// Appends flows as NDJSON that can be corrected and sent again: the original text of each flow, and the
    /// reason.
    pub fn write(&self, location: &str, flows: &[String], why: &str) -> Result<(), String> {
        let before = self.count.fetch_add(flows.len() as u64, Ordering::Relaxed);
        if before < SHOWN_MAX {
            self.eprint_line(&format!("refused: {location}: {why}"));
        }
        if let Some((_, file)) = &self.file {
            let mut lines = String::new();
            for flow in flows {
                if !flow.trim_start().starts_with(['{', '[']) {
                    self.has_rows.store(true, Ordering::Relaxed);
                }
                let line = serde_json::json!({ "flow": flow, "place": location, "why": why });
                let line = line.to_string();
                if !self.known.contains(&xxh3_128(line.as_bytes())) {
                    lines += &line;
                    lines.push('\n');
                }
            }
            let mut file = file.lock();
            file.write_all(lines.as_bytes()).map_err(not_written)?;
        }
        match self.most {
            Some(most) if before + flows.len() as u64 > most => Err(format!(
                "more flows were refused than --max-rejects {most} allows"
            )),
            _ => Ok(()),
        }
    }

    /// Notes that flows were refused because their batch was too large; `flows` fit into a smaller one.
    pub(crate) fn note_smaller_batch(&self, flows: usize) {
        self.smaller_batch.store(flows as u64, Ordering::Relaxed);
    }

    /// Reports a batch of `flows` that was set aside at `path`.
    pub(crate) fn set_aside(&self, path: &Path, flows: usize, why: &str) -> Result<(), String> {
        self.count.fetch_add(flows as u64, Ordering::Relaxed);
        let location = path.display();
        self.eprint_line(&format!(
            "refused: {flows} flows, which are in {location}: {why}"
        ));
        let mut aside = self.aside.lock();
        *aside = path.parent().map(Path::to_owned);
        Ok(())
    }

    /// Prints one line above the progress bar.
    pub fn eprint_line(&self, line: &str) {
        self.bar.suspend(|| eprint_line(line));
    }

    /// Whether refused flows are written to a file.
    pub(crate) fn are_kept(&self) -> bool {
        self.file.is_some()
    }

    pub fn sync(&self) -> Result<(), String> {
        let Some((_, file)) = &self.file else {
            return Ok(());
        };
        let file = file.lock();
        match file.sync_data() {
            // Not a regular file.
            Err(error) if error.raw_os_error() == Some(EINVAL) => Ok(()),
            synced => synced.map_err(not_written),
        }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The result of a command that has finished: an error if any flows were refused. `others_counted`: the
    /// input had other flows, which are counted. `again` is the command that reads flows from a pipe.
    pub fn verdict(&self, others_counted: bool, again: &str) -> Result<(), String> {
        let n = self.count();
        if n == 0 {
            return Ok(());
        }
        let were = if n == 1 { "flow was" } else { "flows were" };
        let aside = self.aside.lock();
        let locations = [
            self.file.as_ref().map(|(path, _)| {
                let (path, word) = (path.display(), shell_word(&path.display().to_string()));
                let alone = match others_counted {
                    true => "correct and send only these, since the rest is counted",
                    false => "the input had no other flows; correct these and send them",
                };
                let smaller = match self.smaller_batch.load(Ordering::Relaxed) {
                    0 => String::new(),
                    flows => format!(" --batch-flows {flows}"),
                };
                let header = match self.has_rows.load(Ordering::Relaxed) {
                    true => " (below the header of their file, if they are rows)",
                    false => "",
                };
                format!(
                    "they are in {path}; {alone}{header}: jq -r .flow {word} | {again}{smaller}"
                )
            }),
            aside.as_ref().map(|dir| {
                let dir = dir.display();
                format!(
                    "{dir} contains whole batches, each with the reason and the command that sends it again"
                )
            }),
        ];
        let locations: Vec<_> = locations.into_iter().flatten().collect();
        Err(match locations.is_empty() {
            true if others_counted => format!(
                "{n} {were} refused; --rejects FILE keeps them: correct and send only these, since the \
                 rest is counted, and would count again in a corrected copy of the file"
            ),
            true => format!(
                "{n} {were} refused, and nothing was counted: correct the file and give it again"
            ),
            false => format!("{n} {were} refused; {}", locations.join("; ")),
        })
    }
}

fn fingerprints(path: &Path) -> io::Result<HashSet<u128>> {
    let lines = BufReader::new(File::open(path)?).split(b'\n');
    lines.map(|line| Ok(xxh3_128(&line?))).collect()
}

/// Whether the last line is incomplete, for example because the disk was full.
fn ends_within_a_line(path: &Path) -> io::Result<bool> {
    let mut file = File::open(path)?;
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

fn not_written(error: io::Error) -> String {
    format!("cannot write refused flows: {error}")
}
