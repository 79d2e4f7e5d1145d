//! What is wrong with a request, and what to do about it, in words.

use super::super::long_target::{BEGINNING_BYTES_MAX, REST_BYTES_MAX};
use super::super::routes;
use super::super::server::HEAD_BYTES_MAX;
use super::Problem;
use crate::backup::BackupError;
use crate::query::QueryError;
use crate::service::ServiceError;
use flow::{Field, IdempotencyKey, Note, Notes};

/// What holds of a batch after a 4xx, and what after a 5xx: one wording, here and in the documents.
const NOTHING_COUNTED: &str = "nothing of the batch counted";
const SEND_AGAIN: &str =
    "it is unknown whether the batch counted: send it again under the same Idempotency-Key";

impl Problem {
    pub(super) fn detail(&self) -> String {
        match self {
            Problem::NoSuchPath { path } => {
                let meant = routes::path_like(path);
                let meant = meant.map(|meant| format!("; there is {meant}, without the slash at its end"));
                let meant = meant.unwrap_or_default();
                format!("there is nothing at {path:?}{meant}; see /flows, /hours and, for all there is, /openapi.json")
            }
            Problem::NoSuchHour { hour } => format!("there are no flows in hour {hour}"),
            Problem::Service(ServiceError::NotDeleted(_)) => {
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
            Problem::ForeignHost { name } => format!(
                "\"{name}\" is not a name of this machine, and nothing guards this service, so a page of any site \
                 could reach it by such a name; if it is right, start the service with --allow-host {name}, or \
                 with tokens"
            ),
            Problem::ForeignOrigin { header } => format!(
                "{header} says that a page of another site has the browser ask, and only pages of this service \
                 may; a program leaves that header out, and a proxy has to pass Host on as it came"
            ),
            Problem::BadHead => {
                "a request begins with its method, its path with the query, and the version of HTTP, and headers \
                 follow, each on a line of its own; in the path and the query, percent-encode what is not \
                 visible ASCII"
                    .into()
            }
            Problem::TargetTooLong => format!(
                "path and query may have {} bytes; ask for some of the names at a time",
                BEGINNING_BYTES_MAX + REST_BYTES_MAX
            ),
            Problem::HeadTooLarge => format!(
                "a request may have 100 headers, and they may have {} bytes; large cookies may be a reason",
                HEAD_BYTES_MAX - BEGINNING_BYTES_MAX
            ),
            Problem::BadHost { what }
            | Problem::BadQuery { what }
            | Problem::BadBody { what }
            | Problem::BadKeys { what }
            | Problem::MediaType { what }
            | Problem::ContentEncoding { what } => what.clone(),
            Problem::BadBatch(error) => format!("{error}; {NOTHING_COUNTED}"),
            Problem::TooFarAhead(error) => format!(
                "flow {}: {}: {error}; {NOTHING_COUNTED}",
                error.index,
                Field::Hour.name()
            ),
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
            Problem::Service(ServiceError::ReceiptExists) => format!(
                "there is a receipt under the key that Receipt-Notes says there must be none under; \
                 {NOTHING_COUNTED}: look up what was counted, and send the rest"
            ),
            Problem::Service(ServiceError::KeyReused) => format!(
                "other flows were taken under this key, and {NOTHING_COUNTED}; give every batch a key of its \
                 own, and keep it when sending it again"
            ),
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
                 send the flows in several batches, or the keys in several requests"
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
            Problem::Service(ServiceError::NotHere(what)) => {
                (*what).into()
            }
            Problem::Query(error @ (QueryError::Missing(_) | QueryError::Peer(_))) => {
                error.to_string()
            }
            Problem::Service(ServiceError::Unsure { why, keyed: true }) => {
                format!("{why}; {SEND_AGAIN}")
            }
            Problem::Service(ServiceError::Unsure { why, keyed: false }) => format!(
                "{why}; it is unknown whether the batch counted, and a part of it may have: without an \
                 Idempotency-Key, that part counts twice when it is sent again"
            ),
            Problem::Service(ServiceError::NotVisible(why)) => why.clone(),
            Problem::NoSpace { why } => {
                format!("{why}, and batches are taken as soon as there is room; {SEND_AGAIN}")
            }
            Problem::Stopping | Problem::Service(ServiceError::Closed) => {
                "the service is stopping; try again when it is back, with a batch under the same \
                 Idempotency-Key"
                    .into()
            }
            Problem::Service(ServiceError::Overloaded(why)) => format!("{why}; {SEND_AGAIN}"),
            Problem::Service(ServiceError::Store(_)) => {
                format!("the disk did not take the batch; {SEND_AGAIN}")
            }
            Problem::Service(ServiceError::Receipt(_)) => {
                "whether this key has been used cannot be told, since what is stored of it is damaged, so it \
                 is unknown whether the batch counted; stop the service, and run: flowtally verify"
                    .into()
            }
            Problem::Query(_) | Problem::Backup(_) | Problem::Internal => {
                "the request failed inside the service; its log says why".into()
            }
        }
    }
}
