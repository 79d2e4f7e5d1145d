//! Classifies responses by their meaning for a batch.
//!
//! | response | about | then |
//! |---|---|---|
//! | 408, 425, 429, 5xx | a temporary condition | sent again, until `--retry-for` is over; from a spool, while flows arrive |
//! | 400 `hour-too-far-ahead` | a clock | sent again, after the others |
//! | 400 `bad-body` | the body, which may be corrupted in transit | sent again; set aside when `--retry-for` is over |
//! | 400 that names a flow or a field, 413, 422, 400 `bad-idempotency-key` | this batch | set aside |
//! | 411, 414, 415, 431 | the form of this request | set aside |
//! | 409, 422 for a batch with notes | a part of a file that another command counted | the file is looked up again |
//! | any other: 3xx, 400, 401, 403, 404, 405, 407, 421, 451 … | the address, the token, the route | kept, and sent again |
//!
//! A 200 is accepted only if its body is flowtally's; any other body comes from another server.

use ureq::http::StatusCode;

use flow::{PROBLEM_TYPE_PREFIX, ProblemDocument};

/// The subject of an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ErrorClass {
    /// Temporary: the service or a proxy cannot accept the request now.
    Transient,
    /// The clock of the service, or the clock that gave the flows their hours.
    Clock,
    /// The body, which may have been corrupted in transit.
    Body,
    /// This batch: the response will be the same every time.
    Batch(RejectReason),
    /// A part of the batch was counted under another key.
    Conflict,
    /// The URL or the credentials: the response is the same for every batch.
    Endpoint,
}

/// The reason why a batch was rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RejectReason {
    /// An invalid flow.
    Flow,
    /// The body is too large.
    Size,
    /// Different flows were sent under its key, or the key is invalid.
    Key,
    /// The service cannot decode the body, although it is intact here.
    Body,
    /// The encoding of the body, such as its compression.
    Form,
}

/// Classifies a response other than 200. `problem` is its body, if it is a problem document.
pub(super) fn classify(
    status: StatusCode,
    problem: Option<&ProblemDocument>,
    has_notes: bool,
) -> ErrorClass {
    let kind = problem.and_then(|p| p.r#type.strip_prefix(PROBLEM_TYPE_PREFIX));
    let names_a_flow = problem.is_some_and(|p| p.index.is_some() || p.field.is_some());
    match (status.as_u16(), kind) {
        (409 | 422, _) if has_notes => ErrorClass::Conflict,
        (400, Some("hour-too-far-ahead")) => ErrorClass::Clock,
        (400, Some("bad-body")) => ErrorClass::Body,
        (400, Some("bad-batch")) => ErrorClass::Batch(RejectReason::Flow),
        (400, Some("bad-idempotency-key")) => ErrorClass::Batch(RejectReason::Key),
        (400, _) if names_a_flow => ErrorClass::Batch(RejectReason::Flow),
        (413, _) => ErrorClass::Batch(RejectReason::Size),
        (422, _) => ErrorClass::Batch(RejectReason::Key),
        (411 | 414 | 415 | 431, _) => ErrorClass::Batch(RejectReason::Form),
        (408 | 425 | 429 | 500.., _) => ErrorClass::Transient,
        _ => ErrorClass::Endpoint,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_classified() {
        use ErrorClass::{Batch, Body, Clock, Conflict, Endpoint, Transient};
        let of = |code: u16, json: &str, has_notes| {
            let problem = serde_json::from_str(json).ok();
            classify(
                StatusCode::from_u16(code).unwrap(),
                problem.as_ref(),
                has_notes,
            )
        };
        for code in 100..1000 {
            let expected = match code {
                411 | 414 | 415 | 431 => Batch(RejectReason::Form),
                413 => Batch(RejectReason::Size),
                422 => Batch(RejectReason::Key),
                408 | 425 | 429 | 500..=999 => Transient,
                _ => Endpoint,
            };
            for body in ["", "<html>", "{}", "{\"error\":\"no\"}", "[]"] {
                assert_eq!(of(code, body, false), expected, "{code} {body}");
            }
        }
        for (json, expected) in [
            (
                "{\"type\":\"urn:flowtally:problem:bad-batch\"}",
                Batch(RejectReason::Flow),
            ),
            (
                "{\"type\":\"urn:flowtally:problem:bad-idempotency-key\"}",
                Batch(RejectReason::Key),
            ),
            (
                "{\"type\":\"urn:flowtally:problem:hour-too-far-ahead\",\"index\":0,\"field\":\"hour\"}",
                Clock,
            ),
            ("{\"type\":\"urn:flowtally:problem:bad-body\"}", Body),
            ("{\"type\":\"urn:flowtally:problem:bad-host\"}", Endpoint),
            (
                "{\"type\":\"urn:flowtally:problem:of-a-later-version\"}",
                Endpoint,
            ),
            ("{\"index\":3,\"status\":400}", Batch(RejectReason::Flow)),
            (
                "{\"type\":\"about:blank\",\"field\":\"hour\"}",
                Batch(RejectReason::Flow),
            ),
        ] {
            assert_eq!(of(400, json, false), expected, "{json}");
        }
        assert_eq!(of(409, "", true), Conflict);
        assert_eq!(of(422, "", true), Conflict);
    }
}
