//! `flowtally-agent watch`: hosts are network namespaces, each with an agent of its own.

mod bench;
mod containers;
mod exact;
mod limits;
mod names;
mod network;
mod programs;
mod relay;
mod restarts;
mod starts;
