//! Adds hints to an error if the sender's intention can be guessed. The body is read again for this, so valid bodies
//! cost nothing.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::{DecodeError, Format};
use crate::Field;

/// The error for an object instead of an array.
const ONE_OBJECT: &str = "the body is an object, but an array of flows is expected";

/// The names in an object, and their unparsed values.
type Names<'a> = BTreeMap<String, &'a RawValue>;

/// Adds a hint to `error`, which the decoder returned for `text`.
pub(super) fn add(mut error: DecodeError, text: &str, format: Format) -> DecodeError {
    // serde_json's message.
    if error.what == "trailing characters" {
        error.what += match format {
            Format::Json => "; the body must be one array, with nothing after it",
            Format::Ndjson => "; each line must be one flow, with nothing after it",
        };
    }
    if let (Some(index), Some(field)) = (error.index, error.field)
        && error.what == super::MISSING
        && let Some(names) = flow(text, format, index)
        && let Some(name) = field.misspelled_in(names.keys().map(String::as_str))
    {
        let field = field.name();
        error.what += &format!("; there is {name:?}: did you mean {field}?");
    }
    error
}

/// The error for `text`, which starts with an object although JSON is an array. `as_lines` is the error of reading it
/// as NDJSON, if it has several lines.
pub(super) fn object(text: &str, as_lines: Option<DecodeError>) -> DecodeError {
    let of_all = |what: String| DecodeError {
        index: None,
        field: None,
        what,
        at: None,
    };
    let has_flow = |names: &Names| Field::ALL.iter().any(|f| names.contains_key(f.name()));
    let lines = text.trim();
    let first = lines.lines().next().unwrap_or_default();
    // If the first line is an object, NDJSON is meant.
    let as_lines = as_lines.filter(|_| serde_json::from_str::<Names>(first).is_ok());
    match (serde_json::from_str::<Names>(lines), as_lines) {
        (Ok(names), Some(error)) if has_flow(&names) => error,
        (Ok(names), None) if has_flow(&names) => of_all(format!("{ONE_OBJECT}: wrap it in [ ]")),
        (Ok(names), _) if names.is_empty() => of_all(format!("{ONE_OBJECT}; an empty batch is []")),
        (Ok(names), _) => match field_with_flows(&names) {
            Some(name) => of_all(format!(
                "{ONE_OBJECT}; if the flows are in its field {name:?}, send that field's value"
            )),
            None => of_all(ONE_OBJECT.into()),
        },
        (Err(_), Some(error)) => error,
        (Err(_), None) => of_all(format!(
            "{ONE_OBJECT}: wrap one object in [ ]; of several, write [ and ] around them and commas between \
             them, or each on a line of its own"
        )),
    }
}

/// The field that may have flows in it: an array of objects, or else an object.
fn field_with_flows<'a>(names: &'a Names<'_>) -> Option<&'a String> {
    let is_array = |value: &str| {
        let first = value.strip_prefix('[').map(str::trim_ascii_start);
        first.is_some_and(|first| first.starts_with(['{', ']']))
    };
    let find = |is: &dyn Fn(&str) -> bool| names.iter().find(|(_, value)| is(value.get()));
    let found = find(&is_array).or_else(|| find(&|value| value.starts_with('{')));
    found.map(|(name, _)| name)
}

/// The names in the flow at `index`.
fn flow(text: &str, format: Format, index: usize) -> Option<Names<'_>> {
    let flow = match format {
        Format::Json => element(text, index)?,
        Format::Ndjson => {
            let mut lines = text.split('\n').filter(|line| !super::is_blank(line));
            super::without_mark(lines.nth(index)?)
        }
    };
    serde_json::from_str(flow).ok()
}

/// The element at `index` of an array, if it parses; the error may come after it.
pub(super) fn element(array: &str, index: usize) -> Option<&str> {
    let mut found = None;
    let mut json = serde_json::Deserializer::from_str(array);
    let elements = Elements {
        index,
        found: &mut found,
    };
    let _what_is_behind = serde::de::DeserializeSeed::deserialize(elements, &mut json);
    found.map(RawValue::get)
}

/// Finds one element of an array and skips the others.
struct Elements<'a, 'de> {
    index: usize,
    found: &'a mut Option<&'de RawValue>,
}

impl<'de> serde::de::DeserializeSeed<'de> for Elements<'_, 'de> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> serde::de::Visitor<'de> for Elements<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for _ in 0..self.index {
            seq.next_element::<IgnoredAny>()?;
        }
        *self.found = seq.next_element()?;
        Ok(())
    }
}
