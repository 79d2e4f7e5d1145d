//! Flows that are refused: to a file, or at least to the terminal.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::ProgressBar;
use xxhash_rust::xxh3::xxh3_128;

use super::say;
use crate::durable;

/// What `fdatasync` of something answers that cannot be synced.
const EINVAL: i32 = 22;
/// The first ones are shown on the terminal.
const SHOWN_MAX: u64 = 10;

#[derive(Debug)]
pub struct Rejects {
    file: Option<(PathBuf, Mutex<File>)>,
    /// Fingerprints of lines that are not added again.
    known: HashSet<u128>,
    /// More than these end the command.
    most: Option<u64>,
    count: AtomicU64,
    /// The directory of batches that were set aside, if there are any.
    aside: Mutex<Option<PathBuf>>,
    bar: ProgressBar,
}

impl Rejects {
    /// With `once`, for files that may be read a second time, what is in the file already is not added
    /// again.
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
            aside: Mutex::new(None),
            bar,
        })
    }

    /// As NDJSON that can be mended and sent again: each flow's text as it was, and why not.
    pub fn write(&self, place: &str, flows: &[String], why: &str) -> Result<(), String> {
        let before = self.count.fetch_add(flows.len() as u64, Ordering::Relaxed);
        if before < SHOWN_MAX {
            self.say(&format!("refused: {place}: {why}"));
        }
        if let Some((_, file)) = &self.file {
            let mut lines = String::new();
            for flow in flows {
                let line = serde_json::json!({ "flow": flow, "place": place, "why": why });
                let line = line.to_string();
                if !self.known.contains(&xxh3_128(line.as_bytes())) {
                    lines += &line;
                    lines.push('\n');
                }
            }
            let mut file = file.lock().map_err(|_| "a thread panicked".to_owned())?;
            file.write_all(lines.as_bytes()).map_err(not_written)?;
        }
        match self.most {
            Some(most) if before + flows.len() as u64 > most => Err(format!(
                "more flows are refused than --max-rejects {most} allows"
            )),
            _ => Ok(()),
        }
    }

    /// A batch of `flows` that was set aside at `path`.
    pub fn set_aside(&self, path: &Path, flows: usize, why: &str) -> Result<(), String> {
        self.count.fetch_add(flows as u64, Ordering::Relaxed);
        let place = path.display();
        self.say(&format!(
            "refused: {flows} flows, which are in {place}: {why}"
        ));
        let mut aside = self.aside.lock().map_err(|_| "a thread panicked")?;
        *aside = path.parent().map(Path::to_owned);
        Ok(())
    }

    /// One line, beside the progress bar.
    pub fn say(&self, line: &str) {
        self.bar.suspend(|| say(line));
    }

    /// Whether there is a file for them.
    pub fn are_kept(&self) -> bool {
        self.file.is_some()
    }

    pub fn sync(&self) -> Result<(), String> {
        let Some((_, file)) = &self.file else {
            return Ok(());
        };
        let file = file.lock().map_err(|_| "a thread panicked".to_owned())?;
        match file.sync_data() {
            // Not a file on a disk.
            Err(error) if error.raw_os_error() == Some(EINVAL) => Ok(()),
            synced => synced.map_err(not_written),
        }
    }

    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// What a command that did all it could has to say of them.
    pub fn verdict(&self) -> Result<(), String> {
        let n = self.count();
        if n == 0 {
            return Ok(());
        }
        let were = match n {
            1 => "1 flow was refused".into(),
            n => format!("{n} flows were refused"),
        };
        let aside = self.aside.lock().map_err(|_| "a thread panicked")?;
        let places = [
            self.file.as_ref().map(|(path, _)| {
                let path = path.display();
                format!(
                    "they are in {path}; mend and send these alone, since the rest is counted: \
                     jq -r .flow {path} | flowtally send"
                )
            }),
            aside.as_ref().map(|dir| {
                let dir = dir.display();
                format!(
                    "{dir} has whole batches, each with the reason and the command that sends it again"
                )
            }),
        ];
        let places: Vec<_> = places.into_iter().flatten().collect();
        Err(match places.is_empty() {
            true => format!(
                "{were}; --rejects FILE keeps them: mend and send these alone, since the \
                 rest is counted, and would count again in a mended copy of the file"
            ),
            false => format!("{were}; {}", places.join("; ")),
        })
    }
}

fn fingerprints(path: &Path) -> io::Result<HashSet<u128>> {
    let lines = BufReader::new(File::open(path)?).split(b'\n');
    lines.map(|line| Ok(xxh3_128(&line?))).collect()
}

/// Whether the disk was full, say, when its last line was written.
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
    format!("cannot write what was refused: {error}")
}
