//! The HTTP API: routes, handlers (one file for each endpoint), and problem documents.
//!
//! Handlers are async functions from a request to `Result<Response, Problem>`. `error` alone knows the status codes of
//! failures, and `server` owns the connections.

mod access;
mod api;
mod backups;
mod batches;
mod body;
mod connections;
mod directory_post;
mod docs;
mod error;
mod flows_delete;
mod flows_get;
mod flows_post;
mod head;
mod health;
mod hours;
mod long_target;
mod metrics;
mod negotiate;
mod openapi;
mod origin;
mod otlp_post;
mod page;
mod parameters;
mod partitions;
mod paths;
mod receipts_post;
mod request;
mod response;
mod routes;
mod secrets;
mod server;
mod socket;
mod tls;
mod trace;

pub use access::Access;
pub use api::{Api, Limits};
pub use origin::Hosts;
#[cfg(fuzzing)]
pub use parameters::assert_query_round_trips;
pub use secrets::{AccessError, AccessFiles, TlsFiles};
pub use server::serve;
