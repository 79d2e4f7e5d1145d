//! `flowtally verify`.

use crate::config::Verify;
use crate::store::{self, Verified};

pub(super) fn run(arguments: &Verify) -> Result<(), String> {
    let dir = arguments.data_dir.path.as_path();
    report(&store::verify(dir).map_err(|e| e.to_string())?)
}

/// Prints the totals of a verification. Faults are an error.
pub(super) fn report(verified: &Verified) -> Result<(), String> {
    for fault in &verified.faults {
        agent::command::eprint_line(&fault.to_string());
    }
    let read = format!(
        "{} hours, {} flows in {} rows, {} sums of days or of thirty days, and {} batches in the journal",
        verified.hours, verified.flows, verified.rows, verified.spans, verified.journal_batches
    );
    let more = verified.faults_found - verified.faults.len() as u64;
    if more > 0 {
        agent::command::eprint_line(&format!("and {more} more"));
    }
    match verified.faults_found {
        0 => {
            agent::command::print_result(&format!("{read}: all as the ledger has it"));
            Ok(())
        }
        faults => Err(format!(
            "{faults} faults in {read}; keep this directory, restore a backup into another one, and check the disk"
        )),
    }
}
