//! Turns failures into responses: `application/problem+json` (RFC 9457). `description` alone decides the status code of
//! each.

mod description;
#[cfg(test)]
mod tests;

use std::time::SystemTime;

use warp::http::header::{self, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use flow::HostName;

use super::response;
use crate::ingest::Overloaded;
use crate::query::QueryError;
use crate::service::ServiceError;
use description::{Description, SEND_AGAIN};
use flow::decode::DecodeError;
use flow::decode::otlp::{self, ExportError};
use flow::query::text::BadQuery;
use flow::{
    Field, HourRange, PROBLEM_MEDIA_TYPE, PROBLEM_TYPE_PREFIX, ProblemDocument, TooFarAhead,
};

/// Seconds after which a client should retry a request that was refused temporarily.
const RETRY_AFTER_S: u64 = 1;

/// The reason why a request failed.
#[derive(Debug)]
pub(super) enum Problem {
    NoSuchPath {
        path: String,
    },
    /// The hours to delete have no flows.
    NoSuchHour {
        hours: HourRange,
    },
    MethodNotAllowed {
        method: Method,
        allow: &'static str,
    },
    /// The head of the request is not HTTP.
    BadHead,
    TargetTooLong,
    HeadTooLarge,
    /// There is not exactly one `Host` header, or it is malformed.
    BadHost {
        what: String,
    },
    /// The request has a host name that is not one of the service's.
    ForeignHost {
        name: HostName,
    },
    /// A browser sent the request for a page of another site, as `header` shows.
    ForeignOrigin {
        header: &'static str,
    },
    BadQuery {
        what: String,
    },
    /// The body is not a batch of flows.
    BadBatch(DecodeError),
    /// The body is not an export of metrics, or not one whose flows can be counted.
    BadExport(ExportError),
    /// The batch has an hour that is too far ahead of the clock.
    TooFarAhead(TooFarAhead),
    /// The body did not arrive completely, or cannot be decompressed.
    BadBody {
        what: String,
    },
    /// There is more than one `Idempotency-Key` header, or its value is malformed.
    BadIdempotencyKey,
    /// There is more than one `Receipt-Notes` header, or its value is malformed.
    BadNotes,
    /// The body is not a list of idempotency keys.
    BadKeys {
        what: String,
    },
    /// The body is not a request to the directory of addresses.
    BadDirectoryRequest {
        what: String,
    },
    /// The request needs a bearer token and has none.
    NoToken,
    /// The request's token is unknown.
    WrongToken,
    /// The request's token is known, but does not permit this request.
    TokenLacksRight,
    NoClientCertificate,
    BodyTimeout,
    LengthRequired,
    BodyTooLarge {
        bytes_max: usize,
    },
    MediaType {
        what: String,
    },
    ContentEncoding {
        what: String,
    },
    NotAcceptable {
        what: &'static str,
    },
    TooManyQueries,
    Recovering,
    Stopping,
    /// The journal cannot be written at the moment, or the sums lag behind it.
    NotReady {
        why: String,
    },
    Service(ServiceError),
    Query(QueryError),
    /// There is no such backup session.
    NoSuchBackup {
        what: String,
    },
    /// Another backup is being taken.
    BackupBusy {
        what: String,
    },
    /// The store could not make a checkpoint.
    NoCheckpoint,
    /// A bug: a task panicked. The log has the message.
    Internal,
}

impl From<ServiceError> for Problem {
    fn from(error: ServiceError) -> Problem {
        Problem::Service(error)
    }
}

impl From<Overloaded> for Problem {
    fn from(Overloaded(why): Overloaded) -> Problem {
        Problem::Service(ServiceError::Overloaded(why))
    }
}

impl From<BadQuery> for Problem {
    fn from(BadQuery(what): BadQuery) -> Problem {
        Problem::BadQuery { what }
    }
}

impl From<TooFarAhead> for Problem {
    fn from(error: TooFarAhead) -> Problem {
        Problem::TooFarAhead(error)
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Problem {
        Problem::Query(error)
    }
}

impl Problem {
    /// Its label in metrics, and the last part of its type.
    pub(super) fn name(&self) -> &'static str {
        self.describe().name
    }

    /// The invalid flow of the batch, and its invalid field.
    fn fault(&self) -> (Option<usize>, Option<Field>) {
        match self {
            Problem::BadBatch(error) => (error.index, error.field),
            Problem::TooFarAhead(error) => (Some(error.index), Some(Field::Hour)),
            _ => (None, None),
        }
    }

    pub(super) fn into_response(self) -> Response {
        let description = self.describe();
        let body = self.document(&description);
        self.respond(description.status, PROBLEM_MEDIA_TYPE, body)
    }

    /// The response to an export of OpenTelemetry. OTLP requires a `Status` in place of a problem document, and its
    /// clients send an export again after 429, 502, 503 and 504 only, so all problems that may pass are a 503.
    pub(super) fn into_otlp_response(self, format: otlp::Format) -> Response {
        let Description {
            status,
            name,
            title,
            detail,
        } = self.describe();
        // The service makes the key itself.
        let detail = detail.replace(
            SEND_AGAIN,
            "the same export may be sent again, and counts once",
        );
        let message = format!("{title}: {detail} ({PROBLEM_TYPE_PREFIX}{name})");
        let status = match status {
            StatusCode::REQUEST_TIMEOUT | StatusCode::INSUFFICIENT_STORAGE => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            status => status,
        };
        self.respond(status, format.media_type(), otlp::status(format, &message))
    }

    /// Logs a failure, and responds with the headers of this problem.
    fn respond(self, status: StatusCode, media_type: &'static str, body: Vec<u8>) -> Response {
        match &self {
            Problem::Service(error @ ServiceError::Store(_)) => {
                tracing::error!(%error, "a batch was not stored");
            }
            Problem::Service(error @ ServiceError::Receipt(_)) => {
                tracing::error!(%error, "an idempotency key could not be looked up");
            }
            Problem::Service(error @ ServiceError::NotDeleted(_)) => {
                tracing::error!(%error, "an hour was not deleted");
            }
            Problem::Query(error @ (QueryError::Store(_) | QueryError::Encoding(_))) => {
                tracing::error!(%error, "a query failed")
            }
            _ => {}
        }
        let mut response = response::with_body(media_type, body);
        *response.status_mut() = status;
        let headers = response.headers_mut();
        response::forbid_caching(headers);
        match self {
            Problem::MethodNotAllowed { allow, .. } => {
                headers.insert(header::ALLOW, HeaderValue::from_static(allow));
            }
            Problem::NoToken | Problem::WrongToken => {
                // RFC 6750
                let challenge = match self {
                    Problem::NoToken => "Bearer realm=\"flowtally\"",
                    _ => "Bearer realm=\"flowtally\", error=\"invalid_token\"",
                };
                headers.insert(
                    header::WWW_AUTHENTICATE,
                    HeaderValue::from_static(challenge),
                );
            }
            Problem::ContentEncoding { .. } => {
                // Tells the client which encodings it may send (RFC 7694).
                headers.insert(
                    header::ACCEPT_ENCODING,
                    HeaderValue::from_static("gzip, zstd"),
                );
            }
            _ if status == StatusCode::SERVICE_UNAVAILABLE
                || status == StatusCode::INSUFFICIENT_STORAGE =>
            {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
            }
            _ => {}
        }
        response
    }

    /// The response as bytes, for a request that hyper refuses. The connection is closed after it.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let description = self.describe();
        let (status, body) = (description.status, self.document(&description));
        let mut response = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: {PROBLEM_MEDIA_TYPE}\r\n\
             cache-control: no-store\r\ncontent-length: {}\r\ndate: {}\r\n\r\n",
            body.len(),
            httpdate::fmt_http_date(SystemTime::now())
        )
        .into_bytes();
        response.extend_from_slice(&body);
        response
    }

    /// The problem document.
    fn document(&self, description: &Description) -> Vec<u8> {
        let (index, field) = self.fault();
        let body = ProblemDocument {
            r#type: format!("{PROBLEM_TYPE_PREFIX}{}", description.name),
            title: description.title.into(),
            status: description.status.as_u16(),
            detail: description.detail.clone(),
            index: index.map(|index| index as u64),
            field: field.map(|field| field.name().into()),
        };
        // Strings and integers always serialise.
        let mut json = serde_json::to_vec(&body).unwrap_or_default();
        json.push(b'\n');
        json
    }
}
