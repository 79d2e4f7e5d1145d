//! The hours that have flows, and their totals: read entry by entry from one store or from several sources.

use std::fmt::Debug;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::{Coverage, QueryError, bounds};
use crate::store::{FinestRows, Ledger, Store};
use flow::query::HourTotals;
use flow::{HourRange, Totals};

/// Hours and their totals, ascending by hour.
pub trait HourSource: Debug + Send + Sync {
    fn next(&mut self) -> Result<Option<HourTotals>, QueryError>;

    /// From which hour on its rows of hours, and of days, can be read, also of hours that it does not have.
    fn finest_rows(&self) -> FinestRows;

    /// Sets the time after which `next` fails.
    fn set_deadline(&mut self, _deadline: Option<Instant>) {}
}

impl HourSource for Ledger {
    fn next(&mut self) -> Result<Option<HourTotals>, QueryError> {
        let next = Iterator::next(self).transpose()?;
        Ok(next.map(|(hour, totals)| HourTotals {
            hour,
            totals,
            finest_step: Ledger::finest_rows(self).step_of(hour),
        }))
    }

    fn finest_rows(&self) -> FinestRows {
        Ledger::finest_rows(self)
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        Ledger::set_deadline(self, deadline);
    }
}

/// Every hour that has flows, ascending, with its totals.
#[derive(Debug)]
pub struct Hours {
    sources: Vec<MergeInput>,
    /// See [`HoursQuery::step`](flow::query::HoursQuery::step).
    step: u32,
    /// The step that has been read last; more of its hours may follow.
    pending: Option<HourTotals>,
    started: bool,
    tag: Option<u64>,
    /// Of all sources: each refuses a query for hours that it keeps only in longer spans, even without flows in them.
    finest: FinestRows,
    time_max: Duration,
    cancel: CancellationToken,
    pub coverage: Coverage,
    /// Each is cancelled when a store that is being read is revoked.
    pub revocations: Vec<CancellationToken>,
}

#[derive(Debug)]
struct MergeInput {
    hours: Box<dyn HourSource>,
    next: Option<HourTotals>,
}

impl Hours {
    /// Has no source at first. `time_max` applies to each chunk of the response.
    pub fn new(time_max: Duration, cancel: CancellationToken) -> Hours {
        Hours {
            sources: Vec::new(),
            step: 1,
            pending: None,
            started: false,
            tag: Some(0),
            finest: FinestRows::default(),
            time_max,
            cancel,
            coverage: Coverage::default(),
            revocations: Vec::new(),
        }
    }

    /// Adds up hours in steps.
    #[must_use]
    pub fn in_steps_of(mut self, step: u32) -> Hours {
        self.step = step;
        self
    }

    /// Adds a source of hours, with its [`Hours::tag`].
    pub fn add(&mut self, hours: Box<dyn HourSource>, tag: Option<u64>) {
        let next = None;
        self.finest = self.finest.and(hours.finest_rows());
        self.sources.push(MergeInput { hours, next });
        // XOR, because the tag must not depend on the order of the sources: all nodes return the same tag for the
        // same content.
        self.tag = self.tag.zip(tag).map(|(all, tag)| all ^ tag);
    }

    /// Adds the hours of a store.
    pub fn add_store(&mut self, store: &Store, hours: HourRange) -> Result<(), QueryError> {
        let mut ledger = store.ledger(hours)?;
        ledger.set_cancel(self.cancel.clone());
        let tag = ledger.tag();
        self.add(Box::new(ledger), Some(tag));
        Ok(())
    }

    /// From which hour on rows of hours, and of days, can be read from all sources.
    pub fn finest_rows(&self) -> FinestRows {
        self.finest
    }

    /// The entity tag: different responses have different tags. `None` if a source has none.
    pub fn tag(&self) -> Option<u64> {
        self.tag
    }

    /// The value of the `ETag` header. It is weak, since it is the same for all encodings.
    pub fn etag(&self) -> Option<String> {
        self.tag.map(|tag| format!("W/\"{tag:016x}\""))
    }

    /// Parses a tag that [`Hours::etag`] wrote.
    pub fn parse_etag(text: &str) -> Option<u64> {
        let hex = text.strip_prefix("W/\"")?.strip_suffix('"')?;
        u64::from_str_radix(hex, 16).ok()
    }

