//! What a status code says about a batch: the one table of it.
//!
//! | answer | about | then |
//! |---|---|---|
//! | 408, 425, 429, 5xx | this moment | sent again, until `--retry-for` is over; from a spool while flows come |
//! | 400 `hour-too-far-ahead` | a clock | sent again, after the others |
//! | 400 `bad-body` | the body, or the way it took | sent again; set aside when `--retry-for` is over |
//! | 400 that names a flow or a field, 413, 422, 400 `bad-idempotency-key` | this batch | set aside |
//! | 411, 414, 415, 431 | the form of this request | set aside |
//! | 409, 422 for a batch with notes | a part of a file that others counted | the file is looked at anew |
//! | any other: 3xx, 400, 401, 403, 404, 405, 407, 421, 451 … | the address, the token, the route | kept, and sent again |
//!
//! A 200 counts by what it says; one that is not from flowtally is an answer from a wrong address.

use ureq::http::StatusCode;

use crate::client::Problem;

/// What is wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Nothing with the request: the service, or a proxy, cannot take it now.
    Moment,
    /// The clock of the service, or the one that gave the flows their hours.
    Clock,
    /// The body, which may have been changed on the way.
    Body,
    /// This batch: it gets the same answer each time.
    Batch(Fault),
    /// A part of it was counted under another key.
    Conflict,
    /// Where it was sent, or with which rights: every batch gets the same answer.
    Address,
}

/// What a batch is not taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// A flow in it.
    Flow,
    /// Its size.
    Size,
    /// Other flows have been sent under its key, or the key is none.
    Key,
    /// It cannot be read, although it is whole here.
    Body,
    /// The form of its body, as with the compression.
    Form,
}

/// The class of an answer that is no 200. `problem` is its body, where it is a problem document.
pub(super) fn class(status: StatusCode, problem: Option<&Problem>, has_notes: bool) -> Class {
    let kind = problem.and_then(|p| p.r#type.strip_prefix("urn:flowtally:problem:"));
    let names_a_flow = problem.is_some_and(|p| p.index.is_some() || p.field.is_some());
    match (status.as_u16(), kind) {
        (409 | 422, _) if has_notes => Class::Conflict,
        (400, Some("hour-too-far-ahead")) => Class::Clock,
        (400, Some("bad-body")) => Class::Body,
        (400, Some("bad-batch")) => Class::Batch(Fault::Flow),
        (400, Some("bad-idempotency-key")) => Class::Batch(Fault::Key),
        (400, _) if names_a_flow => Class::Batch(Fault::Flow),
        (413, _) => Class::Batch(Fault::Size),
        (422, _) => Class::Batch(Fault::Key),
        (411 | 414 | 415 | 431, _) => Class::Batch(Fault::Form),
        (408 | 425 | 429 | 500.., _) => Class::Moment,
        _ => Class::Address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_status_has_its_class() {
        use Class::{Address, Batch, Body, Clock, Conflict, Moment};
        let of = |code: u16, json: &str, has_notes| {
            let problem = serde_json::from_str(json).ok();
            class(
                StatusCode::from_u16(code).unwrap(),
                problem.as_ref(),
                has_notes,
            )
        };
        for code in 100..1000 {
            let expected = match code {
                411 | 414 | 415 | 431 => Batch(Fault::Form),
                413 => Batch(Fault::Size),
                422 => Batch(Fault::Key),
                408 | 425 | 429 | 500..=999 => Moment,
                _ => Address,
            };
            for body in ["", "<html>", "{}", "{\"error\":\"no\"}", "[]"] {
                assert_eq!(of(code, body, false), expected, "{code} {body}");
            }
        }
        for (json, expected) in [
            (
                "{\"type\":\"urn:flowtally:problem:bad-batch\"}",
                Batch(Fault::Flow),
            ),
            (
                "{\"type\":\"urn:flowtally:problem:bad-idempotency-key\"}",
                Batch(Fault::Key),
            ),
            (
                "{\"type\":\"urn:flowtally:problem:hour-too-far-ahead\",\"index\":0,\"field\":\"hour\"}",
                Clock,
            ),
            ("{\"type\":\"urn:flowtally:problem:bad-body\"}", Body),
            ("{\"type\":\"urn:flowtally:problem:bad-host\"}", Address),
            (
                "{\"type\":\"urn:flowtally:problem:of-a-later-version\"}",
                Address,
            ),
            ("{\"index\":3,\"status\":400}", Batch(Fault::Flow)),
            (
                "{\"type\":\"about:blank\",\"field\":\"hour\"}",
                Batch(Fault::Flow),
            ),
        ] {
            assert_eq!(of(400, json, false), expected, "{json}");
        }
        assert_eq!(of(409, "", true), Conflict);
        assert_eq!(of(422, "", true), Conflict);
    }
}
