//! `GET /metrics`: what the service counts, in Prometheus's text format.

use warp::reply::Response;

use super::access::Right;
use super::error::Problem;
use super::routes::Request;
use super::{Api, Backend};
use crate::ingest::HourGuard;

const MEDIA_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    api.access
        .check(Right::Read, request.headers, request.peer)?;
    request.takes_no_parameter()?;
    let metrics = api.metrics.clone();
    metrics.http().ready.set(i64::from(api.ready().is_ok()));
    let granted = api.admission.bytes_granted();
    metrics.ingest().body_bytes.set(granted as i64);
    let backend = api.backend().cloned();
    let guard = api.hour_guard.clone();
    let observe = move |backend: &Backend| observe(backend, &guard);
    let text =
        tokio::task::spawn_blocking(move || metrics.expose(|| backend.iter().for_each(observe)));
    let text = text.await.map_err(|_| Problem::Internal)?;
    let text = text.map_err(|error| {
        tracing::error!(%error, "metrics cannot be written");
        Problem::Internal
    })?;
    Ok(super::answer(MEDIA_TYPE, text))
}

fn observe(backend: &Backend, guard: &HourGuard) {
    guard.trusts_clock(backend.journal.newest_hour());
    if let Err(error) = backend.journal.observe() {
        // What is counted is shown, and the gauges as they were.
        tracing::error!(%error, "the state of the store cannot be read");
    }
}