    /// Passes hours to `each` until it breaks or they end. Returns whether they have ended. Blocks on the disk and on
    /// other nodes.
    pub fn read(
        &mut self,
        mut each: impl FnMut(HourTotals) -> ControlFlow<()>,
    ) -> Result<bool, QueryError> {
        let deadline = bounds::deadline_after(self.time_max);
        for source in &mut self.sources {
            source.hours.set_deadline(deadline);
            if !self.started {
                source.next = source.hours.next()?;
            }
        }
        self.started = true;
        loop {
            let first = self.sources.iter().filter_map(|source| source.next);
            let Some(hour) = first.map(|next| next.hour).min() else {
                if let Some(last) = self.pending.take() {
                    let _last = each(last);
                }
                return Ok(true);
            };
            let mut sum = HourTotals {
                hour: hour.minus(hour.get() % self.step),
                totals: Totals::default(),
                finest_step: self.finest.step_of(hour),
            };
            for source in &mut self.sources {
                if let Some(next) = source.next.filter(|next| next.hour == hour) {
                    add(&mut sum, next);
                    source.next = source.hours.next()?;
                }
            }
            match &mut self.pending {
                Some(of) if of.hour == sum.hour => add(of, sum),
                pending => {
                    if let Some(before) = pending.replace(sum)
                        && each(before).is_break()
                    {
                        return Ok(false);
                    }
                }
            }
        }
    }
}

fn add(sum: &mut HourTotals, other: HourTotals) {
    sum.totals.add(other.totals);
    sum.finest_step = sum.finest_step.max(other.finest_step);
}

#[cfg(test)]
mod tests {
    use super::*;
    use flow::Hour;

    #[derive(Debug)]
    struct Given(std::vec::IntoIter<u64>, FinestRows);

    impl HourSource for Given {
        fn next(&mut self) -> Result<Option<HourTotals>, QueryError> {
            let totals = |hour| Totals {
                flows: 1,
                tx: u128::from(hour),
                rx: 0,
            };
            let next = self.0.next();
            Ok(next.and_then(|hour| {
                Some(HourTotals {
                    hour: Hour::new(hour)?,
                    totals: totals(hour),
                    finest_step: self.1.step_of(Hour::new(hour)?),
                })
            }))
        }

        fn finest_rows(&self) -> FinestRows {
            self.1
        }
    }

    fn source(hours: Vec<u64>, finest: FinestRows) -> Box<dyn HourSource> {
        Box::new(Given(hours.into_iter(), finest))
    }

    /// A source without flows in an hour refuses a query for it all the same.
    #[test]
    fn the_finest_step_of_an_hour_is_that_of_all_sources() {
        let days_only_until_48 = FinestRows {
            hours_from: Hour::new(48).unwrap(),
            days_from: Hour::FIRST,
        };
        for (step, expected) in [
            (1, vec![(1, 24), (30, 24), (47, 24), (48, 1), (60, 1)]),
            (24, vec![(0, 24), (24, 24), (48, 1)]),
        ] {
            let hours = Hours::new(Duration::MAX, CancellationToken::default());
            let mut hours = hours.in_steps_of(step);
            hours.add(source(vec![1, 30, 47, 48], FinestRows::default()), Some(1));
            hours.add(source(vec![60], days_only_until_48), Some(2));
            assert_eq!(hours.finest_rows(), days_only_until_48);
            let mut read = Vec::new();
            let ended = hours.read(|of| {
                read.push((of.hour.get(), of.finest_step));
                ControlFlow::Continue(())
            });
            assert!(ended.unwrap());
            assert_eq!(read, expected);
        }
    }

    #[test]
    fn hours_of_several_sources_are_added_up_in_order() {
        let mut hours = Hours::new(Duration::MAX, CancellationToken::default());
        for (hours_of_source, tag) in [(&[1, 4, 5][..], 6), (&[], 5), (&[4, 9], 9)] {
            hours.add(
                source(hours_of_source.to_vec(), FinestRows::default()),
                Some(tag),
            );
        }
        assert_eq!(hours.tag(), Some(6 ^ 5 ^ 9));
        let etag = hours.etag().unwrap();
        assert_eq!(Hours::parse_etag(&etag), hours.tag());
        let mut read = Vec::new();
        // One at a time.
        while !hours
            .read(|of| {
                read.push((of.hour.get(), of.totals.flows, of.totals.tx));
                ControlFlow::Break(())
            })
            .unwrap()
        {}
        assert_eq!(read, [(1, 1, 1), (4, 2, 8), (5, 1, 5), (9, 1, 9)]);
        hours.add(source(vec![], FinestRows::default()), None);
        assert_eq!(hours.tag(), None);
    }
}
