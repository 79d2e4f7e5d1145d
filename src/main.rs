//! The `flowtally` command. Everything is in the library; this is its exit status.

use std::process::ExitCode;

/// For everything in the process, RocksDB included: the system's keeps what is freed, in an arena for each
/// thread.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let (cli, settings) = match flowtally::config::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        // Wrong arguments: status 2; or what was asked for, as --help.
        Err(error) => agent::command::exit(&error),
    };
    match flowtally::cli::run(cli, &settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            agent::command::fail(&error);
            ExitCode::FAILURE
        }
    }
}
