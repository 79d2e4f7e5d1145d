//! The asynchronous client that queries all peers.

use std::error::Error;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::header::{ACCEPT, AUTHORIZATION, HeaderValue, USER_AGENT};
use hyper::{Request as HttpRequest, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Builder};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::body::{PeerBody, ReadLimits};
use super::frames::{FrameReader, MEDIA_TYPE};
use super::hours::HourReader;
use super::request::Request;
use super::tls::{self, PeerTls};
use crate::query::{Coverage, HourSource, Hours, RowSource};
use crate::store::FinestRows;
use agent::client::{ClientError, read_first_token};
use flow::headers::FLOWTALLY_FINEST_ROWS;
use flow::query::Query;
use flow::{
    HostName, HourRange, Offset, PROBLEM_TYPE_PREFIX, Partition, ProblemDocument, TOO_COARSE,
};

/// Longest wait for a connection. In addition, each request has a deadline.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
/// Longest wait for a response without rows, and for each chunk of it.
const RESPONSE_TIME_MAX: Duration = Duration::from_secs(10);
/// If a response with rows has not begun by then, probe `/healthz`, and again after each such interval. A probe has to
/// succeed within the same time.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Unused connections to a node are kept for this long, and at most this many: a query needs one.
const IDLE_TIME_MAX: Duration = Duration::from_secs(15);
const IDLE_CONNECTIONS_MAX: usize = 8;
/// Size of a connection's buffer, and so of the chunks of a response. At most two chunks wait for their reader.
const READ_BYTES_MAX: usize = 64 << 10;
/// Longest body of an error that is read.
const PROBLEM_BYTES_MAX: usize = 64 << 10;
/// Maximum number of requests that wait for offsets at a time, over all peers. The number of responses bounds requests
/// for rows and hours.
const AWAITING_MAX: usize = 512;

/// The reason why a peer did not respond.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// It does not respond, or responds with 503. Another node may own its partitions shortly.
    #[error("{url}: {why}")]
    Unavailable { url: String, why: String },
    /// It responds with another error, or not with what was requested.
    #[error("{url}: {why}")]
    Failed { url: String, why: String },
    /// See [`QueryError::TooCoarse`](crate::query::QueryError::TooCoarse): a fault of the query.
    #[error("{0}")]
    TooCoarse(String),
}

impl PeerError {
    fn unavailable(url: &str, why: impl Display) -> PeerError {
        PeerError::Unavailable {
            url: url.to_owned(),
            why: why.to_string(),
        }
    }

    fn failed(url: &str, why: impl Display) -> PeerError {
        PeerError::Failed {
            url: url.to_owned(),
            why: why.to_string(),
        }
    }
}

/// Sends requests to peers.
#[derive(Debug)]
pub struct PeerClient {
    tls: PeerTls,
    token_file: Option<PathBuf>,
    /// Replaced on a reload.
    http: RwLock<PeerConnections>,
    awaiting: Semaphore,
    pub(super) probe_interval: Duration,
}

type Connections = legacy::Client<HttpsConnector<HttpConnector>, Empty<Bytes>>;

/// The connections, and the token that is sent over them. Clones share both.
#[derive(Clone, Debug)]
struct PeerConnections {
    connections: Connections,
    /// Marked as sensitive, so that debug output does not show it.
    authorization: Option<HeaderValue>,
}

impl PeerConnections {
    fn new(tls: &PeerTls, token_file: Option<&Path>) -> Result<PeerConnections, ClientError> {
        let token = token_file.map(read_first_token).transpose()?;
        let authorization = token.map(|token| {
            let value = HeaderValue::try_from(format!("Bearer {token}"));
            let mut value = value.map_err(|e| ClientError::Options(format!("node token: {e}")))?;
            value.set_sensitive(true);
            Ok::<_, ClientError>(value)
        });
        // This connector reads no proxy variables, so nodes reach each other directly.
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIME_MAX));
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls::load(tls)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let connections = Builder::new(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE_TIME_MAX)
            .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
            .http1_max_buf_size(READ_BYTES_MAX)
            .build(connector);
        Ok(PeerConnections {
            connections,
            authorization: authorization.transpose()?,
        })
    }
}

