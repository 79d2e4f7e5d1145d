//! What a service says it has taken under which keys.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use ureq::http::StatusCode;

use super::SendError;
use super::status::{self, Class};
use super::worker::{PAUSE_MAX, pauses};
use crate::client::{Client, Problem, Server, location, text_of};

const PATH: &str = "/receipts";
/// Of an answer about as many keys as are asked about at once, with the longest notes.
const ANSWER_BYTES_MAX: u64 = 16 << 20;

/// A receipt of a batch.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Receipt {
    key: String,
    /// Seconds since the epoch.
    pub taken_at: u64,
    pub note: Option<String>,
}

/// Asks a service about receipts.
#[derive(Debug)]
pub struct Receipts {
    client: Client,
    /// Gives up when it does not answer for this long.
    retry_for: Duration,
}

#[derive(Serialize)]
struct Asked<'a> {
    keys: &'a [&'a str],
}

#[derive(Deserialize)]
struct Answer {
    receipts: Vec<Receipt>,
}

/// What came of asking once.
enum Outcome {
    Known(Vec<Receipt>),
    NotHere,
    Refused(String),
    TryAgain(String),
}

impl Receipts {
    pub fn new(server: &Server, retry_for: Duration) -> Result<Receipts, SendError> {
        let client = Client::new(server)?;
        Ok(Receipts { client, retry_for })
    }

    /// Those of `keys` that are known; `None` where the service cannot say. Calls `trying_again` with the
    /// reason before each pause.
    pub fn of(
        &self,
        keys: &[&str],
        mut trying_again: impl FnMut(&str),
    ) -> Result<Option<HashMap<String, Receipt>>, SendError> {
        let url = || self.client.url(PATH);
        let (start, mut pauses) = (Instant::now(), pauses());
        loop {
            match self.ask(keys) {
                Outcome::Known(receipts) => {
                    let receipts = receipts.into_iter();
                    return Ok(Some(receipts.map(|r| (r.key.clone(), r)).collect()));
                }
                Outcome::NotHere => return Ok(None),
                Outcome::Refused(why) => return Err(SendError::Refused { url: url(), why }),
                Outcome::TryAgain(why) => {
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
                    std::thread::sleep(pauses.next().unwrap_or(PAUSE_MAX).min(left));
                }
            }
        }
    }

    fn ask(&self, keys: &[&str]) -> Outcome {
        // Strings always serialise.
        let body = serde_json::to_vec(&Asked { keys }).unwrap_or_default();
        let request = self.client.to_post(PATH);
        let request = request.header("content-type", "application/json");
        let mut response = match request.send(&body) {
            Ok(response) => response,
            Err(error) => {
                return match self.client.refused_by_proxy(PATH, &error) {
                    None => Outcome::TryAgain(self.client.broken(&error)),
                    Some((status, why)) if status::class(status, None, false) == Class::Moment => {
                        Outcome::TryAgain(why)
                    }
                    Some((_, why)) => Outcome::Refused(why),
                };
            }
        };
        let status = response.status();
        let text = match text_of(&mut response, ANSWER_BYTES_MAX) {
            Ok(text) => text.unwrap_or_default(),
            Err(_) if status != StatusCode::OK => String::new(),
            Err(error) => return Outcome::TryAgain(format!("the answer broke off: {error}")),
        };
        let problem = serde_json::from_str::<Problem>(&text).ok();
        let location = location(response.headers());
        let client = &self.client;
        let why = client.why_not(PATH, status, problem.as_ref(), location.as_deref());
        match status {
            StatusCode::OK => match serde_json::from_str::<Answer>(&text) {
                Ok(answer) => Outcome::Known(answer.receipts),
                Err(_) => Outcome::Refused(
                    client.perhaps_of_proxy("something answered that is not flowtally".into()),
                ),
            },
            // A service of many nodes, or of an earlier version.
            StatusCode::NOT_IMPLEMENTED | StatusCode::NOT_FOUND => Outcome::NotHere,
            _ => match status::class(status, problem.as_ref(), false) {
                Class::Moment => Outcome::TryAgain(why),
                _ => Outcome::Refused(why),
            },
        }
    }
}
