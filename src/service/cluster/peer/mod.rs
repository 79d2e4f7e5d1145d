//! The protocol between the nodes of a cluster.

pub(super) mod client;
