//! The protocol between the nodes of a cluster: HTTP, on the port that clients use, with a token of its own. Both
//! directions of each encoding are side by side:
//!
//! - `request` writes and reads paths and parameters, and makes the query for a peer.
//! - `frames` encodes and decodes rows; `hours` decodes hours.
//! - `client` sends requests, over connections that `tls` describes, and `body` receives responses.
//!
//! Parameters and headers that clients use too are in [`query::text`](flow::query::text) and
//! [`Coverage`](crate::query::Coverage), and an hour's row is [`HourRow`](flow::query::HourRow), written and read. Requests
//! reach this module through [`Service::peer_request`](crate::service::Service::peer_request).

mod body;
mod client;
mod frames;
mod hours;
mod request;
#[cfg(test)]
mod tests;
mod tls;

pub(super) use client::{PeerClient, PeerError, validate_url};
pub(super) use frames::FrameEncoder;
pub(super) use request::Request;
pub use tls::PeerTls;
