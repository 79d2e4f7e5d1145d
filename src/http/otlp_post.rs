//! `POST /v1/metrics`: receives an export of metrics by OpenTelemetry's protocol (OTLP/HTTP), counts the network flows in
//! it, and responds when they are durable.

use std::pin::Pin;

use bytes::Buf;
use futures_util::Stream;
use warp::http::Method;
use warp::reply::Response;

use super::api::Api;
use super::error::Problem;
use super::request::Request;
use super::{batches, body, negotiate, paths, response};
use crate::service::Committed;
use flow::decode::otlp::{self, Format};

pub(super) async fn handle(
    api: &Api,
    request: &Request<'_>,
    stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let headers = request.headers;
    let service = batches::admit(api, request)?;
    request.reject_parameters()?;
    let format = negotiate::otlp_format(headers)?;
    let encoding = negotiate::body_encoding(headers)?;
    let (body, mut permit) = body::receive(api, headers, encoding, stream).await?;
    let body_bytes = body.len();
    let measure = move || {
        let measured = otlp::measure(&body, format);
        (body, measured)
    };
    let (body, measured) = batches::decode(body_bytes, measure).await?;
    let measured = measured.map_err(Problem::BadExport)?;
    let (batch_bytes, rejected) = (measured.batch_bytes, measured.rejected);
    // A name that its resource has once is in each flow of the batch.
    let bytes_max = api.limits.body_bytes_max;
    if batch_bytes > bytes_max {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    api.admission
        .grow(&mut permit, body_bytes + batch_bytes)
        .await?;
    // Senders make no keys, but a body has the times of its data points: an equal one was sent again.
    let build = move || {
        let batch = otlp::build(&body, format, batch_bytes);
        batch.map(|batch| batch.with_content_key_of(&body))
    };
    let batch = batches::decode(body_bytes, build).await?;
    let batch = batch.map_err(Problem::BadExport)?;
    batches::validate_hours(api, service, &batch).await?;
    let committed = match batch.flows() {
        0 => Committed {
            replayed: false,
            flows: 0,
            too_old: 0,
        },
        _ => service.commit(batch, permit, false).await?,
    };
    if !committed.replayed {
        let metric = &api.metrics.ingest().points_rejected;
        for (reason, points) in rejected.reasons() {
            metric.with_label_values(&[reason.name()]).inc_by(points);
        }
    }
    let points = rejected.total() + committed.too_old;
    let message = rejected.explain(committed.too_old);
    let answer = otlp::success(format, points, &message);
    let mut response = response::with_body(format.media_type(), answer);
    batches::mark_replayed(&mut response, &committed);
    Ok(response)
}

/// The format of the response to an export that failed; `None` for other requests, and for one whose format is unknown.
pub(super) fn error_format(request: &Request<'_>) -> Option<Format> {
    let is_export = request.method == Method::POST && request.path == paths::OTLP_METRICS;
    is_export
        .then(|| negotiate::otlp_format(request.headers).ok())
        .flatten()
}
