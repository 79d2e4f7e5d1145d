//! What the agent has done since it started, as metrics.

use std::path::PathBuf;

use super::destinations::Destinations;
use super::watched::Namespaces;
use crate::delivery::Report;
use crate::report::{MetricsError, MetricsText};

#[derive(Debug, Default)]
pub(super) struct Totals {
    pub(super) looks: u64,
    pub(super) reports: u64,
    pub(super) bytes_tx: u64,
    pub(super) bytes_rx: u64,
    /// Of applications of this host that are not known.
    pub(super) unattributed_bytes: u64,
    /// Times that a connection without a name was left for a later look.
    pub(super) postponed_names: u64,
    /// Times that messages about ends were lost.
    pub(super) lost_ends: u64,
    /// Times that messages about changes of addresses were lost.
    pub(super) lost_address_changes: u64,
}

/// The file with the metrics.
#[derive(Debug)]
pub(super) struct MetricsFile {
    path: Option<PathBuf>,
    error: MetricsError,
}

impl MetricsFile {
    /// `None`: there is none.
    pub(super) fn new(path: Option<PathBuf>) -> MetricsFile {
        MetricsFile {
            path,
            error: MetricsError::default(),
        }
    }

    /// `many_bytes`: those whose destination was summed under one name.
    pub(super) fn write(
        &mut self,
        totals: &Totals,
        namespaces: &Namespaces,
        destinations: &Destinations,
        many_bytes: u64,
        delivery: &Report,
    ) {
        let Some(path) = &self.path else {
            return;
        };
        let mut text = MetricsText::default();
        for (name, help, value) in [
            (
                "connections",
                "Connections that the agent follows, at both ends.",
                namespaces.connections(),
            ),
            (
                "namespaces",
                "Network namespaces that the agent looks at.",
                namespaces.len(),
            ),
            (
                "unopened_namespaces",
                "Network namespaces that the agent cannot look at: see its log.",
                namespaces.unopened(),
            ),
            (
                "claims",
                "Addresses and ports that the agent claims in the directory for its applications.",
                destinations.claims(),
            ),
            (
                "waiting_connections",
                "Connections, and groups of short ones, whose bytes wait for a name of the directory.",
                destinations.waiting(),
            ),
        ] {
            text.gauge(name, help, value);
        }
        for (name, help, value) in [
            ("looks_total", "Looks at all sockets.", totals.looks),
            (
                "reports_total",
                "Reports that were put into the spool.",
                totals.reports,
            ),
            (
                "bytes_tx_total",
                "Bytes that outbound connections have sent.",
                totals.bytes_tx,
            ),
            (
                "bytes_rx_total",
                "Bytes that outbound connections have received.",
                totals.bytes_rx,
            ),
            (
                "unattributed_bytes_total",
                "Bytes whose source application is not known, and of destinations beyond the limit of a report.",
                totals.unattributed_bytes + many_bytes,
            ),
            (
                "unnamed_bytes_total",
                "Bytes whose destination is neither in the table of --apps nor claimed by another agent.",
                destinations.unnamed_bytes,
            ),
            (
                "postponed_names_total",
                "Times that a connection waited for a later look, which may search the processes for its application.",
                totals.postponed_names,
            ),
            (
                "lost_ends_total",
                "Times that the kernel dropped messages about connections that ended, because the agent was too slow.",
                totals.lost_ends,
            ),
            (
                "lost_address_changes_total",
                "Times that the kernel dropped messages about changes of addresses, because the agent was too slow.",
                totals.lost_address_changes,
            ),
        ] {
            text.counter(name, help, value);
        }
        text.delivery(delivery);
        self.error.report(path, text.write(path));
    }
}
