//! The sending side: reads network flows from files and pipes and delivers them to a flowtally service, each
//! counted once. The daemon's commands and the `flowtally-agent` binary use this crate.
//!
//! - [`inputs`] reads flows from files and pipes in all supported formats.
//! - `delivery` sends flows in batches with idempotency keys, and spools batches that the service has not
//!   accepted yet.
//! - [`watch`] reports the connections of this host, [`listen`] what routers and switches export; `report` is what both
//!   share.
//! - [`client`] is the HTTP client of a running service, with proxy and TLS support.
//! - [`command`] implements `send` and the code that other commands share with it; [`arguments`] and
//!   [`units`] parse its command line, of which [`examples`] has examples.
//! - [`durable`] writes files and directories that survive a power failure; [`terminal`] escapes untrusted
//!   text.

pub mod inputs;

mod delivery;

pub mod client;

mod report;

pub mod listen;
pub mod watch;

pub mod arguments;
pub mod command;
pub mod examples;
pub mod units;

pub mod durable;
pub mod terminal;
