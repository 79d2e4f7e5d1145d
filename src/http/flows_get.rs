//! `GET /flows`: the sums of an hour or of several, filtered, added up, sorted: streamed, or a page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinError, JoinHandle};
use tracing::Span;
use warp::http::header::{self, HeaderName, HeaderValue};
use warp::reply::{Reply, Response};

use super::Api;
use super::access::Right;
use super::connections::Peer;
use super::error::Problem;
use super::routes::Request;
use super::rows::Answer;
use super::{RowFormat, negotiate, parameters};
use crate::query::{Cancel, Engine, Query, QueryError};
use crate::telemetry::Metrics;

/// Partitions that nobody answers for, as in `3,7`, and by how many messages the others are behind the
/// journal, as in `0=12,1=0`.
const MISSING: HeaderName = HeaderName::from_static("flowtally-missing");
const LAG: HeaderName = HeaderName::from_static("flowtally-lag");

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    let headers = request.headers;
    api.access.check(Right::Read, headers, request.peer)?;
    let engine = api.open_backend()?.engine.clone();
    let question = parameters::question(request.query)?;
    let format = negotiate::row_format(headers)?;
    answer(api, request, engine, question, format).await
}

/// What `engine` answers to `question`, as `format`.
pub(super) async fn answer(
    api: &Api,
    request: &Request<'_>,
    engine: Engine,
    question: Query,
    format: RowFormat,
) -> Result<Response, Problem> {
    let (headers, peer) = (request.headers, request.peer);
    let encoding = negotiate::row_encoding(headers)?;
    let permit = api.permit_to_answer(peer, 1)?;
    let cancel = Cancel::default();
    let stop = cancel.clone();
    let metrics = api.metrics.clone();
    let first = tokio::task::spawn_blocking(move || {
        let rows = engine.ask(&question, cancel)?;
        let mut answer = Answer::new(rows, format, encoding).map_err(|_| Problem::Internal)?;
        let chunk = answer.next_chunk()?.unwrap_or_default();
        metrics.http().query_rows_read.inc_by(answer.rows_read());
        Ok::<_, Problem>((chunk, answer, permit))
    });
    let first = unless_left(peer, stop.clone(), first).await;
    let (chunk, answer, permit) = first.map_err(|_| Problem::Internal)??;
    let next_page = answer.next_page();
    let next_page = next_page.map(|cursor| parameters::next_page(request.query, cursor));
    let list = |of: Vec<String>| (!of.is_empty()).then(|| of.join(","));
    let missing = list(answer.missing().iter().map(i32::to_string).collect());
    let lag = answer
        .lag()
        .iter()
        .map(|(partition, lag)| format!("{partition}={lag}"));
    let lag = list(lag.collect());
    let mut response = if answer.has_ended() {
        // A short answer goes out whole, with its length.
        Response::new(chunk.into())
    } else {
        let pace = answer.holds_memory().then(|| Pace::begin(peer));
        let about = About {
            metrics: api.metrics.clone(),
            query: request.query.to_owned(),
            span: Span::current(),
        };
        let rest = rest_of(answer, about, (permit, peer.clone(), pace), stop);
        let rest = stream::once(async { Ok(chunk) }).chain(rest);
        warp::reply::stream(rest).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(format.media_type()),
    );
    headers.insert(
        header::VARY,
        HeaderValue::from_static("accept, accept-encoding"),
    );
    for (name, value) in [(header::LINK, next_page), (MISSING, missing), (LAG, lag)] {
        if let Some(value) = value {
            let value = HeaderValue::try_from(value).map_err(|_| Problem::Internal)?;
            headers.insert(name, value);
        }
    }
    if let Some(encoding) = encoding.name() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    Ok(response)
}

/// Why a stream ends early: the connection breaks off with it, so that the client cannot take a part
/// for the whole.
const BROKE_OFF: &str = "the answer broke off";

/// What is known of an answer on its way.
#[derive(Clone)]
struct About {
    metrics: Metrics,
    query: String,
    span: Span,
}

/// The chunks of `answer`. Each is made when the client has taken the one before: a slow client
/// holds a scan, but no thread.
fn rest_of(
    answer: Answer,
    about: About,
    holds: (OwnedSemaphorePermit, Peer, Option<Pace>),
    stop: Cancel,
) -> impl Stream<Item = Result<Bytes, &'static str>> + Send + Sync {
    let state = (answer, holds, stop);
    stream::try_unfold(state, move |(mut answer, (permit, peer, pace), stop)| {
        let about = about.clone();
        async move {
            pace.iter().for_each(Pace::note_part);
            let metrics = about.metrics.clone();
            let made = tokio::task::spawn_blocking(move || {
                let before = answer.rows_read();
                let chunk = answer.next_chunk();
                let rows_read = &metrics.http().query_rows_read;
                rows_read.inc_by(answer.rows_read() - before);
                (chunk, answer, permit)
            });
            let made = unless_left(&peer, stop.clone(), made).await;
            let (chunk, answer, permit) = made.map_err(|_| BROKE_OFF)?;
            let chunk = chunk.map_err(|error| {
                if !matches!(error, QueryError::Cancelled) {
                    let query = &about.query;
                    tracing::error!(parent: &about.span, %error, query, "an answer broke off");
                }
                BROKE_OFF
            })?;
            Ok(chunk.map(|chunk| (chunk, (answer, (permit, peer, pace), stop))))
        }
    })
}

/// How long a client has for a part of an answer that holds memory which others may need.
const PART_TIME_MAX: Duration = Duration::from_secs(10);

/// Breaks an answer off whose parts are taken too slowly; until it is dropped.
struct Pace(Arc<AtomicU64>);

impl Pace {
    fn begin(peer: &Peer) -> Pace {
        let parts = Arc::new(AtomicU64::new(0));
        let (watched, break_off) = (Arc::downgrade(&parts), peer.request.break_off_later());
        tokio::spawn(async move {
            let mut seen = u64::MAX;
            loop {
                let Some(parts) = watched.upgrade().map(|p| p.load(Ordering::Relaxed)) else {
                    return;
                };
                if parts == seen {
                    return break_off();
                }
                seen = parts;
                tokio::time::sleep(PART_TIME_MAX).await;
            }
        });
        Pace(parts)
    }

    fn note_part(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits for `task`. When the client leaves, or nobody waits any more, the task is told to stop.
async fn unless_left<T>(
    peer: &Peer,
    stop: Cancel,
    mut task: JoinHandle<T>,
) -> Result<T, JoinError> {
    let mut waiting = StopWhenDropped(Some(stop));
    let done = tokio::select! {
        done = &mut task => done,
        () = peer.request.left() => {
            drop(waiting);
            return task.await;
        }
    };
    waiting.0 = None;
    done
}

struct StopWhenDropped(Option<Cancel>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        if let Some(stop) = &self.0 {
            stop.cancel();
        }
    }
}
