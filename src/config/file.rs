//! Settings from a TOML file, whose keys are the long flags of `flowtally serve`. The command line and the environment
//! override the file, and the file overrides the defaults. So the file's values *become* clap's defaults, and clap
//! alone decides which value applies. Another command can use the same file; it reads only its own settings.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use clap::builder::Resettable;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command, CommandFactory, FromArgMatches};
use toml::{Table, Value};

use super::{Cli, tips};
use agent::terminal::{printable, printable_lines};

/// Flags that cannot be in the file.
const NOT_IN_FILE: [&str; 4] = ["config", "print-config", "help", "version"];
/// The command whose settings the file has.
const SERVICE: &str = "serve";
/// The source of a default.
const DEFAULT: &str = "default";

/// Parses the command line, with the environment and the file.
///
/// # Errors
/// An error that is safe to print; or a request for help or the version, which clap prints.
pub fn parse(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(Cli, Settings), clap::Error> {
    understand(arguments).map_err(escaped)
}

/// Escapes control sequences in the arguments that `error` contains. clap prints them unchanged, and without colours it
/// removes text that looks like a colour sequence.
fn escaped(mut error: clap::Error) -> clap::Error {
    let of_text = |text: &String| printable(text).into_owned();
    let of_context = |(kind, value): (ContextKind, &ContextValue)| match value {
        ContextValue::String(text) => Some((kind, ContextValue::String(of_text(text)))),
        ContextValue::Strings(texts) => {
            let texts = texts.iter().map(of_text).collect();
            Some((kind, ContextValue::Strings(texts)))
        }
        _ => None,
    };
    let context: Vec<_> = error.context().filter_map(of_context).collect();
    for (kind, value) in context {
        error.insert(kind, value);
    }
    error
}

fn understand(
    arguments: impl IntoIterator<Item = OsString>,
) -> Result<(Cli, Settings), clap::Error> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let mut command = without_empty_variables(Cli::command());
    let matches = command.clone().try_get_matches_from(&arguments);
    let mut matches = matches.map_err(|error| tips::add(error, &arguments, command.clone()))?;
    let path = file_of(&matches);
    if let Some(path) = &path {
        let fail = |what: &dyn fmt::Display| {
            // The text may contain a line of the file. clap removes text that looks like a colour sequence.
            let what = format!("{}: {what}\n", printable(&path.display().to_string()));
            let what = printable_lines(&what);
            clap::Error::raw(ErrorKind::ValueValidation, what)
        };
        let name = matches.subcommand_name().unwrap_or_default();
        let text = std::fs::read_to_string(path).map_err(|e| fail(&e))?;
        let table: Table = text.parse().map_err(|e| fail(&e))?;
        let no_command = || fail(&"for no command");
        let service = command.find_subcommand(SERVICE).ok_or_else(no_command)?;
        let service = service.clone();
        let subcommand = command.find_subcommand_mut(name).ok_or_else(no_command)?;
        *subcommand = with_defaults(subcommand.clone(), &service, &table).map_err(|e| fail(&e))?;
        let again = command.clone().try_get_matches_from(&arguments);
        // Without the file it was valid, so the error is in the file.
        matches = again.map_err(|e| {
            let text = escaped(e).to_string();
            fail(&text.trim_start_matches("error: "))
        })?;
    }
    let cli = Cli::from_arg_matches(&matches)?;
    let settings = Settings {
        command,
        matches,
        file: path,
    };
    settings.validate_cluster()?;
    Ok((cli, settings))
}

fn file_of(matches: &ArgMatches) -> Option<PathBuf> {
    let (_, matches) = matches.subcommand()?;
    matches.try_get_one::<PathBuf>("config").ok()?.cloned()
}

/// Makes clap ignore variables that are empty.
fn without_empty_variables(command: Command) -> Command {
    let is_empty = |name: &OsStr| std::env::var_os(name).is_some_and(|value| value.is_empty());
    command.mut_subcommands(|command| {
        command.mut_args(|argument| match argument.get_env() {
            Some(name) if is_empty(name) => argument.env(Resettable::Reset),
            _ => argument,
        })
    })
}

/// The command, with the values of `table`, which are settings of `service`, as its defaults.
fn with_defaults(
    mut command: Command,
    service: &Command,
    table: &Table,
) -> Result<Command, String> {
    for (key, value) in table {
        if setting(service, key).is_none() {
            return Err(format!(
                "{key:?} is not a setting; settings are the long flags of flowtally {SERVICE}, such as {}",
                example(service)
            ));
        }
        let Some(argument) = setting(&command, key) else {
            continue; // the service's alone
        };
        let is_flag = matches!(argument.get_action(), ArgAction::SetTrue);
        let text = match value {
            Value::Boolean(yes) if is_flag => yes.to_string(),
            _ if is_flag => return Err(format!("{key} is true or false")),
            Value::String(text) => text.clone(),
            Value::Integer(number) => number.to_string(),
            _ => return Err(format!("{key} is a string or an integer")),
        };
        let id = argument.get_id().clone();
        command = command.mut_arg(id, |argument| argument.default_value(text));
    }
    Ok(command)
}

/// The argument that `key` sets.
fn setting<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    command
        .get_arguments()
        .find(|argument| argument.get_long() == Some(key) && !NOT_IN_FILE.contains(&key))
}

fn example(command: &Command) -> String {
    let settings = command.get_arguments().filter_map(Arg::get_long);
    let some: Vec<_> = settings
        .filter(|name| !NOT_IN_FILE.contains(name))
        .take(3)
        .collect();
    some.join(", ")
}

