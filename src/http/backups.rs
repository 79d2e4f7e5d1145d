//! `/backups`: the files of a checkpoint, for `flowtally backup` to fetch.
//!
//! `POST /backups` makes one and lists its files, `GET /backups/ID/FILE` sends a file, and `DELETE
//! /backups/ID` removes it. The right to read all flows includes the right to back them up.

use super::response;
use std::io::Read;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use warp::http::header::{self, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::{Reply, Response};

use super::access::Permission;
use super::api::Api;
use super::connections::Download;
use super::error::Problem;
use super::request::Request;
use crate::backup::{BackupError, Sessions};

/// Bytes per read of a file. When the lease ends, this much may still be in flight to the client; over a slow line,
/// that should not take long.
const CHUNK_BYTES: usize = 64 << 10;

fn sessions(api: &Api, request: &Request<'_>) -> Result<Arc<Sessions>, Problem> {
    api.access
        .authorize(Permission::Read, request.headers, request.context)?;
    let service = api.opened()?;
    request.reject_parameters()?;
    Ok(service.backups()?)
}

/// The response to `error`. Logs errors that an operator has to know of.
fn problem(error: BackupError) -> Problem {
    let what = error.to_string();
    let problem = match error {
        BackupError::Gone => return Problem::NoSuchBackup { what },
        BackupError::Busy => return Problem::BackupBusy { what },
        BackupError::Store(_) => Problem::NoCheckpoint,
        _ => Problem::Internal,
    };
    tracing::error!(error = what, "a backup failed");
    problem
}

pub(super) async fn start(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    let sessions = sessions(api, request)?;
    api.not_stopping()?;
    let manifest = tokio::task::spawn_blocking(move || sessions.start());
    let manifest = manifest.await.map_err(|_| Problem::Internal)?;
    let manifest = manifest.map_err(problem)?;
    // Strings and integers always serialise.
    let mut json = serde_json::to_vec(&manifest).unwrap_or_default();
    json.push(b'\n');
    let mut response = response::with_body(response::JSON, json);
    *response.status_mut() = StatusCode::CREATED;
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::from_str(&format!("/backups/{}", manifest.id)) {
        headers.insert(header::LOCATION, location);
    }
    Ok(response)
}

pub(super) async fn end(api: &Api, request: &Request<'_>, id: &str) -> Result<Response, Problem> {
    let (sessions, id) = (sessions(api, request)?, id.to_owned());
    let ended = tokio::task::spawn_blocking(move || sessions.end(&id));
    let ended = ended.await.map_err(|_| Problem::Internal)?;
    ended.map_err(problem)?;
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
    let sessions = sessions(api, request)?;
    let permit = api.acquire_response_permit(request.context, 1)?;
    let long = api.acquire_long_response_permit(request.context)?;
    let (id, name) = (id.to_owned(), name.to_owned());
    let opened = tokio::task::spawn_blocking(move || sessions.open_file(&id, &name));
    let opened = opened.await.map_err(|_| Problem::Internal)?;
    let (file, bytes, lease) = opened.map_err(problem)?;
    // In this order: either the shutdown finds the download, or the download finds the shutdown.
    let end = move |last_used| lease.end(last_used);
    request.context.guard.set_download(Download::new(end));
    api.not_stopping()?;
    let mut response = match *request.method {
        Method::HEAD => Response::new(Vec::new().into()),
        _ => {
            let holds = ((permit, long), request.context.guard.clone());
            warp::reply::stream(chunks(file, bytes, holds)).into_response()
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

/// Streams a file. Each chunk is read when the client has read the one before.
fn chunks(
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
