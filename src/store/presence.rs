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
        let path_of = |number: &u64| rocks.join(format!("{number:06}{LOG}"));
        // By their names: a list may leave out what is renamed meanwhile.
        let missing = self.logs.iter().filter_map(|number| {
            let is_there = path_of(number).try_exists();
            is_there.map(|yes| (!yes).then_some(*number)).transpose()
        });
        let missing: Vec<u64> = missing.collect::<io::Result<_>>()?;
        // Read after that: RocksDB itself deletes only those before it, and it never gets smaller.
        let needed = db.property_int_value(properties::MIN_LOG_NUMBER_TO_KEEP);
        let Ok(Some(needed)) = needed else {
            return Ok(None);
        };
        self.logs = self.logs.split_off(&needed);
        if let Some(number) = missing.iter().find(|number| **number >= needed) {
            return Ok(Some(path_of(number)));
        }
        let current = rocks.join("CURRENT");
        if !current.try_exists()? {
            return Ok(Some(current));
        }
        Ok(None)
    }
}
