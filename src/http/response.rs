//! Helpers for responses.

use warp::http::HeaderMap;
use warp::http::header::{self, HeaderValue};
use warp::reply::Response;

/// A response with a body of `media_type`.
pub(super) fn with_body(media_type: &'static str, body: impl Into<bytes::Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    let value = HeaderValue::from_static(media_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// The media type of a body that is one JSON value.
pub(super) const JSON: &str = "application/json";

/// Forbids caching unless the handler allows it, because the next flows change the response.
pub(super) fn forbid_caching(headers: &mut HeaderMap) {
    let control = headers.entry(header::CACHE_CONTROL);
    control.or_insert(HeaderValue::from_static("no-store"));
}
