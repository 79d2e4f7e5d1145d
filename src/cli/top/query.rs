//! A query to the service, and its snapshot.

use std::collections::VecDeque;
use std::time::Instant;

use form_urlencoded::Serializer;
use serde::{Deserialize, Serialize};

use crate::config::{Filters, GroupBy, HourChoice, SortBy};
use agent::client::{Client, ClientError};
use flow::query::HourRow;

/// Rows that are fetched to find the fastest: the service does not know rates, so it cannot sort by them.
const RATED_ROWS_MAX: usize = 1000;

/// A selection of rows to show.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TopQuery {
    pub(super) hour: HourChoice,
    pub(super) group_by: GroupBy,
    pub(super) sort: SortBy,
    pub(super) filters: Filters,
    /// Maximum number of rows.
    pub(super) limit: usize,
}

/// One row, as the service returns it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Row {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) src_app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) dest_app: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) vpc_id: Option<String>,
    pub(super) bytes_tx: u128,
    pub(super) bytes_rx: u128,
    /// The rate between the previous snapshot and this one.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub(super) bytes_per_s: Option<u128>,
    pub(super) hour: u64,
}

/// The rows of an hour at one moment.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) query: TopQuery,
    /// The hour of the rows; `None` if no hour has flows yet.
    pub(super) hour: Option<u64>,
    /// The hours that have flows around that one, ascending.
    pub(super) hours: Vec<HourRow>,
    pub(super) rows: Vec<Row>,
    /// Bytes per second of the whole hour, since the previous snapshot.
    pub(super) bytes_per_s: Option<u128>,
    pub(super) at: Instant,
}

/// The fields that distinguish rows.
pub(super) fn fields(group_by: GroupBy) -> &'static [&'static str] {
    match group_by {
        GroupBy::Edge => &["src_app", "dest_app"],
        GroupBy::SrcApp => &["src_app"],
        GroupBy::DestApp => &["dest_app"],
        GroupBy::VpcId => &["vpc_id"],
    }
}

/// Hours that are kept before the selected one, and after it: more than a terminal has columns.
const HOURS_AROUND: usize = 512;

/// The hours that are requested. If a service has millions, all are read once, and then only a few.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Earlier hours are not needed.
    from: u64,
}

impl Window {
    /// The hours around the selected one, with their totals.
    fn read(&mut self, client: &Client, choice: HourChoice) -> Result<Vec<HourRow>, ClientError> {
        let read = |from| {
            let items = client.get_items(&format!("/hours?from={from}"))?;
            around(items, choice)
        };
        let (mut hours, mut before) = read(self.from)?;
        if self.from > 0 && before < HOURS_AROUND / 2 {
            (hours, before) = read(0)?;
        }
        self.from = match hours.first() {
            Some(first) if before >= HOURS_AROUND => first.hour,
            _ => 0,
        };
        Ok(hours)
    }
}

/// The `hours` around the selected one, and the number of those before it.
fn around<E>(
    hours: impl Iterator<Item = Result<HourRow, E>>,
    choice: HourChoice,
) -> Result<(Vec<HourRow>, usize), E> {
    let (mut kept, mut after) = (VecDeque::new(), 0);
    for hour in hours {
        let hour = hour?;
        if matches!(choice, HourChoice::At(at) if hour.hour > at) {
            after += 1;
        } else if kept.len() > HOURS_AROUND {
            kept.pop_front();
        }
        kept.push_back(hour);
        if after == HOURS_AROUND {
            break;
        }
    }
    let before = kept.len().saturating_sub(after + 1);
    Ok((kept.into(), before))
}

