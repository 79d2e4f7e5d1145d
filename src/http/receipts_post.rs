//! `POST /receipts`: for each of the given idempotency keys, whether a batch was counted under it, when, and with which
//! notes.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use tokio_util::sync::CancellationToken;
use warp::http::header::{self, HeaderValue};
use warp::reply::Response;

use super::access::Permission;
use super::api::Api;
use super::error::Problem;
use super::request::Request;
use super::{body, flows_get, negotiate, response};
use crate::query::{EncodedRows, JsonItems, QueryError};
use crate::service::{ReceiptInfo, Service, ServiceError};
use flow::IdempotencyKey;

/// Maximum number of keys in one request.
const KEYS_MAX: usize = 20_000;
/// Maximum number of characters of all keys in one request. They are held until the response is sent, and each response
/// in progress may hold this much.
const KEYS_CHARS_MAX: usize = 1 << 20;
/// A body with a larger `Content-Length` is not read: it has more than [`KEYS_CHARS_MAX`] characters, or a lot of white
/// space.
const BODY_BYTES_MAX: usize = 2 << 20;
/// Keys per lookup.
const LOOK_UP: usize = 256;

pub(super) async fn handle(
    api: &Api,
    request: &Request<'_>,
    stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let headers = request.headers;
    api.access
        .authorize(Permission::Write, headers, request.context)?;
    request.reject_parameters()?;
    let service = api.opened()?.clone();
    negotiate::require_json(headers)?;
    let encoding = negotiate::body_encoding(headers)?;
    let bytes_max = api.limits.body_bytes_max.min(BODY_BYTES_MAX);
    body::refuse_longer(headers, bytes_max)?;
    let (body, body_permit) = body::receive(api, headers, encoding, stream).await?;
    let permit = api.acquire_response_permit(request.context, 1)?;
    let make = move || {
        let keys = Keys::read(&body)?;
        drop((body, body_permit));
        let lookup = Lookup::start(service, keys)?;
        EncodedRows::of_items(Box::new(lookup)).map_err(|_| Problem::Internal)
    };
    let mut response =
        flows_get::stream(api, request, permit, CancellationToken::default(), make).await?;
    let media_type = HeaderValue::from_static(response::JSON);
    (response.headers_mut()).insert(header::CONTENT_TYPE, media_type);
    Ok(response)
}

/// The distinct keys of the request, in order of their first occurrence, in one allocation.
struct Keys {
    text: String,
    ranges: Vec<Range<u32>>,
}

impl Keys {
    fn read(body: &[u8]) -> Result<Keys, Problem> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct ReceiptsRequest {
            keys: Keys,
        }
        let bad = |why: &str| Problem::BadKeys {
            // Truncated, since serde's message contains the unknown field or the value of the wrong type.
            what: format!("it has to be as in {{\"keys\":[\"a\",\"b\"]}}: {why:.300}"),
        };
        // serde would also read the fields from a list.
        if body.trim_ascii_start().first() == Some(&b'[') {
            return Err(bad("this is a list"));
        }
        let asked: ReceiptsRequest =
            serde_json::from_slice(body).map_err(|e| bad(&e.to_string()))?;
        let Keys { text, ranges } = asked.keys;
        let mut seen = HashSet::with_capacity(ranges.len());
        let keys = ranges.iter().map(|range| in_text(&text, range));
        let keys: Vec<&str> = keys.filter(|key| seen.insert(*key)).collect();
        let mut once = Keys {
            text: String::with_capacity(keys.iter().map(|key| key.len()).sum()),
            ranges: Vec::with_capacity(keys.len()),
        };
        keys.into_iter().for_each(|key| once.push(key));
        Ok(once)
    }

    fn push(&mut self, key: &str) {
        let start = self.text.len() as u32;
        self.text.push_str(key);
        self.ranges.push(start..self.text.len() as u32);
    }
}

fn in_text<'a>(text: &'a str, range: &Range<u32>) -> &'a str {
    &text[range.start as usize..range.end as usize]
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Keys, D::Error> {
        deserializer.deserialize_seq(KeysVisitor)
    }
}

struct KeysVisitor;

