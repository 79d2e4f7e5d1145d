//! Rows as columns: record batches of Arrow, and streams of them.
//!
//! A value is appended to the buffer of its column, and a batch takes the buffers, so nothing is allocated for a row. Names
//! are plain strings, not dictionaries ([why](../../docs/internals/decisions/arrow-plain-names.md)).

use std::fmt::{self, Debug};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, StringBuilder, UInt32Builder, UInt64Builder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{ArrowError, DataType, Field as ArrowField, Schema, SchemaRef};

use super::encode::{BEFORE, CHUNK_BYTES, OTHER};
use super::{QueryError, Row, Rows, break_if};
use flow::query::Columns;
use flow::{Counters, Field};

impl From<ArrowError> for QueryError {
    fn from(error: ArrowError) -> QueryError {
        QueryError::Encoding(error.to_string())
    }
}

/// The columns of rows that are grouped by `columns`, in the order of CSV. Only the row of all others has nulls.
fn schema(columns: Columns, is_compared: bool, has_other: bool) -> SchemaRef {
    let of_field = |field: Field| {
        let (data_type, is_nullable) = match field {
            Field::SrcApp | Field::DestApp | Field::VpcId => (DataType::Utf8, has_other),
            Field::BytesTx | Field::BytesRx => (DataType::UInt64, false),
            Field::Hour => (DataType::UInt32, has_other),
        };
        ArrowField::new(field.name(), data_type, is_nullable)
    };
    let before = BEFORE.map(|name| ArrowField::new(name, DataType::UInt64, false));
    let before = is_compared.then_some(before).into_iter().flatten();
    let other = has_other.then(|| ArrowField::new(OTHER, DataType::Boolean, false));
    let fields = columns.fields().map(of_field).chain(before).chain(other);
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// The columns of rows that are not grouped.
pub fn flow_schema() -> SchemaRef {
    schema(Columns::ALL, false, false)
}

/// A batch that is being filled. Columns that the rows do not have are absent.
struct PendingBatch {
    schema: SchemaRef,
    names: [Option<StringBuilder>; 3],
    sums: [UInt64Builder; 2],
    hour: Option<UInt32Builder>,
    before: Option<[UInt64Builder; 2]>,
    other: Option<BooleanBuilder>,
    rows: usize,
    /// Bytes of all names.
    name_bytes: usize,
}

/// Upper bound of a row's bytes without its names: three offsets, four sums, the hour, and bits.
const ROW_BYTES_MAX: usize = 3 * size_of::<i32>() + 4 * size_of::<u64>() + size_of::<u32>() + 1;

impl PendingBatch {
    fn new(columns: Columns, is_compared: bool, has_other: bool) -> PendingBatch {
        let name = |field| columns.has(field).then(StringBuilder::new);
        PendingBatch {
            schema: schema(columns, is_compared, has_other),
            names: [Field::SrcApp, Field::DestApp, Field::VpcId].map(name),
            sums: [UInt64Builder::new(), UInt64Builder::new()],
            hour: columns.has(Field::Hour).then(UInt32Builder::new),
            before: is_compared.then(|| [UInt64Builder::new(), UInt64Builder::new()]),
            other: has_other.then(BooleanBuilder::new),
            rows: 0,
            name_bytes: 0,
        }
    }

    #[inline]
    fn push(&mut self, row: &Row<'_>) {
        let names = [row.src_app, row.dest_app, row.vpc_id];
        for (column, name) in self.names.iter_mut().zip(names) {
            if let Some(column) = column {
                column.append_option(name);
                self.name_bytes += name.map_or(0, str::len);
            }
        }
        push_sums(&mut self.sums, row.counters);
        if let Some(hour) = &mut self.hour {
            hour.append_option(row.hour.map(|hour| hour.get()));
        }
        if let Some(before) = &mut self.before {
            push_sums(before, row.before.unwrap_or_default());
        }
        if let Some(other) = &mut self.other {
            other.append_value(row.is_other);
        }
        self.rows += 1;
    }

    fn is_full(&self) -> bool {
        self.name_bytes + self.rows * ROW_BYTES_MAX >= CHUNK_BYTES
    }

    /// The rows that were pushed; `None` if there are none.
    fn take(&mut self) -> Result<Option<RecordBatch>, ArrowError> {
        if self.rows == 0 {
            return Ok(None);
        }
        (self.rows, self.name_bytes) = (0, 0);
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for names in self.names.iter_mut().flatten() {
            columns.push(Arc::new(names.finish()));
        }
        for sums in &mut self.sums {
            columns.push(Arc::new(sums.finish()));
        }
        if let Some(hour) = &mut self.hour {
            columns.push(Arc::new(hour.finish()));
        }
        for before in self.before.iter_mut().flatten() {
            columns.push(Arc::new(before.finish()));
        }
        if let Some(other) = &mut self.other {
            columns.push(Arc::new(other.finish()));
        }
        RecordBatch::try_new(self.schema.clone(), columns).map(Some)
    }
}

fn push_sums([tx, rx]: &mut [UInt64Builder; 2], sums: Counters) {
    tx.append_value(sums.tx);
    rx.append_value(sums.rx);
}

/// Rows that are read in batches of about [`CHUNK_BYTES`].
pub struct RowBatches {
    rows: Rows,
    pending: PendingBatch,
    has_ended: bool,
}

impl RowBatches {
    pub fn new(rows: Rows) -> RowBatches {
        let has_other = rows.totals().is_some();
        RowBatches {
            pending: PendingBatch::new(rows.columns(), rows.is_compared(), has_other),
            rows,
            has_ended: false,
        }
    }

    pub fn schema(&self) -> &SchemaRef {
        &self.pending.schema
    }

    pub(super) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(super) fn rows_mut(&mut self) -> &mut Rows {
        &mut self.rows
    }

    /// The next batch, never empty; `None` at the end. Blocks on the disk.
    pub fn next_batch(&mut self) -> Result<Option<RecordBatch>, QueryError> {
        if self.has_ended {
            return Ok(None);
        }
        let pending = &mut self.pending;
        self.has_ended = self.rows.read(|row| -> ControlFlow<()> {
            pending.push(row);
            break_if(pending.is_full())
        })?;
        Ok(self.pending.take()?)
    }
}

impl Debug for RowBatches {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowBatches")
            .field("rows", &self.rows)
            .field("schema", &self.pending.schema)
            .finish_non_exhaustive()
    }
}

