//! `POST /directory`: an agent's claims of addresses and ports, and its questions about those of others.

use std::net::IpAddr;
use std::pin::Pin;

use bytes::Buf;
use futures_util::Stream;
use warp::reply::Response;

use super::access::Ranges;
use super::api::Api;
use super::error::Problem;
use super::request::Request;
use super::{body, negotiate, response};
use crate::directory::{Directory, now_ms};
use crate::service::ClaimsRefused;
use flow::directory::{DirectoryRequest, DirectoryResponse};

/// A body with a larger `Content-Length` is not read: it has more than the maximum number of claims and questions, or
/// unusually long names.
const BODY_BYTES_MAX: usize = 8 << 20;

pub(super) async fn handle(
    api: &Api,
    request: &Request<'_>,
    stream: Pin<&mut (impl Stream<Item = Result<impl Buf, warp::Error>> + Send)>,
) -> Result<Response, Problem> {
    let headers = request.headers;
    let ranges = api.access.authorize_claims(headers, request.context)?;
    request.reject_parameters()?;
    let service = api.opened()?.clone();
    negotiate::require_json(headers)?;
    let encoding = negotiate::body_encoding(headers)?;
    let bytes_max = api.limits.body_bytes_max.min(BODY_BYTES_MAX);
    body::refuse_longer(headers, bytes_max)?;
    let (body, permit) = body::receive(api, headers, encoding, stream).await?;
    if body.len() > bytes_max {
        return Err(Problem::BodyTooLarge { bytes_max });
    }
    let response_permit = api.acquire_response_permit(request.context, 1)?;
    let read = tokio::task::spawn_blocking(move || read(&body, ranges.as_ref()));
    let (mut asked, refused) = read.await.map_err(|_| Problem::Internal)??;
    let questions = std::mem::take(&mut asked.questions);
    let vpc_id = asked.vpc_id.clone();
    let renewed = service.renew_claims(asked).await;
    let answer = move || {
        let directory = service.directory();
        let response = DirectoryResponse {
            now: now_ms(),
            // Before the names, so that a claim that arrives in between is not missed.
            complete_until: match service.is_directory_current() {
                true => directory.complete_until(&vpc_id),
                false => 0,
            },
            names: directory.names(&vpc_id, &questions),
            refused,
            claims_refused: renewed.err().map(|ClaimsRefused(why)| why),
        };
        drop((permit, response_permit));
        serde_json::to_vec(&response).map_err(|_| Problem::Internal)
    };
    let json = tokio::task::spawn_blocking(answer).await;
    let json = json.map_err(|_| Problem::Internal)??;
    Ok(response::with_body(response::JSON, json))
}

/// The request, without the claims that the token does not permit, and the addresses of those.
fn read(body: &[u8], ranges: Option<&Ranges>) -> Result<(DirectoryRequest, Vec<IpAddr>), Problem> {
    let bad = |what: String| Problem::BadDirectoryRequest {
        // Truncated, since serde's message may contain a value.
        what: format!("{what:.300}"),
    };
    // serde would also read the fields from a list.
    if body.trim_ascii_start().first() == Some(&b'[') {
        return Err(bad("it has to be an object; this is a list".into()));
    }
    let mut request: DirectoryRequest =
        serde_json::from_slice(body).map_err(|e| bad(e.to_string()))?;
    Directory::validate(&request).map_err(|e| bad(e.to_string()))?;
    let mut refused = Vec::new();
    if let Some(ranges) = ranges {
        request.claims.retain(|claim| {
            let is_permitted = ranges.contain(claim.address);
            if !is_permitted {
                refused.push(claim.address);
            }
            is_permitted
        });
    }
    refused.sort_unstable();
    refused.dedup();
    Ok((request, refused))
}
