//! `flowtally-agent watch`: hosts are network namespaces, each with an agent of its own.

mod containers;
mod exact;
mod names;
mod network;
mod programs;
mod relay;
mod starts;