impl TopQuery {
    /// Queries the service.
    pub(super) fn ask(
        &self,
        client: &Client,
        window: &mut Window,
    ) -> Result<Snapshot, ClientError> {
        let at = Instant::now();
        let hours = window.read(client, self.hour)?;
        let hour = match self.hour {
            HourChoice::At(hour) => Some(hour),
            HourChoice::Latest => hours.last().map(|of| of.hour),
        };
        let rows = match hour {
            Some(hour) => client.get_json(&self.path(hour))?,
            None => Vec::new(),
        };
        Ok(Snapshot {
            query: self.clone(),
            hour,
            hours,
            rows,
            bytes_per_s: None,
            at,
        })
    }

    fn path(&self, hour: u64) -> String {
        let mut query = Serializer::new(String::new());
        query
            .append_pair("hour", &hour.to_string())
            // With the hour, so that a row is complete in itself.
            .append_pair("group_by", &(fields(self.group_by).join(",") + ",hour"))
            .append_pair(
                "sort",
                match self.sort {
                    SortBy::Bytes | SortBy::Rate => "bytes",
                    SortBy::Tx => "bytes_tx",
                    SortBy::Rx => "bytes_rx",
                },
            )
            .append_pair("limit", &self.rows_max().to_string());
        self.add_filters(&mut query);
        format!("/flows?{}", query.finish())
    }

    /// The filters have the same names in the API and in the page's URL.
    pub(super) fn add_filters(&self, query: &mut Serializer<'_, String>) {
        let filters = &self.filters;
        for (name, values) in filters.by_name() {
            query.extend_pairs(values.iter().map(|value| (name, value)));
        }
        if !filters.search.is_empty() {
            query.append_pair("search", &filters.search);
        }
    }

    /// Rows to request.
    fn rows_max(&self) -> usize {
        match self.sort {
            SortBy::Rate => self.limit.max(RATED_ROWS_MAX),
            _ => self.limit,
        }
    }

    /// Whether both queries ask for the same sums.
    pub(super) fn compares_with(&self, other: &TopQuery) -> bool {
        self.group_by == other.group_by && self.filters == other.filters
    }
}

impl Row {
    /// The names that distinguish this row, in the order of [`fields`].
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        let names = [&self.src_app, &self.dest_app, &self.vpc_id];
        names.into_iter().filter_map(|name| name.as_deref())
    }

    pub(super) fn bytes(&self) -> u128 {
        self.bytes_tx.saturating_add(self.bytes_rx)
    }
}

impl Snapshot {
    /// Adds the rates since `before`, and sorts by them if the query asks for that.
    pub(super) fn compare(&mut self, before: &Snapshot) {
        let seconds = (self.at - before.at).as_secs_f64();
        let rate = |before: u128, after: u128| {
            // The sum has decreased: the hour was deleted in between.
            let more = after.checked_sub(before)?;
            (seconds > 0.0).then(|| (more as f64 / seconds) as u128)
        };
        if self.hour == before.hour {
            let (now, then) = (self.totals(), before.totals());
            self.bytes_per_s = now
                .zip(then)
                .and_then(|(now, then)| rate(then.bytes(), now.bytes()));
        }
        if self.hour == before.hour && self.query.compares_with(&before.query) {
            // If the previous snapshot had all rows, a new row started from zero.
            let had_all = before.rows.len() < before.query.rows_max();
            let sums: std::collections::HashMap<Vec<&str>, u128> = before
                .rows
                .iter()
                .map(|row| (row.names().collect(), row.bytes()))
                .collect();
            for row in &mut self.rows {
                let then = sums.get(&row.names().collect::<Vec<_>>()).copied();
                let then = then.or(had_all.then_some(0));
                row.bytes_per_s = then.and_then(|then| rate(then, row.bytes()));
            }
        }
        if self.query.sort == SortBy::Rate {
            self.rows
                .sort_by_key(|row| std::cmp::Reverse(row.bytes_per_s));
        }
    }

    /// The hour's totals; `None` if it has no flows.
    pub(super) fn totals(&self) -> Option<&HourRow> {
        self.hours.iter().find(|of| Some(of.hour) == self.hour)
    }
}
