//! The flowtally service: it receives network flows from a fleet of agents over HTTP and answers, per hour, how many
//! bytes were sent between which applications. This is the map of its modules, in the order in which a flow passes
//! through them. Arrows run downwards only: a test checks the table in `docs/internals/modules.md` against the `use`
//! lines.
//!
//! Two other packages are below: `flow` has what agents and the service agree on (hours, counters that add up
//! and never wrap, batches and their bytes, the decoders of bodies, queries), and `agent` is the other end of
//! the connection (client, delivery, inputs).
//!
//! [`store`] makes batches durable and sums them up: a journal, a tally in memory, and RocksDB underneath. It owns all
//! other stored bytes, decides which batches count, and ensures that nothing is lost or counted twice.
//!
//! [`backup`] provides checkpoints of a running service, and restores backups.
//!
//! [`ingest`] bounds memory before a commit. [`query`] executes queries.
//!
//! [`directory`] knows which application has which address, as agents claim.
//!
//! [`service`] is the interface below the API, with two implementations: one process with a store of its own, or one
//! node of a cluster over Kafka.
//!
//! [`http`] is the API: routes, formats, errors as problem documents, connections.
//!
//! [`traffic`] shows the largest pairs of applications as metrics, if that is wanted.
//!
//! [`config`] holds arguments, environment and file as validated values, [`telemetry`] has the log and the metrics,
//! [`notify`] reports the service's state to systemd, `pem` reads certificates, [`daemon`] connects all of it and owns
//! the order of start and stop, and [`cli`] has one file or directory for each subcommand.

pub mod store;

pub mod backup;

pub mod directory;
pub mod ingest;
pub mod query;

pub mod service;

pub mod http;
pub mod traffic;

pub mod config;
pub mod notify;
mod pem;
pub mod telemetry;

pub mod daemon;

pub mod cli;
