//! The agent's commands, and the code that other commands share with them.

mod checked;
pub mod connect;
mod drain;
pub mod identity;
mod output;
pub mod progress;
pub mod rejects;
mod resumed;
pub mod send;
pub mod signals;
pub mod source;

pub use crate::delivery::shell_word;
pub use output::{
    batches, eprint_line, exit, fail, print_result, stdout, stdout_result, write_stdout,
};
