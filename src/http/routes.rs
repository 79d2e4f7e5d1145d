//! Which path and method goes to which handler.

use std::pin::{Pin, pin};
use std::sync::Arc;

use bytes::Buf;
use futures_util::Stream;
use warp::http::header::{self, HeaderValue};
use warp::http::{HeaderMap, Method, StatusCode};
use warp::path::FullPath;
use warp::reply::Response;
use warp::{Filter, Rejection};

use super::connections::Peer;
use super::error::Problem;
use super::{Api, body, flows_get, flows_post, health};

/// Everything the service answers, as one filter.
///
/// Warp's own routing answers a wrong path or method by rejections, which carry no `Allow` and no
/// problem body; so it hands every request to [`route`], and there is one place to look.
pub(super) fn filter(
    api: Arc<Api>,
) -> impl Filter<Extract = (Response,), Error = Rejection> + Clone {
    let query = warp::query::raw().or(warp::any().map(String::new)).unify();
    warp::method()
        .and(warp::path::full())
        .and(query)
        .and(warp::header::headers_cloned())
        .and(warp::ext::get::<Peer>())
        .and(warp::body::stream())
        .then(move |method, path, query, headers, peer, body| {
            let api = api.clone();
            async move { answer(&api, method, path, query, headers, peer, body).await }
        })
}

async fn answer(
    api: &Api,
    method: Method,
    path: FullPath,
    query: String,
    headers: HeaderMap,
    peer: Peer,
    body: impl Stream<Item = Result<impl Buf, warp::Error>> + Send,
) -> Response {
    let mut body = pin!(body);
    let answer = route(api, method, path, query, &headers, &peer, body.as_mut()).await;
    match answer {
        Ok(response) => response,
        Err(problem) => {
            body::drain(&headers, body).await;
            problem.into_response()
        }
    }
}

async fn route(
    api: &Api,
    method: Method,
    path: FullPath,
    query: String,
    headers: &HeaderMap,
    peer: &Peer,
    body: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let allow = match path.as_str() {
        "/flows" => "GET, HEAD, POST, OPTIONS",
        "/healthz" | "/readyz" => "GET, HEAD, OPTIONS",
        path => {
            return Err(Problem::NoSuchPath { path: path.into() });
        }
    };
    match (path.as_str(), method) {
        ("/flows", Method::POST) => flows_post::handle(api, &query, headers, peer, body).await,
        ("/flows", Method::GET | Method::HEAD) => {
            flows_get::handle(api, &query, headers, peer).await
        }
        ("/healthz", Method::GET | Method::HEAD) => Ok(health::live()),
        ("/readyz", Method::GET | Method::HEAD) => health::ready(api),
        (_, Method::OPTIONS) => {
            let mut response = Response::new(Vec::new().into());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static(allow));
            Ok(response)
        }
        (_, method) => Err(Problem::MethodNotAllowed { method, allow }),
    }
}
