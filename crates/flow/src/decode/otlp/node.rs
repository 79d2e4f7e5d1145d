//! A message or another value of protobuf, in either of its encodings.

use std::borrow::Cow;

use super::ExportError;

/// A field of a message: its number in the binary encoding, and its name in JSON.
#[derive(Clone, Copy, Debug)]
pub(super) struct Field {
    pub(super) number: u32,
    pub(super) name: &'static str,
}

/// The result of reading a value.
pub(super) type Read<T = ()> = Result<T, ExportError>;

/// A value, whose type is that with which it is read. A value of another type is an error.
pub(super) trait Node<'a>: Copy {
    /// A message: calls `each` with the index in `wanted` and the value of each of these fields, in the order in which
    /// they are in the message. Other fields are skipped, whatever they contain.
    fn fields(self, wanted: &[Field], each: impl FnMut(usize, Self) -> Read) -> Read;

    /// A repeated message: calls `each` with each one. In the binary encoding, each is a field of its own, so there is
    /// one.
    fn elements(self, each: impl FnMut(Self) -> Read) -> Read;

    /// `string`
    fn text(self) -> Read<Cow<'a, str>>;

    /// `uint32` and enumerations
    fn integer(self) -> Read<u64>;

    /// `fixed64`
    fn fixed64(self) -> Read<u64>;

    /// `sfixed64`
    fn sfixed64(self) -> Read<i64>;

    /// `double`
    fn double(self) -> Read<f64>;
}
