//! `flowtally backup`.

use std::io::{self, Write};

use super::connect;
use crate::backup::{self, Source};
use crate::config::Backup;

pub(super) fn run(arguments: &Backup) -> Result<(), String> {
    let source = match (&arguments.place.url, &arguments.place.data_dir) {
        (Some(url), _) => Source::Service(connect::client(url, &arguments.credentials)?),
        (None, Some(dir)) => Source::Stopped(dir.clone()),
        (None, None) => return Err("give --url or --data-dir".into()),
    };
    let keep = arguments.keep.map(|n| n as usize);
    let bar = connect::byte_bar();
    let taken = backup::take(source, &arguments.to, keep, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let taken = taken.map_err(|e| e.to_string())?;
    let removed = match taken.removed {
        0 => String::new(),
        n => format!("; older backups removed: {n}"),
    };
    // The exit status says it too.
    let _best_effort = writeln!(
        io::stdout(),
        "{}: {} files, {} bytes, of which {} are new{removed}",
        taken.path.display(),
        taken.files,
        taken.bytes,
        taken.bytes_fetched,
    );
    Ok(())
}
