//! `--traffic-metrics`: shows the pairs of applications with the most bytes in the newest complete hour as metrics.
//!
//! The hour is queried in the background, not by a scrape, which must not wait for it, and only after its totals have
//! changed. Commits and flushes have no part in it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use crate::query::QueryError;
use crate::service::Service;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{TrafficHour, TrafficPair};
use flow::query::{HourTotals, HoursQuery, Query, Sort, SortBy};
use flow::{Counters, HourRange, HourUnit, Partition};

/// Pause between two looks at the totals of the newest hours.
const PAUSE_MIN: Duration = Duration::from_secs(5);
/// After a query, the pause is at least so many times as long as the query took: it uses at most a twentieth of a core
/// however large the hour is, and however many late flows it gets.
const PAUSE_FACTOR: u32 = 19;
/// Number of hours before the clock's among which the newest one with flows is looked up: a week.
const HOURS_BACK_MAX: u32 = 168;

/// Keeps the metrics of traffic current.
#[derive(Debug)]
pub struct TrafficMetrics {
    pairs_max: usize,
    metrics: Metrics,
    /// What the metrics show.
    shown: Option<Shown>,
}

/// What the metrics were made from: as long as it is the same, so are they.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    hour: HourTotals,
    partitions: Option<Vec<Partition>>,
}

impl TrafficMetrics {
    /// Shows at most `pairs_max` pairs.
    pub fn new(pairs_max: usize, metrics: Metrics) -> TrafficMetrics {
        TrafficMetrics {
            pairs_max,
            metrics,
            shown: None,
        }
    }

    /// Keeps the metrics current until `stop` is cancelled. `service` returns `None` before the service is open.
    pub async fn run(
        mut self,
        service: impl Fn() -> Option<Arc<dyn Service>>,
        stop: CancellationToken,
    ) {
        let mut pause = PAUSE_MIN;
        while stop
            .run_until_cancelled(tokio::time::sleep(pause))
            .await
            .is_some()
        {
            let Some(service) = service() else {
                continue;
            };
            let cancel = stop.clone();
            let start = Instant::now();
            let updated = tokio::task::spawn_blocking(move || {
                let result = self.update(&*service, &cancel);
                (self, result)
            });
            // The message of a panic has been printed by then.
            let Ok((traffic, result)) = updated.await else {
                return;
            };
            self = traffic;
            match result {
                Ok(()) | Err(QueryError::Cancelled) => {}
                Err(error) => {
                    tracing::warn!(%error, "the metrics of traffic keep their previous values");
                }
            }
            pause = PAUSE_MIN.max(start.elapsed() * PAUSE_FACTOR);
        }
    }

    /// Blocks on the disk.
    fn update(
        &mut self,
        service: &dyn Service,
        cancel: &CancellationToken,
    ) -> Result<(), QueryError> {
        let partitions = service.readable_partitions();
        let Some(hour) = newest_complete(service, partitions.clone(), cancel)? else {
            self.metrics.traffic().set(None);
            self.shown = None;
            return Ok(());
        };
        let current = Shown { hour, partitions };
        if self.shown.as_ref() == Some(&current) {
            return Ok(());
        }
        let traffic = self.largest_pairs(service, &current, cancel)?;
        self.metrics.traffic().set(Some(traffic));
        self.shown = Some(current);
        Ok(())
    }

    fn largest_pairs(
        &self,
        service: &dyn Service,
        of: &Shown,
        cancel: &CancellationToken,
    ) -> Result<TrafficHour, QueryError> {
        let query = Query {
            sort: Some(Sort {
                by: SortBy::Bytes,
                ascending: false,
            }),
            limit: Some(self.pairs_max),
            partitions: of.partitions.clone(),
            partial: true,
            other: true,
            ..Query::all_of(of.hour.hour.into())
        };
        let mut traffic = TrafficHour {
            hour: of.hour.hour,
            pairs: Vec::new(),
            other: Counters::default(),
        };
        let mut rows = service.ask(&query, cancel.clone())?;
        rows.read(|row| {
            match (row.src_app, row.dest_app, row.vpc_id) {
                (Some(src_app), Some(dest_app), Some(vpc_id)) => traffic.pairs.push(TrafficPair {
                    src_app: src_app.to_owned(),
                    dest_app: dest_app.to_owned(),
                    vpc_id: vpc_id.to_owned(),
                    counters: row.counters,
                }),
                // The last row, with the sums of all others.
                _ => traffic.other = row.counters,
            }
            ControlFlow::Continue(())
        })?;
        let rows_read = &self.metrics.http().query_rows_read;
        rows_read.inc_by(rows.rows_read());
        Ok(traffic)
    }
}

/// The newest hour with flows that is over, and whose rows can be read. Hours of a day are never over: among them, it is
/// the newest one.
fn newest_complete(
    service: &dyn Service,
    partitions: Option<Vec<Partition>>,
    cancel: &CancellationToken,
) -> Result<Option<HourTotals>, QueryError> {
    let Some(newest) = service.newest_hour() else {
        return Ok(None);
    };
    let end = HourUnit::clock_hour().min(HourRange::from(newest).end());
    let hours = HourRange::from(end.saturating_sub(HOURS_BACK_MAX)..end);
    if hours.is_empty() {
        return Ok(None);
    }
    let query = HoursQuery {
        hours,
        step: 1,
        partitions,
        partial: true,
    };
    let mut found = None;
    service.hours(&query, cancel.clone())?.read(|hour| {
        if hour.finest_step == 1 {
            found = Some(hour);
        }
        ControlFlow::Continue(())
    })?;
    Ok(found)
}
