//! The directory of the files, and their names.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use super::DAY_HOURS;
use agent::durable::{self, DirLock};
use agent::units;
use flow::HourRange;

const BEGIN: &str = "flows-";
const END: &str = ".parquet";
/// The end of the name of a file that is being written.
const UNFINISHED: &str = ".part";

/// The name of the file with these hours: that of their days if they are hours since the epoch. Names sort as the hours
/// do.
pub(super) fn file_name(hours: HourRange) -> String {
    let (first, last) = (hours.start(), hours.end().saturating_sub(1));
    match (units::utc_date(first), units::utc_date(last)) {
        (Some(first), Some(last)) if first == last => format!("{BEGIN}{first}{END}"),
        (Some(first), Some(last)) => format!("{BEGIN}{first}-to-{last}{END}"),
        _ => format!("{BEGIN}hours-{first:06}-{last:06}{END}"),
    }
}

/// The hours of the file with this name; `None` if no file of an export has it.
fn hours_of(name: &str) -> Option<HourRange> {
    let text = name.strip_prefix(BEGIN)?.strip_suffix(END)?;
    let hours = match text.strip_prefix("hours-") {
        Some(numbers) => {
            let (first, last) = numbers.split_once('-')?;
            first.parse().ok()?..last.parse::<u32>().ok()?.checked_add(1)?
        }
        None => {
            let (first, last) = text.split_once("-to-").unwrap_or((text, text));
            units::hour(first).ok()?..units::hour(last).ok()?.checked_add(DAY_HOURS)?
        }
    };
    let hours: HourRange = hours.into();
    (!hours.is_empty() && file_name(hours) == name).then_some(hours)
}

/// A directory with files of exports.
pub(super) struct ExportDir {
    path: PathBuf,
    /// The hours of each file that was there, ascending by the first one.
    files: Vec<HourRange>,
    /// The longest of them.
    hours_max: u32,
    /// For no other export to write files at the same time. `None` on a file system without locks.
    _lock: Option<DirLock>,
}

impl ExportDir {
    /// Creates the directory if it is absent, and removes what an interrupted export has left.
    ///
    /// # Errors
    /// If it cannot be read and written, or another export writes into it.
    pub(super) fn open(path: &Path) -> Result<ExportDir, String> {
        let shown = path.display();
        let cannot = |e: std::io::Error| format!("{shown}: {e}");
        durable::create_dir_all(path).map_err(cannot)?;
        let lock = match DirLock::exclusive(File::open(path).map_err(cannot)?) {
            Ok(lock) => Some(lock),
            Err(TryLockError::WouldBlock) => {
                return Err(format!(
                    "{shown}: another export writes into this directory; run it again when that has ended"
                ));
            }
            Err(TryLockError::Error(error)) if durable::is_unsupported(&error) => None,
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(cannot)? {
            let entry = entry.map_err(cannot)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                continue;
            };
            files.extend(hours_of(name));
            let of_unfinished = name
                .strip_prefix('.')
                .and_then(|name| name.strip_suffix(UNFINISHED));
            if lock.is_some() && of_unfinished.and_then(hours_of).is_some() {
                fs::remove_file(entry.path()).map_err(cannot)?;
            }
        }
        files.sort_unstable_by_key(|hours| hours.start());
        Ok(ExportDir {
            path: path.to_owned(),
            hours_max: files.iter().map(|hours| hours.len()).max().unwrap_or(0),
            files,
            _lock: lock,
        })
    }

    /// The path of the file with these hours.
    pub(super) fn path_of(&self, hours: HourRange) -> PathBuf {
        self.path.join(file_name(hours))
    }

    /// The path under which this file is written first.
    pub(super) fn unfinished_path_of(&self, hours: HourRange) -> PathBuf {
        let name = file_name(hours);
        self.path.join(format!(".{name}{UNFINISHED}"))
    }

    /// The hours of the files that have some of `hours`.
    pub(super) fn overlapping(&self, hours: HourRange) -> impl Iterator<Item = HourRange> {
        let begin = hours.start().saturating_sub(self.hours_max);
        let first = self.files.partition_point(|file| file.start() < begin);
        let files = self.files[first..].iter().copied();
        files
            .take_while(move |file| file.start() < hours.end())
            .filter(move |file| file.end() > hours.start())
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;

    /// 2026-11-30 00:00 UTC.
    const A_DAY: u32 = 498_888;

    #[test]
    fn names_sort_as_hours_do() {
        let expected = [
            (A_DAY..A_DAY + 24, "flows-2026-11-30.parquet"),
            (A_DAY + 24..A_DAY + 48, "flows-2026-12-01.parquet"),
            (
                A_DAY + 48..A_DAY + 48 + 720,
                "flows-2026-12-02-to-2026-12-31.parquet",
            ),
            (0..24, "flows-hours-000000-000023.parquet"),
            (24..48, "flows-hours-000024-000047.parquet"),
            (96_000..96_720, "flows-hours-096000-096719.parquet"),
        ];
        for (hours, name) in expected.clone() {
            assert_eq!(file_name(hours.clone().into()), name);
            assert_eq!(hours_of(name), Some(hours.into()), "{name}");
        }
        assert!(expected.is_sorted_by_key(|(_, name)| *name));
        for name in [
            "flows.parquet",
            "flows-7.parquet",
            "flows-2026-11-30.csv",
            "flows-2026-11-30T00.parquet",
            "flows-2026-13-30.parquet",
            "flows-hours-24-47.parquet",
            "flows-hours-000047-000024.parquet",
            "flows-hours-000024.parquet",
            ".flows-2026-11-30.parquet.part",
        ] {
            assert_eq!(hours_of(name), None, "{name}");
        }
    }

    #[test]
    fn overlapping_files_are_found_and_unfinished_ones_removed() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("days");
        let dir = ExportDir::open(&path).unwrap();
        assert!(dir.files.is_empty());
        let left = dir.unfinished_path_of((744..768).into());
        drop(dir);
        for hours in [0..720, 24..48, 720..744] {
            fs::write(path.join(file_name(hours.into())), "").unwrap();
        }
        fs::write(&left, "").unwrap();
        fs::write(path.join("other.part"), "").unwrap();
        let dir = ExportDir::open(&path).unwrap();
        assert!(!left.exists() && path.join("other.part").exists());
        let of = |hours: Range<u32>| -> Vec<(u32, u32)> {
            let found = dir.overlapping(hours.into());
            found.map(|hours| (hours.start(), hours.end())).collect()
        };
        let expected = [
            (0..24, vec![(0, 720)]),
            (24..48, vec![(0, 720), (24, 48)]),
            (720..744, vec![(720, 744)]),
            (744..768, vec![]),
        ];
        for (hours, files) in expected {
            assert_eq!(of(hours.clone()), files, "{hours:?}");
        }
        let second = ExportDir::open(&path).map(|dir| dir.path);
        assert!(second.unwrap_err().contains("another export"));
    }
}
