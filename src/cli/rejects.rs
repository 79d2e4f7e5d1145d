//! Flows that are refused: to a file, or at least to the terminal.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::ProgressBar;

use super::say;

/// What `fdatasync` of something answers that cannot be synced.
const EINVAL: i32 = 22;
/// The first ones are shown on the terminal.
const SHOWN_MAX: u64 = 10;

pub(super) struct Rejects {
    file: Option<(PathBuf, Mutex<File>)>,
    /// More than these end the command.
    most: Option<u64>,
    count: AtomicU64,
    bar: ProgressBar,
}

impl Rejects {
    pub(super) fn open(
        path: Option<&Path>,
        most: Option<u64>,
        bar: ProgressBar,
    ) -> Result<Rejects, String> {
        let file = path.map(|path| {
            let file = File::options().append(true).create(true).open(path);
            file.map(|file| (path.to_owned(), Mutex::new(file)))
                .map_err(|e| format!("{}: {e}", path.display()))
        });
        Ok(Rejects {
            file: file.transpose()?,
            most,
            count: AtomicU64::new(0),
            bar,
        })
    }

    /// As NDJSON that can be mended and sent again: each flow's text as it was, and why not.
    pub(super) fn write(&self, place: &str, flows: &[String], why: &str) -> Result<(), String> {
        let before = self.count.fetch_add(flows.len() as u64, Ordering::Relaxed);
        if before < SHOWN_MAX {
            self.bar
                .suspend(|| say(&format!("refused: {place}: {why}")));
        }
        if let Some((_, file)) = &self.file {
            let mut lines = String::new();
            for flow in flows {
                let line = serde_json::json!({ "flow": flow, "place": place, "why": why });
                lines += &format!("{line}\n");
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

    pub(super) fn sync(&self) -> Result<(), String> {
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

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// What a command that did all it could has to say of them.
    pub(super) fn verdict(&self) -> Result<(), String> {
        match (self.count(), &self.file) {
            (0, _) => Ok(()),
            (n, Some((path, _))) => Err(format!(
                "{n} flows were refused; they are in {}",
                path.display()
            )),
            (n, None) => Err(format!("{n} flows were refused; --rejects FILE keeps them")),
        }
    }
}

fn not_written(error: std::io::Error) -> String {
    format!("cannot write what was refused: {error}")
}