/// Rows as bytes in Arrow's format for streams: the schema, batches, and a marker at the end, without which a stream is
/// incomplete.
pub(super) struct ArrowStream {
    batches: RowBatches,
    /// Writes to memory.
    writer: StreamWriter<Vec<u8>>,
}

impl ArrowStream {
    pub(super) fn new(rows: Rows) -> Result<ArrowStream, ArrowError> {
        let batches = RowBatches::new(rows);
        let writer = StreamWriter::try_new(Vec::new(), batches.schema())?;
        Ok(ArrowStream { batches, writer })
    }

    pub(super) fn rows(&self) -> &Rows {
        self.batches.rows()
    }

    pub(super) fn rows_mut(&mut self) -> &mut Rows {
        self.batches.rows_mut()
    }

    /// Appends the schema, which comes first.
    pub(super) fn write_schema(&mut self, out: &mut Vec<u8>) {
        // The writer has written it when it was created.
        out.append(self.writer.get_mut());
    }

    /// Appends a batch. Returns whether the rows have ended.
    pub(super) fn write_batch(&mut self, out: &mut Vec<u8>) -> Result<bool, QueryError> {
        if let Some(batch) = self.batches.next_batch()? {
            self.write(out, |writer| writer.write(&batch))?;
        }
        Ok(self.batches.has_ended)
    }

    /// Appends the marker at the end.
    pub(super) fn write_end(&mut self, out: &mut Vec<u8>) -> Result<(), QueryError> {
        self.write(out, StreamWriter::finish)
    }

    /// Lends `out` to the writer, so that a batch is copied once.
    fn write(
        &mut self,
        out: &mut Vec<u8>,
        write: impl FnOnce(&mut StreamWriter<Vec<u8>>) -> Result<(), ArrowError>,
    ) -> Result<(), QueryError> {
        std::mem::swap(out, self.writer.get_mut());
        let written = write(&mut self.writer);
        std::mem::swap(out, self.writer.get_mut());
        Ok(written?)
    }
}

impl Debug for ArrowStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ArrowStream")
            .field("batches", &self.batches)
            .finish_non_exhaustive()
    }
}
