//! The other end of the line: what hands flows over to a flowtally service, each counted once. A program embeds it,
//! `flowtally-agent` is it as a command, and the service's own commands use it.
//!
//! - [`inputs`] takes flows out of files and pipes, whatever they are written in.
//! - [`delivery`] sends them in batches, each under a key, and keeps in a spool what the service does not take yet.
//! - [`client`] talks to a running service, through a proxy where one is set.
//! - [`command`] is `send`, and what it shares with other commands; [`arguments`] and [`units`] are what they are told.
//! - [`durable`] makes files and directories that outlive a power cut, [`terminal`] escapes what others wrote.

pub mod inputs;

pub mod delivery;

pub mod client;

pub mod arguments;
pub mod command;
pub mod units;

pub mod durable;
pub mod terminal;
