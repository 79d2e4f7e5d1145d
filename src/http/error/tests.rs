//! The table of problem types in `docs/api.md` against the types that there are.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::*;
use flow::codec::Corrupt;
use flow::{BatchBuilder, Counters, Hour, HourLimit};

const API: &str = include_str!("../../../docs/api.md");
const PROXY: &str = include_str!("../../../deploy/haproxy/haproxy.cfg");
const OPENAPI: &str = include_str!("../openapi.json");

/// Types with their statuses.
type Types = BTreeMap<String, BTreeSet<u16>>;

/// `problems()` has one problem of each pattern, and the patterns match every problem: a new variant does not compile
/// until it is here.
macro_rules! one_of_each {
    ($($pattern:pat => $problem:expr),+ $(,)?) => {
        fn problems() -> Vec<Problem> {
            let problems = vec![$($problem),+];
            for problem in &problems {
                match problem {
                    $($pattern => {})+
                }
            }
            problems
        }
    };
}

one_of_each! {
    Problem::NoSuchPath { .. } => Problem::NoSuchPath { path: "/flow".into() },
    Problem::NoSuchHour { .. } => Problem::NoSuchHour { hours: hour(1).into() },
    Problem::MethodNotAllowed { .. } => Problem::MethodNotAllowed { method: Method::PUT, allow: "GET" },
    Problem::BadHead => Problem::BadHead,
    Problem::TargetTooLong => Problem::TargetTooLong,
    Problem::HeadTooLarge => Problem::HeadTooLarge,
    Problem::BadHost { .. } => Problem::BadHost { what: text() },
    Problem::ForeignHost { .. } => Problem::ForeignHost { name: "a.example".parse().unwrap() },
    Problem::ForeignOrigin { .. } => Problem::ForeignOrigin { header: "Origin" },
    Problem::BadQuery { .. } => Problem::BadQuery { what: text() },
    Problem::BadBatch(_) => Problem::BadBatch(DecodeError { index: None, field: None, what: text(), at: None }),
    Problem::BadExport(_) => Problem::BadExport(ExportError::Malformed { what: text() }),
    Problem::TooFarAhead(_) => Problem::TooFarAhead(too_far_ahead()),
    Problem::BadBody { .. } => Problem::BadBody { what: text() },
    Problem::BadIdempotencyKey => Problem::BadIdempotencyKey,
    Problem::BadNotes => Problem::BadNotes,
    Problem::BadKeys { .. } => Problem::BadKeys { what: text() },
    Problem::BadDirectoryRequest { .. } => Problem::BadDirectoryRequest { what: text() },
    Problem::NoToken => Problem::NoToken,
    Problem::WrongToken => Problem::WrongToken,
    Problem::TokenLacksRight => Problem::TokenLacksRight,
    Problem::NoClientCertificate => Problem::NoClientCertificate,
    Problem::BodyTimeout => Problem::BodyTimeout,
    Problem::LengthRequired => Problem::LengthRequired,
    Problem::BodyTooLarge { .. } => Problem::BodyTooLarge { bytes_max: 1 },
    Problem::MediaType { .. } => Problem::MediaType { what: text() },
    Problem::ContentEncoding { .. } => Problem::ContentEncoding { what: text() },
    Problem::NotAcceptable { .. } => Problem::NotAcceptable { what: "text/csv" },
    Problem::TooManyQueries => Problem::TooManyQueries,
    Problem::Recovering => Problem::Recovering,
    Problem::Stopping => Problem::Stopping,
    Problem::NotReady { .. } => Problem::NotReady { why: text() },
    Problem::Internal => Problem::Internal,
    Problem::Service(ServiceError::Overloaded(_)) => ServiceError::Overloaded(text()).into(),
    Problem::Service(ServiceError::NoSpace { .. }) => ServiceError::NoSpace { why: "the disk is full" }.into(),
    Problem::Service(ServiceError::Store(_)) => ServiceError::Store(Arc::new(CORRUPT.into())).into(),
    Problem::Service(ServiceError::Receipt(_)) => ServiceError::Receipt(Arc::new(CORRUPT.into())).into(),
    Problem::Service(ServiceError::NotDeleted(_)) => ServiceError::NotDeleted(Arc::new(CORRUPT.into())).into(),
    Problem::Service(ServiceError::TooCoarse(_)) => ServiceError::TooCoarse(text()).into(),
    Problem::Service(ServiceError::KeyReused) => ServiceError::KeyReused.into(),
    Problem::Service(ServiceError::ReceiptExists) => ServiceError::ReceiptExists.into(),
    Problem::Service(ServiceError::OutcomeUnknown { keyed: true, .. }) =>
        ServiceError::OutcomeUnknown { why: text(), keyed: true }.into(),
    Problem::Service(ServiceError::OutcomeUnknown { keyed: false, .. }) =>
        ServiceError::OutcomeUnknown { why: text(), keyed: false }.into(),
    Problem::Service(ServiceError::NotVisible(_)) => ServiceError::NotVisible(text()).into(),
    Problem::Service(ServiceError::Unsupported(_)) => ServiceError::Unsupported("ask a node").into(),
    Problem::Service(ServiceError::Closed) => ServiceError::Closed.into(),
    Problem::Query(QueryError::Overloaded(_)) => QueryError::Overloaded(text()).into(),
    Problem::Query(QueryError::TooLarge { .. }) => QueryError::TooLarge { bytes_max: 1 }.into(),
    Problem::Query(QueryError::TooLong) => QueryError::TooLong.into(),
    Problem::Query(QueryError::Cancelled) => QueryError::Cancelled.into(),
    Problem::Query(QueryError::TooCoarse(_)) => QueryError::TooCoarse(text()).into(),
    Problem::Query(QueryError::BadCursor) => QueryError::BadCursor.into(),
    Problem::Query(QueryError::Missing(_)) => QueryError::Missing(Vec::new()).into(),
    Problem::Query(QueryError::Peer(_)) => QueryError::Peer(text()).into(),
    Problem::Query(QueryError::Encoding(_)) => QueryError::Encoding(text()).into(),
    Problem::Query(QueryError::Store(_)) => QueryError::Store(CORRUPT.into()).into(),
    Problem::NoSuchBackup { .. } => Problem::NoSuchBackup { what: text() },
    Problem::BackupBusy { .. } => Problem::BackupBusy { what: text() },
    Problem::NoCheckpoint => Problem::NoCheckpoint,
}

