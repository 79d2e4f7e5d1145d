//! `GET /healthz`: the process is alive. `GET /readyz`: the service has recovered and accepts writes.

use warp::reply::Response;

use super::Api;
use super::error::Problem;

const TEXT: &str = "text/plain; charset=utf-8";

pub(super) fn live() -> Response {
    super::response(TEXT, "ok\n")
}

pub(super) fn ready(api: &Api) -> Result<Response, Problem> {
    api.check_ready()?;
    Ok(super::response(TEXT, "ready\n"))
}
