//! Whether the files that RocksDB would start from are still there: its logs, and `CURRENT`. A process goes on
//! writing to a log that was deleted, and no start would find what is in it.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use rocksdb::{DB, properties};

const LOG: &str = ".log";

/// The logs that were seen, by their numbers.
#[derive(Debug, Default)]
pub(super) struct Presence {
    logs: BTreeSet<u64>,
}

impl Presence {
    /// A file that was there, or has to be, and is not. It lists the directory, which is cheap once a second.
    pub(super) fn missing(&mut self, rocks: &Path, db: &DB) -> io::Result<Option<PathBuf>> {
        for entry in std::fs::read_dir(rocks)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(LOG));
            self.logs.extend(number.and_then(|n| n.parse::<u64>().ok()));
        }
        // Read after the list: RocksDB itself deletes those before it, and never makes it smaller.
        let needed = db.property_int_value(properties::MIN_LOG_NUMBER_TO_KEEP);
        if let Ok(Some(needed)) = needed {
            self.logs = self.logs.split_off(&needed);
        }
        // By their names: a list may leave out what is renamed meanwhile.
        let logs = self.logs.iter().map(|n| rocks.join(format!("{n:06}{LOG}")));
        for path in logs.chain([rocks.join("CURRENT")]) {
            if !path.try_exists()? {
                return Ok(Some(path));
            }
        }
        Ok(None)
    }
}
