//! `flowtally restore`.

use super::{connect, verify};
use crate::backup;
use crate::config::Restore;

pub(super) fn run(arguments: &Restore) -> Result<(), String> {
    let bar = connect::byte_bar();
    let restored = backup::restore(&arguments.from, &arguments.data_dir, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let restored = restored.map_err(|e| e.to_string())?;
    super::print(&format!(
        "{} bytes restored from {}",
        restored.bytes,
        restored.from.display()
    ));
    verify::report(&restored.verified)
}
