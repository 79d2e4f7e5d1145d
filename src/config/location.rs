//! The location of the stored flows: a running service, or the data directory of a stopped one.
//!
//! Both can be given as a flag or a variable, and the directory also in the file. The more explicit one applies: a flag
//! overrides the other's variable, and a variable overrides the file. Without any, it is the service on this machine,
//! as for commands that have no --data-dir.

use std::path::PathBuf;

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{ArgMatches, Args, Command, Error, FromArgMatches};

use super::ConfigFile;
use agent::arguments::DEFAULT_URL;

/// A running service, or the data directory of a stopped one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DataLocation {
    /// Its URL.
    Service(String),
    /// Its data directory.
    Stopped(PathBuf),
}

#[derive(Debug, Args)]
#[group(skip)]
struct Flags {
    /// URL of the running service. [default without --data-dir: http://127.0.0.1:8080]
    #[arg(long, env = "FLOWTALLY_URL", value_name = "URL")]
    url: Option<String>,

    /// Data directory of a stopped service, instead of --url.
    #[arg(long, env = "FLOWTALLY_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,

    #[command(flatten)]
    _file: ConfigFile,
}

impl FromArgMatches for DataLocation {
    fn from_arg_matches(matches: &ArgMatches) -> Result<DataLocation, Error> {
        let wrong = |kind, what: &str| Err(Error::raw(kind, format!("{what}\n")));
        let [by_url, by_dir] = ["url", "data_dir"].map(|id| matches.value_source(id));
        match Flags::from_arg_matches(matches)? {
            Flags { url: Some(url), .. } if by_url > by_dir => Ok(DataLocation::Service(url)),
            Flags {
                data_dir: Some(dir),
                ..
            } if by_dir > by_url => Ok(DataLocation::Stopped(dir)),
            _ if by_url == Some(ValueSource::CommandLine) => wrong(
                ErrorKind::ArgumentConflict,
                "--url cannot be used with --data-dir: a service is running, or it is stopped",
            ),
            _ if by_url.is_some() => wrong(
                ErrorKind::ArgumentConflict,
                "FLOWTALLY_URL and FLOWTALLY_DATA_DIR are both set: give --url or --data-dir",
            ),
            _ => Ok(DataLocation::Service(DEFAULT_URL.into())),
        }
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = DataLocation::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for DataLocation {
    fn augment_args(command: Command) -> Command {
        Flags::augment_args(command)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Flags::augment_args_for_update(command)
    }
}
