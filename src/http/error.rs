//! Failures as answers: `application/problem+json` (RFC 9457). The only place that knows which
//! failure has which status code.

use serde::Serialize;
use warp::http::header::{self, HeaderValue};
use warp::http::{Method, StatusCode};
use warp::reply::Response;

use crate::backup::BackupError;
use crate::domain::{Field, Hour, IdempotencyKey, Note, Notes};
use crate::ingest::IngestError;
use crate::ingest::decode::DecodeError;
use crate::query::QueryError;

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
    BadQuery {
        what: String,
    },
    /// The body is not a batch of flows.
    BadBatch(DecodeError),
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
    /// There is no such thing in this mode; says what there is instead.
    NotHere(&'static str),
    /// The disk is full, or nearly.
    NoSpace,
    Ingest(IngestError),
    Query(QueryError),
    Backup(BackupError),
    /// A bug: a task of ours panicked. The log has it.
    Internal,
}

impl From<IngestError> for Problem {
    fn from(error: IngestError) -> Problem {
        Problem::Ingest(error)
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
            Problem::Backup(BackupError::Busy) | Problem::Ingest(IngestError::ReceiptExists) => {
                StatusCode::CONFLICT
            }
            Problem::MethodNotAllowed { .. } => StatusCode::METHOD_NOT_ALLOWED,
            Problem::BadQuery { .. }
            | Problem::BadBatch(_)
            | Problem::BadBody { .. }
            | Problem::BadIdempotencyKey
            | Problem::BadNotes
            | Problem::BadKeys { .. }
            | Problem::Query(QueryError::BadCursor) => StatusCode::BAD_REQUEST,
            Problem::Ingest(IngestError::KeyReused) => StatusCode::UNPROCESSABLE_ENTITY,
            Problem::NoToken | Problem::WrongToken => StatusCode::UNAUTHORIZED,
            Problem::TokenLacksRight | Problem::NoClientCertificate => StatusCode::FORBIDDEN,
            Problem::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Problem::LengthRequired => StatusCode::LENGTH_REQUIRED,
            Problem::BodyTooLarge { .. } | Problem::Query(QueryError::TooLarge { .. }) => {
                StatusCode::PAYLOAD_TOO_LARGE
            }
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
            | Problem::Query(QueryError::Missing(_) | QueryError::Elsewhere(_))
            | Problem::Backup(BackupError::Store(_))
            | Problem::Ingest(
                IngestError::Overloaded(_)
                | IngestError::Unsure { .. }
                | IngestError::NotVisible(_)
                | IngestError::Store(_)
                | IngestError::NotDeleted(_)
                | IngestError::Closed,
            ) => StatusCode::SERVICE_UNAVAILABLE,
            Problem::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
            Problem::NotHere(_) | Problem::Ingest(IngestError::NotHere(_)) => {
                StatusCode::NOT_IMPLEMENTED
            }
            Problem::Ingest(IngestError::Receipt(_))
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
            Problem::Ingest(IngestError::NotDeleted(_)) => {
                ("not-deleted", "The hour could not be deleted")
            }
            Problem::Backup(BackupError::Gone) => ("no-such-backup", "No such backup"),
            Problem::Backup(BackupError::Busy) => ("backup-busy", "Another backup is being taken"),
            Problem::Backup(BackupError::Store(_)) => {
                ("no-checkpoint", "A checkpoint could not be made")
            }
            Problem::MethodNotAllowed { .. } => ("method-not-allowed", "Method not allowed"),
            Problem::BadQuery { .. } | Problem::Query(QueryError::BadCursor) => {
                ("bad-query", "The query is not understood")
            }
            Problem::Query(QueryError::TooLarge { .. }) => {
                ("query-too-large", "The query takes too much memory")
            }
            Problem::Query(QueryError::TooLong) => ("query-too-long", "The query takes too long"),
            Problem::Query(QueryError::Cancelled) => ("cancelled", "The client has left"),
            Problem::BadBatch(_) => ("bad-batch", "The body is not a batch of flows"),
            Problem::BadBody { .. } => ("bad-body", "The body cannot be read"),
            Problem::BadIdempotencyKey => {
                ("bad-idempotency-key", "The idempotency key is not valid")
            }
            Problem::Ingest(IngestError::KeyReused) => (
                "idempotency-key-reused",
                "The idempotency key has been used for another batch",
            ),
            Problem::Ingest(IngestError::ReceiptExists) => (
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
            | Problem::Ingest(IngestError::Overloaded(_)) => {
                ("overloaded", "The service is overloaded")
            }
            Problem::Recovering => ("recovering", "The service is recovering"),
            Problem::Stopping | Problem::Ingest(IngestError::Closed) => {
                ("stopping", "The service is stopping")
            }
            Problem::NoSpace => ("no-space", "The disk is full"),
            Problem::NotReady { .. } => ("not-ready", "The service is not ready"),
            Problem::Ingest(IngestError::Store(_) | IngestError::Unsure { .. }) => {
                ("not-stored", "The batch could not be stored")
            }
            Problem::Ingest(IngestError::NotVisible(_)) => {
                ("not-visible", "The batch is stored, and not visible yet")
            }
            Problem::Query(QueryError::Missing(_)) => {
                ("partitions-missing", "Some partitions have no node")
            }
            Problem::Query(QueryError::Elsewhere(_)) => {
                ("node-failed", "Another node did not answer")
            }
            Problem::NotHere(_) | Problem::Ingest(IngestError::NotHere(_)) => {
                ("not-here", "Not possible in this mode")
            }
            Problem::Ingest(IngestError::Receipt(_))
            | Problem::Query(_)
            | Problem::Backup(_)
            | Problem::Internal => ("internal", "Internal error"),
        }
    }

