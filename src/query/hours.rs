//! The hours that hold flows, and what they add up to: read entry by entry, from a store or from several
//! parts.

use std::fmt::Debug;
use std::ops::{ControlFlow, Range};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::{Cancel, Coverage, QueryError, bounds};
use crate::domain::{Hour, Totals};
use crate::store::{Ledger, Store};

/// Which hours are asked for.
#[derive(Clone, Debug)]
pub struct HoursQuery {
    /// From the first up to but without the last.
    pub hours: Range<u32>,
    /// Of these partitions, which have to be here; of all, where there are none.
    pub partitions: Option<Vec<i32>>,
    /// Take what there is of them.
    pub partial: bool,
}

impl HoursQuery {
    /// All hours there are.
    pub const ALL: HoursQuery = HoursQuery {
        hours: 0..u32::MAX,
        partitions: None,
        partial: false,
    };
}

/// Hours and totals of a part, ascending by hour.
pub trait HourSource: Debug + Send + Sync {
    fn next(&mut self) -> Result<Option<(Hour, Totals)>, QueryError>;

    /// When it has to have ended.
    fn until(&mut self, _time: Option<Instant>) {}
}

impl HourSource for Ledger {
    fn next(&mut self) -> Result<Option<(Hour, Totals)>, QueryError> {
        Ok(Iterator::next(self).transpose()?)
    }

    fn until(&mut self, time: Option<Instant>) {
        Ledger::until(self, time);
    }
}

/// Every hour that holds flows, ascending, and what it adds up to.
#[derive(Debug)]
pub struct Hours {
    parts: Vec<Part>,
    begun: bool,
    tag: Option<u64>,
    time_max: Duration,
    cancel: Cancel,
    pub coverage: Coverage,
    /// Each closes when a store that this reads is revoked.
    pub revocations: Vec<watch::Receiver<()>>,
}

#[derive(Debug)]
struct Part {
    source: Box<dyn HourSource>,
    next: Option<(Hour, Totals)>,
}

impl Hours {
    /// Those of no part yet. `time_max` is for each part of the answer.
    pub fn new(time_max: Duration, cancel: Cancel) -> Hours {
        Hours {
            parts: Vec::new(),
            begun: false,
            tag: Some(0),
            time_max,
            cancel,
            coverage: Coverage::default(),
            revocations: Vec::new(),
        }
    }

    /// Takes a part in, with its [`Hours::tag`].
    pub fn add(&mut self, source: Box<dyn HourSource>, tag: Option<u64>) {
        let next = None;
        self.parts.push(Part { source, next });
        // In any order, since any node may ask the others.
        self.tag = self.tag.zip(tag).map(|(all, tag)| all ^ tag);
    }

    /// Takes the hours of a store in.
    pub fn add_store(&mut self, store: &Store, hours: Range<u32>) -> Result<(), QueryError> {
        let mut ledger = store.ledger(hours)?;
        ledger.unless(self.cancel.clone());
        let tag = ledger.tag();
        self.add(Box::new(ledger), Some(tag));
        Ok(())
    }

    /// Names the answer: another one has another tag, but not the other way round. `None` where a part has none.
    pub fn tag(&self) -> Option<u64> {
        self.tag
    }

    /// Hands hours to `each` until it breaks or they end; returns whether they have ended. Blocks on the
    /// disk.
    pub fn read(
        &mut self,
        mut each: impl FnMut(Hour, Totals) -> ControlFlow<()>,
    ) -> Result<bool, QueryError> {
        let until = bounds::from_now(self.time_max);
        for part in &mut self.parts {
            part.source.until(until);
            if !self.begun {
                part.next = part.source.next()?;
            }
        }
        self.begun = true;
        loop {
            let first = self.parts.iter().filter_map(|part| part.next);
            let Some(hour) = first.map(|(hour, _)| hour).min() else {
                return Ok(true);
            };
            let mut sum = Totals::default();
            for part in &mut self.parts {
                if let Some((_, totals)) = part.next.filter(|(of, _)| *of == hour) {
                    sum.add(totals);
                    part.next = part.source.next()?;
                }
            }
            if each(hour, sum).is_break() {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Given(std::vec::IntoIter<u64>);

    impl HourSource for Given {
        fn next(&mut self) -> Result<Option<(Hour, Totals)>, QueryError> {
            let totals = |hour| Totals {
                flows: 1,
                tx: u128::from(hour),
                rx: 0,
            };
            let next = self.0.next();
            Ok(next.and_then(|hour| Some((Hour::new(hour)?, totals(hour)))))
        }
    }

    #[test]
    fn hours_of_parts_are_added_up_in_order() {
        let mut hours = Hours::new(Duration::MAX, Cancel::default());
        for (part, tag) in [(vec![1, 4, 5], 6), (vec![], 5), (vec![4, 9], 9)] {
            hours.add(Box::new(Given(part.into_iter())), Some(tag));
        }
        assert_eq!(hours.tag(), Some(6 ^ 5 ^ 9));
        let mut read = Vec::new();
        // One by one.
        while !hours
            .read(|hour, totals| {
                read.push((hour.get(), totals.flows, totals.tx));
                ControlFlow::Break(())
            })
            .unwrap()
        {}
        assert_eq!(read, [(1, 1, 1), (4, 2, 8), (5, 1, 5), (9, 1, 9)]);
        hours.add(Box::new(Given(vec![].into_iter())), None);
        assert_eq!(hours.tag(), None);
    }
}
