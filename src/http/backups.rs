//! `/backups`: the files of a checkpoint, for `flowtally backup` to fetch.
//!
//! `POST /backups` makes one and lists its files, `GET /backups/ID/FILE` has their bytes, and `DELETE
//! /backups/ID` lets it go. Whoever may read all flows may take a backup of them.

use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use warp::http::header::{self, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::{Reply, Response};

use super::Api;
use super::access::Right;
use super::error::Problem;
use super::routes::Request;
use crate::backup::Offer;

/// What is read of a file at once. It is all on its way while nobody reads the file any more: over a slow
/// line, it should not take long.
const CHUNK_BYTES: usize = 64 << 10;

fn offer(api: &Api, request: &Request<'_>) -> Result<Arc<Offer>, Problem> {
    api.access
        .check(Right::Read, request.headers, request.peer)?;
    let offer = api.open_backend()?.offer.clone();
    request.takes_no_parameter()?;
    offer.ok_or(Problem::NotHere(
        "a node's sums can be made anew from Kafka, as far as that goes back, and from checkpoints before that: \
         see --checkpoint-url",
    ))
}

pub(super) async fn begin(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    let offer = offer(api, request)?;
    api.not_stopping()?;
    let manifest = tokio::task::spawn_blocking(move || offer.begin());
    let manifest = manifest.await.map_err(|_| Problem::Internal)??;
    // Strings and integers always serialise.
    let mut json = serde_json::to_vec(&manifest).unwrap_or_default();
    json.push(b'\n');
    let mut response = super::answer(super::JSON, json);
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&format!("/backups/{}", manifest.id)) {
        headers.insert(header::LOCATION, location);
    }
    Ok(response)
}

pub(super) async fn end(api: &Api, request: &Request<'_>, id: &str) -> Result<Response, Problem> {
    let (offer, id) = (offer(api, request)?, id.to_owned());
    let ended = tokio::task::spawn_blocking(move || offer.end(&id));
    ended.await.map_err(|_| Problem::Internal)??;
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}

pub(super) async fn file(
    api: &Api,
    request: &Request<'_>,
    id: &str,
    name: &str,
) -> Result<Response, Problem> {
    let offer = offer(api, request)?;
    let permit = api.permit_to_answer(request.peer, 1)?;
    let long = api.permit_for_long_answer(request.peer)?;
    let (id, name) = (id.to_owned(), name.to_owned());
    let opened = tokio::task::spawn_blocking(move || offer.file(&id, &name));
    let (file, bytes, in_use) = opened.await.map_err(|_| Problem::Internal)??;
    // In this order, so that a stop finds it, or is found.
    request.peer.request.hold(in_use);
    api.not_stopping()?;
    let mut response = match *request.method {
        Method::HEAD => Response::new(Vec::new().into()),
        _ => {
            let holds = ((permit, long), request.peer.request.clone());
            warp::reply::stream(parts(file, bytes, holds)).into_response()
        }
    };
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(bytes));
    Ok(response)
}

/// The file, part by part: each is read when the client has taken the one before.
fn parts(
    file: std::fs::File,
    bytes: u64,
    holds: impl Send + Sync + 'static,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + Sync {
    let file = file.take(bytes);
    stream::try_unfold((file, holds), |(mut file, holds)| async {
        let read = tokio::task::spawn_blocking(move || {
            let mut part = Vec::with_capacity(CHUNK_BYTES);
            let read = Read::by_ref(&mut file)
                .take(CHUNK_BYTES as u64)
                .read_to_end(&mut part);
            read.map(|_| (part, file, holds))
        });
        let (part, file, holds) = read.await.map_err(std::io::Error::other)??;
        Ok((!part.is_empty()).then(|| (part.into(), (file, holds))))
    })
}
