//! `POST /flows`: receives a batch, and responds when it is durable, or with `?wait=visible` when it is visible.

use std::pin::Pin;

use bytes::Buf;
use futures_util::Stream;
use warp::http::HeaderMap;
use warp::reply::Response;

use super::api::Api;
use super::error::Problem;
use super::request::Request;
use super::{batches, body, negotiate, parameters, response};
use crate::service::Committed;
use flow::decode::decode;
use flow::{IdempotencyKey, Notes, headers};

pub(super) async fn handle(
    api: &Api,
    request: &Request<'_>,
    stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let committed = receive_batch(api, request, stream).await?;
    let (accepted, expired) = (committed.flows, committed.too_old);
    let json = match expired {
        0 => format!("{{\"accepted\":{accepted}}}\n"),
        _ => format!("{{\"accepted\":{accepted},\"expired\":{expired}}}\n"),
    };
    let mut response = response::with_body(response::JSON, json);
    batches::mark_replayed(&mut response, &committed);
    Ok(response)
}

/// Receives the batch and commits it.
async fn receive_batch(
    api: &Api,
    request: &Request<'_>,
    stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Committed, Problem> {
    let headers = request.headers;
    let service = batches::admit(api, request)?;
    let parameters = parameters::parse_post(request.query)?;
    let format = negotiate::body_format(headers)?;
    let encoding = negotiate::body_encoding(headers)?;
    let key = idempotency_key(headers)?;
    let notes = notes(headers, key.as_ref())?;
    let (body, permit) = body::receive(api, headers, encoding, stream).await?;
    let batch = batches::decode(body.len(), move || decode(&body, format)).await?;
    let batch = batch.map_err(Problem::BadBatch)?;
    batches::validate_hours(api, service, &batch).await?;
    let batch = match key {
        Some(key) => batch.with_key(key).with_notes(notes),
        None if parameters.by_content => batch.with_content_key(),
        None => batch,
    };
    let until_visible = parameters.until_visible;
    Ok(service.commit(batch, permit, until_visible).await?)
}

fn idempotency_key(header_map: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
    let mut values = header_map.get_all(headers::IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    match IdempotencyKey::new(value.as_bytes()) {
        Some(key) if values.next().is_none() && !is_reserved(&key) => Ok(Some(key)),
        _ => Err(Problem::BadIdempotencyKey),
    }
}

/// The service makes such keys itself.
fn is_reserved(key: &IdempotencyKey) -> bool {
    key.as_str().starts_with(IdempotencyKey::CONTENT_PREFIX)
}

/// The notes to store with the batch, which has `key`.
fn notes(header_map: &HeaderMap, key: Option<&IdempotencyKey>) -> Result<Notes, Problem> {
    let mut values = header_map.get_all(headers::RECEIPT_NOTES).iter();
    let Some(value) = values.next() else {
        return Ok(Notes::default());
    };
    let notes = value.to_str().ok().and_then(Notes::parse);
    let of_import = |key: &IdempotencyKey| key.as_str().starts_with(IdempotencyKey::IMPORT_PREFIX);
    match notes {
        Some(notes)
            if values.next().is_none()
                && key.is_some_and(of_import)
                && notes.others.iter().all(|(key, _)| of_import(key)) =>
        {
            Ok(notes)
        }
        _ => Err(Problem::BadNotes),
    }
}
