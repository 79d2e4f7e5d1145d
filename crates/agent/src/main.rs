//! The `flowtally-agent` command.

use std::process::ExitCode;

use agent::arguments::{AgentCommand, Completions, Man};
use agent::command::{self, manual, signals};
use agent::examples;
use clap::{CommandFactory, Parser, Subcommand};

/// Sends network flows to a flowtally service: those of this host's connections, or of files and pipes. Each flow
/// counts once.
#[derive(Debug, Parser)]
#[command(name = "flowtally-agent", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    #[command(flatten)]
    Agent(AgentCommand),
    /// Print the completions for a shell.
    ///
    /// Exit status: 0 when they are printed, 1 with a line that explains why not.
    #[command(after_help = examples::COMPLETIONS)]
    Completions(Completions),
    /// Print the manual page, or write one for each command into a directory.
    ///
    /// Exit status: 0 when everything is written, 1 with a line that explains why not.
    #[command(after_help = examples::MAN)]
    Man(Man),
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => command::exit(&error),
    };
    let result = signals::ignore_file_size_limit().and_then(|()| run(&cli.command));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            command::fail(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(command: &Command) -> Result<(), String> {
    match command {
        Command::Agent(agent) => command::run(agent),
        Command::Completions(arguments) => manual::completions(Cli::command(), arguments),
        Command::Man(arguments) => manual::pages(Cli::command(), arguments),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn each_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().to_str().unwrap();
        let cli = Cli::try_parse_from(["flowtally-agent", "man", "--out", out]).unwrap();
        run(&cli.command).unwrap();
        assert!(dir.path().join("flowtally-agent.1").exists());
        for command in Cli::command().get_subcommands() {
            let page = format!("flowtally-agent-{}.1", command.get_name());
            let text = std::fs::read_to_string(dir.path().join(&page)).unwrap();
            assert!(text.contains(".SH EXAMPLES\n"), "{page}");
        }
    }

    #[test]
    fn the_examples_are_valid() {
        for command in Cli::command().get_subcommands() {
            let lines = command.get_after_help().unwrap().to_string();
            let (heading, lines) = lines.split_once('\n').unwrap();
            assert_eq!(heading, examples::HEADING);
            for line in lines.lines() {
                let start = line.find("flowtally-agent").unwrap();
                let own = line[start..].split(" | ").next().unwrap();
                let words = own.split_whitespace().filter(|word| !word.starts_with('>'));
                Cli::try_parse_from(words).unwrap_or_else(|e| panic!("{line}: {e}"));
            }
        }
    }
}
