//! Tests from outside: the real binary over HTTP, and the store as a library.

// A test that cannot continue panics; the lints are meant for the service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abuse;
mod access;
mod backup;
mod backup_connection;
mod bodies;
mod browser;
mod cases;
mod chaos;
#[cfg(feature = "kafka")]
mod cluster;
#[cfg(feature = "kafka")]
mod cluster_chaos;
#[cfg(feature = "kafka")]
mod cluster_checkpoints;
#[cfg(feature = "kafka")]
mod cluster_load;
#[cfg(feature = "kafka")]
mod cluster_start;
mod columns;
mod commands;
mod contract;
mod contract_http;
mod corruption;
mod crash;
mod daemon;
mod demo;
mod directions;
mod directory;
mod disk;
mod disk_errors;
mod docs;
mod edges;
mod exactness;
mod flags;
mod formats;
#[cfg(feature = "kafka")]
mod front;
mod growing;
mod hosts;
mod hour_guard;
mod hours;
mod idempotency;
mod identity;
mod import;
#[cfg(feature = "kafka")]
mod kafka;
#[cfg(feature = "kafka")]
mod kafka_owners;
#[cfg(feature = "kafka")]
mod kafka_topics;
mod layering;
mod lifecycle;
mod listen;
mod listen_counts;
mod memory;
#[cfg(feature = "kafka")]
mod nodes;
mod notes;
mod notify;
mod observe;
mod otlp;
mod page;
mod parquet_import;
mod proxy;
mod query;
mod query_limits;
mod reads;
mod receipts;
mod refusals;
#[cfg(feature = "kafka")]
mod regions;
mod rejects;
mod restore;
mod retention;
mod send;
mod shippers;
mod spool;
mod spool_refused;
#[cfg(feature = "kafka")]
mod sums;
mod support;
mod syncs;
mod terminal;
mod tiers;
mod top;
mod torn;
mod traffic;
mod verify;
mod wait;
mod watch;
mod world;