    fn detail(&self) -> String {
        match self {
            Problem::NoSuchPath { path } => {
                format!("there is nothing at {path:?}; see /flows, /hours and, for all there is, /openapi.json")
            }
            Problem::NoSuchHour { hour } => format!("there are no flows in hour {hour}"),
            Problem::Ingest(IngestError::NotDeleted(_)) => {
                "the disk did not take it: the hour is there as a whole, or gone as a whole; try again"
                    .into()
            }
            Problem::Backup(error @ (BackupError::Gone | BackupError::Busy)) => error.to_string(),
            Problem::Backup(BackupError::Store(_)) => {
                "the disk did not take it, or flushing took too long; the log says which: try again"
                    .into()
            }
            Problem::MethodNotAllowed { method, allow } => {
                format!("{method} is not possible here; possible are {allow}")
            }
            Problem::BadQuery { what }
            | Problem::BadBody { what }
            | Problem::BadKeys { what }
            | Problem::MediaType { what }
            | Problem::ContentEncoding { what } => what.clone(),
            Problem::BadBatch(error) => format!("{error}; nothing of the batch was counted"),
            Problem::BadIdempotencyKey => format!(
                "Idempotency-Key is one header of 1 to {} visible ASCII characters",
                IdempotencyKey::CHARS_MAX
            ),
            Problem::BadNotes => format!(
                "Receipt-Notes is one header with at most {} items as in =NOTE,KEY=NOTE,!KEY beside an \
                 Idempotency-Key; a note has 1 to {} visible ASCII characters and no comma, and \
                 all keys begin with {}",
                Notes::COUNT_MAX,
                Note::CHARS_MAX,
                IdempotencyKey::IMPORT_PREFIX
            ),
            Problem::Ingest(IngestError::ReceiptExists) => {
                "there is a receipt under the key that Receipt-Notes says there must be none under; \
                 nothing of the batch was counted: look up what was counted, and send the rest"
                    .into()
            }
            Problem::Ingest(IngestError::KeyReused) => {
                "other flows were taken under this key, and these were not counted; \
                 give every batch a key of its own, and keep it when sending it again"
                    .into()
            }
            Problem::NoToken => "send it as Authorization: Bearer TOKEN".into(),
            Problem::WrongToken => {
                "the service does not know this token; it may have been exchanged for another"
                    .into()
            }
            Problem::TokenLacksRight => {
                "a token for sending flows does not read, and one for reading does not send".into()
            }
            Problem::NoClientCertificate => {
                "connect with a certificate of the authority that the service has been given".into()
            }
            Problem::BodyTimeout => {
                "the body came too slowly; send smaller batches, or over a better line".into()
            }
            Problem::LengthRequired => {
                "send the flows as the body, with Content-Length or chunked; \
                 an empty batch is []"
                    .into()
            }
            Problem::BodyTooLarge { bytes_max } => format!(
                "a body may have {bytes_max} bytes, before and after decompression; \
                 send the flows in several batches"
            ),
            Problem::NotAcceptable { what } => format!("possible are {what}"),
            Problem::Query(QueryError::Overloaded(why)) => why.clone(),
            Problem::Query(error @ QueryError::TooLarge { .. }) => format!(
                "{error} (--query-memory-max); ask for fewer hours (from, to), for some src_app, \
                 dest_app or vpc_id only, for fewer columns in group_by, or for fewer rows (limit)"
            ),
            Problem::Query(error @ QueryError::TooLong) => format!(
                "{error} (--query-time-max); ask for fewer hours (from, to), or for some src_app \
                 only, which is sought without reading the others"
            ),
            Problem::Query(error @ QueryError::BadCursor) => format!(
                "{error}; take it from the Link header of an answer, and change no other parameter \
                 but limit"
            ),
            Problem::TooManyQueries => "too many answers are being read at the moment".into(),
            Problem::Recovering => "the journal is being replayed, or Kafka, which has it, does not answer yet; try again shortly".into(),
            Problem::NotReady { why } => why.clone(),
            Problem::NotHere(what) | Problem::Ingest(IngestError::NotHere(what)) => {
                (*what).into()
            }
            Problem::Query(error @ (QueryError::Missing(_) | QueryError::Elsewhere(_))) => {
                error.to_string()
            }
            Problem::Ingest(IngestError::Unsure { why, keyed: true }) => format!(
                "{why}; nothing is promised: send the batch again, under its Idempotency-Key"
            ),
            Problem::Ingest(IngestError::Unsure { why, keyed: false }) => format!(
                "{why}; nothing is promised, and a part of the batch may count: without an \
                 Idempotency-Key, that part counts twice when it is sent again"
            ),
            Problem::Ingest(IngestError::NotVisible(why)) => why.clone(),
            Problem::NoSpace => {
                "less than the reserve is free on the disk; the batch is not promised, and is taken \
                 as soon as there is space: try again"
                    .into()
            }
            Problem::Stopping | Problem::Ingest(IngestError::Closed) => {
                "the service is stopping; try again when it is back".into()
            }
            Problem::Ingest(IngestError::Overloaded(why)) => {
                format!("{why}; nothing of the batch was counted, try again")
            }
            Problem::Ingest(IngestError::Store(_)) => {
                "the disk did not take the batch; it is not promised, try again".into()
            }
            Problem::Ingest(IngestError::Receipt(_)) => {
                "whether this key has been used cannot be told, since what is stored of it is damaged; \
                 the batch was not counted; stop the service, and run: flowtally verify"
                    .into()
            }
            Problem::Query(_) | Problem::Backup(_) | Problem::Internal => {
                "the request failed inside the service; its log says why".into()
            }
        }
    }

