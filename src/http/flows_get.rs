//! `GET /flows`: the sums of an hour or of several, filtered, added up, sorted: streamed, or a page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::task::{AbortHandle, JoinError, JoinHandle};
use tracing::Span;
use warp::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use warp::reply::{Reply, Response};

use super::Api;
use super::access::Right;
use super::connections::Peer;
use super::error::Problem;
use super::routes::Request;
use super::rows::Answer;
use super::{RowFormat, negotiate, parameters};
use crate::query::{Cancel, Coverage, Engine, Query, QueryError};
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
    let encoding = negotiate::row_encoding(request.headers)?;
    let permit = api.permit_to_answer(request.peer, 1)?;
    let cancel = Cancel::default();
    let stop = cancel.clone();
    let make = move || {
        let rows = engine.ask(&question, cancel)?;
        Answer::new(rows, format, encoding).map_err(|_| Problem::Internal)
    };
    let mut response = stream(api, request, permit, stop, make).await?;
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(format.media_type()),
    );
    headers.insert(
        header::VARY,
        HeaderValue::from_static("accept, accept-encoding"),
    );
    if let Some(encoding) = encoding.name() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    Ok(response)
}

/// The answer that `make` makes, which may block: its first part at once, and each further one when the client
/// has taken the one before. `stop` is what ends the making.
pub(super) async fn stream(
    api: &Api,
    request: &Request<'_>,
    permit: OwnedSemaphorePermit,
    stop: Cancel,
    make: impl FnOnce() -> Result<Answer, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let peer = request.peer;
    let metrics = api.metrics.clone();
    let first = tokio::task::spawn_blocking(move || {
        let mut answer = make()?;
        let chunk = answer.next_chunk()?.unwrap_or_default();
        metrics.http().query_rows_read.inc_by(answer.rows_read());
        Ok::<_, Problem>((chunk, answer, permit))
    });
    let first = unless_left(peer, stop.clone(), first).await;
    let (chunk, mut answer, permit) = first.map_err(|_| Problem::Internal)??;
    let long = match answer.has_ended() {
        true => None,
        false => Some(api.permit_for_long_answer(peer)?),
    };
    let next_page = answer.next_page();
    let next_page = next_page.map(|cursor| parameters::next_page(request.query, cursor));
    let coverage = answer.coverage();
    let mut response = if answer.has_ended() {
        // A short answer goes out whole, with its length.
        Response::new(chunk.into())
    } else {
        let guards = Guards {
            pace: answer.holds_memory().then(|| Pace::begin(peer)),
            _leaving: Leaving::begin(answer.take_leaves(), peer),
        };
        let about = About {
            metrics: api.metrics.clone(),
            query: request.query.to_owned(),
            span: Span::current(),
        };
        let rest = rest_of(answer, about, ((permit, long), peer.clone(), guards), stop);
        let rest = stream::once(async { Ok(chunk) }).chain(rest);
        warp::reply::stream(rest).into_response()
    };
    let headers = response.headers_mut();
    if let Some(next_page) = next_page {
        let value = HeaderValue::try_from(next_page).map_err(|_| Problem::Internal)?;
        headers.insert(header::LINK, value);
    }
    say_coverage(headers, &coverage)?;
    Ok(response)
}

/// Says which parts of the sums are in an answer.
pub(super) fn say_coverage(headers: &mut HeaderMap, coverage: &Coverage) -> Result<(), Problem> {
    let missing = coverage.missing.iter().map(i32::to_string).collect();
    let lag = coverage.lag.iter().map(|(of, lag)| format!("{of}={lag}"));
    let values: [(_, Vec<String>); 2] = [(MISSING, missing), (LAG, lag.collect())];
    for (name, values) in values {
        if !values.is_empty() {
            let value = HeaderValue::try_from(values.join(","));
            headers.insert(name, value.map_err(|_| Problem::Internal)?);
        }
    }
    Ok(())
}

/// Why a stream ends early: the connection breaks off with it, so that the client cannot take a part
/// for the whole.
const BROKE_OFF: &str = "the answer broke off";

/// A place for an answer, and one for a long one.
type Permits = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

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
    holds: (Permits, Peer, Guards),
    stop: Cancel,
) -> impl Stream<Item = Result<Bytes, &'static str>> + Send + Sync {
    let state = (answer, holds, stop);
    stream::try_unfold(state, move |(mut answer, (permit, peer, guards), stop)| {
        let about = about.clone();
        async move {
            guards.pace.iter().for_each(Pace::note_part);
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
            Ok(chunk.map(|chunk| (chunk, (answer, (permit, peer, guards), stop))))
        }
    })
}

/// What breaks an answer off that others wait for.
struct Guards {
    pace: Option<Pace>,
    _leaving: Option<Leaving>,
}

/// Breaks an answer off when a store is to be closed that it reads: whoever has its partition next waits for that.
/// Until it is dropped.
struct Leaving(AbortHandle);

impl Leaving {
    fn begin(leaves: Vec<watch::Receiver<()>>, peer: &Peer) -> Option<Leaving> {
        if leaves.is_empty() {
            return None;
        }
        let break_off = peer.request.break_off_later();
        let closed = |mut leave: watch::Receiver<()>| async move { leave.changed().await.is_err() };
        let mut leaves: FuturesUnordered<_> = leaves.into_iter().map(closed).collect();
        let waiting = tokio::spawn(async move {
            let _closed = leaves.next().await;
            break_off();
        });
        Some(Leaving(waiting.abort_handle()))
    }
}

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.abort();
    }
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
pub(super) async fn unless_left<T>(
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
