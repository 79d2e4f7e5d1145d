//! `GET /hours`: which hours hold flows, and what they add up to, from the ledger.

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use warp::http::header::{self, HeaderValue};
use warp::reply::{Reply, Response};

use super::Api;
use super::access::Right;
use super::error::Problem;
use super::routes::Request;
use super::{flows_get, parameters};
use crate::query::{Engine, Hours};

/// Such an answer is in memory as a whole, some 80 bytes an hour, until the client has taken it. So there
/// are few at a time: it counts as so many of rows.
const WEIGHT: u32 = 16;
/// What is handed over at once; an answer that is not longer is no burden.
const PART_BYTES: usize = 64 << 10;

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    api.access
        .check(Right::Read, request.headers, request.peer)?;
    let engine = api.open_backend()?.engine.clone();
    let partial = parameters::partial(request.query)?;
    answer(api, request, engine, None, partial).await
}

/// Of all partitions, or of some that are here; `partial` takes what there is of them.
pub(super) async fn answer(
    api: &Api,
    request: &Request<'_>,
    engine: Engine,
    partitions: Option<Vec<i32>>,
    partial: bool,
) -> Result<Response, Problem> {
    let permit = api.permit_to_answer(request.peer, WEIGHT)?;
    let made = tokio::task::spawn_blocking(move || {
        let Hours { hours, coverage } = engine.hours(partitions.as_deref(), partial)?;
        let rows = hours.iter().map(|(hour, totals)| {
            let (flows, tx, rx) = (totals.flows, totals.tx, totals.rx);
            format!("{{\"hour\":{hour},\"flows\":{flows},\"bytes_tx\":{tx},\"bytes_rx\":{rx}}}")
        });
        let json = format!("[{}]\n", rows.collect::<Vec<_>>().join(",\n"));
        Ok::<_, Problem>((Bytes::from(json), coverage))
    });
    let (json, coverage) = made.await.map_err(|_| Problem::Internal)??;
    let mut response = if json.len() <= PART_BYTES {
        super::answer(super::JSON, json)
    } else {
        let holds = (permit, request.peer.request.clone());
        let mut response = warp::reply::stream(parts(json, holds)).into_response();
        let media_type = HeaderValue::from_static(super::JSON);
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, media_type);
        response
    };
    flows_get::say_coverage(response.headers_mut(), &coverage)?;
    Ok(response)
}

/// `json` in parts. Whatever is in `holds` lives until the last is on its way.
fn parts(
    json: Bytes,
    holds: impl Send + Sync + 'static,
) -> impl Stream<Item = Result<Bytes, std::convert::Infallible>> + Send + Sync {
    stream::unfold((json, holds), |(mut json, holds)| async {
        let part = json.split_to(json.len().min(PART_BYTES));
        (!part.is_empty()).then(|| (Ok(part), (json, holds)))
    })
}
