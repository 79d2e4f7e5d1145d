//! The `flowtally` command. Everything is in the library; this is its exit status.

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match flowtally::cli::run(flowtally::config::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever does not read it has closed it; the status says it too.
            let _best_effort = writeln!(std::io::stderr(), "flowtally: {error}");
            ExitCode::FAILURE
        }
    }
}
