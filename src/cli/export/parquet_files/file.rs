//! One file: rows in order of hour and names, in row groups of bounded size.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use arrow_array::RecordBatch;
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::errors::ParquetError;
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::WriterProperties;
use parquet::schema::types::ColumnPath;

use super::super::Failed;
use crate::query::flow_schema;
use agent::durable;
use flow::Field;
use flow::query::{Columns, HourRow};

/// The key of the totals of a file's hours: those of `GET /hours`, as JSON.
pub(super) const HOURS_KEY: &str = "flowtally.hours";

/// Bounds of a row group, which is in memory until it is complete. Readers skip, and share among threads, whole ones.
const ROW_GROUP_ROWS_MAX: usize = 1 << 19;
/// Of encoded and compressed pages.
const ROW_GROUP_BYTES_MAX: usize = 32 << 20;
/// Bytes of the different names of a column in a row group; after them, names are stored as they are.
const DICTIONARY_BYTES_MAX: usize = 4 << 20;

/// Receives a batch.
type Each<'a> = dyn FnMut(&RecordBatch) -> Result<(), Failed> + 'a;

/// Writes the batches that `rows` passes on to a file at `path`, which is there as a whole or not at all, even after a
/// crash: it is written under the name `unfinished` first. Returns the number of rows; without any, there is no file.
pub(super) fn write(
    path: &Path,
    unfinished: &Path,
    totals: &[HourRow],
    rows: impl FnOnce(&mut Each<'_>) -> Result<(), Failed>,
) -> Result<u64, Failed> {
    let written = fill(unfinished, totals, rows);
    match written {
        Ok(1..) => durable::rename(unfinished, path).map_err(Failed::Output)?,
        _ => {
            let _best_effort = fs::remove_file(unfinished);
        }
    }
    written
}

fn fill(
    path: &Path,
    totals: &[HourRow],
    rows: impl FnOnce(&mut Each<'_>) -> Result<(), Failed>,
) -> Result<u64, Failed> {
    let failed = |error: ParquetError| Failed::Output(io::Error::other(error));
    let file = File::create(path).map_err(Failed::Output)?;
    let writer = ArrowWriter::try_new(file, flow_schema(), Some(properties()));
    let mut writer = writer.map_err(failed)?;
    let mut count = 0;
    rows(&mut |batch: &RecordBatch| {
        count += batch.num_rows() as u64;
        writer.write(batch).map_err(failed)
    })?;
    let totals = serde_json::to_string(totals).map_err(|e| Failed::Output(e.into()))?;
    writer.append_key_value_metadata(KeyValue::new(HOURS_KEY.to_owned(), totals));
    let file = writer.into_inner().map_err(failed)?;
    file.sync_all().map_err(Failed::Output)?;
    Ok(count)
}

fn properties() -> WriterProperties {
    let column = |field: Field| ColumnPath::from(field.name());
    let index = |field: Field| Field::ALL.iter().position(|of| *of == field);
    let sorted = Columns::IN_KEY.into_iter().filter_map(index);
    let sorted = sorted.map(|column| SortingColumn {
        column_idx: column as i32,
        descending: false,
        nulls_first: false,
    });
    // The names have dictionaries, and so have hours; few sums are equal. Statistics and the page index are the default.
    WriterProperties::builder()
        .set_compression(Compression::ZSTD(ZstdLevel::default()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS_MAX))
        .set_max_row_group_bytes(Some(ROW_GROUP_BYTES_MAX))
        .set_dictionary_page_size_limit(DICTIONARY_BYTES_MAX)
        .set_column_dictionary_enabled(column(Field::BytesTx), false)
        .set_column_dictionary_enabled(column(Field::BytesRx), false)
        .set_sorting_columns(Some(sorted.collect()))
        .build()
}
