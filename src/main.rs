//! The `flowtally` command. Everything is in the library; this is its exit status.

use std::process::ExitCode;

fn main() -> ExitCode {
    let (cli, settings) = match flowtally::config::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        // Wrong arguments: status 2; or what was asked for, as --help.
        Err(error) => flowtally::cli::exit(&error),
    };
    match flowtally::cli::run(cli, &settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            flowtally::cli::fail(&error);
            ExitCode::FAILURE
        }
    }
}
