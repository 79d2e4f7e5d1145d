//! `POST /flows`: a batch in, and an answer once it is durable and visible.

use std::pin::Pin;

use bytes::Buf;
use futures_util::Stream;
use warp::http::HeaderMap;
use warp::http::header::{self, HeaderValue};
use warp::reply::Response;

use super::access::Right;
use super::connections::Peer;
use super::error::Problem;
use super::{Api, body, negotiate};
use crate::domain::IdempotencyKey;
use crate::ingest::decode::decode;
use crate::ingest::{IngestError, Taken};

/// Bodies above this size are decoded on a thread where that may take its time; below, handing
/// them over would cost more than it spares the other requests.
const DECODE_INLINE_BYTES_MAX: usize = 512 << 10;

pub(super) async fn handle(
    api: &Api,
    query: &str,
    headers: &HeaderMap,
    peer: &Peer,
    stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let (accepted, taken) = take(api, query, headers, peer, stream).await?;
    let mut response = Response::new(format!("{{\"accepted\":{accepted}}}").into());
    if taken == Taken::Before {
        response
            .headers_mut()
            .insert("idempotent-replayed", HeaderValue::from_static("true"));
    }
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    Ok(response)
}

/// Returns the number of flows, once they are durable and visible, and whether they were before.
async fn take(
    api: &Api,
    query: &str,
    headers: &HeaderMap,
    peer: &Peer,
    stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<(usize, Taken), Problem> {
    api.access.check(Right::Write, headers, peer)?;
    let backend = api.open_backend()?;
    if backend.committer.lacks_space() {
        return Err(Problem::NoSpace);
    }
    if let Some((name, _)) = form_urlencoded::parse(query.as_bytes()).next() {
        return Err(Problem::BadQuery {
            what: format!("POST /flows takes no query parameter, and there is {name:?}"),
        });
    }
    let format = negotiate::body_format(headers)?;
    let encoding = negotiate::body_encoding(headers)?;
    let key = idempotency_key(headers)?;
    let (body, permit) = body::receive(api, headers, encoding, stream).await?;
    let batch = if body.len() <= DECODE_INLINE_BYTES_MAX {
        decode(&body, format).inspect(|_| drop(body))
    } else {
        tokio::task::spawn_blocking(move || decode(&body, format))
            .await
            .map_err(|_| Problem::Internal)?
    };
    let batch = batch.map_err(Problem::BadBatch)?;
    let accepted = batch.flows();
    let batch = match key {
        Some(key) => batch.with_key(key),
        // Nothing to keep.
        None if accepted == 0 => return Ok((0, Taken::Now)),
        None => batch,
    };
    let taken = backend.committer.commit(batch, permit).await;
    let taken = taken.map_err(|error| match error {
        IngestError::Store(_) if backend.committer.lacks_space() => Problem::NoSpace,
        error => error.into(),
    })?;
    Ok((accepted, taken))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = headers.get_all("idempotency-key").iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    match IdempotencyKey::new(value.as_bytes()) {
        Some(key) if values.next().is_none() => Ok(Some(key)),
        _ => Err(Problem::BadIdempotencyKey),
    }
}
