//! The `flowtally` command. Everything is in the library; this is its exit status.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match flowtally::cli::run(flowtally::config::Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flowtally: {error}");
            ExitCode::FAILURE
        }
    }
}
