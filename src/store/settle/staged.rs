//! Rows to be ingested into `settled`.

use std::path::PathBuf;

use super::rewrite::ROWS_PER_CHECK;
use crate::store::Inner;
use crate::store::codec;
use crate::store::error::{StoreError, with_context};
use crate::store::staging::WRITING;
use crate::store::tiers::Span;

/// A staged file is ended at this size.
const FILE_BYTES: u64 = 64 << 20;

/// Files in the staging directory, which are removed unless they were ingested.
pub(in crate::store) struct StagedFiles<'a> {
    inner: &'a Inner,
    pub(super) paths: Vec<PathBuf>,
    /// The spans whose records they have.
    pub(super) new_spans: Vec<Span>,
}

impl StagedFiles<'_> {
    pub(in crate::store) fn paths(&self) -> &[PathBuf] {
        &self.paths
    }
}

impl Drop for StagedFiles<'_> {
    fn drop(&mut self) {
        for path in &self.paths {
            // The next open removes what remains.
            let _best_effort = self.inner.remove_staged(path);
        }
    }
}

/// Rows to be ingested into `settled`, in files of [`FILE_BYTES`].
pub(in crate::store) struct StagedRows<'a> {
    files: StagedFiles<'a>,
    /// The start of the files' names.
    name: &'static str,
    writer: Option<rocksdb::SstFileWriter<'a>>,
    rows: u32,
    /// Of the files that are complete.
    bytes: u64,
}

impl<'a> StagedRows<'a> {
    pub(in crate::store) fn new(inner: &'a Inner, name: &'static str) -> StagedRows<'a> {
        StagedRows {
            name,
            files: StagedFiles {
                inner,
                paths: Vec::new(),
                new_spans: Vec::new(),
            },
            writer: None,
            rows: 0,
            bytes: 0,
        }
    }

    /// Adds a row: as a plain value if its key `is_new`, else as an operand of a merge. Keys ascend.
    #[inline]
    pub(in crate::store) fn write(
        &mut self,
        key: &[u8],
        value: &[u8],
        is_new: bool,
    ) -> Result<(), StoreError> {
        let writer = self.writer()?;
        let written = if is_new {
            writer.put(key, value)
        } else {
            writer.merge(key, value)
        };
        written.map_err(with_context(WRITING))?;
        self.rows += 1;
        if self.rows.is_multiple_of(ROWS_PER_CHECK) && self.writer()?.file_size() >= FILE_BYTES {
            self.end_file()?;
        }
        Ok(())
    }

    /// Adds the record of a span. Spans ascend.
    pub(in crate::store) fn write_record(&mut self, span: Span) -> Result<(), StoreError> {
        self.files.new_spans.push(span);
        let key = codec::span_record_key(span);
        let written = self.writer()?.put(key, []);
        written.map_err(with_context(WRITING))
    }

    /// The writer of the current file.
    fn writer(&mut self) -> Result<&mut rocksdb::SstFileWriter<'a>, StoreError> {
        match &mut self.writer {
            Some(writer) => Ok(writer),
            none => {
                let StagedFiles { inner, paths, .. } = &mut self.files;
                let name = format!("{}-{}", self.name, paths.len());
                let (path, writer) = inner.open_staged(&inner.settled_options, &name)?;
                paths.push(path);
                Ok(none.insert(writer))
            }
        }
    }

    pub(in crate::store) fn end_file(&mut self) -> Result<(), StoreError> {
        match self.writer.take() {
            Some(mut writer) => {
                writer.finish().map_err(with_context(WRITING))?;
                self.bytes += writer.file_size();
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Size of all files.
    pub(in crate::store) fn bytes(&self) -> u64 {
        let current = self.writer.as_ref().map_or(0, |writer| writer.file_size());
        self.bytes + current
    }

    pub(in crate::store) fn finish(mut self) -> Result<StagedFiles<'a>, StoreError> {
        self.end_file()?;
        Ok(self.files)
    }
}
