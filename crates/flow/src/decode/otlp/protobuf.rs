//! Values in protobuf's binary encoding.

use std::borrow::Cow;

use super::ExportError;
use super::node::{Field, Node, Read};

/// A value, by its wire type.
#[derive(Clone, Copy, Debug)]
pub(super) enum Binary<'a> {
    Varint(u64),
    Fixed64(u64),
    /// A message or a text.
    Bytes(&'a [u8]),
    /// OTLP has no field of this type that is read.
    Fixed32,
}

impl<'a> Binary<'a> {
    pub(super) fn message(bytes: &'a [u8]) -> Binary<'a> {
        Binary::Bytes(bytes)
    }

    fn bytes(self) -> Read<&'a [u8]> {
        match self {
            Binary::Bytes(bytes) => Ok(bytes),
            _ => Err(wrong_type()),
        }
    }
}

fn cut() -> ExportError {
    ExportError::malformed("the body is not protobuf: a field goes beyond the end of its message")
}

fn wrong_type() -> ExportError {
    ExportError::malformed("the body is not an export: a field has another type than in OTLP")
}

/// Splits a varint off `bytes`: seven bits a byte, the lowest first; the highest bit of all bytes but the last is set.
fn varint(bytes: &[u8]) -> Read<(u64, &[u8])> {
    let (mut value, mut rest) = (0, bytes);
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, after) = rest.split_first().ok_or_else(cut)?;
        let bits = u64::from(byte & 0x7F);
        // Of the tenth byte, only one bit fits.
        if shift == 63 && bits > 1 {
            break;
        }
        value |= bits << shift;
        rest = after;
        if byte & 0x80 == 0 {
            return Ok((value, rest));
        }
    }
    Err(ExportError::malformed(
        "the body is not protobuf: a varint has more than 64 bits",
    ))
}

/// Splits the value of a field off `bytes`. The lowest bits of `tag` are its wire type.
fn value(tag: u64, bytes: &[u8]) -> Read<(Binary<'_>, &[u8])> {
    match tag & 7 {
        0 => {
            let (value, rest) = varint(bytes)?;
            Ok((Binary::Varint(value), rest))
        }
        1 => {
            let (value, rest) = bytes.split_first_chunk::<8>().ok_or_else(cut)?;
            Ok((Binary::Fixed64(u64::from_le_bytes(*value)), rest))
        }
        2 => {
            let (length, rest) = varint(bytes)?;
            let length = usize::try_from(length).map_err(|_| cut())?;
            let (value, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
            Ok((Binary::Bytes(value), rest))
        }
        5 => {
            let (_, rest) = bytes.split_first_chunk::<4>().ok_or_else(cut)?;
            Ok((Binary::Fixed32, rest))
        }
        // 3 and 4 are groups, which OTLP does not have.
        kind => Err(ExportError::malformed(format!(
            "the body is not protobuf: a field has wire type {kind}"
        ))),
    }
}

impl<'a> Node<'a> for Binary<'a> {
    fn fields(self, wanted: &[Field], mut each: impl FnMut(usize, Self) -> Read) -> Read {
        let mut rest = self.bytes()?;
        while !rest.is_empty() {
            let (tag, after) = varint(rest)?;
            let (value, after) = value(tag, after)?;
            rest = after;
            let number = tag >> 3;
            if number == 0 {
                return Err(ExportError::malformed(
                    "the body is not protobuf: a field has the number 0",
                ));
            }
            let is_wanted = |field: &Field| u64::from(field.number) == number;
            if let Some(index) = wanted.iter().position(is_wanted) {
                each(index, value)?;
            }
        }
        Ok(())
    }

    fn elements(self, mut each: impl FnMut(Self) -> Read) -> Read {
        each(self)
    }

    fn text(self) -> Read<Cow<'a, str>> {
        match std::str::from_utf8(self.bytes()?) {
            Ok(text) => Ok(Cow::Borrowed(text)),
            Err(_) => Err(ExportError::malformed("a text of the export is not UTF-8")),
        }
    }

    fn integer(self) -> Read<u64> {
        match self {
            Binary::Varint(value) => Ok(value),
            _ => Err(wrong_type()),
        }
    }

    fn fixed64(self) -> Read<u64> {
        match self {
            Binary::Fixed64(value) => Ok(value),
            _ => Err(wrong_type()),
        }
    }

    fn sfixed64(self) -> Read<i64> {
        Ok(self.fixed64()?.cast_signed())
    }

    fn double(self) -> Read<f64> {
        Ok(f64::from_bits(self.fixed64()?))
    }
}
