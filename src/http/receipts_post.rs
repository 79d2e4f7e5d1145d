//! `POST /receipts`: which of these idempotency keys batches were taken under, when, and with which notes.

use std::pin::Pin;

use bytes::Buf;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use warp::reply::Response;

use super::access::Right;
use super::error::Problem;
use super::routes::Request;
use super::{Api, body, negotiate};
use crate::domain::IdempotencyKey;
use crate::ingest::decode::Format;

/// Most keys that one request may ask about.
const KEYS_MAX: usize = 20_000;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    keys: Vec<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    /// Of the keys that are known, in the order in which they were asked about.
    receipts: Vec<Known<'a>>,
}

#[derive(Serialize)]
struct Known<'a> {
    key: &'a str,
    taken_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<Box<str>>,
}

pub(super) async fn handle(
    api: &Api,
    request: &Request<'_>,
    stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let headers = request.headers;
    api.access.check(Right::Write, headers, request.peer)?;
    request.takes_no_parameter()?;
    let journal = api.open_backend()?.journal.clone();
    if negotiate::body_format(headers)? != Format::Json {
        let what = "keys are asked about in application/json".into();
        return Err(Problem::MediaType { what });
    }
    let encoding = negotiate::body_encoding(headers)?;
    let (body, permit) = body::receive(api, headers, encoding, stream).await?;
    let read = tokio::task::spawn_blocking(move || {
        let _until_it_is_answered = permit;
        let keys = keys(&body)?;
        let kept = journal.receipts(&keys)?;
        let known = keys.iter().zip(kept).filter_map(|(key, kept)| {
            let kept = kept?;
            Some(Known {
                key: key.as_str(),
                taken_at: kept.time_s,
                note: kept.note,
            })
        });
        let receipts = known.collect();
        // Strings and integers always serialise.
        let mut json = serde_json::to_vec(&Answer { receipts }).unwrap_or_default();
        json.push(b'\n');
        Ok::<_, Problem>(json)
    });
    let json = read.await.map_err(|_| Problem::Internal)??;
    Ok(super::answer(super::JSON, json))
}

fn keys(body: &[u8]) -> Result<Vec<IdempotencyKey>, Problem> {
    let bad = |what: String| Problem::BadKeys { what };
    let asked: Asked = serde_json::from_slice(body).map_err(|e| {
        bad(format!(
            "it has to be as in {{\"keys\":[\"a\",\"b\"]}}: {e}"
        ))
    })?;
    if asked.keys.len() > KEYS_MAX {
        let count = asked.keys.len();
        return Err(bad(format!(
            "there are {count} keys; {KEYS_MAX} are possible"
        )));
    }
    let key = |key: &String| {
        let valid = IdempotencyKey::new(key.as_bytes());
        valid.ok_or_else(|| bad(format!("{key:?} is not an idempotency key")))
    };
    asked.keys.iter().map(key).collect()
}
