//! `GET /healthz`: the process lives. `GET /readyz`: it has recovered and takes writes.

use warp::http::header::{self, HeaderValue};
use warp::reply::Response;

use super::Api;
use super::error::Problem;

pub(super) fn live() -> Response {
    text("ok\n")
}

pub(super) fn ready(api: &Api) -> Result<Response, Problem> {
    api.ready()?;
    Ok(text("ready\n"))
}

fn text(body: &'static str) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}
