//! `flowtally-agent watch`: hosts are network namespaces, each with an agent of its own.

mod exact;
mod names;
mod network;
mod programs;
