//! One attempt to send a batch: the request, and the outcome.

use flow::{ProblemDocument, headers};
use std::time::{Duration, SystemTime};

use serde::Deserialize;
use ureq::http::{HeaderMap, StatusCode};

use super::queue::BatchMeta;
use super::status::{self, ErrorClass, RejectReason};
use crate::client::{Client, read_text, redirect_target};

/// The path of the endpoint.
pub(super) const PATH: &str = "/flows";
/// The longest pause that a service can request.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Bytes of a foreign response that are read to identify it.
const RESPONSE_BYTES_MAX: u64 = 64 << 10;

/// The outcome of an attempt.
#[derive(Debug)]
pub(super) enum AttemptOutcome {
    /// The service has the batch, except `expired` flows that are older than its retention. `replayed`: it
    /// had the batch before.
    Accepted { replayed: bool, expired: usize },
    /// The service will never accept these flows, but accepts others.
    Rejected { why: String, reason: RejectReason },
    /// The service does not accept these flows now, but accepts others.
    Later {
        why: String,
        /// The number of the flow that caused it, from 0.
        index: Option<usize>,
    },
    /// The service accepts nothing until the configuration of the client or the service is changed.
    Refused {
        why: String,
        /// From `Retry-After`.
        after: Option<Duration>,
    },
    /// Another client has counted a part of the batch.
    Conflict { why: String },
    /// The service could not decode the body, which may have been corrupted in transit or on disk.
    Unreadable {
        why: String,
        after: Option<Duration>,
    },
    TryAgain {
        why: String,
        /// From `Retry-After`.
        after: Option<Duration>,
    },
}

/// The response to an accepted batch. A later version may add fields.
#[derive(Deserialize)]
struct Accepted {
    accepted: usize,
    /// Flows that are older than the service's retention.
    #[serde(default)]
    expired: usize,
}

/// Sends `body` to the service once.
pub(super) fn deliver(client: &Client, meta: &BatchMeta, body: &[u8]) -> AttemptOutcome {
    let mut request = client
        .to_post(PATH)
        .header("content-type", "application/json")
        .header(headers::IDEMPOTENCY_KEY, &meta.key);
    if meta.compressed {
        request = request.header("content-encoding", "zstd");
    }
    if !meta.notes.is_empty() {
        request = request.header(headers::RECEIPT_NOTES, &meta.notes);
    }
    let mut response = match request.send(body) {
        Ok(response) => response,
        // Retry certificate errors too: the service's certificate may be replaced.
        Err(error) => {
            let after = None;
            return match client.refused_by_proxy(PATH, &error) {
                None => AttemptOutcome::TryAgain {
                    why: client.broken(&error),
                    after,
                },
                Some((status, why))
                    if status::classify(status, None, false) == ErrorClass::Transient =>
                {
                    AttemptOutcome::TryAgain { why, after }
                }
                // The proxy refused the tunnel, so it has not received the batch.
                Some((_, why)) => AttemptOutcome::Refused { why, after },
            };
        }
    };
    let status = response.status();
    let after = retry_after(response.headers());
    let location = redirect_target(response.headers());
    let replayed = response
        .headers()
        .contains_key(headers::IDEMPOTENT_REPLAYED);
    // A body that adds to the status has to be complete: a proxy may abort in the middle of it.
    let text = match read_text(&mut response, RESPONSE_BYTES_MAX) {
        Ok(text) => text.unwrap_or_default(),
        Err(_) if !matches!(status.as_u16(), 200 | 400) => String::new(),
        Err(error) => {
            return AttemptOutcome::TryAgain {
                why: format!("the response is incomplete: {error}"),
                after,
            };
        }
    };
    let problem = serde_json::from_str::<ProblemDocument>(&text).ok();
    let why = client.why_not(PATH, status, problem.as_ref(), location.as_deref());
    if status == StatusCode::OK {
        return match serde_json::from_str::<Accepted>(&text) {
            Ok(response) if response.accepted.checked_add(response.expired) == Some(meta.flows) => {
                AttemptOutcome::Accepted {
                    replayed,
                    expired: response.expired,
                }
            }
            _ => AttemptOutcome::Refused {
                why: client.with_proxy_hint("the server that responded is not flowtally".into()),
                after,
            },
        };
    }
    match status::classify(status, problem.as_ref(), !meta.notes.is_empty()) {
        ErrorClass::Transient => AttemptOutcome::TryAgain { why, after },
        ErrorClass::Clock => AttemptOutcome::Later {
            why,
            index: problem.and_then(|p| usize::try_from(p.index?).ok()),
        },
        ErrorClass::Body => AttemptOutcome::Unreadable { why, after },
        ErrorClass::Batch(reason) => AttemptOutcome::Rejected { why, reason },
        ErrorClass::Conflict => AttemptOutcome::Conflict { why },
        ErrorClass::Endpoint => AttemptOutcome::Refused { why, after },
    }
}

/// Seconds or an HTTP date (RFC 9110).
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_headers() {
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
