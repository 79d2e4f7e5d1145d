//! `GET /flows`: the rows of one or more hours, filtered, grouped and sorted; streamed, or as a page.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, FuturesUnordered, Stream, StreamExt};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{AbortHandle, JoinError, JoinHandle};
use tokio_util::sync::CancellationToken;
use tracing::Span;
use warp::http::header::{self, HeaderMap, HeaderValue};
use warp::reply::{Reply, Response};

use super::access::Permission;
use super::api::Api;
use super::error::Problem;
use super::request::Request;
use super::request::RequestContext;
use super::{negotiate, parameters};
use crate::query::{Coverage, EncodedRows, QueryError, RowFormat};
use crate::service::Service;
use crate::telemetry::Metrics;
use flow::headers;
use flow::query::{Query, text};

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    let headers = request.headers;
    api.access
        .authorize(Permission::Read, headers, request.context)?;
    let service = api.opened()?.clone();
    let query = text::parse_flows(request.query)?;
    let format = negotiate::row_format(headers)?;
    respond(api, request, service, query, format).await
}

/// Responds to `query` in `format`.
pub(super) async fn respond(
    api: &Api,
    request: &Request<'_>,
    service: Arc<dyn Service>,
    query: Query,
    format: RowFormat,
) -> Result<Response, Problem> {
    let encoding = negotiate::row_encoding(request.headers)?;
    let permit = api.acquire_response_permit(request.context, 1)?;
    let cancel = CancellationToken::default();
    let cancel_stream = cancel.clone();
    let make = move || {
        let rows = service.ask(&query, cancel)?;
        EncodedRows::new(rows, format, encoding).map_err(|_| Problem::Internal)
    };
    let mut response = stream(api, request, permit, cancel_stream, make).await?;
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

/// Streams the rows that `make` returns. `make` may block, and its rows check `cancel`. The first chunk is sent
/// immediately, and each further one when the client has read the one before.
pub(super) async fn stream(
    api: &Api,
    request: &Request<'_>,
    permit: OwnedSemaphorePermit,
    cancel: CancellationToken,
    make: impl FnOnce() -> Result<EncodedRows, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    let context = request.context;
    let metrics = api.metrics.clone();
    let first = tokio::task::spawn_blocking(move || {
        let mut rows = make()?;
        let chunk = rows.next_chunk()?.unwrap_or_default();
        metrics.http().query_rows_read.inc_by(rows.rows_read());
        Ok::<_, Problem>((chunk, rows, permit))
    });
    let first = cancel_on_disconnect(context, cancel.clone(), first).await;
    let (chunk, mut rows, permit) = first.map_err(|_| Problem::Internal)??;
    let long = match rows.has_ended() {
        true => None,
        false => Some(api.acquire_long_response_permit(context)?),
    };
    let next_page = rows.next_page();
    let next_page = next_page.map(|cursor| parameters::next_page(request.query, cursor));
    let coverage = rows.coverage();
    let totals = rows.totals();
    let mut response = if rows.has_ended() {
        // A short response is sent in one piece, with its length.
        Response::new(chunk.into())
    } else {
        let guards = Guards {
            stall: rows.holds_memory().then(|| StallWatchdog::spawn(context)),
            _revocation: RevocationGuard::spawn(rows.take_revocations(), context),
        };
        let log = LogContext {
            metrics: api.metrics.clone(),
            query: request.query.to_owned(),
            span: Span::current(),
        };
        let rest = remaining_chunks(rows, log, ((permit, long), context.clone(), guards), cancel);
        let rest = stream::once(async { Ok(chunk) }).chain(rest);
        warp::reply::stream(rest).into_response()
    };
    let response_headers = response.headers_mut();
    if let Some(next_page) = next_page {
        let value = HeaderValue::try_from(next_page).map_err(|_| Problem::Internal)?;
        response_headers.insert(header::LINK, value);
    }
    if let Some(totals) = totals {
        for (name, sum) in [
            (headers::FLOWTALLY_TOTAL_BYTES_TX, totals.tx),
            (headers::FLOWTALLY_TOTAL_BYTES_RX, totals.rx),
        ] {
            let value = HeaderValue::try_from(sum.to_string()).map_err(|_| Problem::Internal)?;
            response_headers.insert(name, value);
        }
    }
    add_coverage(response_headers, &coverage)?;
    Ok(response)
}

/// Adds the headers that list the partitions that a response lacks, and their lag.
pub(super) fn add_coverage(headers: &mut HeaderMap, coverage: &Coverage) -> Result<(), Problem> {
    for (name, value) in coverage.headers() {
        let value = HeaderValue::try_from(value).map_err(|_| Problem::Internal)?;
        headers.insert(name, value);
    }
    Ok(())
}

/// The error of a stream that ends early. It aborts the connection, so that the client does not mistake the response
/// for complete.
const ABORTED: &str = "the response was aborted";

/// A permit for a response, and the second one that a long response needs.
type Permits = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

/// The context for log lines and metrics of a streamed response.
#[derive(Clone)]
struct LogContext {
    metrics: Metrics,
    query: String,
    span: Span,
}

/// The remaining chunks of `rows`. Each is produced when the client has read the one before, so a slow client holds a
/// scan, but no thread.
fn remaining_chunks(
    rows: EncodedRows,
    log: LogContext,
    holds: (Permits, RequestContext, Guards),
    cancel: CancellationToken,
) -> impl Stream<Item = Result<Bytes, &'static str>> + Send + Sync {
    let state = (rows, holds, cancel);
    stream::try_unfold(
        state,
        move |(mut rows, (permit, context, guards), cancel)| {
            let log = log.clone();
            async move {
                guards.stall.iter().for_each(StallWatchdog::record_chunk);
                let metrics = log.metrics.clone();
                let made = tokio::task::spawn_blocking(move || {
                    let before = rows.rows_read();
                    let chunk = rows.next_chunk();
                    let rows_read = &metrics.http().query_rows_read;
                    rows_read.inc_by(rows.rows_read() - before);
                    (chunk, rows, permit)
                });
                let made = cancel_on_disconnect(&context, cancel.clone(), made).await;
                let (chunk, rows, permit) = made.map_err(|_| ABORTED)?;
                let chunk = chunk.map_err(|error| {
                    if !matches!(error, QueryError::Cancelled) {
                        let query = &log.query;
                        tracing::error!(parent: &log.span, %error, query, "response aborted");
                    }
                    ABORTED
                })?;
                Ok(chunk.map(|chunk| (chunk, (rows, (permit, context, guards), cancel))))
            }
        },
    )
}

