//! Looks up which batches a service has accepted.

use flow::ProblemDocument;
use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use ureq::http::StatusCode;

use super::SendError;
use super::status::{self, ErrorClass};
use super::worker::{RETRY_PAUSE_MAX, pauses};
use crate::client::{Client, Server, read_text, redirect_target};

const PATH: &str = "/receipts";
/// Enough for a response about the maximum number of keys with the longest notes.
const RESPONSE_BYTES_MAX: u64 = 16 << 20;

/// The receipt of a batch.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub(crate) struct FoundReceipt {
    key: String,
    /// Seconds since the epoch.
    pub(crate) taken_at: u64,
    pub(crate) note: Option<String>,
}

/// Looks up receipts in a service.
#[derive(Debug)]
pub(crate) struct Receipts {
    client: Client,
    /// Give up when the service has not responded for this long.
    retry_for: Duration,
}

#[derive(Serialize)]
struct LookupRequest<'a> {
    keys: &'a [&'a str],
}

#[derive(Deserialize)]
struct LookupResponse {
    receipts: Vec<FoundReceipt>,
}

/// The outcome of one lookup.
enum LookupOutcome {
    Found(Vec<FoundReceipt>),
    Unsupported,
    Refused(String),
    TryAgain(String),
}

impl Receipts {
    pub(crate) fn new(server: &Server, retry_for: Duration) -> Result<Receipts, SendError> {
        let client = Client::new(server)?;
        Ok(Receipts { client, retry_for })
    }

    /// The receipts of those `keys` that are known; `None` if the service does not support lookups. Calls
    /// `trying_again` with the reason before each pause.
    pub(crate) fn look_up(
        &self,
        keys: &[&str],
        mut trying_again: impl FnMut(&str),
    ) -> Result<Option<HashMap<String, FoundReceipt>>, SendError> {
        let url = || self.client.url(PATH);
        let (start, mut pauses) = (Instant::now(), pauses());
        loop {
            match self.look_up_once(keys) {
                LookupOutcome::Found(receipts) => {
                    let receipts = receipts.into_iter();
                    return Ok(Some(receipts.map(|r| (r.key.clone(), r)).collect()));
                }
                LookupOutcome::Unsupported => return Ok(None),
                LookupOutcome::Refused(why) => return Err(SendError::Refused { url: url(), why }),
                LookupOutcome::TryAgain(why) => {
                    let left = self.retry_for.saturating_sub(start.elapsed());
                    if left.is_zero() {
                        let after = self.retry_for;
                        return Err(SendError::GaveUp {
                            url: url(),
                            after,
                            why,
                        });
                    }
                    trying_again(&why);
                    std::thread::sleep(pauses.next().unwrap_or(RETRY_PAUSE_MAX).min(left));
                }
            }
        }
    }

    fn look_up_once(&self, keys: &[&str]) -> LookupOutcome {
        // Serializing strings cannot fail.
        let body = serde_json::to_vec(&LookupRequest { keys }).unwrap_or_default();
        let request = self.client.to_post(PATH);
        let request = request.header("content-type", "application/json");
        let mut response = match request.send(&body) {
            Ok(response) => response,
            Err(error) => {
                return match self.client.refused_by_proxy(PATH, &error) {
                    None => LookupOutcome::TryAgain(self.client.broken(&error)),
                    Some((status, why))
                        if status::classify(status, None, false) == ErrorClass::Transient =>
                    {
                        LookupOutcome::TryAgain(why)
                    }
                    Some((_, why)) => LookupOutcome::Refused(why),
                };
            }
        };
        let status = response.status();
        let text = match read_text(&mut response, RESPONSE_BYTES_MAX) {
            Ok(text) => text.unwrap_or_default(),
            Err(_) if status != StatusCode::OK => String::new(),
            Err(error) => {
                return LookupOutcome::TryAgain(format!("the response is incomplete: {error}"));
            }
        };
        let problem = serde_json::from_str::<ProblemDocument>(&text).ok();
        let location = redirect_target(response.headers());
        let client = &self.client;
        let why = client.why_not(PATH, status, problem.as_ref(), location.as_deref());
        match status {
            StatusCode::OK => match serde_json::from_str::<LookupResponse>(&text) {
                Ok(response) => LookupOutcome::Found(response.receipts),
                Err(_) => LookupOutcome::Refused(
                    client.with_proxy_hint("the server that responded is not flowtally".into()),
                ),
            },
            // The service has several nodes, or is an earlier version.
            StatusCode::NOT_IMPLEMENTED | StatusCode::NOT_FOUND => LookupOutcome::Unsupported,
            _ => match status::classify(status, problem.as_ref(), false) {
                ErrorClass::Transient => LookupOutcome::TryAgain(why),
                _ => LookupOutcome::Refused(why),
            },
        }
    }
}
