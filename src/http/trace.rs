//! Request identity: `X-Request-Id`, taken from the client or generated, and W3C trace context. Every log line of a
//! request has both.

use tracing::Span;
use uuid::Uuid;
use warp::http::HeaderMap;
use warp::http::header::{HeaderName, HeaderValue};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// Longest request ID that is accepted from a client.
const ID_CHARS_MAX: usize = 128;

/// The IDs of one request.
#[derive(Debug)]
pub(super) struct Trace {
    id: HeaderValue,
    span: Span,
}

impl Trace {
    pub(super) fn from_headers(headers: &HeaderMap) -> Trace {
        let is_usable = |id: &&HeaderValue| {
            let id = id.as_bytes();
            (1..=ID_CHARS_MAX).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic)
        };
        let id = match headers.get(REQUEST_ID).filter(is_usable) {
            Some(id) => id.clone(),
            None => {
                let mut text = Uuid::encode_buffer();
                let id = Uuid::now_v7().simple().encode_lower(&mut text);
                // Hexadecimal digits always fit.
                HeaderValue::from_str(id).unwrap_or_else(|_| HeaderValue::from_static("none"))
            }
        };
        // An error span is enabled at every log level.
        let span = tracing::error_span!(
            "request",
            request_id = id.to_str().unwrap_or_default(),
            trace_id = tracing::field::Empty,
            parent_id = tracing::field::Empty,
        );
        let traceparent = headers.get(TRACEPARENT).and_then(|v| v.to_str().ok());
        if let Some((trace_id, parent_id)) = traceparent.and_then(parse_traceparent) {
            span.record("trace_id", trace_id);
            span.record("parent_id", parent_id);
        }
        Trace { id, span }
    }

    /// The span for the request's log lines.
    pub(super) fn span(&self) -> Span {
        self.span.clone()
    }

    /// Adds the request ID to the response, so that the client can find the request in the log.
    pub(super) fn set_response_header(&self, headers: &mut HeaderMap) {
        headers.insert(REQUEST_ID, self.id.clone());
    }
}

/// Parses `traceparent` into the trace ID and the parent ID: `00-TRACE-PARENT-FLAGS`, or a later version with the same
/// beginning.
fn parse_traceparent(text: &str) -> Option<(&str, &str)> {
    let mut parts = text.split('-');
    let (version, trace, parent, flags) =
        (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let is_hex = |text: &str, digits| {
        text.len() == digits
            && text
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let is_set = |id: &str| id.bytes().any(|b| b != b'0');
    let valid = is_hex(version, 2)
        && version != "ff"
        && is_hex(trace, 32)
        && is_set(trace)
        && is_hex(parent, 16)
        && is_set(parent)
        && is_hex(flags, 2)
        && (version != "00" || parts.next().is_none());
    valid.then_some((trace, parent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traceparents() {
        let trace = "0af7651916cd43dd8448eb211c80319c";
        let parent = "b7ad6b7169203331";
        let expected = Some((trace, parent));
        assert_eq!(
            parse_traceparent(&format!("00-{trace}-{parent}-01")),
            expected
        );
        assert_eq!(
            parse_traceparent(&format!("cc-{trace}-{parent}-01-x")),
            expected
        );
        for wrong in [
            String::new(),
            format!("00-{trace}-{parent}"),
            format!("00-{trace}-{parent}-01-x"),
            format!("ff-{trace}-{parent}-01"),
            format!("00-{}-{parent}-01", trace.to_uppercase()),
            format!("00-{}-{parent}-01", "0".repeat(32)),
            format!("00-{trace}-{}-01", "0".repeat(16)),
            format!("00-{trace}-{parent}-1"),
        ] {
            assert_eq!(parse_traceparent(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn valid_ids_are_adopted() {
        let id_for = |given: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.insert(REQUEST_ID, HeaderValue::from_bytes(given).unwrap());
            let mut response = HeaderMap::new();
            Trace::from_headers(&headers).set_response_header(&mut response);
            response[REQUEST_ID].as_bytes().to_vec()
        };
        assert_eq!(id_for(b"req-7/a"), b"req-7/a");
        for odd in [&b""[..], b"a b", b"\xff", &[b'x'; 129]] {
            assert_eq!(id_for(odd).len(), 32, "{odd:?}");
        }
    }
}
