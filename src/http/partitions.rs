//! `/partitions`: what the nodes of a cluster ask each other. Where sums are not in parts, there is no such
//! path.

use std::sync::Arc;

use warp::http::StatusCode;
use warp::reply::Response;

use super::access::Right;
use super::error::Problem;
use super::routes::Request;
use super::{Api, RowFormat, flows_get, hours, parameters};
use crate::service::Service;

fn service<'a>(api: &'a Api, request: &Request<'_>) -> Result<&'a Arc<dyn Service>, Problem> {
    let no_such_path = || Problem::NoSuchPath {
        path: request.path.into(),
    };
    (api.access).check(Right::Node, request.headers, request.peer)?;
    let service = api.opened()?;
    match service.answers_peers() {
        true => Ok(service),
        false => Err(no_such_path()),
    }
}

/// `GET /partitions/rows?p=0,3&…`: what these partitions add to an answer of `GET /flows?…`.
pub(super) async fn rows(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    let service = service(api, request)?.clone();
    let question = parameters::question_of_a_node(request.query)?;
    flows_get::answer(api, request, service, question, RowFormat::Frames).await
}

/// `GET /partitions/hours?p=0,3`: what these partitions add to the answer of `GET /hours`.
pub(super) async fn hours(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    let service = service(api, request)?.clone();
    let query = parameters::hours_of_a_node(request.query)?;
    hours::answer(api, request, service, query).await
}

/// `GET /partitions/applied?upto=0:17,3:5`: waits until the sums of these partitions have everything up to
/// these offsets, for a while; 204 when they have.
pub(super) async fn applied(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    let service = service(api, request)?;
    let upto = parameters::offsets(request.query)?;
    if !service.has_applied(upto).await {
        return Err(Problem::NotReady {
            why: "the partitions are not so far, or not here".into(),
        });
    }
    let mut response = Response::new(Vec::new().into());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
