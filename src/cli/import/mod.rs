//! `flowtally import`.

mod into_store;

use std::path::Path;

use crate::config::{Import, Location};
use agent::arguments::Send;
use agent::command::rejects::Rejects;
use agent::command::send::{Sending, Sent};
use agent::command::{print, source};

/// Flows in a batch that is sent to a service.
const BATCH_FLOWS: u32 = 10_000;

pub(super) fn run(arguments: &Import) -> Result<(), String> {
    // Before anything is imported, so that a wrong name does not leave an import half done.
    let rejects = arguments.input.rejects.as_deref();
    let lengths: Vec<Option<u64>> = arguments
        .files
        .iter()
        .map(|path| source::check(path, rejects))
        .collect::<Result<_, _>>()?;
    let apps = source::apps(&arguments.input)?;
    let are_files = lengths.iter().all(Option::is_some);
    let bar = source::progress(lengths.into_iter().sum());
    let rejects = Rejects::open(rejects, are_files, arguments.max_rejects, bar.clone())?;
    match &arguments.location {
        Location::Stopped(dir) => into_store::run(arguments, dir, apps, &rejects, &bar),
        Location::Service(url) => send_all(arguments, url, &Sending::new(apps, rejects, bar)?),
    }
}

/// Sends the files in order, up to the first that cannot be sent.
fn send_all(arguments: &Import, url: &str, sending: &Sending) -> Result<(), String> {
    let mut all = Sent::default();
    let result = arguments.files.iter().try_for_each(|file| {
        let (sent, result) = sending.send(&as_send(arguments, url, file));
        all.add(sent.unwrap_or_default());
        result
    });
    sending.bar.finish_and_clear();
    print(&all.to_string(sending.rejects.count()));
    sending.rejects.sync()?;
    result?;
    sending.rejects.verdict(all.has_counted())
}

fn as_send(arguments: &Import, url: &str, file: &Path) -> Send {
    Send {
        file: file.to_owned(),
        url: url.to_owned(),
        input: arguments.input.clone(),
        batch_flows: BATCH_FLOWS,
        spool: None,
        spool_max: 0,
        retry: arguments.retry.clone(),
        no_compress: false,
        credentials: arguments.credentials.clone(),
    }
}
