//! Values in protobuf's JSON mapping. Only the text of a message is kept, and it is parsed again for the values in it, so
//! that nothing is allocated for what is in a body.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::ExportError;
use super::node::{Field, Node, Read};
use crate::decode::without_mark;

/// A value, and the name of its field.
#[derive(Clone, Copy, Debug)]
pub(super) struct Json<'a> {
    value: &'a RawValue,
    name: &'static str,
}

impl<'a> Json<'a> {
    /// Validates that the body is JSON.
    pub(super) fn parse(body: &'a [u8]) -> Read<Json<'a>> {
        let text = std::str::from_utf8(body).map_err(|e| {
            let at = e.valid_up_to();
            ExportError::malformed(format!("the body is not UTF-8 at byte {at}"))
        })?;
        match serde_json::from_str(without_mark(text)) {
            Ok(value) => Ok(Json {
                value,
                name: "the body",
            }),
            Err(error) => Err(ExportError::malformed(format!(
                "the body is not JSON: {error}"
            ))),
        }
    }

    /// The error of a value that is not `what`.
    fn is_not(self, what: &str) -> ExportError {
        ExportError::malformed(format!("{} is not {what}", self.name))
    }

    /// A number: integers of 64 bits are strings, and all others may be.
    fn number(self) -> Read<Cow<'a, str>> {
        let text = self.value.get();
        match text.starts_with('"') {
            true => self.text(),
            false => Ok(Cow::Borrowed(text)),
        }
    }
}

impl<'a> Node<'a> for Json<'a> {
    fn fields(self, wanted: &[Field], mut each: impl FnMut(usize, Self) -> Read) -> Read {
        let members = Members {
            wanted,
            each: |index: usize, value: &'a RawValue| {
                let name = wanted[index].name;
                each(index, Json { value, name })
            },
        };
        let json = &mut serde_json::Deserializer::from_str(self.value.get());
        let read = json.deserialize_map(members);
        read.map_err(|_| self.is_not("an object"))?
    }

    fn elements(self, mut each: impl FnMut(Self) -> Read) -> Read {
        let name = self.name;
        let elements = Elements(|value: &'a RawValue| each(Json { value, name }));
        let json = &mut serde_json::Deserializer::from_str(self.value.get());
        let read = json.deserialize_seq(elements);
        read.map_err(|_| self.is_not("a list"))?
    }

    fn text(self) -> Read<Cow<'a, str>> {
        #[derive(Deserialize)]
        struct Text<'t>(#[serde(borrow)] Cow<'t, str>);
        let text = serde_json::from_str::<Text<'a>>(self.value.get());
        match text {
            Ok(Text(text)) => Ok(text),
            Err(_) => Err(self.is_not("a string")),
        }
    }

    fn integer(self) -> Read<u64> {
        self.fixed64()
    }

    fn fixed64(self) -> Read<u64> {
        let number = self.number()?.parse();
        number.map_err(|_| self.is_not("an integer from 0 to 2^64-1"))
    }

    fn sfixed64(self) -> Read<i64> {
        let number = self.number()?.parse();
        number.map_err(|_| self.is_not("an integer of 64 bits"))
    }

    /// Also `NaN`, `Infinity` and `-Infinity`.
    fn double(self) -> Read<f64> {
        let number = self.number()?.parse();
        number.map_err(|_| self.is_not("a number"))
    }
}

/// Reads an object. After an error of `each`, which is the result, the rest is skipped.
struct Members<'w, F> {
    wanted: &'w [Field],
    each: F,
}

impl<'de, F: FnMut(usize, &'de RawValue) -> Read> Visitor<'de> for Members<'_, F> {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Read, A::Error> {
        let mut read = Ok(());
        while let Some(index) = map.next_key_seed(Name(self.wanted))? {
            let Some(index) = index else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = map.next_value::<&'de RawValue>()?;
            // `null` stands for a field that is absent.
            if read.is_ok() && value.get() != "null" {
                read = (self.each)(index, value);
            }
        }
        Ok(read)
    }
}

/// Reads a list, like [`Members`].
struct Elements<F>(F);

impl<'de, F: FnMut(&'de RawValue) -> Read> Visitor<'de> for Elements<F> {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut list: A) -> Result<Read, A::Error> {
        let mut read = Ok(());
        while let Some(value) = list.next_element::<&'de RawValue>()? {
            if read.is_ok() {
                read = (self.0)(value);
            }
        }
        Ok(read)
    }
}

/// The name of a member; its index among the wanted fields.
struct Name<'w>(&'w [Field]);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|field| field.name == name))
    }
}
