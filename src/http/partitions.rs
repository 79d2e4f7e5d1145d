//! `/partitions/…`: requests from other nodes of the cluster. The service parses the paths; a standalone service has
//! none of them.

use warp::http::StatusCode;
use warp::reply::Response;

use super::access::Permission;
use super::api::Api;
use super::error::Problem;
use super::request::Request;
use super::{flows_get, hours};
use crate::service::PeerRequest;

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    (api.access).authorize(Permission::Node, request.headers, request.context)?;
    let service = api.opened()?;
    let Some(asked) = service.peer_request(request.path, request.query) else {
        return Err(Problem::NoSuchPath {
            path: request.path.into(),
        });
    };
    match asked? {
        PeerRequest::Rows(query, format) => {
            flows_get::respond(api, request, service.clone(), query, format).await
        }
        PeerRequest::Hours(query) => hours::respond(api, request, service.clone(), query).await,
        PeerRequest::Applied(applied) => {
            if !applied.await {
                return Err(Problem::NotReady {
                    why:
                        "the partitions have not applied these offsets yet, or are not on this node"
                            .into(),
                });
            }
            let mut response = Response::new(Vec::new().into());
            *response.status_mut() = StatusCode::NO_CONTENT;
            Ok(response)
        }
    }
}