impl<'de> Visitor<'de> for KeysVisitor {
    type Value = Keys;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of idempotency keys")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Keys, A::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        let mut keys = Keys {
            text: String::new(),
            ranges: Vec::new(),
        };
        while let Some(Text(key)) = list.next_element()? {
            if keys.ranges.len() == KEYS_MAX {
                let what = format!("there are more than {KEYS_MAX} keys");
                return Err(A::Error::custom(what));
            }
            if !IdempotencyKey::is_valid(key.as_bytes()) {
                return Err(A::Error::custom("this is not an idempotency key"));
            }
            if keys.text.len() + key.len() > KEYS_CHARS_MAX {
                let what = format!("the keys have more than {KEYS_CHARS_MAX} characters in all");
                return Err(A::Error::custom(what));
            }
            keys.push(&key);
        }
        Ok(keys)
    }
}

/// Looks up a few keys at a time, while the client reads the response.
struct Lookup {
    service: Arc<dyn Service>,
    keys: Keys,
    /// Number of keys that were written or have no receipt.
    done: usize,
    /// The receipts of the next keys, read ahead.
    kept: std::vec::IntoIter<Option<ReceiptInfo>>,
}

#[derive(Serialize)]
struct Known<'a> {
    key: &'a str,
    taken_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<Box<str>>,
}

impl Lookup {
    /// Reads the first receipts.
    fn start(service: Arc<dyn Service>, keys: Keys) -> Result<Lookup, ServiceError> {
        let mut lookup = Lookup {
            service,
            keys,
            done: 0,
            kept: Vec::new().into_iter(),
        };
        lookup.read_ahead()?;
        Ok(lookup)
    }

    fn read_ahead(&mut self) -> Result<(), ServiceError> {
        let next = self.keys.ranges[self.done..].iter().take(LOOK_UP);
        let keys = next
            .filter_map(|range| IdempotencyKey::new(in_text(&self.keys.text, range).as_bytes()));
        let keys: Vec<_> = keys.collect();
        self.kept = self.service.receipts(&keys)?.into_iter();
        Ok(())
    }
}

impl JsonItems for Lookup {
    fn head(&self) -> &'static [u8] {
        b"{\"receipts\":["
    }

    /// Appends the next receipt, if there is one.
    fn write_next(&mut self, out: &mut Vec<u8>) -> Result<bool, QueryError> {
        while let Some(range) = self.keys.ranges.get(self.done) {
            let Some(kept) = self.kept.next() else {
                let read = self.read_ahead();
                read.map_err(|error| QueryError::Peer(error.to_string()))?;
                continue;
            };
            self.done += 1;
            let Some(kept) = kept else { continue };
            let known = Known {
                key: in_text(&self.keys.text, range),
                taken_at: kept.time_s,
                note: kept.note,
            };
            // Strings and integers always serialise, and a `Vec` accepts every write.
            let _infallible = serde_json::to_writer(&mut *out, &known);
            return Ok(true);
        }
        Ok(false)
    }

    fn tail(&self) -> &'static [u8] {
        b"]}\n"
    }
}

impl fmt::Debug for Lookup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} keys, {} done", self.keys.ranges.len(), self.done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<Vec<String>, String> {
        match Keys::read(body.as_bytes()) {
            Ok(Keys { text, ranges }) => Ok(ranges
                .iter()
                .map(|r| in_text(&text, r).to_owned())
                .collect()),
            Err(Problem::BadKeys { what }) => Err(what),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_are_deduplicated_and_bounded() {
        let keys = read(r#"{"keys":["b","a\"","\u0061\"","b","c"]}"#).unwrap();
        assert_eq!(keys, ["b", "a\"", "c"]);
        assert_eq!(read(r#"{"keys":[]}"#).unwrap(), [""; 0]);
        let of = |key: &str, count| format!("{{\"keys\":{:?}}}", vec![key; count]);
        assert_eq!(read(&of("k", KEYS_MAX)).unwrap(), ["k"]);
        let long = "x".repeat(IdempotencyKey::CHARS_MAX);
        let fit = KEYS_CHARS_MAX / long.len();
        assert_eq!(read(&of(&long, fit)).unwrap(), [&long[..]]);
        for (body, why) in [
            (of("k", KEYS_MAX + 1), "more than 20000 keys"),
            (of(&long, fit + 1), "more than 1048576 characters"),
            (of(&format!("{long}x"), 1), "is not an idempotency key"),
            (of("", 1), "is not an idempotency key"),
            ("[]".into(), "as in {\"keys\""),
            (" [[]]".into(), "this is a list"),
            ("[[\"a\"]]".into(), "this is a list"),
            ("{\"keys\":[],\"x\":1}".into(), "unknown field"),
            ("{\"keys\":[1]}".into(), "string"),
        ] {
            let error = read(&body).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
