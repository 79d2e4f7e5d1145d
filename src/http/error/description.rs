//! Describes each problem: its status code, its type and title, and a detail that tells the client what to do.

use std::borrow::Cow;

use warp::http::StatusCode;

use super::super::long_target::{HEAD_BYTES_MAX, TAIL_BYTES_MAX, TARGET_START_BYTES_MAX};
use super::super::paths;
use super::Problem;
use crate::query::QueryError;
use crate::service::ServiceError;
use flow::{Field, IdempotencyKey, Note, Notes, TOO_COARSE};

/// The state of a batch after a 4xx, and after a 5xx. The documentation uses the same words.
const NOTHING_COUNTED: &str = "nothing of the batch counted";
pub(super) const SEND_AGAIN: &str =
    "it is unknown whether the batch counted: send it again under the same Idempotency-Key";

/// How a problem appears to a client. Only `detail` differs between two occurrences of the same problem.
pub(super) struct Description {
    pub(super) status: StatusCode,
    /// The last part of its type, and its label in metrics.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) detail: Cow<'static, str>,
}

impl Description {
    fn new(
        status: StatusCode,
        name: &'static str,
        title: &'static str,
        detail: impl Into<Cow<'static, str>>,
    ) -> Description {
        Description {
            status,
            name,
            title,
            detail: detail.into(),
        }
    }
}

