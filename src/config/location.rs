//! Where a command finds what is stored: a running service, or the directory of a stopped one.
//!
//! Each can be a flag or a variable, and the directory also a key of the file. What is said more
//! plainly counts: a flag of the one before a variable of the other, a variable before the file. Where
//! neither is said, it is the service that runs on this machine, as for commands that know no directory.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

use super::ConfigFile;
use agent::arguments::DEFAULT_URL;

/// A running service or a stopped one's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// Its URL.
    Service(String),
    /// Its data directory.
    Stopped(PathBuf),
}

#[derive(Debug, Args)]
#[group(skip)]
struct Flags {
    /// The running service. [default without --data-dir: http://127.0.0.1:8080]
    #[arg(long, env = "FLOWTALLY_URL", value_name = "URL")]
    url: Option<String>,

    /// The data directory of a service that is stopped, instead of --url.
    #[arg(long, env = "FLOWTALLY_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    _file: ConfigFile,
}

impl FromArgMatches for Location {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Location, Error> {
        let wrong = |kind, what: &str| Err(Error::raw(kind, format!("{what}\n")));
        let [by_url, by_dir] = ["url", "data_dir"].map(|id| matches.value_source(id));
        match Flags::from_arg_matches(matches)? {
            Flags { url: Some(url), .. } if by_url > by_dir => Ok(Location::Service(url)),
            Flags {
                data_dir: Some(dir),
                ..
            } if by_dir > by_url => Ok(Location::Stopped(dir)),
            _ if by_url == Some(ValueSource::CommandLine) => wrong(
                ErrorKind::ArgumentConflict,
                "--url cannot be used with --data-dir: a service is running, or it is stopped",
            ),
            _ if by_url.is_some() => wrong(
                ErrorKind::ArgumentConflict,
                "FLOWTALLY_URL and FLOWTALLY_DATA_DIR are both set: give --url or --data-dir",
            ),
            _ => Ok(Location::Service(DEFAULT_URL.into())),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Location::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for Location {
    fn augment_args(command: Command) -> Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args_for_update(command)
    }
}
