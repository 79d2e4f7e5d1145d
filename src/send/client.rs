//! One batch to the service, once: what came of it, and whether to try again.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use ureq::http::{HeaderMap, StatusCode, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use super::SendError;
use super::queue::Entry;

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A batch waits for memory and disk of the service for so long, at most, and then gets a 503.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Longest pause that a service can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Of an answer that is not ours: enough to tell.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

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

/// What came of a try.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The service has it; `replayed`: it had it before.
    Taken { replayed: bool },
    /// It will not take these flows, and would take others.
    Rejected { why: String },
    /// It will not take any, until something is changed here.
    Refused { why: String },
    /// It could not read this body, which may have been changed on the way, or before.
    Unreadable {
        why: String,
        after: Option<Duration>,
    },
    TryAgain {
        why: String,
        /// What the service asked for.
        after: Option<Duration>,
    },
}

/// An HTTP client of one service, which keeps its connection.
#[derive(Debug)]
pub(super) struct Client {
    agent: ureq::Agent,
    url: String,
    authorization: Option<String>,
}

/// A problem document of the service.
#[derive(Deserialize)]
struct Problem {
    r#type: String,
    title: String,
    detail: String,
}

/// What it says to a batch that it took.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Accepted {
    accepted: usize,
}

impl Client {
    pub(super) fn new(server: &Server) -> Result<Client, SendError> {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_global(Some(ANSWER_MAX))
            .user_agent(concat!("flowtally/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls(server)?)
            .build();
        Ok(Client {
            agent: agent.into(),
            url: flows_url(&server.url)?,
            authorization: server.token.as_ref().map(|token| format!("Bearer {token}")),
        })
    }

    pub(super) fn url(&self) -> &str {
        &self.url
    }

    pub(super) fn deliver(&self, entry: &Entry, body: &[u8]) -> Outcome {
        let mut request = self
            .agent
            .post(&self.url)
            .header("content-type", "application/json")
            .header("idempotency-key", &entry.key);
        if entry.compressed {
            request = request.header("content-encoding", "zstd");
        }
        if let Some(authorization) = &self.authorization {
            request = request.header("authorization", authorization);
        }
        let mut response = match request.send(body) {
            Ok(response) => response,
            // A certificate does not get better by trying again, but the service may be given another.
            Err(error) => {
                return Outcome::TryAgain {
                    why: error.to_string(),
                    after: None,
                };
            }
        };
        let status = response.status();
        let after = retry_after(response.headers());
        let location = response.headers().get("location");
        let location = location.and_then(|to| Some(to.to_str().ok()?.to_owned()));
        let replayed = response.headers().contains_key("idempotent-replayed");
        // The answer has to be complete: a proxy may break off in the middle of one.
        let text = match response
            .body_mut()
            .with_config()
            .limit(ANSWER_BYTES_MAX)
            .read_to_string()
        {
            Ok(text) => text,
            Err(error) => {
                return Outcome::TryAgain {
                    why: format!("the answer broke off: {error}"),
                    after,
                };
            }
        };
        let problem = serde_json::from_str::<Problem>(&text).ok();
        let why = match (&problem, location) {
            (Some(problem), _) => format!("{status}: {}: {}", problem.title, problem.detail),
            (None, Some(location)) => format!("{status}, to {location}"),
            (None, None) => status.to_string(),
        };
        // Others answer with the same statuses, and do not mean the flows.
        let is = |kind: &str| {
            problem
                .as_ref()
                .is_some_and(|p| p.r#type.strip_prefix("urn:flowtally:problem:") == Some(kind))
        };
        match status {
            StatusCode::OK => match serde_json::from_str::<Accepted>(&text) {
                Ok(answer) if answer.accepted == entry.flows => Outcome::Taken { replayed },
                _ => Outcome::Refused {
                    why: "something answered that is not flowtally".into(),
                },
            },
            StatusCode::BAD_REQUEST if is("bad-batch") => Outcome::Rejected { why },
            StatusCode::BAD_REQUEST if is("bad-body") => Outcome::Unreadable { why, after },
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Outcome::TryAgain { why, after }
            }
            status if status.is_server_error() => Outcome::TryAgain { why, after },
            _ => Outcome::Refused { why },
        }
    }
}

fn flows_url(url: &str) -> Result<String, SendError> {
    let bad = |why: &dyn fmt::Display| {
        SendError::Options(format!(
            "--url is {url:?}, and has to be one such as http://127.0.0.1:8080: {why}"
        ))
    };
    let uri: Uri = url.parse().map_err(|e| bad(&e))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(bad(&"it needs http:// or https:// and a host"));
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        let what = "--url has a user name or a password, which flowtally does not know; \
                    give a token with --token-file";
        return Err(SendError::Options(what.into()));
    }
    if uri.query().is_some() {
        return Err(bad(&"it has a query"));
    }
    let url = url.trim_end_matches('/');
    Ok(match url.ends_with("/flows") {
        true => url.to_owned(),
        false => format!("{url}/flows"),
    })
}

/// Seconds or a date (RFC 9110).
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("retry-after")?.to_str().ok()?;
    let after = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text)
            .ok()?
            .duration_since(SystemTime::now())
            .ok()?,
    };
    Some(after.min(RETRY_AFTER_MAX))
}

fn tls(server: &Server) -> Result<TlsConfig, SendError> {
    let unusable = |path: &Path, why: &dyn fmt::Display| {
        SendError::Options(format!("{}: {why}", path.display()))
    };
    let read = |path: &Path| std::fs::read(path).map_err(|e| unusable(path, &e));
    let certificates = |path: &Path| -> Result<Vec<Certificate<'static>>, SendError> {
        let pem = read(path)?;
        let items = parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
            Ok(_) => None,
            Err(error) => Some(Err(unusable(path, &error))),
        });
        let certificates = items.collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() {
            return Err(unusable(path, &"no certificate in PEM form is in it"));
        }
        Ok(certificates)
    };
    let mut config = TlsConfig::builder();
    if let Some(path) = &server.ca {
        config = config.root_certs(RootCerts::Specific(Arc::new(certificates(path)?)));
    }
    if let Some((certificate, key)) = &server.certificate {
        let private = PrivateKey::from_pem(&read(key)?).map_err(|e| unusable(key, &e))?;
        let chain = certificates(certificate)?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&chain, private)));
    }
    Ok(config.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (given, expected) in [
            ("http://h:1", "http://h:1/flows"),
            ("https://h/", "https://h/flows"),
            ("http://h/flowtally/flows", "http://h/flowtally/flows"),
        ] {
            assert_eq!(flows_url(given).unwrap(), expected);
        }
        let error = flows_url("http://u:secret@h").unwrap_err().to_string();
        assert!(error.contains("--token-file") && !error.contains("secret"));
        for given in ["", "h:1", "ftp://h", "http://", "http://h?x=1", "/flows"] {
            let error = flows_url(given).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:8080"), "{error}");
        }
    }

    #[test]
    fn pauses_that_are_asked_for() {
        let of = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("retry-after", text.parse().unwrap());
            retry_after(&headers)
        };
        assert_eq!(of("7"), Some(Duration::from_secs(7)));
        let soon = httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(60));
        assert!(of(&soon).is_some_and(|d| (50..=60).contains(&d.as_secs())));
        assert_eq!(of("soon"), None);
    }
}
