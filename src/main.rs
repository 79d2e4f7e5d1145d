//! The `flowtally` command. The library does the work; this file sets the exit status.

use std::process::ExitCode;

/// For the whole process, RocksDB included: the system's allocator keeps freed memory, in an arena for each thread.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    let (cli, settings) = match flowtally::config::parse(std::env::args_os()) {
        Ok(parsed) => parsed,
        // Wrong arguments, with status 2; or requested output, such as --help.
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
