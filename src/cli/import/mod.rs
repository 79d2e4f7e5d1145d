//! `flowtally import`.

mod into_store;
mod parquet_file;

use std::path::Path;

use crate::config::{DataLocation, Import};
use agent::arguments::{Send, ServiceUrl};
use agent::command::rejects::Rejects;
use agent::command::send::{self, SendSession, SendTotals};
use agent::command::{print_result, progress, source};

/// Flows in a batch that is sent to a service.
const BATCH_FLOWS: u32 = 10_000;

pub(super) fn run(arguments: &Import) -> Result<(), String> {
    // First check all names, so that a wrong one does not leave an import half done.
    let lengths: Vec<Option<u64>> = arguments
        .files
        .iter()
        .map(|path| source::validate_input(path, &arguments.input))
        .collect::<Result<_, _>>()?;
    let apps = source::load_apps(&arguments.input)?;
    let are_files = lengths.iter().all(Option::is_some);
    let bar = progress::input_bar(lengths.into_iter().sum());
    let rejects = arguments.input.rejects.as_deref();
    let rejects = Rejects::open(rejects, are_files, arguments.max_rejects, bar.clone())?;
    match &arguments.location {
        DataLocation::Stopped(dir) => into_store::run(arguments, dir, apps, &rejects, &bar),
        DataLocation::Service(url) => {
            let session = SendSession::new(apps, rejects, bar)?;
            send_all(
                arguments,
                url,
                &session.with_conversion(parquet_file::convert),
            )
        }
    }
}

/// Sends the files in order, up to the first that cannot be sent.
fn send_all(arguments: &Import, url: &str, session: &SendSession) -> Result<(), String> {
    let mut all = SendTotals::default();
    let result = arguments.files.iter().try_for_each(|file| {
        let (sent, result) = session.send(&as_send(arguments, url, file));
        all.add(sent.unwrap_or_default());
        result
    });
    session.bar.finish_and_clear();
    print_result(&all.to_string(session.rejects.count()));
    session.rejects.sync()?;
    result?;
    let again = send::command(&as_send(arguments, url, Path::new("-")));
    session.rejects.verdict(all.has_counted(), &again)
}

fn as_send(arguments: &Import, url: &str, file: &Path) -> Send {
    Send {
        file: file.to_owned(),
        service: ServiceUrl {
            url: url.to_owned(),
        },
        input: arguments.input.clone(),
        batch_flows: BATCH_FLOWS,
        spool: None,
        spool_max: 0,
        retry: arguments.retry.clone(),
        no_compress: false,
        credentials: arguments.credentials.clone(),
    }
}
