//! Reads the texts of RocksDB's errors, since the binding provides nothing else.
//!
//! The C interface returns `Status::ToString()`: the name of the code, which [`rocksdb::Error::kind`] reads; for some
//! subcodes a text of RocksDB's own; and a description. If a system call failed, that ends in the system's text for its
//! error number. `env/io_posix.cc` gives ENOSPC a subcode, and no other error of a write.

use agent::durable::OutOfSpace;
use rocksdb::ErrorKind;

/// The text of code `kIOError` with subcode `kNoSpace` (`util/status.cc`).
const NO_SPACE: &str = "IO error: No space left on device";

/// Whether the error has the subcode for ENOSPC.
pub(super) fn is_no_space(error: &rocksdb::Error) -> bool {
    error.as_ref().starts_with(NO_SPACE)
}

/// The resource that a write ran out of, from the system's message.
pub(super) fn shortage(error: &rocksdb::Error) -> Option<OutOfSpace> {
    match error.kind() {
        ErrorKind::IOError if is_no_space(error) => Some(OutOfSpace::Space),
        ErrorKind::IOError => from_text(error.as_ref()),
        _ => None,
    }
}

/// RocksDB keeps the system's message, at the end, and not its number.
fn from_text(text: &str) -> Option<OutOfSpace> {
    let ends_with = |shortage: &OutOfSpace| {
        let error = shortage.system_error().to_string();
        let message = error.split(" (os error").next();
        message.is_some_and(|message| text.ends_with(message))
    };
    OutOfSpace::ALL.into_iter().find(ends_with)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocksdb::{Options, SstFileWriter};
    use std::path::Path;

    /// The code that depends on internals of RocksDB was reviewed for these versions.
    const CHECKED: &[&str] = &["0.19.0+11.8.1"];

    #[test]
    fn this_version_of_rocksdb_was_reviewed() {
        let lock = include_str!("../../Cargo.lock");
        let entry = lock.split("name = \"librocksdb-sys\"").nth(1).unwrap();
        let version = entry.split('"').nth(1).unwrap();
        assert!(
            CHECKED.contains(&version),
            "librocksdb-sys {version} is new. Before you add it here, compare its sources with those of the last one: \
             the format of logs and the MANIFEST (`db/log_format.h`, `db/log_writer.cc`, for src/store/wal.rs and \
             src/store/torn), the texts of errors (`util/status.cc`, `env/io_posix.cc`, for this file), what a manual \
             compaction does with files (`DBImpl::CompactRangeInternal`, for src/store/compact.rs), which logs are \
             needed (`MinLogNumberToKeep`, for src/store/live_files.rs), and the flags and files of the build \
             (`build.rs` and `rocksdb_lib_sources.txt` of the crate, for FLAGS and the joined units in \
             scripts/rocksdb). Run the tests crash, torn and disk_errors."
        );
    }

    /// Writes to `path` as a flush does, and returns the error. RocksDB then deletes `path`, so it must not be a
    /// device.
    fn write_to(path: &Path) -> rocksdb::Error {
        let options = Options::default();
        let mut file = SstFileWriter::create(&options);
        let written = file
            .open(path)
            .and_then(|()| (0..100_000_u32).try_for_each(|n| file.put(n.to_be_bytes(), [7; 100])))
            .and_then(|()| file.finish());
        written.unwrap_err()
    }

    #[test]
    fn a_full_disk_is_recognized() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("full");
        std::os::unix::fs::symlink("/dev/full", &link).unwrap();
        let error = write_to(&link);
        assert!(is_no_space(&error), "{error}");
        assert_eq!(shortage(&error), Some(OutOfSpace::Space), "{error}");
    }

    #[test]
    fn other_errors_are_not_a_lack_of_space() {
        let dir = tempfile::tempdir().unwrap();
        let error = write_to(&dir.path().join("none/No space left on device/file"));
        assert_eq!(error.kind(), ErrorKind::IOError, "{error}");
        assert!(!is_no_space(&error), "{error}");
        assert_eq!(shortage(&error), None, "{error}");
    }

    #[test]
    fn the_message_of_the_system_is_at_the_end() {
        for shortage in OutOfSpace::ALL {
            let error = shortage.system_error().to_string();
            let message = error.split(" (os error").next().unwrap();
            let text = format!("IO error: While appending to file: 000012.log: {message}");
            assert_eq!(from_text(&text), Some(shortage));
            assert_eq!(
                from_text(&format!("IO error: {message}: Input/output error")),
                None
            );
        }
    }
}
