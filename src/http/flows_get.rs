//! `GET /flows?hour=N`: the sums of an hour, streamed.

use bytes::Bytes;
use futures_util::stream::{self, Stream, StreamExt};
use warp::http::Method;
use warp::http::header::{self, HeaderValue};
use warp::reply::{Reply, Response};

use super::Api;
use super::access::Right;
use super::error::Problem;
use super::negotiate;
use super::routes::Request;
use super::rows::Answer;
use crate::domain::Hour;

pub(super) async fn handle(api: &Api, request: &Request<'_>) -> Result<Response, Problem> {
    let (headers, peer) = (request.headers, request.peer);
    api.access.check(Right::Read, headers, peer)?;
    let engine = api.open_backend()?.engine.clone();
    let hour = hour(request)?;
    let format = negotiate::row_format(headers)?;
    let encoding = negotiate::row_encoding(headers)?;
    let permit = api.permit_to_answer(peer, 1)?;
    let first = tokio::task::spawn_blocking(move || {
        let rows = engine.hour(hour)?;
        let mut answer = Answer::new(rows, format, encoding).map_err(|_| Problem::Internal)?;
        let chunk = answer.next_chunk()?.unwrap_or_default();
        Ok::<_, Problem>((chunk, answer, permit))
    });
    let (chunk, answer, permit) = first.await.map_err(|_| Problem::Internal)??;
    let mut response = if answer.has_ended() {
        // A short answer goes out whole, with its length.
        Response::new(chunk.into())
    } else {
        let holds = (permit, peer.request.clone());
        let rest = rest_of(answer, holds);
        let rest = stream::once(async { Ok(chunk) }).chain(rest);
        warp::reply::stream(rest).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(format.media_type()),
    );
    headers.insert(
        header::VARY,
        HeaderValue::from_static("accept, accept-encoding"),
    );
    if let Some(encoding) = encoding.name() {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(encoding));
    }
    Ok(response)
}

/// Why a stream ends early: the connection breaks off with it, so that the client cannot take a part
/// for the whole.
const BROKE_OFF: &str = "the answer broke off";

/// The chunks of `answer`. Each is made when the client has taken the one before: a slow client
/// holds a scan, but no thread. Whatever is in `holds` lives as long as the answer does.
fn rest_of(
    answer: Answer,
    holds: impl Send + Sync + 'static,
) -> impl Stream<Item = Result<Bytes, &'static str>> + Send + Sync {
    stream::try_unfold((answer, holds), |(mut answer, holds)| async {
        let made = tokio::task::spawn_blocking(move || (answer.next_chunk(), answer, holds));
        let (chunk, answer, holds) = made.await.map_err(|_| BROKE_OFF)?;
        let chunk = chunk.map_err(|error| {
            tracing::error!(%error, "an answer broke off");
            BROKE_OFF
        })?;
        Ok(chunk.map(|chunk| (chunk, (answer, holds))))
    })
}

/// The one parameter, `hour`.
pub(super) fn hour(request: &Request<'_>) -> Result<Hour, Problem> {
    parse_hour(request.query, request.method)
}

fn parse_hour(query: &str, method: &Method) -> Result<Hour, Problem> {
    let bad = |what: String| Problem::BadQuery { what };
    let mut hour = None;
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        if name != "hour" {
            return Err(bad(format!(
                "{name:?} is not a parameter of {method} /flows; hour is"
            )));
        }
        if hour.is_some() {
            return Err(bad("the parameter hour is given twice".into()));
        }
        // `parse` alone would take a plus sign.
        let digits = value.bytes().all(|b| b.is_ascii_digit());
        let number = value.parse().ok().filter(|_| digits).and_then(Hour::new);
        hour = Some(number.ok_or_else(|| {
            bad(format!(
                "hour is {value:?}; it has to be an integer from 0 to {}",
                Hour::MAX
            ))
        })?);
    }
    hour.ok_or_else(|| bad("the parameter hour is missing, as in /flows?hour=1".into()))
}

/// What has to hold of any query: a clear answer. For fuzzing.
#[cfg(fuzzing)]
pub fn check(query: &str) {
    if let Ok(hour) = parse_hour(query, &Method::GET) {
        assert!(query.contains("hour") || query.contains('%'), "{hour}");
    }
}
