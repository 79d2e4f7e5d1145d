//! `flowtally restore`.

use super::verify;
use crate::backup;
use crate::config::{AnswerFormat, Restore};
use agent::command::{eprint_line, progress};

pub(super) fn run(arguments: &Restore) -> Result<(), String> {
    let bar = progress::byte_bar();
    let restored = backup::restore(&arguments.from, &arguments.data_dir, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let restored = restored.map_err(|e| e.to_string())?;
    if let Some(torn) = &restored.torn {
        eprint_line(&format!("flowtally: {torn}"));
    }
    agent::command::print_result(&format!(
        "{} bytes restored from {}",
        restored.bytes,
        restored.from.display()
    ));
    verify::report(&restored.verified, AnswerFormat::Table)
}