fn text() -> String {
    "text".into()
}

fn hour(hour: u64) -> Hour {
    Hour::new(hour).unwrap()
}

/// Becomes an error of the store, which this module must not name.
const CORRUPT: Corrupt = Corrupt("an example");

fn too_far_ahead() -> TooFarAhead {
    let mut batch = BatchBuilder::with_capacity(0);
    batch.push(hour(9), [b"s", b"d", b"v"], Counters::default());
    let (now, ahead_max) = (1, 1);
    let limit = HourLimit { now, ahead_max };
    limit.validate(&batch.finish()).unwrap_err()
}

/// The types in the tables of `page`, table by table.
fn tables(page: &str) -> Vec<Types> {
    let mut tables = Vec::new();
    for line in page.lines() {
        let cells: Vec<_> = line.split(" | ").collect();
        match cells[..] {
            ["| type", "status", ..] => tables.push(Types::new()),
            [name, statuses, _, _] if !tables.is_empty() && name.starts_with("| `") => {
                let name = name.trim_matches(['|', ' ', '`']).to_owned();
                let statuses = statuses.split(", ").map(|s| s.parse().unwrap()).collect();
                let twice = tables.last_mut().unwrap().insert(name, statuses);
                assert_eq!(twice, None, "{line}");
            }
            _ => {}
        }
    }
    tables
}

fn assert_same(whose: &str, types: &Types, documented: &Types) {
    let names: BTreeSet<_> = types.keys().chain(documented.keys()).collect();
    let differences = names.into_iter().filter_map(|name| {
        let (has, page) = (types.get(name), documented.get(name));
        (has != page).then(|| format!("{name}: {whose} has {has:?}, docs/api.md {page:?}"))
    });
    assert_eq!(differences.collect::<Vec<_>>(), Vec::<String>::new());
}

#[test]
fn the_documentation_has_every_type_of_problem() {
    let mut types = Types::new();
    for problem in problems() {
        let (description, response) = (problem.describe(), problem.into_response());
        assert_eq!(response.status(), description.status);
        let statuses = types.entry(description.name.into()).or_default();
        statuses.insert(response.status().as_u16());
    }
    assert!(types.values().all(|statuses| statuses.len() == 1));

    let mut of_the_proxy = Types::new();
    for error in PROXY.split(PROBLEM_TYPE_PREFIX).skip(1) {
        let (name, rest) = error.split_once('"').unwrap();
        let (_, status) = rest.split_once("\"status\":").unwrap();
        let status = status[..3].parse().unwrap();
        of_the_proxy.entry(name.into()).or_default().insert(status);
    }

    let documented = tables(API);
    let [of_the_page, of_the_page_for_the_proxy] = &documented[..] else {
        panic!(
            "docs/api.md has {} tables of types, not 2",
            documented.len()
        );
    };
    assert_same("the service", &types, of_the_page);
    assert_same("the proxy", &of_the_proxy, of_the_page_for_the_proxy);
}

/// OTLP's clients drop an export after any other status than 429, 502, 503 and 504.
#[test]
fn problems_that_may_pass_are_a_503_for_exports() {
    for problem in problems() {
        let (name, status) = (problem.name(), problem.describe().status.as_u16());
        let response = problem.into_otlp_response(otlp::Format::Json);
        let expected = match status {
            408 | 507 => 503,
            status => status,
        };
        assert_eq!(response.status(), expected, "{name}");
        let has_retry_after = response.headers().contains_key(header::RETRY_AFTER);
        assert_eq!(has_retry_after, expected == 503, "{name}");
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/json");
    }
}

#[test]
fn the_documentation_has_every_status_of_the_openapi_document() {
    let openapi: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
    let documented: BTreeSet<u16> = tables(API)
        .iter()
        .flat_map(Types::values)
        .flatten()
        .copied()
        .collect();
    for (path, operations) in openapi["paths"].as_object().unwrap() {
        let responses = operations.as_object().unwrap().values();
        let responses = responses.filter_map(|operation| operation["responses"].as_object());
        for status in responses.flat_map(|responses| responses.keys()) {
            let is_documented = match status.parse().unwrap() {
                status @ 400.. => documented.contains(&status),
                _ => API.contains(status),
            };
            assert!(is_documented, "{path}: {status}");
        }
    }
}