/// While they exist, they may abort a streamed response.
struct Guards {
    stall: Option<StallWatchdog>,
    _revocation: Option<RevocationGuard>,
}

/// Aborts a response when a store that it reads is revoked: the next owner of the partition waits for that.
struct RevocationGuard(AbortHandle);

impl RevocationGuard {
    fn spawn(
        revocations: Vec<CancellationToken>,
        context: &RequestContext,
    ) -> Option<RevocationGuard> {
        if revocations.is_empty() {
            return None;
        }
        let abort = context.guard.abort_token();
        let revoked = revocations
            .into_iter()
            .map(CancellationToken::cancelled_owned);
        let mut revoked: FuturesUnordered<_> = revoked.collect();
        let waiting = tokio::spawn(async move {
            let _first = revoked.next().await;
            abort.cancel();
        });
        Some(RevocationGuard(waiting.abort_handle()))
    }
}

impl Drop for RevocationGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Longest time for a client to read a chunk of a response that holds memory that other responses may need.
const CHUNK_TIME_MAX: Duration = Duration::from_secs(10);

/// Aborts a response whose client reads no further chunk within [`CHUNK_TIME_MAX`].
struct StallWatchdog {
    chunks: Arc<AtomicU64>,
}

impl StallWatchdog {
    fn spawn(context: &RequestContext) -> StallWatchdog {
        let chunks = Arc::new(AtomicU64::new(0));
        let (watched, abort) = (Arc::downgrade(&chunks), context.guard.abort_token());
        tokio::spawn(async move {
            let mut seen = u64::MAX;
            loop {
                let Some(chunks) = watched.upgrade().map(|c| c.load(Ordering::Relaxed)) else {
                    return;
                };
                if chunks == seen {
                    return abort.cancel();
                }
                seen = chunks;
                tokio::time::sleep(CHUNK_TIME_MAX).await;
            }
        });
        StallWatchdog { chunks }
    }

    fn record_chunk(&self) {
        self.chunks.fetch_add(1, Ordering::Relaxed);
    }
}

/// Waits for `task`, and cancels it when the client disconnects or this future is dropped.
pub(super) async fn cancel_on_disconnect<T>(
    context: &RequestContext,
    cancel: CancellationToken,
    mut task: JoinHandle<T>,
) -> Result<T, JoinError> {
    let guard = cancel.drop_guard();
    let done = tokio::select! {
        done = &mut task => done,
        () = context.guard.disconnected() => {
            drop(guard);
            return task.await;
        }
    };
    let _not_cancelled = guard.disarm();
    done
}
