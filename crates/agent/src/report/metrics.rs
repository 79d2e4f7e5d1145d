//! Counters of a command, as a file for Prometheus: the textfile collector of node_exporter reads it.

use std::fmt::Write as _;
use std::io;
use std::path::Path;

use crate::command::eprint_line;
use crate::delivery::Report;
use crate::durable;

/// Metrics in the text format.
#[derive(Debug, Default)]
pub(crate) struct MetricsText(String);

impl MetricsText {
    pub(crate) fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.add(name, "counter", help, value);
    }

    pub(crate) fn gauge(&mut self, name: &str, help: &str, value: usize) {
        self.add(
            name,
            "gauge",
            help,
            u64::try_from(value).unwrap_or(u64::MAX),
        );
    }

    /// What was delivered to the service, and what waits.
    pub(crate) fn delivery(&mut self, report: &Report) {
        let waiting = usize::try_from(report.waiting).unwrap_or(usize::MAX);
        self.gauge("waiting_batches", "Batches in the spool.", waiting);
        self.counter(
            "accepted_flows_total",
            "Flows that the service has accepted.",
            report.flows,
        );
        self.counter(
            "retries_total",
            "Attempts to send that failed and were repeated.",
            report.retries,
        );
    }

    fn add(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        let _infallible = write!(
            self.0,
            "# HELP flowtally_agent_{name} {help}\n# TYPE flowtally_agent_{name} {kind}\n\
             flowtally_agent_{name} {value}\n"
        );
    }

    /// Replaces the file.
    pub(crate) fn write(&self, path: &Path) -> io::Result<()> {
        durable::write(path, &path.with_extension("tmp"), self.0.as_bytes())
    }
}

/// Whether the file could be written the last time, so that an error is printed once.
#[derive(Debug, Default)]
pub(crate) struct MetricsError {
    is_printed: bool,
}

impl MetricsError {
    pub(crate) fn report(&mut self, path: &Path, written: io::Result<()>) {
        if let Err(error) = &written
            && !self.is_printed
        {
            eprint_line(&format!(
                "flowtally: --metrics-file {}: {error}",
                path.display()
            ));
        }
        self.is_printed = written.is_err();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flowtally.prom");
        for value in [1, 2] {
            let mut metrics = MetricsText::default();
            metrics.counter("lost_ends_total", "Help.", value);
            metrics.write(&path).unwrap();
        }
        let text = std::fs::read_to_string(&path).unwrap();
        let expected = "# HELP flowtally_agent_lost_ends_total Help.\n# TYPE flowtally_agent_lost_ends_total counter\n\
                        flowtally_agent_lost_ends_total 2\n";
        assert_eq!(text, expected);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
