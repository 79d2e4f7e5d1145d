//! `flowtally verify`.

use std::io::{self, Write};

use crate::config::Verify;
use crate::store::{self, Verified};

pub(super) fn run(arguments: &Verify) -> Result<(), String> {
    let dir = arguments.data_dir.path.as_path();
    report(&store::verify(dir).map_err(|e| e.to_string())?)
}

/// Says what was verified; an error where there are faults.
pub(super) fn report(verified: &Verified) -> Result<(), String> {
    for fault in &verified.faults {
        let _best_effort = writeln!(io::stderr(), "{fault}");
    }
    let read = format!(
        "{} hours, {} flows in {} rows, and {} batches in the journal",
        verified.hours, verified.flows, verified.rows, verified.journal_batches
    );
    match verified.faults.len() {
        0 => {
            // The exit status says it too.
            let _best_effort = writeln!(io::stdout(), "{read}: all as the ledger has it");
            Ok(())
        }
        faults => Err(format!(
            "{faults} faults in {read}; restore a backup, and check the disk"
        )),
    }
}