/// The source of each value of a command.
#[derive(Debug)]
pub struct Settings {
    command: Command,
    matches: ArgMatches,
    file: Option<PathBuf>,
}

impl Settings {
    /// Refuses flags of a cluster node without `kafka-brokers`, instead of ignoring them. (clap's `requires` looks at
    /// the command line and the environment only, but here the value may be in the file.)
    fn validate_cluster(&self) -> Result<(), clap::Error> {
        let Some((SERVICE, matches)) = self.matches.subcommand() else {
            return Ok(());
        };
        // An error without the feature `kafka`: then there is no such argument.
        if matches!(matches.try_get_raw("kafka_brokers"), Ok(Some(_))) {
            return Ok(());
        }
        let cluster = <super::Cluster as clap::Args>::augment_args(Command::new(SERVICE));
        for argument in cluster.get_arguments() {
            let id = argument.get_id().as_str();
            let source = source(argument, matches.value_source(id), self.file.as_deref());
            // A default may be given explicitly.
            let given = matches.get_raw(id).is_some_and(|given| {
                !given.eq(argument.get_default_values().iter().map(|v| v.as_os_str()))
            });
            if given && source != DEFAULT {
                let flag = argument.get_long().unwrap_or_default();
                let what = format!(
                    "{source}: {flag} is for a node of a cluster, and needs kafka-brokers\n"
                );
                return Err(clap::Error::raw(ErrorKind::MissingRequiredArgument, what));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Settings {
    /// Prints TOML that can be used as a file again, with the source of each value.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some((name, matches)) = self.matches.subcommand() else {
            return Ok(());
        };
        let Some(command) = self.command.find_subcommand(name) else {
            return Ok(());
        };
        writeln!(
            f,
            "# flowtally {name}: the command line comes first, then the environment, --config and defaults"
        )?;
        for argument in command.get_arguments() {
            let Some(key) = argument.get_long().filter(|key| !NOT_IN_FILE.contains(key)) else {
                continue;
            };
            let id = argument.get_id().as_str();
            let raw = matches.get_raw(id).and_then(|mut raw| raw.next_back());
            let Some(raw) = raw else {
                writeln!(f, "# {key} is not set")?;
                continue;
            };
            let source = source(argument, matches.value_source(id), self.file.as_deref());
            // It may contain passwords.
            if argument.is_hide_env_values_set() {
                writeln!(f, "# {key} is set, and not shown # {source}")?;
                continue;
            }
            let value = match argument.get_action() {
                ArgAction::SetTrue => Value::Boolean(matches.get_flag(id)),
                _ => value(&raw.to_string_lossy()),
            };
            let setting = format!("{key} = {value}");
            writeln!(f, "{setting:40} # {source}")?;
        }
        Ok(())
    }
}

fn value(text: &str) -> Value {
    match text.parse() {
        Ok(number) if i64::to_string(&number) == text => Value::Integer(number),
        _ => Value::String(text.to_owned()),
    }
}

fn source(argument: &Arg, source: Option<ValueSource>, file: Option<&Path>) -> String {
    let flag = argument.get_long().unwrap_or_default();
    match (source, argument.get_env(), file) {
        (Some(ValueSource::CommandLine), _, _) => format!("--{flag}"),
        (Some(ValueSource::EnvVariable), Some(name), _) => name.to_string_lossy().into_owned(),
        (_, _, Some(file)) if file_has(file, flag) => file.display().to_string(),
        _ => DEFAULT.into(),
    }
}

/// The file has been read and validated by now.
fn file_has(file: &Path, key: &str) -> bool {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    text.parse::<Table>().is_ok_and(|t| t.contains_key(key))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::config::Command as Flowtally;

    pub(in crate::config) fn parse_with(
        file: &str,
        arguments: &[&str],
    ) -> Result<(Cli, Settings), String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flowtally.toml");
        std::fs::write(&path, file).unwrap();
        let all = ["flowtally", "serve", "--config"].map(OsString::from);
        let rest = arguments.iter().map(OsString::from);
        let all = all.into_iter().chain([path.into_os_string()]).chain(rest);
        parse(all).map_err(|e| e.to_string())
    }

    #[test]
    fn the_command_line_wins_over_the_file_and_the_file_over_defaults() {
        let file = "listen = \"127.0.0.1:1\"\nmemory-max = 256\nallow-anonymous = true\n";
        let (cli, _) = parse_with(file, &["--listen", "127.0.0.1:2"]).unwrap();
        let Flowtally::Serve(serve) = cli.command else {
            panic!("another command")
        };
        assert_eq!(serve.listen, "127.0.0.1:2");
        assert_eq!((serve.memory_max, serve.allow_anonymous), (256, true));
        assert_eq!(serve.body_max, None);
    }

    #[test]
    fn errors_in_the_file_are_named() {
        for (file, words) in [
            ("lisen = \"x\"", "\"lisen\" is not a setting"),
            ("memory-max = 1", "invalid value '1' for '--memory-max"),
            ("memory-max = 1.5", "memory-max is a string or an integer"),
            (
                "allow-anonymous = \"yes\"",
                "allow-anonymous is true or false",
            ),
            ("listen = ", "line 1"),
            ("config = \"x\"", "\"config\" is not a setting"),
        ] {
            let error = parse_with(file, &[]).unwrap_err();
            assert!(error.contains(words), "{error}");
            assert!(error.contains("flowtally.toml: "), "{error}");
        }
        let error = parse(["flowtally", "serve", "--config", "/nowhere"].map(OsString::from));
        assert!(error.unwrap_err().to_string().contains("/nowhere: "));
    }
}
