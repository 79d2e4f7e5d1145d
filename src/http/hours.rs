//! `GET /hours`: the hours that hold flows, and their totals, from the ledger.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use warp::http::StatusCode;
use warp::http::header::{self, HeaderValue};
use warp::reply::Response;

use super::access::Permission;
use super::api::Api;
use super::error::Problem;
use super::request::Request;
use super::{flows_get, negotiate, response};
use crate::query::EncodedRows;
use crate::service::Service;
use flow::headers::{FLOWTALLY_FINEST_ROWS, FLOWTALLY_LEDGER_DIFFERENCE};
use flow::query::{HoursQuery, text};

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    api.access
        .authorize(Permission::Read, request.headers, request.context)?;
    let service = api.opened()?.clone();
    let query = text::parse_hours(request.query)?;
    let difference = service.ledger_difference();
    let mut response = respond(api, request, service, query).await?;
    if let Some(difference) = difference {
        let headers = response.headers_mut();
        headers.insert(FLOWTALLY_LEDGER_DIFFERENCE, difference.into());
    }
    Ok(response)
}

/// Responds to `query`: for all partitions, or for some of this node.
pub(super) async fn respond(
    api: &Api,
    request: &Request<'_>,
    service: Arc<dyn Service>,
    query: HoursQuery,
) -> Result<Response, Problem> {
    let encoding = negotiate::row_encoding(request.headers)?;
    let permit = api.acquire_response_permit(request.context, 1)?;
    let is_for_peer = query.partitions.is_some();
    let cancel = CancellationToken::default();
    let cancel_stream = cancel.clone();
    let opened = tokio::task::spawn_blocking(move || service.hours(&query, cancel));
    let opened =
        flows_get::cancel_on_disconnect(request.context, cancel_stream.clone(), opened).await;
    let hours = opened.map_err(|_| Problem::Internal)??;
    let tag = hours.etag();
    let finest = is_for_peer.then(|| hours.finest_rows().to_string());
    let is_known = |tag: &String| negotiate::has_current(request.headers, tag);
    let mut response = if tag.as_ref().is_some_and(is_known) {
        let mut response = Response::new(Vec::new().into());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        flows_get::add_coverage(response.headers_mut(), &hours.coverage)?;
        response
    } else {
        let make = move || EncodedRows::of_hours(hours, encoding).map_err(|_| Problem::Internal);
        let mut response = flows_get::stream(api, request, permit, cancel_stream, make).await?;
        let headers = response.headers_mut();
        let media_type = HeaderValue::from_static(response::JSON);
        headers.insert(header::CONTENT_TYPE, media_type);
        if let Some(encoding) = encoding.name() {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
        }
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::VARY, HeaderValue::from_static("accept-encoding"));
    if let Some(finest) = finest {
        let finest = HeaderValue::try_from(finest).map_err(|_| Problem::Internal)?;
        headers.insert(FLOWTALLY_FINEST_ROWS, finest);
    }
    if let Some(tag) = tag {
        let tag = HeaderValue::try_from(tag).map_err(|_| Problem::Internal)?;
        headers.insert(header::ETAG, tag);
    }
    Ok(response)
}
