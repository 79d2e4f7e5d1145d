//! The service behind the API, in its two modes: one process with a store of its own, or one node of a cluster.

#[cfg(feature = "kafka")]
pub mod cluster;
