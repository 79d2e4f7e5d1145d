//! Parquet files, as text that the readers of text formats take: flows as NDJSON, AWS's flow logs as records. So every
//! rule about flows, records and files is that of the text formats, and row N of a file is line N.
//!
//! A row group is read page by page, in batches of rows. What is in memory are a page of each column, and its dictionary.

mod columns;
mod rows;

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use indicatif::ProgressBar;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::{
    ArrowReaderMetadata, ArrowReaderOptions, ParquetRecordBatchReader,
    ParquetRecordBatchReaderBuilder,
};
use parquet::basic::CompressionCodec;

use agent::command::source::{Converted, ConvertedRecords};
use rows::{FlowLogRows, FlowRows, RowText};

/// The first bytes of a file.
const MAGIC: &[u8; 4] = b"PAR1";
/// Rows that are made to text at a time.
const BATCH_ROWS: usize = 1024;
/// Maximum size of a row group's columns that are read, uncompressed: a page may be as large.
const ROW_GROUP_BYTES_MAX: u64 = 1 << 30;
/// Names of columns in an error.
const NAMES_MAX: usize = 20;

/// Recognises Parquet with the columns of flows or of AWS's flow logs. `None` if the file is not Parquet.
///
/// # Errors
/// If it is Parquet that cannot be read: the column, and what to do.
pub(super) fn convert(
    path: &Path,
    file: &File,
    bar: &ProgressBar,
) -> Result<Option<Converted>, String> {
    let mut begin = [0; MAGIC.len()];
    if file.read_exact_at(&mut begin, 0).is_err() || begin != *MAGIC {
        return Ok(None);
    }
    // Types as the file stores them: a dictionary is text then.
    let options = ArrowReaderOptions::new().with_skip_arrow_metadata(true);
    let metadata = ArrowReaderMetadata::load(file, options).map_err(|error| {
        format!("it is Parquet that cannot be read: {error}; get a complete, undamaged copy of it")
    })?;
    let fields = metadata.schema().fields();
    let has = |name: &str| fields.iter().any(|field| field.name() == name);
    let (rows, records): (Box<dyn RowText>, _) = if FlowLogRows::NAMES.into_iter().any(has) {
        let rows = FlowLogRows::new(fields)?;
        let fields = rows.names();
        (Box::new(rows), ConvertedRecords::VpcFlowLogs { fields })
    } else if FlowRows::NAMES.into_iter().any(has) {
        let rows = FlowRows::new(fields, path)?;
        (Box::new(rows), ConvertedRecords::Flows)
    } else {
        let names = fields.iter().map(|field| field.name().as_str());
        let names: Vec<&str> = names.take(NAMES_MAX).collect();
        return Err(format!(
            "it is Parquet, and has neither the columns of flows (src_app, dest_app, vpc_id, bytes_tx, bytes_rx, hour) \
             nor those of AWS's flow logs (srcaddr, dstaddr, bytes, start), but {}; rename them when it is written",
            names.join(", ")
        ));
    };
    let columns = rows.columns();
    let projection = ProjectionMask::roots(metadata.parquet_schema(), columns);
    validate_row_groups(&metadata, &projection)?;
    let text = ParquetText {
        file: file.try_clone().map_err(|e| e.to_string())?,
        metadata,
        projection,
        rows,
        row_group: 0,
        batches: None,
        text: Vec::new(),
        read: 0,
        bar: bar.clone(),
    };
    Ok(Some(Converted {
        of: "Parquet",
        text: Box::new(text),
        records,
    }))
}

/// # Errors
/// If a row group is too large, or compressed in another way than those that are supported.
fn validate_row_groups(
    metadata: &ArrowReaderMetadata,
    projection: &ProjectionMask,
) -> Result<(), String> {
    for (number, row_group) in metadata.metadata().row_groups().iter().enumerate() {
        let columns = row_group.columns().iter().enumerate();
        let read = columns.filter(|(leaf, _)| projection.leaf_included(*leaf));
        let mut bytes: u64 = 0;
        for (_, column) in read {
            let codec = column.compression_codec();
            if !matches!(
                codec,
                CompressionCodec::UNCOMPRESSED
                    | CompressionCodec::SNAPPY
                    | CompressionCodec::GZIP
                    | CompressionCodec::ZSTD
            ) {
                return Err(format!(
                    "column {} is compressed with {codec:?}; write it with zstd, gzip or Snappy, as in DuckDB: \
                     COPY (FROM 'FILE') TO 'flows.parquet' (COMPRESSION zstd)",
                    column.column_path().string()
                ));
            }
            let of_column = u64::try_from(column.uncompressed_size()).unwrap_or(u64::MAX);
            bytes = bytes.saturating_add(of_column);
        }
        if bytes > ROW_GROUP_BYTES_MAX {
            return Err(format!(
                "row group {number} has {} MiB of the columns that are read; the limit is {}: write it with smaller ones, \
                 as in DuckDB: COPY (FROM 'FILE') TO 'flows.parquet' (ROW_GROUP_SIZE 100000)",
                bytes >> 20,
                ROW_GROUP_BYTES_MAX >> 20
            ));
        }
    }
    Ok(())
}

/// A file that is read as text.
struct ParquetText {
    file: File,
    metadata: ArrowReaderMetadata,
    projection: ProjectionMask,
    rows: Box<dyn RowText>,
    /// The number of the row group that is read, from 0.
    row_group: usize,
    /// Its rows; `None` before the first.
    batches: Option<ParquetRecordBatchReader>,
    /// The text of a batch.
    text: Vec<u8>,
    /// Bytes of it that were read.
    read: usize,
    bar: ProgressBar,
}

impl ParquetText {
    /// Makes the text of the next batch. Returns whether there was one.
    fn fill(&mut self) -> io::Result<bool> {
        let row_groups = self.metadata.metadata().row_groups();
        while let Some(row_group) = row_groups.get(self.row_group) {
            let number = self.row_group;
            let damaged = |error: &dyn std::fmt::Display| {
                let why = format!("row group {number}: {error}; get an undamaged copy of the file");
                io::Error::new(io::ErrorKind::InvalidData, why)
            };
            let mut batches = match self.batches.take() {
                Some(batches) => batches,
                None => ParquetRecordBatchReaderBuilder::new_with_metadata(
                    self.file.try_clone()?,
                    self.metadata.clone(),
                )
                .with_row_groups(vec![number])
                .with_projection(self.projection.clone())
                .with_batch_size(BATCH_ROWS)
                .build()
                .map_err(|e| damaged(&e))?,
            };
            if let Some(batch) = batches.next() {
                let batch = batch.map_err(|e| damaged(&e))?;
                self.batches = Some(batches);
                self.text.clear();
                self.read = 0;
                self.rows.write(&batch, &mut self.text)?;
                return Ok(true);
            }
            let bytes = u64::try_from(row_group.compressed_size()).unwrap_or(0);
            self.bar.inc(bytes);
            self.row_group += 1;
        }
        Ok(false)
    }
}

impl Read for ParquetText {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.read == self.text.len() {
            if !self.fill()? {
                return Ok(0);
            }
        }
        let rest = &self.text[self.read..];
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.read += length;
        Ok(length)
    }
}
