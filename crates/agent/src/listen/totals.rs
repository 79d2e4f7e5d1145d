//! What was received, and what was lost.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::report::MetricsText;

/// A number that only grows.
#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Since the command was started.
#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) datagrams: Counter,
    pub(super) records: Counter,
    pub(super) reports: Counter,
    /// By the numbers of datagrams or records.
    pub(super) lost: Counter,
    pub(super) malformed: Counter,
    pub(super) without_template: Counter,
    pub(super) skipped: Counter,
    pub(super) other_end: Counter,
    pub(super) wrong_clock: Counter,
    pub(super) foreign: Counter,
}

impl Totals {
    pub(super) fn write(&self, text: &mut MetricsText) {
        for (name, help, counter) in [
            (
                "datagrams_total",
                "Datagrams of exporters.",
                &self.datagrams,
            ),
            ("records_total", "Records that were counted.", &self.records),
            (
                "reports_total",
                "Reports that were put into the spool.",
                &self.reports,
            ),
            (
                "lost_flows_total",
                "What is missing by the exporters' sequence numbers: records of NetFlow 5 and IPFIX, datagrams of NetFlow 9 \
                 and sFlow.",
                &self.lost,
            ),
            (
                "malformed_datagrams_total",
                "Datagrams that could not be read to their end.",
                &self.malformed,
            ),
            (
                "sets_without_template_total",
                "Sets of records that came before their template; they wait for it for ten minutes.",
                &self.without_template,
            ),
            (
                "skipped_records_total",
                "Records without addresses or bytes.",
                &self.skipped,
            ),
            (
                "other_end_records_total",
                "Records of the other direction, by --count.",
                &self.other_end,
            ),
            (
                "wrong_clock_datagrams_total",
                "Datagrams of exporters whose clock is wrong by more than five minutes.",
                &self.wrong_clock,
            ),
            (
                "foreign_datagrams_total",
                "Datagrams that --exporters refuses.",
                &self.foreign,
            ),
        ] {
            text.counter(name, help, counter.get());
        }
        text.counter(
            "dropped_datagrams_total",
            "Datagrams that the kernel has dropped, because the sockets' buffers were full.",
            dropped(),
        );
    }
}

/// What the kernel has dropped at this process's sockets.
fn dropped() -> u64 {
    let inodes = own_sockets();
    let tables = ["/proc/self/net/udp", "/proc/self/net/udp6"];
    let tables = tables.map(|table| std::fs::read_to_string(table).unwrap_or_default());
    tables.iter().map(|table| dropped_in(table, &inodes)).sum()
}

/// The inodes of the sockets of this process.
fn own_sockets() -> Vec<String> {
    let files = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .flatten();
    let targets = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    let inode = |target: std::path::PathBuf| {
        let inode = target
            .to_str()?
            .strip_prefix("socket:[")?
            .strip_suffix(']')?;
        Some(inode.to_owned())
    };
    targets.filter_map(inode).collect()
}

/// Sums the column `drops`, the last one, of lines whose column `inode`, the tenth, is in the list.
fn dropped_in(table: &str, inodes: &[String]) -> u64 {
    let lines = table.lines().skip(1);
    let drops = lines.filter_map(|line| {
        let columns: Vec<&str> = line.split_ascii_whitespace().collect();
        let is_own = inodes
            .iter()
            .any(|inode| columns.get(9) == Some(&inode.as_str()));
        columns.last().filter(|_| is_own)?.parse::<u64>().ok()
    });
    drops.sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_of_own_sockets() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref \
                     pointer drops             \n\
                     11: 00000000:0807 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 1234 2 \
                     0000000000000000 17\n\
                     12: 00000000:0807 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 99 2 \
                     0000000000000000 5\n";
        assert_eq!(dropped_in(table, &["1234".into(), "7".into()]), 17);
        assert_eq!(dropped_in("", &["1234".into()]), 0);
    }
}
