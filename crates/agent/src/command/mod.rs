//! The agent's commands, and the code that other commands share with them.

mod checked;
pub mod connect;
mod drain;
pub mod identity;
pub mod manual;
mod output;
pub mod progress;
pub mod rejects;
mod resumed;
pub mod send;
pub mod signals;
pub mod source;

use crate::arguments::AgentCommand;
pub use crate::delivery::shell_word;
pub use output::{
    batches, eprint_line, exit, fail, print_result, refuse_terminal, stdout, stdout_result,
    write_stdout,
};

/// Runs a command of the agent. An error is text for the user.
pub fn run(command: &AgentCommand) -> Result<(), String> {
    match command {
        AgentCommand::Send(arguments) => send::run(arguments),
        AgentCommand::Watch(arguments) => crate::watch::run(arguments),
        AgentCommand::Listen(arguments) => crate::listen::run(arguments),
    }
}
