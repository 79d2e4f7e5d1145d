//! `DELETE /flows?hour=N`: deletes an hour as a whole.

use super::response;
use warp::reply::Response;

use super::access::Permission;
use super::api::Api;
use super::error::Problem;
use super::parameters;
use super::request::Request;

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    api.access
        .authorize(Permission::Write, request.headers, request.context)?;
    let service = api.opened()?.clone();
    let hour = parameters::parse_hour(request.query, request.method)?;
    let deleted = tokio::task::spawn_blocking(move || service.delete_hour(hour));
    let Some(totals) = deleted.await.map_err(|_| Problem::Internal)?? else {
        return Err(Problem::NoSuchHour { hour });
    };
    let json = format!("{{\"deleted\":{}}}\n", totals.flows);
    Ok(response::with_body(response::JSON, json))
}
