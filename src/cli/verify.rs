//! `flowtally verify`.

use serde::Serialize;

use crate::config::{AnswerFormat, Verify};
use crate::store::{self, Verified};

pub(super) fn run(arguments: &Verify) -> Result<(), String> {
    let dir = arguments.data_dir.path.as_path();
    let verified = store::verify(dir).map_err(|e| e.to_string())?;
    report(&verified, arguments.format)
}

/// What was verified, for programs.
#[derive(Debug, Serialize)]
struct Counts {
    hours: u64,
    flows: u64,
    rows: u64,
    spans: u64,
    journal_batches: u64,
    faults_found: u64,
    /// The first ones, as text.
    faults: Vec<String>,
}

/// Prints the totals of a verification. Faults are an error.
pub(super) fn report(verified: &Verified, format: AnswerFormat) -> Result<(), String> {
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
    match format {
        AnswerFormat::Table if verified.faults_found > 0 => {}
        AnswerFormat::Table => {
            agent::command::print_result(&format!("{read}: all as the ledger has it"));
        }
        AnswerFormat::Json => agent::command::write_stdout(json(verified).as_bytes())?,
        AnswerFormat::Csv => agent::command::write_stdout(csv(verified).as_bytes())?,
    }
    match verified.faults_found {
        0 => Ok(()),
        faults => Err(format!(
            "{faults} faults in {read}; keep this directory, restore a backup into another one, and check the disk"
        )),
    }
}

fn json(verified: &Verified) -> String {
    let counts = Counts {
        hours: verified.hours,
        flows: verified.flows,
        rows: verified.rows,
        spans: verified.spans,
        journal_batches: verified.journal_batches,
        faults_found: verified.faults_found,
        faults: verified.faults.iter().map(ToString::to_string).collect(),
    };
    // Strings and integers always serialise.
    serde_json::to_string(&counts).unwrap_or_default() + "\n"
}

/// Numbers need no quotes.
fn csv(verified: &Verified) -> String {
    format!(
        "hours,flows,rows,spans,journal_batches,faults_found\n{},{},{},{},{},{}\n",
        verified.hours,
        verified.flows,
        verified.rows,
        verified.spans,
        verified.journal_batches,
        verified.faults_found
    )
}
