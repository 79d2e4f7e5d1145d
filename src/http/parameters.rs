//! Query parameters that only the HTTP API has: those of `POST` and `DELETE /flows`, and the link to the next page.

use flow::query::text;
use flow::query::text::BadQuery;

fn bad(what: impl Into<String>) -> BadQuery {
    BadQuery(what.into())
}

/// The parameters of `POST /flows`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PostParameters {
    /// `wait=visible`: the response waits until the flows are visible.
    pub(super) until_visible: bool,
    /// `dedup=content`: a batch with the same flows counts once.
    pub(super) by_content: bool,
}

/// Reads the parameters of `POST /flows`.
pub(super) fn parse_post(query: &str) -> Result<PostParameters, BadQuery> {
    let (mut wait, mut dedup) = (None, None);
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        let (parameter, known) = match &*name {
            "wait" => (&mut wait, "visible"),
            "dedup" => (&mut dedup, "content"),
            _ => {
                return Err(bad(format!(
                    "{name:?} is not a parameter of POST /flows; wait and dedup are"
                )));
            }
        };
        if value != known {
            return Err(bad(format!("{name} is {value:?}; it can be {known}")));
        }
        text::set(parameter, &name, ())?;
    }
    Ok(PostParameters {
        until_visible: wait.is_some(),
        by_content: dedup.is_some(),
    })
}

/// The `Link` header for the next page: `query`, with `cursor` instead of its own.
pub(super) fn next_page(query: &str, cursor: &str) -> String {
    let mut next = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(query.as_bytes()) {
        // Only the first page has the sums of all others.
        if name != "cursor" && name != "other" {
            next.append_pair(&name, &value);
        }
    }
    next.append_pair("cursor", cursor);
    format!("</flows?{}>; rel=\"next\"", next.finish())
}

/// Checks an invariant for every query: it survives a round trip. For fuzzing.
#[cfg(fuzzing)]
pub fn assert_query_round_trips(query: &str) {
    if let Ok(asked) = text::parse_flows(query) {
        assert!(!asked.hours.is_empty());
        let next = next_page(query, "x");
        let next = next.trim_start_matches("</flows?");
        let next = &next[..next.len() - ">; rel=\"next\"".len()];
        let again = text::parse_flows(next);
        assert!(asked.limit.is_none() || again.is_ok_and(|q| q.hours == asked.hours));
    }
}
