//! The decoder for all JSON, based on serde_json. It keeps track of the current flow and field, so that an error can
//! name them.

use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Unexpected,
    Visitor,
};

use super::{DecodeError, Format, hints};
use crate::batch::{Batch, BatchBuilder};
use crate::{Counters, Field, Hour, HourUnit, NAME_BYTES_MAX};

pub(super) fn decode(body: &[u8], format: Format) -> Result<Batch, DecodeError> {
    let text = std::str::from_utf8(body).map_err(|e| DecodeError {
        index: None,
        field: None,
        what: format!("the body is not UTF-8 at byte {}", e.valid_up_to()),
        at: None,
    })?;
    let text = super::without_mark(text);
    let is_object = format == Format::Json && text.trim_ascii_start().starts_with('{');
    if !is_object {
        return read(text, format).map_err(|error| hints::add(error, text, format));
    }
    // A single object without a newline is not NDJSON, but a flow that was mistaken for a batch.
    if !text.trim_ascii_start().contains('\n') {
        return Err(hints::object(text, None));
    }
    read(text, Format::Ndjson).map_err(|error| {
        let error = hints::add(error, text, Format::Ndjson);
        hints::object(text, Some(error))
    })
}

fn read(text: &str, format: Format) -> Result<Batch, DecodeError> {
    let mut builder = BatchBuilder::with_capacity(super::batch_bytes(text.len()));
    let cursor = FlowCursor::default();
    match format {
        Format::Json => {
            let mut json = serde_json::Deserializer::from_str(text);
            Flows {
                builder: &mut builder,
                cursor: &cursor,
            }
            .deserialize(&mut json)
            .and_then(|()| json.end())
            .map_err(|e| cursor.error(&e, e.line()))?;
        }
        Format::Ndjson => {
            for (line, text) in text.split('\n').enumerate() {
                let text = super::without_mark(text);
                if super::is_blank(text) {
                    continue;
                }
                cursor.index.set(Some(builder.flows()));
                let mut json = serde_json::Deserializer::from_str(text);
                OneFlow {
                    builder: &mut builder,
                    cursor: &cursor,
                }
                .deserialize(&mut json)
                .and_then(|()| json.end())
                .map_err(|e| cursor.error(&e, line + 1))?;
            }
        }
    }
    Ok(builder.finish())
}

/// The decoder's position in the batch.
#[derive(Default)]
struct FlowCursor {
    index: Cell<Option<usize>>,
    field: Cell<Option<Field>>,
}

impl FlowCursor {
    fn error(&self, error: &serde_json::Error, line: usize) -> DecodeError {
        let text = error.to_string();
        let suffix = format!(" at line {} column {}", error.line(), error.column());
        let what = text.strip_suffix(&suffix).unwrap_or(&text);
        let what = if error.is_eof() {
            format!("the body ends too early: {what}")
        } else {
            what.to_owned()
        };
        DecodeError {
            index: self.index.get(),
            field: self.field.get(),
            what,
            at: Some((line, error.column())),
        }
    }
}

/// A JSON array of flows.
struct Flows<'a> {
    builder: &'a mut BatchBuilder,
    cursor: &'a FlowCursor,
}

impl<'de> DeserializeSeed<'de> for Flows<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Flows<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of flows")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.cursor.index.set(Some(0));
        while seq
            .next_element_seed(OneFlow {
                builder: self.builder,
                cursor: self.cursor,
            })?
            .is_some()
        {
            self.cursor.index.set(Some(self.builder.flows()));
        }
        self.cursor.index.set(None);
        Ok(())
    }
}

/// One JSON object with the six fields.
struct OneFlow<'a> {
    builder: &'a mut BatchBuilder,
    cursor: &'a FlowCursor,
}

impl<'de> DeserializeSeed<'de> for OneFlow<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for OneFlow<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flow object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let cursor = self.cursor;
        let mut names: [Option<Cow<'de, str>>; 3] = [None, None, None];
        let mut numbers: [Option<u64>; 3] = [None; 3];
        while let Some(field) = map.next_key_seed(FieldName)? {
            let Some(field) = field else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            cursor.field.set(Some(field));
            let at = field as usize;
            let again = match at {
                0..3 => names[at].is_some(),
                _ => numbers[at - 3].is_some(),
            };
            if again {
                return Err(A::Error::custom("the field is given twice"));
            }
            match at {
                0..3 => names[at] = Some(map.next_value_seed(Name)?),
                _ => {
                    numbers[at - 3] = Some(map.next_value_seed(Number { field })?);
                }
            }
            cursor.field.set(None);
        }
        let missing = |at: usize| {
            cursor.field.set(Some(Field::ALL[at]));
            A::Error::custom(super::MISSING)
        };
        let mut name_bytes: [&[u8]; 3] = [&[]; 3];
        for (at, name) in names.iter().enumerate() {
            name_bytes[at] = name.as_ref().ok_or_else(|| missing(at))?.as_bytes();
        }
        let [tx, rx, hour] = numbers;
        let counters = Counters {
            tx: tx.ok_or_else(|| missing(3))?,
            rx: rx.ok_or_else(|| missing(4))?,
        };
        let hour = hour.and_then(Hour::new).ok_or_else(|| missing(5))?;
        self.builder.push(hour, name_bytes, counters);
        Ok(())
    }
}

/// The name of a field; `None` if it is unknown.
struct FieldName;

impl<'de> DeserializeSeed<'de> for FieldName {
    type Value = Option<Field>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for FieldName {
    type Value = Option<Field>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(Field::from_name(name.as_bytes()))
    }
}

/// A string of at most [`NAME_BYTES_MAX`] bytes.
struct Name;

impl Name {
    fn validate<E: serde::de::Error>(name: &str) -> Result<(), E> {
        if name.len() <= NAME_BYTES_MAX {
            return Ok(());
        }
        let bytes = name.len();
        Err(E::custom(format_args!(
            "the string has {bytes} bytes; at most {NAME_BYTES_MAX} are allowed"
        )))
    }
}

impl<'de> DeserializeSeed<'de> for Name {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Name {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_borrowed_str<E: serde::de::Error>(self, name: &'de str) -> Result<Self::Value, E> {
        Name::validate(name)?;
        Ok(Cow::Borrowed(name))
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Name::validate(name)?;
        Ok(Cow::Owned(name.to_owned()))
    }
}

/// An integer field with its range.
struct Number {
    field: Field,
}

impl Number {
    fn max(&self) -> u64 {
        match self.field {
            Field::Hour => u64::from(Hour::MAX),
            _ => u64::MAX,
        }
    }
}

impl<'de> DeserializeSeed<'de> for Number {
    type Value = u64;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<u64, D::Error> {
        deserializer.deserialize_u64(self)
    }
}

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an integer from 0 to {}", self.max())
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<u64, E> {
        if number <= self.max() {
            return Ok(number);
        }
        let hint = HourUnit::hint(u128::from(number), HourUnit::clock_hour());
        let unexpected = Unexpected::Unsigned(number);
        Err(E::custom(format_args!(
            "invalid value: {unexpected}, expected {}{hint}",
            &self as &dyn serde::de::Expected
        )))
    }
}
