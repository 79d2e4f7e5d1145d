//! `flowtally backup`.

use super::connect;
use crate::backup::{self, Source};
use crate::config::{Backup, Place};

pub(super) fn run(arguments: &Backup) -> Result<(), String> {
    let source = match &arguments.place {
        Place::Service(url) => Source::Service(connect::client(url, &arguments.credentials)?),
        Place::Stopped(dir) => Source::Stopped(dir.clone()),
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
    super::print(&format!(
        "{}: {} files, {} bytes, of which {} are new{removed}",
        taken.path.display(),
        taken.files,
        taken.bytes,
        taken.bytes_fetched,
    ));
    Ok(())
}
