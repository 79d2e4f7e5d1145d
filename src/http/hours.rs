//! `GET /hours`: which hours hold flows, and what they add up to, from the ledger.

use warp::reply::Response;

use super::Api;
use super::access::Right;
use super::error::Problem;
use super::routes::Request;

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    api.access
        .check(Right::Read, request.headers, request.peer)?;
    let engine = api.open_backend()?.engine.clone();
    request.takes_no_parameter()?;
    let hours = tokio::task::spawn_blocking(move || engine.hours());
    let hours = hours.await.map_err(|_| Problem::Internal)??;
    let rows = hours.iter().map(|(hour, totals)| {
        let (flows, tx, rx) = (totals.flows, totals.tx, totals.rx);
        format!("{{\"hour\":{hour},\"flows\":{flows},\"bytes_tx\":{tx},\"bytes_rx\":{rx}}}")
    });
    let json = format!("[{}]\n", rows.collect::<Vec<_>>().join(",\n"));
    Ok(super::answer(super::JSON, json))
}
