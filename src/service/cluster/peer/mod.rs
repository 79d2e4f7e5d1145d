//! The protocol between the nodes of a cluster: HTTP, on the port that clients use, with a token of its own. Both
//! directions of each part of it are side by side:
//!
//! - `request` has paths and parameters: what one node writes, and another reads.
//! - `frames` has rows on their way, written and read.
//! - `client` sends requests.
//!
//! Parameters and headers that clients use too are in [`query::text`](flow::query::text) and
//! [`Coverage`](crate::query::Coverage), and an hour's row is [`HourRow`](flow::query::HourRow).

mod client;
mod frames;
mod request;

pub(super) use client::PeerClients;
pub(super) use frames::FRAMES;
pub(super) use request::Request;