impl Problem {
    pub(super) fn describe(&self) -> Description {
        match self {
            Problem::Service(error) => describe_service(error),
            Problem::Query(error) => describe_query(error),
            Problem::NoSuchBackup { what } => Description::new(
                StatusCode::NOT_FOUND,
                "no-such-backup",
                "No such backup",
                what.clone(),
            ),
            Problem::BackupBusy { what } => Description::new(
                StatusCode::CONFLICT,
                "backup-busy",
                "Another backup is being taken",
                what.clone(),
            ),
            Problem::NoCheckpoint => Description::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "no-checkpoint",
                "A checkpoint could not be made",
                "the disk refused the write, or the flush took too long; try again, and see the log for the cause",
            ),
            Problem::NoSuchPath { path } => {
                let hint = paths::path_like(path)
                    .map(|known| format!("; there is {known}, without the slash at its end"))
                    .unwrap_or_default();
                Description::new(
                    StatusCode::NOT_FOUND,
                    "not-found",
                    "No such path",
                    format!(
                        "no such path: {path:?}{hint}; see /flows, /hours and, for all there is, /docs"
                    ),
                )
            }
            Problem::NoSuchHour { hours } => Description::new(
                StatusCode::NOT_FOUND,
                "no-such-hour",
                "The hour has no flows",
                match hours.only() {
                    Some(hour) => format!("there are no flows in hour {hour}"),
                    None => format!(
                        "there are no flows from hour {} to {} (exclusive)",
                        hours.start(),
                        hours.end()
                    ),
                },
            ),
            Problem::MethodNotAllowed { method, allow } => Description::new(
                StatusCode::METHOD_NOT_ALLOWED,
                "method-not-allowed",
                "Method not allowed",
                format!("{method} is not allowed here; allowed are {allow}"),
            ),
            Problem::BadHead => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-head",
                "The head of the request is not HTTP",
                "a request begins with its method, its path with the query, and the version of HTTP, and headers \
                 follow, each on a line of its own; in the path and the query, percent-encode everything but visible ASCII",
            ),
            Problem::TargetTooLong => Description::new(
                StatusCode::URI_TOO_LONG,
                "target-too-long",
                "The request's target is too long",
                format!(
                    "path and query may have {} bytes in all; ask for fewer names at a time",
                    TARGET_START_BYTES_MAX + TAIL_BYTES_MAX
                ),
            ),
            Problem::HeadTooLarge => Description::new(
                StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
                "head-too-large",
                "The head of the request is too large",
                format!(
                    "send 100 headers at most, of {} bytes in all; large cookies may be the cause",
                    HEAD_BYTES_MAX - TARGET_START_BYTES_MAX
                ),
            ),
            Problem::BadHost { what } => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-host",
                "The Host header is not valid",
                what.clone(),
            ),
            Problem::ForeignHost { name } => Description::new(
                StatusCode::MISDIRECTED_REQUEST,
                "foreign-host",
                "The Host header names another host",
                format!(
                    "\"{name}\" is not a name of this machine, and this service has no tokens, so a page of any \
                     site could reach it by such a name; if the name is right, start the service with --allow-host \
                     {name}, or with tokens"
                ),
            ),
            Problem::ForeignOrigin { header } => Description::new(
                StatusCode::FORBIDDEN,
                "foreign-origin",
                "The request comes from a page of another site",
                format!(
                    "{header} shows that a browser sent the request for a page of another site, and only pages of this \
                     service may send requests; a program has to omit that header, and a proxy has to pass Host unchanged"
                ),
            ),
            Problem::BadQuery { what } => bad_query(what.clone()),
            Problem::BadBatch(error) => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-batch",
                "The body is not a batch of flows",
                format!("{error}; {NOTHING_COUNTED}"),
            ),
            Problem::BadExport(error) => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-export",
                "The body is not an export of flows",
                format!("{error}; {NOTHING_COUNTED}"),
            ),
            Problem::TooFarAhead(error) => Description::new(
                StatusCode::BAD_REQUEST,
                "hour-too-far-ahead",
                "The hour is too far ahead of the clock",
                format!(
                    "flow {}: {}: {error}; {NOTHING_COUNTED}",
                    error.index,
                    Field::Hour.name()
                ),
            ),
            Problem::BadBody { what } => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-body",
                "The body cannot be read",
                what.clone(),
            ),
            Problem::BadIdempotencyKey => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-idempotency-key",
                "The idempotency key is not valid",
                format!(
                    "Idempotency-Key is one header of 1 to {} visible ASCII characters, which does not begin with {}",
                    IdempotencyKey::CHARS_MAX,
                    IdempotencyKey::CONTENT_PREFIX
                ),
            ),
            Problem::BadNotes => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-receipt-notes",
                "The notes are not valid",
                format!(
                    "Receipt-Notes is one header with at most {} items as in =NOTE,KEY=NOTE,!KEY beside an \
                     Idempotency-Key; a note has 1 to {} visible ASCII characters and no comma, and \
                     all keys begin with {}",
                    Notes::COUNT_MAX,
                    Note::CHARS_MAX,
                    IdempotencyKey::IMPORT_PREFIX
                ),
            ),
            Problem::BadKeys { what } => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-keys",
                "The body is not a list of keys",
                what.clone(),
            ),
            Problem::BadDirectoryRequest { what } => Description::new(
                StatusCode::BAD_REQUEST,
                "bad-directory-request",
                "The body is not a request to the directory of addresses",
                what.clone(),
            ),
            Problem::NoToken => Description::new(
                StatusCode::UNAUTHORIZED,
                "no-token",
                "The request needs a token",
                "send it as Authorization: Bearer TOKEN",
            ),
            Problem::WrongToken => Description::new(
                StatusCode::UNAUTHORIZED,
                "wrong-token",
                "The token is not valid",
                "the service does not know this token; it may have been replaced",
            ),
            Problem::TokenLacksRight => Description::new(
                StatusCode::FORBIDDEN,
                "token-lacks-right",
                "The token does not permit this request",
                "a token for sending flows does not read, and one for reading does not send",
            ),
            Problem::NoClientCertificate => Description::new(
                StatusCode::FORBIDDEN,
                "no-client-certificate",
                "The request needs a client certificate",
                "connect with a certificate that the client CA of the service has issued",
            ),
            Problem::BodyTimeout => Description::new(
                StatusCode::REQUEST_TIMEOUT,
                "body-timeout",
                "The body did not arrive in time",
                "the body arrived too slowly; send smaller batches, or use a faster connection",
            ),
            Problem::LengthRequired => Description::new(
                StatusCode::LENGTH_REQUIRED,
                "length-required",
                "The request has no body",
                "send the flows as the body, with Content-Length or chunked; an empty batch is []",
            ),
            Problem::BodyTooLarge { bytes_max } => Description::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "body-too-large",
                "The body is too large",
                format!(
                    "a body may have {bytes_max} bytes, before and after decompression; \
                     send the flows in several batches, or the keys in several requests"
                ),
            ),
            Problem::MediaType { what } => Description::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "media-type",
                "The body's media type is not supported",
                what.clone(),
            ),
            Problem::ContentEncoding { what } => Description::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "content-encoding",
                "The body's encoding is not supported",
                what.clone(),
            ),
            Problem::NotAcceptable { what } => Description::new(
                StatusCode::NOT_ACCEPTABLE,
                "not-acceptable",
                "Not acceptable",
                format!("supported are {what}"),
            ),
            Problem::TooManyQueries => overloaded("too many responses are in progress"),
            Problem::Recovering => Description::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "recovering",
                "The service is recovering",
                "the journal is being replayed, or Kafka does not respond yet; try again shortly",
            ),
            Problem::Stopping => stopping(),
            Problem::NotReady { why } => Description::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "not-ready",
                "The service is not ready",
                why.clone(),
            ),
            Problem::Internal => internal(),
        }
    }
}

