//! `GET /healthz`: the process is alive. `GET /readyz`: the service has recovered and accepts writes.

use super::response;
use warp::reply::Response;

use super::api::Api;
use super::error::Problem;

const TEXT: &str = "text/plain; charset=utf-8";

pub(super) fn live() -> Response {
    response::with_body(TEXT, "ok\n")
}

pub(super) fn ready(api: &Api) -> Result<Response, Problem> {
    api.require_ready()?;
    Ok(response::with_body(TEXT, "ready\n"))
}
