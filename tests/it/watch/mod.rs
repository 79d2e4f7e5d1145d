//! `flowtally-agent watch`: hosts are network namespaces, each with an agent of its own.

mod bench;
mod exact;
mod limits;
mod names;
mod network;
mod restarts;
