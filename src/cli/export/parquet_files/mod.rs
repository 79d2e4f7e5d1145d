//! `flowtally export --format parquet`: a file for each day, in a directory.
//!
//! A file has the totals of its hours, as the ledger had them just before its rows were read. So a file whose hours have
//! the same totals still is left as it is, and a file that has more than the source by now is never replaced.

mod dir;
mod file;
mod standing;

use std::path::Path;

use super::Failed;
use super::groups::Groups;
use super::source::RowsFrom;
use crate::config::Export;
use agent::command::{eprint_line, print_result};
use dir::ExportDir;
use flow::HourRange;
use flow::query::HourRow;
use standing::Standing;

const DAY_HOURS: u32 = 24;

/// # Errors
/// If the hours are not whole days.
pub(super) fn validate(arguments: &Export) -> Result<(), String> {
    for (flag, hour) in [("--from", arguments.from), ("--to", arguments.to)] {
        let within = hour.filter(|hour| !hour.is_multiple_of(DAY_HOURS));
        if let Some(hour) = within {
            let first = hour - hour % DAY_HOURS;
            return Err(format!(
                "{flag} {hour} is within a day, and a file has a whole one: give {first} or {}",
                first.saturating_add(DAY_HOURS)
            ));
        }
    }
    Ok(())
}

/// Writes those files whose hours are new, or have changed.
pub(super) fn write(source: &RowsFrom, hours: HourRange, path: &Path) -> Result<(), String> {
    let dir = ExportDir::open(path)?;
    let mut done = Done::default();
    let mut result = Ok(());
    for hours in spans(source, hours)? {
        result = done.write(source, hours, &dir);
        if result.is_err() {
            break;
        }
    }
    let (written, rows) = (files(done.written), done.rows);
    let mut text = format!("{written} written, with {rows} rows");
    if done.unchanged > 0 {
        text += &format!("; {} unchanged", files(done.unchanged));
    }
    print_result(&text);
    result.map_err(|why| format!("{why}; the files that were written are complete"))?;
    match done.left {
        0 => Ok(()),
        left => Err(format!(
            "{} not replaced, for the reason above",
            files(left)
        )),
    }
}

/// The hours of each file, ascending: a day, or the span of days of which only the sum is left.
fn spans(source: &RowsFrom, hours: HourRange) -> Result<Vec<HourRange>, String> {
    let mut spans: Vec<HourRange> = Vec::new();
    source.for_each_hour(hours, |of| {
        let hour = of.hour.get();
        if spans.last().is_some_and(|last| hour < last.end()) {
            return;
        }
        let length = of.finest_step.max(DAY_HOURS);
        let first = hour - hour % length;
        let end = first.saturating_add(length).min(hours.end());
        spans.push((first.max(hours.start())..end).into());
    })?;
    Ok(spans)
}

#[derive(Default)]
struct Done {
    written: u64,
    rows: u64,
    unchanged: u64,
    /// Files that cannot be replaced, of which the user was told.
    left: u64,
}

impl Done {
    /// Writes the file of `hours`, unless the directory has it already.
    fn write(
        &mut self,
        source: &RowsFrom,
        hours: HourRange,
        dir: &ExportDir,
    ) -> Result<(), String> {
        // Before the rows: flows that come in between are in the file, and it is written again the next time.
        let mut totals = Vec::new();
        let mut groups = Groups::new(hours);
        source.for_each_hour(hours, |of| {
            totals.push(HourRow::new(of));
            groups.add(of);
        })?;
        if totals.is_empty() {
            // They have been deleted meanwhile.
            return Ok(());
        }
        match standing::of(dir, hours, &totals)? {
            Standing::Unchanged => {
                self.unchanged += 1;
                return Ok(());
            }
            Standing::Irreplaceable(why) => {
                self.left += 1;
                eprint_line(&format!("flowtally: {why}"));
                return Ok(());
            }
            Standing::Replaceable => {}
        }
        let (path, unfinished) = (dir.path_of(hours), dir.unfinished_path_of(hours));
        let rows = file::write(&path, &unfinished, &totals, |each| {
            let mut groups = groups.finish().into_iter();
            groups.try_for_each(|group| source.batches(group, &mut *each))
        });
        match rows {
            // Deleted meanwhile, too.
            Ok(0) => {}
            Ok(rows) => {
                self.written += 1;
                self.rows += rows;
            }
            Err(Failed::Source(why)) => return Err(why),
            Err(Failed::Output(error)) => {
                return Err(format!("{}: {error}", path.display()));
            }
        }
        Ok(())
    }
}

fn files(n: u64) -> String {
    match n {
        1 => "1 file".into(),
        n => format!("{n} files"),
    }
}
