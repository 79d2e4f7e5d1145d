//! Routes a path and method to its handler.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Instant;

use bytes::Buf;
use futures_util::Stream;
use tracing::Instrument;
use warp::http::header::{self, HeaderValue};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::api::Api;
use super::error::Problem;
use super::long_target::{Dropped, TargetTail};
use super::paths::{self, backup_path, path_label};
use super::request::{Request, RequestContext};
use super::trace::Trace;
use super::{
    backups, body, directory_post, docs, flows_delete, flows_get, flows_post, health, hours,
    metrics, openapi, otlp_post, page, partitions, receipts_post, response,
};
use crate::service::PEER_PATH_PREFIX;
use flow::directory::DIRECTORY_PATH;

/// The whole API, as one filter.
///
/// Warp's own routing rejects a wrong path or method without `Allow` and without a problem document. So this filter
/// passes every request to [`route`].
pub(super) fn filter(
    api: Arc<Api>,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<RequestContext>())
        .and(warp::body::stream())
        .then(move |method, path, query, headers, context, body| {
            let api = api.clone();
            async move { handle(&api, method, path, query, headers, context, body).await }
        })
}

/// Responds to one request, counts it, and logs it.
async fn handle(
    api: &Api,
    method: Method,
    path: FullPath,
    query: String,
    headers: HeaderMap,
    context: RequestContext,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Send,
) -> Response {
    let start = Instant::now();
    let trace = Trace::from_headers(&headers);
    let (query, too_long) = whole_query(query, &context);
    let request = Request {
        method: &method,
        path: path.as_str(),
        query: &query,
        headers: &headers,
        context: &context,
    };
    let mut response = async {
        let mut body = pin!(body);
        let response = async {
            api.hosts.validate(&request)?;
            match too_long {
                None => route(api, &request, body.as_mut()).await,
                Some(problem) => Err(problem),
            }
        };
        match response.await {
            Ok(response) => response,
            Err(problem) => {
                body::drain(&headers, body).await;
                let reason = problem.name();
                let metrics = api.metrics.http();
                metrics.rejected.with_label_values(&[reason]).inc();
                match otlp_post::error_format(&request) {
                    Some(format) => problem.into_otlp_response(format),
                    None => problem.into_response(),
                }
            }
        }
    }
    .instrument(trace.span())
    .await;
    let time = start.elapsed();
    trace.set_response_header(response.headers_mut());
    response::forbid_caching(response.headers_mut());
    let status = response.status();
    let (method, label) = (method_label(&method), path_label(path.as_str()));
    let metrics = api.metrics.http();
    let labels = [method, label, status.as_str()];
    metrics.requests.with_label_values(&labels).inc();
    let seconds = metrics.request_seconds.with_label_values(&labels[..2]);
    seconds.observe(time.as_secs_f64());
    tracing::debug!(
        parent: &trace.span(),
        method,
        path = path.as_str(),
        query,
        status = status.as_u16(),
        us = time.as_micros() as u64,
        "answered"
    );
    response
}

/// The query of a request whose target may be longer than hyper accepts, and the problem if a part of it was not kept.
fn whole_query(query: String, context: &RequestContext) -> (String, Option<Problem>) {
    match context.target.tail.as_deref() {
        None => (query, None),
        // If the query has not started yet, the path alone is too long, and there is no such path.
        Some(TargetTail::Kept(_)) if query.is_empty() => (query, None),
        Some(TargetTail::Kept(rest)) => (query + &rest.text, None),
        Some(TargetTail::Dropped(Dropped::TooLong)) => (query, Some(Problem::TargetTooLong)),
        Some(TargetTail::Dropped(Dropped::NoMemory)) => (query, Some(Problem::TooManyQueries)),
    }
}

fn method_label(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"];
    let label = known.into_iter().find(|known| method.as_str() == *known);
    label.unwrap_or("other")
}

async fn route(
    api: &Api,
    request: &Request<'_>,
    body: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let (path, method) = (request.path, request.method);
    let backup = backup_path(path);
    let asset = page::asset(path);
    let known = paths::PATHS.iter().find(|(known, _)| *known == path);
    let allow = match (known, backup, asset) {
        (Some((_, allow)), ..) => allow,
        (_, Some((_, None)), _) => paths::ONE_BACKUP,
        (_, Some((_, Some(_))), _) => paths::BACKUP_FILE,
        (_, _, Some(_)) => paths::ASSET,
        _ if path.starts_with(PEER_PATH_PREFIX) => paths::PARTITIONS,
        (None, None, None) => {
            return Err(Problem::NoSuchPath { path: path.into() });
        }
    };
    let is_get = method == Method::GET || method == Method::HEAD;
    match (path, backup, asset) {
        _ if method == Method::OPTIONS => Ok(options(allow)),
        ("/", ..) if is_get => page::index(request.headers),
        ("/docs", ..) if is_get => docs::handle(request.headers),
        ("/flows", ..) if method == Method::POST => flows_post::handle(api, request, body).await,
        ("/flows", ..) if method == Method::DELETE => flows_delete::handle(api, request).await,
        ("/flows", ..) if is_get => flows_get::handle(api, request).await,
        ("/hours", ..) if is_get => hours::handle(api, request).await,
        ("/metrics", ..) if is_get => metrics::handle(api, request).await,
        ("/openapi.json", ..) if is_get => Ok(openapi::document()),
        ("/healthz", ..) if is_get => Ok(health::live()),
        ("/readyz", ..) if is_get => health::ready(api),
        ("/backups", ..) if method == Method::POST => backups::start(api, request).await,
        ("/receipts", ..) if method == Method::POST => {
            receipts_post::handle(api, request, body).await
        }
        (DIRECTORY_PATH, ..) if method == Method::POST => {
            directory_post::handle(api, request, body).await
        }
        (paths::OTLP_METRICS, ..) if method == Method::POST => {
            otlp_post::handle(api, request, body).await
        }
        (_, Some((id, None)), _) if method == Method::DELETE => {
            backups::end(api, request, id).await
        }
        (_, Some((id, Some(file))), _) if is_get => backups::file(api, request, id, file).await,
        _ if is_get && path.starts_with(PEER_PATH_PREFIX) => partitions::handle(api, request).await,
        (_, _, Some(asset)) if is_get => page::file(request.headers, asset),
        _ => Err(Problem::MethodNotAllowed {
            method: method.clone(),
            allow,
        }),
    }
}

fn options(allow: &'static str) -> Response {
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(header::ALLOW, HeaderValue::from_static(allow));
    response
}