/// A peer's part of a response.
#[derive(Debug)]
pub struct PeerRows {
    pub rows: Box<dyn RowSource>,
    pub coverage: Coverage,
}

/// A peer's part of the hours.
#[derive(Debug)]
pub struct PeerHours {
    pub hours: Box<dyn HourSource>,
    pub tag: Option<u64>,
    pub coverage: Coverage,
}

/// Dropping a future cancels its request. The rows and hours are read by a thread that may block.
impl PeerClient {
    /// # Errors
    /// If a file cannot be used.
    pub fn new(tls: PeerTls, token_file: Option<PathBuf>) -> Result<PeerClient, ClientError> {
        let http = RwLock::new(PeerConnections::new(&tls, token_file.as_deref())?);
        Ok(PeerClient {
            tls,
            token_file,
            http,
            awaiting: Semaphore::new(AWAITING_MAX),
            probe_interval: PROBE_INTERVAL,
        })
    }

    /// Reads token and certificates again. After an error, the previous ones remain in use.
    pub fn reload(&self) -> Result<(), ClientError> {
        let http = PeerConnections::new(&self.tls, self.token_file.as_deref())?;
        *self.http.write() = http;
        Ok(())
    }

    /// Requests the rows of `partitions` from the node at `url`. Its response has `time_max` to begin, and for each
    /// chunk; probes detect earlier that the node hangs.
    pub async fn rows(
        &self,
        url: &str,
        partitions: &[Partition],
        query: &Query,
        time_max: Duration,
        cancel: CancellationToken,
    ) -> Result<PeerRows, PeerError> {
        let target = Request::rows(partitions, query);
        let response = tokio::select! {
            response = self.get(url, &target, MEDIA_TYPE, time_max) => response?,
            error = self.probe_repeatedly(url) => return Err(error),
        };
        let (head, body) = response.into_parts();
        let coverage = coverage(url, &head.headers)?;
        let body = body_of(url, body, time_max, cancel);
        let rows = Box::new(FrameReader::new(body));
        Ok(PeerRows { rows, coverage })
    }

    /// Requests the ledger of `partitions` from the node at `url`.
    pub async fn hours(
        &self,
        url: &str,
        partitions: &[Partition],
        hours: HourRange,
        cancel: CancellationToken,
    ) -> Result<PeerHours, PeerError> {
        let target = Request::hours(partitions, hours);
        let response = self.get(url, &target, "application/json", RESPONSE_TIME_MAX);
        let (head, body) = response.await?.into_parts();
        let tag = head.headers.get(hyper::header::ETAG);
        let finest = finest_rows(url, &head.headers)?;
        let body = body_of(url, body, RESPONSE_TIME_MAX, cancel);
        Ok(PeerHours {
            tag: tag.and_then(|tag| Hours::parse_etag(tag.to_str().ok()?)),
            coverage: coverage(url, &head.headers)?,
            hours: Box::new(HourReader::new(body, finest)),
        })
    }

    /// Waits until the node's sums include everything up to these offsets.
    pub async fn await_applied(
        &self,
        url: &str,
        upto: &[(Partition, Offset)],
    ) -> Result<(), PeerError> {
        let permit = self.awaiting.acquire().await;
        let _permit = permit.map_err(|e| PeerError::unavailable(url, e))?;
        let target = Request::applied(upto);
        let response = self.get(url, &target, "*/*", RESPONSE_TIME_MAX);
        response.await.map(drop)
    }

    /// Probes the node at `url` until it does not respond: then it hangs, or is cut off.
    async fn probe_repeatedly(&self, url: &str) -> PeerError {
        loop {
            tokio::time::sleep(self.probe_interval).await;
            let probe = self.get(url, "/healthz", "*/*", self.probe_interval);
            if let Err(error) = probe.await {
                return error;
            }
        }
    }

    /// The response to a GET, if its status is a success.
    async fn get(
        &self,
        url: &str,
        target: &str,
        accept: &'static str,
        time_max: Duration,
    ) -> Result<Response<Incoming>, PeerError> {
        let response = tokio::time::timeout(time_max, self.respond(url, target, accept)).await;
        response.unwrap_or_else(|_| {
            let why = format!("no response within {} s", time_max.as_secs());
            Err(PeerError::unavailable(url, why))
        })
    }

