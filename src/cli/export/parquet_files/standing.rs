//! Whether the file of some hours is missing, complete, or to be replaced.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;

use parquet::file::metadata::ParquetMetaDataReader;

use super::dir::{ExportDir, file_name};
use super::file::HOURS_KEY;
use flow::HourRange;
use flow::query::HourRow;

/// The relation between the hours of a source and the files in a directory.
#[derive(Debug)]
pub(super) enum Standing {
    /// There is no file yet, or the source has more flows of the same hours.
    Replaceable,
    /// The files have all flows of the source, and maybe more.
    Unchanged,
    /// Both have flows that the other has not, or the source has only the sums of days; with a message for the user.
    Irreplaceable(String),
}

/// The standing of the file of `hours`, of which the source has `totals`.
///
/// # Errors
/// If a file with some of these hours is not one of an export.
pub(super) fn of(
    dir: &ExportDir,
    hours: HourRange,
    totals: &[HourRow],
) -> Result<Standing, String> {
    let mut in_files = BTreeMap::new();
    let mut others = Vec::new();
    for file in dir.overlapping(hours) {
        if file != hours {
            others.push(file_name(file));
        }
        let path = dir.path_of(file);
        let rows = totals_in(&path)
            .map_err(|why| format!("{}: {why}; move it away, and run it again", path.display()))?;
        in_files.extend(rows.into_iter().map(|row| (row.hour, row)));
    }
    in_files.retain(|hour, _| (u64::from(hours.start())..u64::from(hours.end())).contains(hour));
    let why = match compare(&in_files, totals) {
        Change::None => return Ok(Standing::Unchanged),
        _ if !others.is_empty() => format!(
            "its hours have new flows, and some of them are in {} as well; export them to another directory",
            others.join(", ")
        ),
        Change::Grown => return Ok(Standing::Replaceable),
        Change::Lost => "some of its hours have new flows, and the source no longer has all others; export the new ones to \
                         another directory"
            .to_owned(),
        Change::Coarser => "its hours have new flows, and the source has only the sum of these hours by now; move the file \
                            away to get that"
            .to_owned(),
    };
    let path = dir.path_of(hours);
    Ok(Standing::Irreplaceable(format!(
        "{}: {why}",
        path.display()
    )))
}

/// What the source has that files do not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    None,
    /// More, and all that is in the files.
    Grown,
    /// More, and not all that is in the files.
    Lost,
    /// More, but in longer steps than the files.
    Coarser,
}

fn compare(in_files: &BTreeMap<u64, HourRow>, totals: &[HourRow]) -> Change {
    let now: BTreeMap<u64, &HourRow> = totals.iter().map(|row| (row.hour, row)).collect();
    let sums = |row: &HourRow| (row.flows, row.bytes_tx, row.bytes_rx);
    let is_in_files = |row: &HourRow| {
        in_files
            .get(&row.hour)
            .is_some_and(|of| sums(of) == sums(row))
    };
    if totals.iter().all(is_in_files) {
        return Change::None;
    }
    let is_lost = |row: &HourRow| now.get(&row.hour).is_none_or(|of| of.flows < row.flows);
    let is_coarser = |row: &HourRow| {
        now.get(&row.hour)
            .is_some_and(|of| of.finest_step > row.finest_step)
    };
    if in_files.values().any(is_lost) {
        Change::Lost
    } else if in_files.values().any(is_coarser) {
        Change::Coarser
    } else {
        Change::Grown
    }
}

/// The totals that a file says to have.
fn totals_in(path: &Path) -> Result<Vec<HourRow>, String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let metadata = ParquetMetaDataReader::new().parse_and_finish(&file);
    let metadata = metadata.map_err(|e| format!("it is not Parquet, or damaged: {e}"))?;
    let values = metadata.file_metadata().key_value_metadata();
    let totals = values
        .into_iter()
        .flatten()
        .find(|value| value.key == HOURS_KEY)
        .and_then(|value| value.value.as_deref());
    let totals = totals.ok_or("it was not written by flowtally export")?;
    serde_json::from_str(totals).map_err(|e| format!("the totals of its hours are damaged: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(hour: u64, flows: u64, finest_step: u32) -> HourRow {
        HourRow {
            hour,
            flows,
            bytes_tx: u128::from(flows) << 64,
            bytes_rx: 0,
            finest_step,
        }
    }

    #[test]
    fn a_file_is_replaced_only_by_all_that_it_has_and_more() {
        let a = row(24, 5, 1);
        let b = row(25, 7, 1);
        let more = row(25, 8, 1);
        for (in_file, now, expected) in [
            (&[][..], &[a][..], Change::Grown),
            (&[a, b], &[a, b], Change::None),
            (&[a], &[a, b], Change::Grown),
            (&[a, b], &[a, more], Change::Grown),
            // Retention has removed an hour, and no other has changed.
            (&[a, b], &[b], Change::None),
            (&[a, b], &[more], Change::Lost),
            // It was deleted, and sent again in part.
            (&[a, b], &[row(24, 4, 1), b], Change::Lost),
            // Thinned.
            (&[a, b], &[row(24, 5, 24), row(25, 7, 24)], Change::None),
            (&[a, b], &[row(24, 5, 24), row(25, 8, 24)], Change::Coarser),
        ] {
            let in_file = in_file.iter().map(|row| (row.hour, *row)).collect();
            assert_eq!(compare(&in_file, now), expected);
        }
    }
}
