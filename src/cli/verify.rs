//! `flowtally verify`.

use crate::config::Verify;
use crate::store;

pub(super) fn run(arguments: &Verify) -> Result<(), String> {
    let dir = arguments.data_dir.path.as_path();
    let verified = store::verify(dir).map_err(|e| e.to_string())?;
    for fault in &verified.faults {
        eprintln!("{fault}");
    }
    let read = format!(
        "{} hours, {} flows in {} rows, and {} batches in the journal",
        verified.hours, verified.flows, verified.rows, verified.journal_batches
    );
    match verified.faults.len() {
        0 => {
            println!("{read}: all as the ledger has it");
            Ok(())
        }
        faults => Err(format!(
            "{faults} faults in {read}; restore a backup, and check the disk"
        )),
    }
}
