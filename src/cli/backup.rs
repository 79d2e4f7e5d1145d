//! `flowtally backup`.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use signal_hook::iterator::Signals;

use super::serve;
use crate::backup::{self, BackupSource, RemoteSession};
use crate::config::{Backup, DataLocation};
use agent::command::{connect, eprint_line, progress, signals};

/// Longest wait for a service that does not respond, after a signal.
const SESSION_END_TIME_MAX: Duration = Duration::from_secs(2);

pub(super) fn run(arguments: &Backup) -> Result<(), String> {
    let source = match &arguments.location {
        DataLocation::Service(url) => {
            BackupSource::Service(connect::client(url, &arguments.credentials)?)
        }
        DataLocation::Stopped(dir) => BackupSource::Directory(dir.clone()),
    };
    let keep = arguments.keep.map(|n| n as usize);
    let session = Arc::new(RemoteSession::default());
    end_at_signal(session.clone()).map_err(|e| format!("cannot start: {e}"))?;
    let bar = progress::byte_bar();
    let taken = backup::create(source, &arguments.to, keep, &session, |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    });
    bar.finish_and_clear();
    let taken = taken.map_err(|e| e.to_string())?;
    let removed = match taken.removed {
        0 => String::new(),
        n => format!("; older backups removed: {n}"),
    };
    if taken.of_the_future {
        eprint_line(
            "flowtally: the previous backup's name is in the future, so this one's is too; check the clock",
        );
    }
    agent::command::print_result(&format!(
        "{}: {} files, {} bytes, of which {} are new{removed}",
        taken.path.display(),
        taken.files,
        taken.bytes,
        taken.bytes_fetched,
    ));
    Ok(())
}

/// Ends the process at a signal, when the service has ended the backup session or does not respond. A second signal
/// ends it immediately.
fn end_at_signal(session: Arc<RemoteSession>) -> io::Result<()> {
    serve::end_at_second_signal()?;
    let mut signals = Signals::new(signals::ending())?;
    let wait = move || {
        if let Some(signal) = signals.forever().next() {
            let end = move || {
                eprint_line("flowtally: stopped; the next backup removes this incomplete one");
                std::process::exit(128 + signal);
            };
            let end_anyhow = move || {
                std::thread::sleep(SESSION_END_TIME_MAX);
                end();
            };
            let _best_effort = std::thread::Builder::new().spawn(end_anyhow);
            session.end_then(end);
        }
    };
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(wait)?;
    Ok(())
}
