//! The commands of an agent, and what other commands share with them.

pub mod connect;
mod drain;
pub mod identity;
mod output;
pub mod rejects;
mod resumed;
pub mod send;
pub mod signals;
pub mod source;

pub use output::{batches, exit, fail, output, print, say, write, written};
