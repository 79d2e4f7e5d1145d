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

use super::connections::RequestContext;
use super::error::Problem;
use super::long_target::{Dropped, TargetTail};
use super::trace::Trace;
use super::{
    Api, backups, body, flows_delete, flows_get, flows_post, health, hours, metrics, openapi, page,
    partitions, receipts_post,
};

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
    let trace = Trace::of(&headers);
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
        let answer = async {
            api.hosts.validate(&request)?;
            match too_long {
                None => route(api, &request, body.as_mut()).await,
                Some(problem) => Err(problem),
            }
        };
        match answer.await {
            Ok(response) => response,
            Err(problem) => {
                body::drain(&headers, body).await;
                let reason = problem.name();
                let metrics = api.metrics.http();
                metrics.rejected.with_label_values(&[reason]).inc();
                problem.into_response()
            }
        }
    }
    .instrument(trace.span())
    .await;
    let time = start.elapsed();
    trace.mark(response.headers_mut());
    forbid_caching(response.headers_mut());
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

/// The query of a request whose target may be longer than hyper accepts, or why a part of it was not kept.
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

/// Forbids caching unless the handler allows it, because the next flows change the answer.
pub(super) fn forbid_caching(headers: &mut HeaderMap) {
    let control = headers.entry(header::CACHE_CONTROL);
    control.or_insert(HeaderValue::from_static("no-store"));
}

/// A request without its body.
pub(super) struct Request<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) context: &'a RequestContext,
}

impl Request<'_> {
    /// # Errors
    /// The request has a query parameter.
    pub(super) fn reject_parameters(&self) -> Result<(), Problem> {
        match form_urlencoded::parse(self.query.as_bytes()).next() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::BadQuery {
                what: format!(
                    "{} {} takes no query parameter, but has {name:?}",
                    self.method, self.path
                ),
            }),
        }
    }
}

/// All paths, and their methods.
pub(super) const PATHS: [(&str, &str); 9] = [
    ("/", "GET, HEAD, OPTIONS"),
    ("/flows", "GET, HEAD, POST, DELETE, OPTIONS"),
    ("/hours", "GET, HEAD, OPTIONS"),
    ("/metrics", "GET, HEAD, OPTIONS"),
    ("/openapi.json", "GET, HEAD, OPTIONS"),
    ("/healthz", "GET, HEAD, OPTIONS"),
    ("/readyz", "GET, HEAD, OPTIONS"),
    ("/backups", "POST, OPTIONS"),
    ("/receipts", "POST, OPTIONS"),
];
/// Methods of `/backups/ID` and of `/backups/ID/FILE`.
const ONE_BACKUP: &str = "DELETE, OPTIONS";
const BACKUP_FILE: &str = "GET, HEAD, OPTIONS";
/// Requests from other nodes are below this path.
const PARTITIONS_PATH: &str = "/partitions/";
const PARTITIONS: &str = "GET, HEAD, OPTIONS";
/// Methods of the page's assets.
const ASSET: &str = "GET, HEAD, OPTIONS";

/// The known path that differs from `path` only by slashes at the end.
pub(super) fn path_like(path: &str) -> Option<&'static str> {
    let plain = path.trim_end_matches('/');
    let (known, _) = PATHS.iter().find(|(known, _)| *known == plain)?;
    Some(known)
}

/// The label of a path in metrics. All unknown paths share one, so that clients cannot create labels.
fn path_label(path: &str) -> &'static str {
    let known = PATHS.iter().find(|(known, _)| *known == path);
    match known {
        Some((known, _)) => known,
        None if path.starts_with("/backups/") => "/backups",
        None if path.starts_with("/assets/") => "/assets",
        None if path.starts_with(PARTITIONS_PATH) => "/partitions",
        None => "other",
    }
}

fn method_label(method: &Method) -> &'static str {
    let known = ["GET", "HEAD", "POST", "DELETE", "OPTIONS", "PUT", "PATCH"];
    let label = known.into_iter().find(|known| method.as_str() == *known);
    label.unwrap_or("other")
}

/// `/backups/ID` and `/backups/ID/FILE`.
fn backup_path(path: &str) -> Option<(&str, Option<&str>)> {
    let rest = path.strip_prefix("/backups/")?;
    let (id, file) = match rest.split_once('/') {
        Some((id, file)) => (id, Some(file)),
        None => (rest, None),
    };
    (!id.is_empty()).then_some((id, file))
}

async fn route(
    api: &Api,
    request: &Request<'_>,
    body: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let (path, method) = (request.path, request.method);
    let backup = backup_path(path);
    let asset = page::asset(path);
    let known = PATHS.iter().find(|(known, _)| *known == path);
    let allow = match (known, backup, asset) {
        (Some((_, allow)), ..) => allow,
        (_, Some((_, None)), _) => ONE_BACKUP,
        (_, Some((_, Some(_))), _) => BACKUP_FILE,
        (_, _, Some(_)) => ASSET,
        _ if path.starts_with(PARTITIONS_PATH) => PARTITIONS,
        (None, None, None) => {
            return Err(Problem::NoSuchPath { path: path.into() });
        }
    };
    let is_get = method == Method::GET || method == Method::HEAD;
    match (path, backup, asset) {
        _ if method == Method::OPTIONS => Ok(options(allow)),
        ("/", ..) if is_get => page::index(request.headers),
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
        (_, Some((id, None)), _) if method == Method::DELETE => {
            backups::end(api, request, id).await
        }
        (_, Some((id, Some(file))), _) if is_get => backups::file(api, request, id, file).await,
        _ if is_get && path.starts_with(PARTITIONS_PATH) => partitions::handle(api, request).await,
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
