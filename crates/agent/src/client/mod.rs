//! HTTP client of a running service: address, TLS, proxy and errors.

mod array;
mod connect;
mod forward;
mod proxy;
mod refusal;
mod request;
mod stream;
mod tokens;

pub use array::JsonArray;
pub use proxy::{Proxy, no_proxy_entries};
pub(crate) use refusal::redirect_target;
pub(crate) use request::read_text;
pub use stream::{Items, describe_read_error};
pub use tokens::{BoundToken, TokenFileError, read_bound_tokens, read_first_token, read_tokens};

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use forward::Credentials;

/// The longest wait for the response headers. The service holds a batch for less than this while it waits for
/// memory or disk, and then responds with 503.
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(60);
/// The longest wait for the next bytes of a response body.
const IDLE_TIME_MAX: Duration = Duration::from_secs(60);

/// The address of the service, and the credentials for it.
#[derive(Clone, Default)]
pub struct Server {
    /// For example `http://flowtally:8080`.
    pub url: String,
    pub token: Option<String>,
    /// PEM file of the certificate authorities to trust instead of those of `webpki-roots`.
    pub ca: Option<PathBuf>,
    /// PEM files of a client certificate and its private key.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

impl fmt::Debug for Server {
    /// Omits the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Why a request failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// An argument, or a file that it names, is invalid.
    #[error("{0}")]
    Options(String),
    /// The connection failed, or the response is incomplete.
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    /// The response is not the requested one.
    #[error("{url}: {why}")]
    Refused {
        url: String,
        /// The status code.
        status: u16,
        why: String,
    },
}

/// HTTP client of one service. It keeps its connections open; clones share them.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    authorization: Option<String>,
    /// The proxy that requests go through.
    proxy: Option<Proxy>,
    /// Credentials for a proxy that forwards the requests.
    proxy_credentials: Option<Credentials>,
}
