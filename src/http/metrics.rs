//! `GET /metrics`: counters and gauges in Prometheus's text format.

use super::response;
use std::sync::Arc;

use warp::reply::Response;

use super::access::Permission;
use super::api::Api;
use super::error::Problem;
use super::request::Request;
use crate::ingest::HourGuard;
use crate::service::Service;

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    api.access
        .authorize(Permission::Read, request.headers, request.context)?;
    request.reject_parameters()?;
    let metrics = api.metrics.clone();
    metrics
        .http()
        .ready
        .set(i64::from(api.require_ready().is_ok()));
    let granted = api.admission.bytes_granted();
    metrics.ingest().body_bytes.set(granted as i64);
    let service = api.service().cloned();
    let guard = api.hour_guard.clone();
    let observe = move |service: &Arc<dyn Service>| observe(&**service, &guard);
    let text =
        tokio::task::spawn_blocking(move || metrics.expose(|| service.iter().for_each(observe)));
    let text = text.await.map_err(|_| Problem::Internal)?;
    let text = text.map_err(|error| {
        tracing::error!(%error, "metrics cannot be written");
        Problem::Internal
    })?;
    Ok(response::with_body(MEDIA_TYPE, text))
}

fn observe(service: &dyn Service, guard: &HourGuard) {
    guard.trusts_clock(service.newest_hour());
    if let Err(error) = service.observe() {
        // Counters are shown, and gauges keep their previous values.
        tracing::error!(%error, "the state of the store cannot be read");
    }
}
