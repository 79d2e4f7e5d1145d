//! Failures as answers: `application/problem+json` (RFC 9457). The only place that knows which
//! failure has which status code.

mod detail;

use std::time::SystemTime;

use serde::Serialize;
use warp::http::header::{self, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use super::{HostName, routes};
use crate::backup::BackupError;
use crate::ingest::Overloaded;
use crate::query::QueryError;
use crate::service::ServiceError;
use flow::decode::DecodeError;
use flow::query::text::BadQuery;
use flow::{Field, Hour, TooFarAhead};

const MEDIA_TYPE: &str = "application/problem+json";
/// Seconds after which a sender that was turned away should try again.
const RETRY_AFTER_S: u64 = 1;

/// Why a request is not answered with what it asked for.
#[derive(Debug)]
pub(super) enum Problem {
    NoSuchPath {
        path: String,
    },
    /// The hour to delete has no flows.
    NoSuchHour {
        hour: Hour,
    },
    MethodNotAllowed {
        method: Method,
        allow: &'static str,
    },
    /// The head of the request is not HTTP.
    BadHead,
    TargetTooLong,
    HeadTooLarge,
    /// Not one `Host`, or not one that can be.
    BadHost {
        what: String,
    },
    /// The service is asked under a name that may be anybody's.
    ForeignHost {
        name: HostName,
    },
    /// A page of another site has a browser ask; says what shows it.
    ForeignOrigin {
        header: &'static str,
    },
    BadQuery {
        what: String,
    },
    /// The body is not a batch of flows.
    BadBatch(DecodeError),
    /// It has an hour that is too far ahead of the clock.
    TooFarAhead(TooFarAhead),
    /// The body did not arrive, or does not decompress.
    BadBody {
        what: String,
    },
    /// Not one header, or not one of visible ASCII.
    BadIdempotencyKey,
    /// Not one header, or not one of notes.
    BadNotes,
    /// What is asked for is not a list of keys.
    BadKeys {
        what: String,
    },
    /// The request needs a bearer token, and has none.
    NoToken,
    /// It has one that is none of ours.
    WrongToken,
    /// It has one that is for the other half of the API.
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
    /// The journal cannot be written at the moment, or the sums are behind it.
    NotReady {
        why: String,
    },
    /// The disk is full, or nearly.
    NoSpace {
        why: &'static str,
    },
    Service(ServiceError),
    Query(QueryError),
    Backup(BackupError),
    /// A bug: a task of ours panicked. The log has it.
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

impl From<BackupError> for Problem {
    fn from(error: BackupError) -> Problem {
        Problem::Backup(error)
    }
}

impl From<QueryError> for Problem {
    fn from(error: QueryError) -> Problem {
        Problem::Query(error)
    }
}

/// The body of an answer, as RFC 9457 has it.
#[derive(Serialize)]
struct Body<'a> {
    r#type: &'a str,
    title: &'a str,
    status: u16,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<&'a str>,
}

impl Problem {
    fn status(&self) -> StatusCode {
        match self {
            Problem::NoSuchPath { .. }
            | Problem::NoSuchHour { .. }
            | Problem::Backup(BackupError::Gone) => StatusCode::NOT_FOUND,
            Problem::Backup(BackupError::Busy) | Problem::Service(ServiceError::ReceiptExists) => {
                StatusCode::CONFLICT
            }
            Problem::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Problem::BadHead
            | Problem::BadHost { .. }
            | Problem::BadQuery { .. }
            | Problem::BadBatch(_)
            | Problem::TooFarAhead(_)
            | Problem::BadBody { .. }
            | Problem::BadIdempotencyKey
            | Problem::BadNotes
            | Problem::BadKeys { .. }
            | Problem::Query(QueryError::BadCursor) => StatusCode::BAD_REQUEST,
            Problem::Service(ServiceError::KeyReused) => StatusCode::UNPROCESSABLE_ENTITY,
            Problem::NoToken | Problem::WrongToken => StatusCode::UNAUTHORIZED,
            Problem::ForeignOrigin { .. }
            | Problem::TokenLacksRight
            | Problem::NoClientCertificate => StatusCode::FORBIDDEN,
            Problem::ForeignHost { .. } => StatusCode::MISDIRECTED_REQUEST,
            Problem::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Problem::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Problem::BodyTooLarge { .. } | Problem::Query(QueryError::TooLarge { .. }) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
            Problem::TargetTooLong => StatusCode::URI_TOO_LONG,
            Problem::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Problem::MediaType { .. } | Problem::ContentEncoding { .. } => {
                StatusCode::UNSUPPORTED_MEDIA_TYPE
            }
            Problem::NotAcceptable { .. } => StatusCode::NOT_ACCEPTABLE,
            Problem::TooManyQueries
            | Problem::Query(
                QueryError::Overloaded(_) | QueryError::TooLong | QueryError::Cancelled,
            )
            | Problem::Recovering
            | Problem::Stopping
            | Problem::NotReady { .. }
            | Problem::Query(QueryError::Missing(_) | QueryError::Peer(_))
            | Problem::Backup(BackupError::Store(_))
            | Problem::Service(
                ServiceError::Overloaded(_)
                | ServiceError::Unsure { .. }
                | ServiceError::NotVisible(_)
                | ServiceError::Store(_)
                | ServiceError::NotDeleted(_)
                | ServiceError::Closed,
            ) => StatusCode::SERVICE_UNAVAILABLE,
            Problem::NoSpace { .. } => StatusCode::INSUFFICIENT_STORAGE,
            Problem::Service(ServiceError::NotHere(_)) => StatusCode::NOT_IMPLEMENTED,
            Problem::Service(ServiceError::Receipt(_))
            | Problem::Query(_)
            | Problem::Backup(_)
            | Problem::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// Its name in metrics, and the end of its type.
    pub(super) fn name(&self) -> &'static str {
        self.kind().0
    }

    /// A name for programs and a title for people; both the same for every occurrence.
    fn kind(&self) -> (&'static str, &'static str) {
        match self {
            Problem::NoSuchPath { .. } => ("not-found", "No such path"),
            Problem::NoSuchHour { .. } => ("no-such-hour", "The hour has no flows"),
            Problem::Service(ServiceError::NotDeleted(_)) => {
                ("not-deleted", "The hour could not be deleted")
            }
            Problem::Backup(BackupError::Gone) => ("no-such-backup", "No such backup"),
            Problem::Backup(BackupError::Busy) => ("backup-busy", "Another backup is being taken"),
            Problem::Backup(BackupError::Store(_)) => {
                ("no-checkpoint", "A checkpoint could not be made")
            }
            Problem::MethodNotAllowed { .. } => ("method-not-allowed", "Method not allowed"),
            Problem::BadHead => ("bad-head", "The head of the request is not HTTP"),
            Problem::TargetTooLong => ("target-too-long", "The request's target is too long"),
            Problem::HeadTooLarge => ("head-too-large", "The head of the request is too large"),
            Problem::BadHost { .. } => ("bad-host", "The Host header is not valid"),
            Problem::ForeignHost { .. } => ("foreign-host", "The service is not asked by its name"),
            Problem::ForeignOrigin { .. } => (
                "foreign-origin",
                "The request comes from a page of another site",
            ),
            Problem::BadQuery { .. } | Problem::Query(QueryError::BadCursor) => {
                ("bad-query", "The query is not understood")
            }
            Problem::Query(QueryError::TooLarge { .. }) => {
                ("query-too-large", "The query takes too much memory")
            }
            Problem::Query(QueryError::TooLong) => ("query-too-long", "The query takes too long"),
            Problem::Query(QueryError::Cancelled) => ("cancelled", "The client has left"),
            Problem::BadBatch(_) => ("bad-batch", "The body is not a batch of flows"),
            Problem::TooFarAhead(_) => (
                "hour-too-far-ahead",
                "The hour is too far ahead of the clock",
            ),
            Problem::BadBody { .. } => ("bad-body", "The body cannot be read"),
            Problem::BadIdempotencyKey => {
                ("bad-idempotency-key", "The idempotency key is not valid")
            }
            Problem::Service(ServiceError::KeyReused) => (
                "idempotency-key-reused",
                "The idempotency key has been used for another batch",
            ),
            Problem::Service(ServiceError::ReceiptExists) => (
                "receipt-exists",
                "A part of the batch has been counted meanwhile",
            ),
            Problem::BadNotes => ("bad-receipt-notes", "The notes are not valid"),
            Problem::BadKeys { .. } => ("bad-keys", "The body is not a list of keys"),
            Problem::NoToken => ("no-token", "The request needs a token"),
            Problem::WrongToken => ("wrong-token", "The token is not valid"),
            Problem::TokenLacksRight => ("token-lacks-right", "The token is not for this"),
            Problem::NoClientCertificate => (
                "no-client-certificate",
                "The request needs a client certificate",
            ),
            Problem::BodyTimeout => ("body-timeout", "The body did not arrive in time"),
            Problem::LengthRequired => ("length-required", "The request has no body"),
            Problem::BodyTooLarge { .. } => ("body-too-large", "The body is too large"),
            Problem::MediaType { .. } => ("media-type", "The body's media type is not supported"),
            Problem::ContentEncoding { .. } => {
                ("content-encoding", "The body's encoding is not supported")
            }
            Problem::NotAcceptable { .. } => ("not-acceptable", "No acceptable form of answer"),
            Problem::TooManyQueries
            | Problem::Query(QueryError::Overloaded(_))
            | Problem::Service(ServiceError::Overloaded(_)) => {
                ("overloaded", "The service is overloaded")
            }
            Problem::Recovering => ("recovering", "The service is recovering"),
            Problem::Stopping | Problem::Service(ServiceError::Closed) => {
                ("stopping", "The service is stopping")
            }
            Problem::NoSpace { .. } => ("no-space", "There is no space on the disk"),
            Problem::NotReady { .. } => ("not-ready", "The service is not ready"),
            Problem::Service(ServiceError::Store(_) | ServiceError::Unsure { .. }) => {
                ("not-stored", "The batch could not be stored")
            }
            Problem::Service(ServiceError::NotVisible(_)) => {
                ("not-visible", "The batch is stored, and not visible yet")
            }
            Problem::Query(QueryError::Missing(_)) => {
                ("partitions-missing", "Some partitions have no node")
            }
            Problem::Query(QueryError::Peer(_)) => ("node-failed", "Another node did not answer"),
            Problem::Service(ServiceError::NotHere(_)) => ("not-here", "Not possible in this mode"),
            Problem::Service(ServiceError::Receipt(_))
            | Problem::Query(_)
            | Problem::Backup(_)
            | Problem::Internal => ("internal", "Internal error"),
        }
    }

    fn place(&self) -> (Option<usize>, Option<Field>) {
        match self {
            Problem::BadBatch(error) => (error.index, error.field),
            Problem::TooFarAhead(error) => (Some(error.index), Some(Field::Hour)),
            _ => (None, None),
        }
    }

    pub(super) fn into_response(self) -> Response {
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
            Problem::Backup(BackupError::Gone | BackupError::Busy) => {}
            Problem::Backup(error) => tracing::error!(%error, "a backup failed"),
            Problem::Query(error @ QueryError::Store(_)) => {
                tracing::error!(%error, "a query failed")
            }
            _ => {}
        }
        let mut response = Response::new(self.document().into());
        let status = self.status();
        *response.status_mut() = status;
        let headers = response.headers_mut();
        routes::forbid_caching(headers);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
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
                // RFC 7694: a client learns from it what it may send.
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

    /// The answer as bytes, for a request that hyper does not take; nothing follows on its connection.
    pub(super) fn into_bytes(self) -> Vec<u8> {
        let (status, body) = (self.status(), self.document());
        let mut answer = format!(
            "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-type: {MEDIA_TYPE}\r\n\
             cache-control: no-store\r\ncontent-length: {}\r\ndate: {}\r\n\r\n",
            body.len(),
            httpdate::fmt_http_date(SystemTime::now())
        )
        .into_bytes();
        answer.extend_from_slice(&body);
        answer
    }

    /// The problem document.
    fn document(&self) -> Vec<u8> {
        let (name, title) = self.kind();
        let (index, field) = self.place();
        let body = Body {
            r#type: &format!("urn:flowtally:problem:{name}"),
            title,
            status: self.status().as_u16(),
            detail: &self.detail(),
            index,
            field: field.map(Field::name),
        };
        // Strings and integers always serialise.
        let mut json = serde_json::to_vec(&body).unwrap_or_default();
        json.push(b'\n');
        json
    }
}