    fn place(&self) -> (Option<usize>, Option<Field>) {
        match self {
            Problem::BadBatch(error) => (error.index, error.field),
            _ => (None, None),
        }
    }

    pub(super) fn into_response(self) -> Response {
        match &self {
            Problem::Ingest(error @ IngestError::Store(_)) => {
                tracing::error!(%error, "a batch was not stored");
            }
            Problem::Ingest(error @ IngestError::Receipt(_)) => {
                tracing::error!(%error, "an idempotency key could not be looked up");
            }
            Problem::Ingest(error @ IngestError::NotDeleted(_)) => {
                tracing::error!(%error, "an hour was not deleted");
            }
            Problem::Backup(BackupError::Gone | BackupError::Busy) => {}
            Problem::Backup(error) => tracing::error!(%error, "a backup failed"),
            Problem::Query(error @ QueryError::Store(_)) => {
                tracing::error!(%error, "a query failed")
            }
            _ => {}
        }
        let status = self.status();
        let (name, title) = self.kind();
        let (index, field) = self.place();
        let body = Body {
            r#type: &format!("urn:flowtally:problem:{name}"),
            title,
            status: status.as_u16(),
            detail: &self.detail(),
            index,
            field: field.map(Field::name),
        };
        // Strings and integers always serialise.
        let json = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = Response::new(json.into());
        *response.status_mut() = status;
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
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
}
