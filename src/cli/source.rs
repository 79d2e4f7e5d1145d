//! Files and pipes that flows are read from.

use std::fs::{File, Metadata};
use std::io::{self, IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Once};

use indicatif::{ProgressBar, ProgressStyle};

use super::say;
use crate::config::Input;
use crate::input::{Apps, Reader, Skipped};

/// Whether the command has said already that sums may not be what was meant.
static WARNED: Once = Once::new();

/// What is read.
pub(super) struct Source {
    input: Box<dyn Read + Send>,
    /// Names a file that can be read again and is the same; a pipe cannot.
    pub(super) identity: Option<String>,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Source, String> {
        if path.as_os_str() == "-" {
            return Ok(Source {
                input: Box::new(io::stdin()),
                identity: None,
            });
        }
        let cannot = |e: io::Error| format!("{}: {e}", path.display());
        let file = File::open(path).map_err(cannot)?;
        let data = file.metadata().map_err(cannot)?;
        check_kind(path, &data)?;
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
            identity,
        })
    }

    /// The same, read through what `wrap` makes of it.
    pub(super) fn through(
        self,
        wrap: impl FnOnce(Box<dyn Read + Send>) -> Box<dyn Read + Send>,
    ) -> Source {
        Source {
            input: wrap(self.input),
            ..self
        }
    }

    /// A reader of its flows, which moves the bar.
    pub(super) fn reader(
        self,
        input: &Input,
        apps: &Arc<Apps>,
        bar: &ProgressBar,
    ) -> Reader<impl Read + Send + use<>> {
        let format = input.format.map(Into::into);
        let warn_bar = bar.clone();
        Reader::new(bar.wrap_read(self.input), format)
            .with_apps(apps.clone())
            .with_count(input.count.into())
            .with_warning(move |what| {
                // Once a command, of however many files.
                WARNED.call_once(|| warn_bar.suspend(|| say(&format!("warning: {what}"))));
            })
    }
}

fn check_kind(path: &Path, data: &Metadata) -> Result<(), String> {
    if data.is_dir() {
        return Err(format!(
            "{}: is a directory; give a file, or - for a pipe",
            path.display()
        ));
    }
    Ok(())
}

/// Looks at a file without opening it, which would wait for the other end of a named pipe. Returns its
/// length, if it has one.
///
/// # Errors
/// What keeps it from being read; or that it is the file for rejects.
pub(super) fn check(path: &Path, rejects: Option<&Path>) -> Result<Option<u64>, String> {
    if path.as_os_str() == "-" {
        return Ok(None);
    }
    let data = path
        .metadata()
        .map_err(|e| format!("{}: {e}", path.display()))?;
    check_kind(path, &data)?;
    let of_rejects = rejects.and_then(|path| path.metadata().ok());
    let is_same = |other: Metadata| (other.dev(), other.ino()) == (data.dev(), data.ino());
    if data.is_file() && of_rejects.is_some_and(is_same) {
        return Err(format!(
            "{}: --rejects is a file that is read; give it another",
            path.display()
        ));
    }
    Ok(data.is_file().then_some(data.len()))
}

/// A bar for so many bytes, on a terminal; elsewhere nothing is drawn.
pub(super) fn progress(bytes: Option<u64>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, template) = match bytes {
        Some(bytes) => (
            ProgressBar::new(bytes),
            "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {eta} {wide_msg}",
        ),
        None => (
            ProgressBar::no_length(),
            "{spinner} {bytes} {bytes_per_sec} {wide_msg}",
        ),
    };
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

/// The applications in the file of `--apps`, if there is one.
pub(super) fn apps(input: &Input) -> Result<Arc<Apps>, String> {
    let Some(path) = &input.apps else {
        return Ok(Arc::default());
    };
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let apps = Apps::read(file).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Arc::new(apps))
}

/// What to add to a command's result where records were skipped.
pub(super) fn skipped(skipped: &Skipped) -> String {
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
