//! Columns of a Parquet file: their types, and their values in a batch of rows.

use std::io::{self, Write};

use arrow_array::cast::AsArray;
use arrow_array::types::{
    Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type,
    UInt64Type,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, BinaryArray, RecordBatch, StringArray};
use arrow_schema::DataType;

/// What a column consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Text,
    Integers,
}

impl Kind {
    /// `None` for all other types.
    pub(super) fn of(data_type: &DataType) -> Option<Kind> {
        match data_type {
            // Some writers do not declare text as UTF-8.
            DataType::Utf8 | DataType::Binary => Some(Kind::Text),
            data_type if data_type.is_integer() => Some(Kind::Integers),
            DataType::Decimal128(_, 0) => Some(Kind::Integers),
            _ => None,
        }
    }
}

/// The values of a column in a batch of rows.
pub(super) enum Values<'a> {
    Text(&'a StringArray),
    Bytes(&'a BinaryArray),
    Integers(Vec<Option<i128>>),
}

impl<'a> Values<'a> {
    /// The values of the column called `name`.
    ///
    /// # Errors
    /// Cannot happen for a column that has a [`Kind`].
    pub(super) fn of(batch: &'a RecordBatch, name: &str) -> io::Result<Values<'a>> {
        let column = batch.column_by_name(name).and_then(Values::of_array);
        column.ok_or_else(|| io::Error::other(format!("column {name} cannot be read")))
    }

    fn of_array(array: &'a ArrayRef) -> Option<Values<'a>> {
        let integers = match array.data_type() {
            DataType::Utf8 => return array.as_string_opt().map(Values::Text),
            DataType::Binary => return array.as_binary_opt().map(Values::Bytes),
            DataType::Int8 => integers::<Int8Type>(array),
            DataType::Int16 => integers::<Int16Type>(array),
            DataType::Int32 => integers::<Int32Type>(array),
            DataType::Int64 => integers::<Int64Type>(array),
            DataType::UInt8 => integers::<UInt8Type>(array),
            DataType::UInt16 => integers::<UInt16Type>(array),
            DataType::UInt32 => integers::<UInt32Type>(array),
            DataType::UInt64 => integers::<UInt64Type>(array),
            DataType::Decimal128(_, 0) => integers::<Decimal128Type>(array),
            _ => None,
        };
        integers.map(Values::Integers)
    }

    /// The value of a row as bytes; `None` if it is null. Integers are written to `digits`.
    pub(super) fn get<'b>(&'b self, row: usize, digits: &'b mut Vec<u8>) -> Option<&'b [u8]> {
        match self {
            Values::Text(text) => text.is_valid(row).then(|| text.value(row).as_bytes()),
            Values::Bytes(bytes) => bytes.is_valid(row).then(|| bytes.value(row)),
            Values::Integers(integers) => {
                let number = integers.get(row).copied().flatten()?;
                digits.clear();
                // Memory can be written.
                let _infallible = write!(digits, "{number}");
                Some(digits.as_slice())
            }
        }
    }
}

fn integers<T>(array: &ArrayRef) -> Option<Vec<Option<i128>>>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i128>,
{
    let values = array.as_primitive_opt::<T>()?;
    Some(values.iter().map(|value| value.map(Into::into)).collect())
}
