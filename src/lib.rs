//! flowtally takes network flows from a fleet of agents over HTTP and answers, per hour, how many
//! bytes went between which applications. This is the map of its one crate, in the order in which
//! a flow passes through it. Arrows run downwards only: a test holds the table in
//! `docs/internals/modules.md` against the `use` lines.
//!
//! The crate `flow` has what agents and the service agree on: hours, counters that add up and never wrap, batches
//! and their bytes, the decoders of bodies.
//!
//! [`durable`] makes files and directories that outlive a power cut.
//!
//! [`store`] makes batches durable and sums them up: a journal, a tally in memory, and RocksDB
//! underneath. It owns every stored byte and the argument why nothing is lost or counted twice.
//!
//! [`backup`] hands out a checkpoint of all of it, keeps backups elsewhere, and restores them.
//!
//! [`ingest`] turns a request's body into a batch, bounds what is in memory, and lets many
//! requests share one commit. [`query`] turns a question into rows.
//!
//! [`client`] talks to a running service, [`input`] takes flows out of files and pipes, whatever they are
//! written in, and [`send`] is the other end of the line: what an agent embeds to hand flows over, each
//! counted once.
//!
//! [`service`] is what the API serves: one process with a store of its own, or one node of a cluster over Kafka.
//!
//! [`http`] is the API: routes, formats, errors as problem documents, connections.
//!
//! [`terminal`] escapes what others wrote before it is shown or logged.
//!
//! [`config`] holds arguments, environment and file as validated values, [`telemetry`] has the log and
//! the metrics, which everybody counts into, [`notify`] tells systemd how far the service is,
//! [`daemon`] wires all of it together and owns the order of start and stop, and [`cli`] has one file
//! a subcommand.

pub mod store;

pub mod backup;

pub mod ingest;
pub mod query;

pub mod service;

pub mod http;

pub mod config;
pub mod notify;
pub mod telemetry;

pub mod daemon;

pub mod cli;
