//! The `flowtally` command. Everything is in the library; this is its exit status.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let (cli, settings) = match flowtally::config::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        // Wrong arguments: status 2; or what was asked for, as --help.
        Err(error) => error.exit(),
    };
    match flowtally::cli::run(cli, &settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Whoever does not read it has closed it; the status says it too.
            let _best_effort = writeln!(std::io::stderr(), "flowtally: {error}");
            ExitCode::FAILURE
        }
    }
}