fn describe_service(error: &ServiceError) -> Description {
    const NOT_STORED: (&str, &str) = ("not-stored", "The batch could not be stored");
    let unavailable = |(name, title), detail: String| {
        Description::new(StatusCode::SERVICE_UNAVAILABLE, name, title, detail)
    };
    match error {
        ServiceError::Overloaded(why) => overloaded(format!("{why}; {SEND_AGAIN}")),
        ServiceError::NoSpace { why } => Description::new(
            StatusCode::INSUFFICIENT_STORAGE,
            "no-space",
            "There is no space on the disk",
            format!("{why}; batches are accepted again when there is room; {SEND_AGAIN}"),
        ),
        ServiceError::Store(_) => unavailable(
            NOT_STORED,
            format!("the disk refused the write; {SEND_AGAIN}"),
        ),
        ServiceError::OutcomeUnknown { why, keyed: true } => {
            unavailable(NOT_STORED, format!("{why}; {SEND_AGAIN}"))
        }
        ServiceError::OutcomeUnknown { why, keyed: false } => unavailable(
            NOT_STORED,
            format!(
                "{why}; it is unknown whether the batch counted, and a part of it may have: without an \
                 Idempotency-Key, that part counts twice when it is sent again"
            ),
        ),
        ServiceError::NotVisible(why) => unavailable(
            ("not-visible", "The batch is stored, and not visible yet"),
            why.clone(),
        ),
        ServiceError::Closed => stopping(),
        ServiceError::NotDeleted(_) => Description::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not-deleted",
            "The hour could not be deleted",
            "the disk refused the write: the hour is either complete or deleted; try again",
        ),
        ServiceError::TooCoarse(what) => Description::new(
            StatusCode::CONFLICT,
            "part-of-a-span",
            "The hour is kept only as a part of a longer span",
            what.clone(),
        ),
        ServiceError::KeyReused => Description::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            "idempotency-key-reused",
            "The idempotency key has been used for another batch",
            format!(
                "other flows were counted under this key, and {NOTHING_COUNTED}; give every batch a key of its \
                 own, and keep it when sending it again"
            ),
        ),
        ServiceError::ReceiptExists => Description::new(
            StatusCode::CONFLICT,
            "receipt-exists",
            "A part of the batch has been counted meanwhile",
            format!(
                "there is a receipt under a key that Receipt-Notes requires to have none; \
                 {NOTHING_COUNTED}: look up what was counted, and send the rest"
            ),
        ),
        ServiceError::Unsupported(alternative) => Description::new(
            StatusCode::NOT_IMPLEMENTED,
            "not-here",
            "Not possible in this mode",
            *alternative,
        ),
        ServiceError::Receipt(_) => Description {
            detail: "the receipt of this idempotency key is damaged, so it is unknown whether the batch counted; stop the service, and run: flowtally verify"
                .into(),
            ..internal()
        },
    }
}

fn describe_query(error: &QueryError) -> Description {
    match error {
        QueryError::BadCursor => bad_query(format!(
            "{error}; take it from the Link header of a response, and change no other parameter but limit"
        )),
        QueryError::TooCoarse(what) => Description::new(
            StatusCode::BAD_REQUEST,
            TOO_COARSE,
            "The hours are kept only as a part of longer spans",
            what.clone(),
        ),
        QueryError::TooLarge { .. } => Description::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "query-too-large",
            "The query takes too much memory",
            format!(
                "{error} (--query-memory-max); ask for fewer hours (from, to), for some src_app, \
                 dest_app or vpc_id only, for fewer columns in group_by, or for fewer rows (limit)"
            ),
        ),
        QueryError::TooLong => Description::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "query-too-long",
            "The query takes too long",
            format!(
                "{error} (--query-time-max); ask for fewer hours (from, to), or for some src_app \
                 only, which is sought without reading the others"
            ),
        ),
        QueryError::Cancelled => Description {
            status: StatusCode::SERVICE_UNAVAILABLE,
            name: "cancelled",
            title: "The client disconnected",
            ..internal()
        },
        QueryError::Overloaded(why) => overloaded(why.clone()),
        QueryError::Missing(_) => Description::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "partitions-missing",
            "Some partitions have no node",
            error.to_string(),
        ),
        QueryError::Peer(_) => Description::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "node-failed",
            "Another node did not respond",
            error.to_string(),
        ),
        QueryError::Store(_) | QueryError::Encoding(_) => internal(),
    }
}

fn bad_query(detail: String) -> Description {
    Description::new(
        StatusCode::BAD_REQUEST,
        "bad-query",
        "The query is invalid",
        detail,
    )
}

fn overloaded(detail: impl Into<Cow<'static, str>>) -> Description {
    Description::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "overloaded",
        "The service is overloaded",
        detail,
    )
}

fn stopping() -> Description {
    Description::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "stopping",
        "The service is stopping",
        "the service is stopping; when it is back, try again, under the same Idempotency-Key",
    )
}

fn internal() -> Description {
    Description::new(
        StatusCode::INTERNAL_SERVER_ERROR,
        "internal",
        "Internal error",
        "the request failed inside the service; see its log",
    )
}
