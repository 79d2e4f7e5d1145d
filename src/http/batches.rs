//! What `POST /flows` and `POST /v1/metrics` share: the steps around the decoding of a batch.

use std::sync::Arc;

use warp::http::header::HeaderValue;
use warp::reply::Response;

use super::access::Permission;
use super::api::Api;
use super::error::Problem;
use super::request::Request;
use crate::service::{Committed, Service};
use flow::{Batch, headers};

/// Larger bodies are decoded on a blocking thread. For smaller ones, the hand-over would cost more than it saves.
const DECODE_INLINE_BYTES_MAX: usize = 512 << 10;

/// Checks, before a batch is received, that the client may send one, and that the service accepts any.
pub(super) fn admit<'a>(
    api: &'a Api,
    request: &Request<'_>,
) -> Result<&'a Arc<dyn Service>, Problem> {
    api.access
        .authorize(Permission::Write, request.headers, request.context)?;
    let service = api.opened()?;
    service.admit_batch()?;
    Ok(service)
}

/// Runs `decode`, which decodes a body of `body_bytes` bytes.
///
/// # Errors
/// It panicked.
pub(super) async fn decode<T: Send + 'static>(
    body_bytes: usize,
    decode: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    if body_bytes <= DECODE_INLINE_BYTES_MAX {
        return Ok(decode());
    }
    tokio::task::spawn_blocking(decode)
        .await
        .map_err(|_| Problem::Internal)
}

/// # Errors
/// A flow's hour is too far ahead of the clock, and the clock is plausible.
pub(super) async fn validate_hours(
    api: &Api,
    service: &Arc<dyn Service>,
    batch: &Batch,
) -> Result<(), Problem> {
    let Err(too_far_ahead) = api.hour_guard.validate(batch) else {
        return Ok(());
    };
    let service = service.clone();
    let newest = tokio::task::spawn_blocking(move || service.newest_hour());
    let newest = newest.await.map_err(|_| Problem::Internal)?;
    match api.hour_guard.trusts_clock(newest) {
        true => Err(too_far_ahead.into()),
        false => Ok(()),
    }
}

/// Tells the client if the batch had counted before.
pub(super) fn mark_replayed(response: &mut Response, committed: &Committed) {
    if committed.replayed {
        response.headers_mut().insert(
            headers::IDEMPOTENT_REPLAYED,
            HeaderValue::from_static("true"),
        );
    }
}