    async fn respond(
        &self,
        url: &str,
        target: &str,
        accept: &'static str,
    ) -> Result<Response<Incoming>, PeerError> {
        let PeerConnections {
            connections,
            authorization,
        } = self.http.read().clone();
        let mut request = HttpRequest::new(Empty::new());
        *request.uri_mut() = uri(url, target)?;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static(accept));
        let name = concat!("flowtally/", env!("CARGO_PKG_VERSION"));
        headers.insert(USER_AGENT, HeaderValue::from_static(name));
        if let Some(authorization) = authorization {
            headers.insert(AUTHORIZATION, authorization);
        }
        let response = connections.request(request).await;
        let response = response.map_err(|e| PeerError::unavailable(url, chain(&e)))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), PROBLEM_BYTES_MAX);
        let body = body.collect().await.map(|body| body.to_bytes());
        let problem = body.map(|body| serde_json::from_slice(&body).unwrap_or_default());
        let ProblemDocument {
            r#type,
            title,
            detail,
            ..
        } = problem.unwrap_or_default();
        if r#type.strip_prefix(PROBLEM_TYPE_PREFIX) == Some(TOO_COARSE) {
            return Err(PeerError::TooCoarse(detail.into_owned()));
        }
        let why = match title.is_empty() {
            true => status.to_string(),
            false => format!("{status}: {title}: {detail}"),
        };
        Err(match status {
            StatusCode::SERVICE_UNAVAILABLE => PeerError::unavailable(url, why),
            _ => PeerError::failed(url, why),
        })
    }
}

/// Validates the URL at which peers reach this node.
///
/// # Errors
/// If no request can be sent to it.
pub fn validate_url(url: &str) -> Result<(), ClientError> {
    let valid = uri(url, "/healthz").map(drop);
    valid.map_err(|error| ClientError::Options(error.to_string()))
}

/// The URI of `target` at the node whose URL is `url`.
fn uri(url: &str, target: &str) -> Result<Uri, PeerError> {
    let base = url.trim_end_matches('/');
    // An operator may have given the URL that clients post to.
    let base = base.strip_suffix("/flows").unwrap_or(base);
    let uri = Uri::try_from(format!("{base}{target}"));
    let uri =
        uri.map_err(|e| PeerError::failed(url, format!("cannot request {target:.200}: {e}")))?;
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let host = uri.host().unwrap_or_default();
    // The connector would replace an invalid port by the scheme's.
    let has_port = authority.len() > host.len() && !authority.ends_with(':');
    let is_valid = matches!(uri.scheme_str(), Some("http" | "https"))
        && host.parse::<HostName>().is_ok()
        && (!has_port || matches!(uri.port_u16(), Some(1..)));
    match is_valid {
        true => Ok(uri),
        false => Err(PeerError::failed(
            url,
            "not the URL of a node; give that node a --node-url such as http://node-1:8080",
        )),
    }
}

fn body_of(url: &str, body: Incoming, stall_max: Duration, cancel: CancellationToken) -> PeerBody {
    let deadline = None;
    let limits = ReadLimits {
        stall_max,
        deadline,
        cancel,
    };
    PeerBody::new(url, body, limits)
}

/// The coverage in a response's headers.
fn coverage(url: &str, headers: &hyper::HeaderMap) -> Result<Coverage, PeerError> {
    let header = |name| headers.get(name)?.to_str().ok();
    let why = "its response names partitions that do not exist; it may run another version";
    Coverage::from_headers(header).ok_or_else(|| PeerError::failed(url, why))
}

/// From which hour on the rows of hours, and of days, can be read, by a response's headers. Older versions do not tell.
fn finest_rows(url: &str, headers: &hyper::HeaderMap) -> Result<FinestRows, PeerError> {
    let Some(value) = headers.get(FLOWTALLY_FINEST_ROWS) else {
        return Ok(FinestRows::default());
    };
    let finest = value.to_str().ok().and_then(FinestRows::parse);
    let why = "its response names hours that do not exist; it may run another version";
    finest.ok_or_else(|| PeerError::failed(url, why))
}

/// An error with its causes: hyper's errors print only themselves.
pub(super) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}
