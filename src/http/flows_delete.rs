//! `DELETE /flows?hour=N` or `?from=N&to=N`: deletes hours as a whole.

use super::response;
use warp::reply::Response;

use super::access::Permission;
use super::api::Api;
use super::error::Problem;
use super::request::Request;
use flow::query::text;

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    api.access
        .authorize(Permission::Write, request.headers, request.context)?;
    let service = api.opened()?.clone();
    let hours = text::parse_deletion(request.query)?;
    let deleted = tokio::task::spawn_blocking(move || service.delete_hours(hours));
    let Some(totals) = deleted.await.map_err(|_| Problem::Internal)?? else {
        return Err(Problem::NoSuchHour { hours });
    };
    let json = format!("{{\"deleted\":{}}}\n", totals.flows);
    Ok(response::with_body(response::JSON, json))
}
