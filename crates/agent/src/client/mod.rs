//! How commands talk to a running service: where it is, how it is trusted, and what its errors say.

mod array;
mod connect;
mod forward;
mod proxy;
mod refusal;
mod request;
mod stream;

pub use array::JsonArray;
pub use proxy::{Proxy, excluded as not_by_proxy};
pub use refusal::location;
pub use request::text_of;
pub use stream::{Items, broke_off};

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use forward::Credentials;
use serde::Deserialize;

/// Longest wait for the head of an answer. A batch waits for memory and disk of the service for less,
/// and then gets a 503.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the next bytes of an answer: whoever sends nothing for so long will not go on.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// Where the service is, and how to talk to it.
#[derive(Clone, Default)]
pub struct Server {
    /// As in `http://flowtally:8080`.
    pub url: String,
    pub token: Option<String>,
    /// PEM file of the authorities to trust instead of the usual ones.
    pub ca: Option<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Server {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// An argument, or a file that one names, cannot be used.
    #[error("{0}")]
    Options(String),
    /// Nobody answers, or the answer breaks off.
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    /// It answers something else than what it was asked for.
    #[error("{url}: {why}")]
    Refused {
        url: String,
        /// Of the answer.
        status: u16,
        why: String,
    },
}

/// A problem document of the service (RFC 9457).
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Problem {
    pub r#type: String,
    pub title: String,
    pub detail: String,
    /// The flow that is wrong, and its field.
    pub index: Option<u64>,
    pub field: Option<String>,
}

/// An HTTP client of one service, which keeps its connection; a clone shares it.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    authorization: Option<String>,
    /// What requests go through.
    proxy: Option<Proxy>,
    /// For a proxy that reads the requests.
    proxy_credentials: Option<Credentials>,
}
