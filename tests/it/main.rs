//! Everything that is tested from outside: the real binary over HTTP, and the store as a library.

// A test that cannot go on says so by panicking; the lints are about the service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod abuse;
mod access;
mod backup;
mod browser;
mod chaos;
#[cfg(feature = "kafka")]
mod cluster;
mod commands;
mod contract;
mod corruption;
mod crash;
mod disk;
mod exactness;
mod idempotency;
mod import;
#[cfg(feature = "kafka")]
mod kafka;
mod layering;
mod lifecycle;
mod notify;
mod observe;
mod page;
mod query;
mod reads;
#[cfg(feature = "kafka")]
mod regions;
mod rejects;
mod restore;
mod retention;
mod send;
mod support;
mod top;
