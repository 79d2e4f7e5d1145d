//! One batch to the service, once: what came of it, and whether to try again.

use std::time::{Duration, SystemTime};

use serde::Deserialize;
use ureq::http::{HeaderMap, StatusCode};

use super::queue::Entry;
use super::status::{self, Class, Fault};
use crate::client::{Client, Problem, location, text_of};

/// Where flows go.
pub(super) const PATH: &str = "/flows";
/// Longest pause that a service can ask for.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Of an answer that is not ours: enough to tell.
const ANSWER_BYTES_MAX: u64 = 64 << 10;

/// What came of a try.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The service has it, but for `expired` flows that are older than what it keeps; `replayed`: it
    /// had it before.
    Taken { replayed: bool, expired: usize },
    /// It will not take these flows, and would take others.
    Rejected { why: String, of: Fault },
    /// It will not take these flows now, and would take others.
    Later {
        why: String,
        /// Which flow is the reason, from 0.
        index: Option<usize>,
    },
    /// It will not take any, until something is changed here or there.
    Refused {
        why: String,
        /// What the service asked for.
        after: Option<Duration>,
    },
    /// Others have counted a part of it.
    Conflict { why: String },
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

/// What it says to a batch that it took. A later service may say more.
#[derive(Deserialize)]
struct Accepted {
    accepted: usize,
    /// Flows that are older than what it keeps.
    #[serde(default)]
    expired: usize,
}

/// Sends `body` to `client`, once.
pub(super) fn deliver(client: &Client, entry: &Entry, body: &[u8]) -> Outcome {
    let mut request = client
        .to_post(PATH)
        .header("content-type", "application/json")
        .header("idempotency-key", &entry.key);
    if entry.compressed {
        request = request.header("content-encoding", "zstd");
    }
    if !entry.notes.is_empty() {
        request = request.header("receipt-notes", &entry.notes);
    }
    let mut response = match request.send(body) {
        Ok(response) => response,
        // A certificate does not get better by trying again, but the service may be given another.
        Err(error) => {
            let after = None;
            return match client.refused_by_proxy(PATH, &error) {
                None => Outcome::TryAgain {
                    why: client.broken(&error),
                    after,
                },
                Some((status, why)) if status::class(status, None, false) == Class::Moment => {
                    Outcome::TryAgain { why, after }
                }
                // It has not seen the batch.
                Some((_, why)) => Outcome::Refused { why, after },
            };
        }
    };
    let status = response.status();
    let after = retry_after(response.headers());
    let location = location(response.headers());
    let replayed = response.headers().contains_key("idempotent-replayed");
    // Where the answer tells more than its status, it has to be complete: a proxy may break off in the middle of
    // one.
    let text = match text_of(&mut response, ANSWER_BYTES_MAX) {
        Ok(text) => text.unwrap_or_default(),
        Err(_) if !matches!(status.as_u16(), 200 | 400) => String::new(),
        Err(error) => {
            return Outcome::TryAgain {
                why: format!("the answer broke off: {error}"),
                after,
            };
        }
    };
    let problem = serde_json::from_str::<Problem>(&text).ok();
    let why = client.why_not(PATH, status, problem.as_ref(), location.as_deref());
    if status == StatusCode::OK {
        return match serde_json::from_str::<Accepted>(&text) {
            Ok(answer) if answer.accepted.checked_add(answer.expired) == Some(entry.flows) => {
                Outcome::Taken {
                    replayed,
                    expired: answer.expired,
                }
            }
            _ => Outcome::Refused {
                why: client.perhaps_of_proxy("something answered that is not flowtally".into()),
                after,
            },
        };
    }
    match status::class(status, problem.as_ref(), !entry.notes.is_empty()) {
        Class::Moment => Outcome::TryAgain { why, after },
        Class::Clock => Outcome::Later {
            why,
            index: problem.and_then(|p| usize::try_from(p.index?).ok()),
        },
        Class::Body => Outcome::Unreadable { why, after },
        Class::Batch(of) => Outcome::Rejected { why, of },
        Class::Conflict => Outcome::Conflict { why },
        Class::Address => Outcome::Refused { why, after },
    }
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

#[cfg(test)]
mod tests {
    use super::*;

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
