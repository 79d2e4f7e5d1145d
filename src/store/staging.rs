//! Files that are written in the staging directory and then ingested.

use std::fs::File;
use std::path::{Path, PathBuf};

use rocksdb::{ColumnFamily, IngestExternalFileOptions, Options, SstFileWriter};
use rustix::fs::{Advice, fadvise};

use super::Inner;
use super::error::{StoreError, with_context};

/// For errors.
pub(super) const WRITING: &str = "writing a file to ingest";

impl Inner {
    /// Writes a file for ingestion.
    pub(super) fn staged(
        &self,
        options: &Options,
        name: &str,
        fill: impl FnOnce(&mut SstFileWriter<'_>) -> Result<(), StoreError>,
    ) -> Result<PathBuf, StoreError> {
        let (path, mut file) = self.open_staged(options, name)?;
        fill(&mut file)?;
        file.finish().map_err(with_context(WRITING))?;
        Ok(path)
    }

    /// Starts a file for ingestion.
    pub(super) fn open_staged<'a>(
        &self,
        options: &'a Options,
        name: &str,
    ) -> Result<(PathBuf, SstFileWriter<'a>), StoreError> {
        let path = self.dir.staging().join(format!("{name}.sst"));
        self.remove_staged(&path)?;
        let file = SstFileWriter::create(options);
        file.open(&path).map_err(with_context(WRITING))?;
        Ok((path, file))
    }

    /// Ingests files from the staging directory in one atomic step: by hard links, or by copying if the file system
    /// has none.
    ///
    /// RocksDB has read their first pages by then, before it tells the kernel not to read ahead. The kernel has marked one of
    /// these: when it is read again, even at random, the kernel reads ahead, more and more, up to `read_ahead_kb`. A
    /// compaction of 48 files then read hundreds of megabytes at once where this is 8 MiB, and the fsyncs of commits waited
    /// for 100 ms. So the pages are dropped from the kernel's cache.
    pub(super) fn ingest<P: AsRef<Path>>(
        &self,
        family: &ColumnFamily,
        files: &[P],
        doing: &'static str,
    ) -> Result<(), StoreError> {
        let mut options = IngestExternalFileOptions::default();
        options.set_move_files(self.dir.has_links());
        let paths: Vec<&Path> = files.iter().map(AsRef::as_ref).collect();
        let opened: Vec<File> = paths.iter().flat_map(File::open).collect();
        self.db
            .ingest_external_file_cf_opts(family, &options, paths)
            .map_err(with_context(doing))?;
        for file in opened {
            let _best_effort = fadvise(file, 0, None, Advice::DontNeed);
        }
        if !self.dir.has_links() {
            // The originals only take space; the next open removes them in any case.
            let _best_effort = files.iter().try_for_each(|file| self.remove_staged(file));
        }
        Ok(())
    }

    /// Removes the file of an earlier attempt. It may be a hard link to a file that RocksDB has ingested, so it must
    /// not be overwritten.
    pub(super) fn remove_staged(&self, path: impl AsRef<Path>) -> Result<(), StoreError> {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => Err(StoreError::Io {
                doing: "removing an old staged file",
                source,
            }),
            _ => Ok(()),
        }
    }
}
