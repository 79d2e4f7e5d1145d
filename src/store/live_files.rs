//! Checks that the files that RocksDB needs at the next start still exist: its logs and `CURRENT`. If a log is
//! deleted, the process can continue to write to it, but the next start would not find those writes.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};

use rocksdb::{DB, properties};

const LOG: &str = ".log";

/// The numbers of the logs seen so far.
#[derive(Debug, Default)]
pub(super) struct LiveFiles {
    logs: BTreeSet<u64>,
}

impl LiveFiles {
    /// Returns a required file that is missing. Lists the directory, which is cheap once per second.
    pub(super) fn missing(&mut self, rocks: &Path, db: &DB) -> io::Result<Option<PathBuf>> {
        for entry in std::fs::read_dir(rocks)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(LOG));
            self.logs.extend(number.and_then(|n| n.parse::<u64>().ok()));
        }
        let path_of = |number: &u64| rocks.join(format!("{number:06}{LOG}"));
        // Check each by name: a directory listing may omit files that are renamed meanwhile.
        let missing = self.logs.iter().filter_map(|number| {
            let is_there = path_of(number).try_exists();
            is_there.map(|yes| (!yes).then_some(*number)).transpose()
        });
        let missing: Vec<u64> = missing.collect::<io::Result<_>>()?;
        // Read this after the check: RocksDB deletes only logs before this number, and the number never decreases.
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
