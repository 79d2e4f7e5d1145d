//! Sums that are in parts: each has flows of its own, in a store here or on another node. Their rows are
//! merged in key order, and what several have is added up.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::group::Groups;
use super::{Cancel, Hours, HoursQuery, Matching, Query, QueryError, bounds, unless};
use crate::domain::Counters;
use crate::store::Store;

/// Knows where the parts are. Partitions are those of the journal.
pub trait Parts: Debug + Send + Sync {
    /// What answers `query`, of all partitions or of those that it names, which have to be here. Other
    /// nodes are asked [`Query::of_a_part`], and get `time_max` between two parts of their answer.
    ///
    /// # Errors
    /// [`QueryError::Missing`], unless the query takes what there is.
    fn open(&self, query: &Query, time_max: Duration) -> Result<Opened, QueryError>;

    /// Adds the parts of what [`Engine::hours`](super::Engine::hours) is asked for.
    ///
    /// # Errors
    /// [`QueryError::Missing`], unless the query takes what there is.
    fn hours(&self, query: &HoursQuery, hours: &mut Hours) -> Result<(), QueryError>;
}

/// Which parts are in an answer.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// Partitions that nobody answers for.
    pub missing: Vec<i32>,
    /// How many messages each of the others was behind the journal.
    pub lag: Vec<(i32, u64)>,
}

/// The parts of an answer.
#[derive(Debug, Default)]
pub struct Opened {
    pub here: Vec<Arc<Store>>,
    pub elsewhere: Vec<Box<dyn Source>>,
    pub coverage: Coverage,
    /// Each closes when a store of `here` is to be left: whoever reads it keeps others waiting.
    pub leaves: Vec<watch::Receiver<()>>,
}

/// Rows that answer a question, filtered and added up, in key order.
pub trait Source: Debug + Send + Sync {
    /// Goes to the next row; `false` after the last.
    fn advance(&mut self) -> Result<bool, QueryError>;

    /// The row: its key, without the columns that are left out, and its sums.
    fn row(&self) -> (&[u8], Counters);

    /// When it has to have ended.
    fn until(&mut self, _time: Option<Instant>) {}

    /// Rows of stores that were read up to now, as far as that is known.
    fn rows_read(&self) -> u64;

    /// Whether it holds memory that other questions may wait for.
    fn holds_memory(&self) -> bool {
        false
    }
}

/// Rows of a store here.
#[derive(Debug)]
pub(super) struct Here {
    matching: Matching,
    groups: Option<Groups>,
    key: Vec<u8>,
    counters: Counters,
}

impl Here {
    pub(super) fn new(matching: Matching, groups: Option<Groups>) -> Here {
        Here {
            matching,
            groups,
            key: Vec::new(),
            counters: Counters::default(),
        }
    }
}

impl Source for Here {
    fn advance(&mut self) -> Result<bool, QueryError> {
        let (key, counters) = (&mut self.key, &mut self.counters);
        key.clear();
        let Some(groups) = &mut self.groups else {
            let ended = self.matching.each(|row| {
                key.extend_from_slice(&row.hour.get().to_be_bytes());
                key.extend_from_slice(row.suffix);
                *counters = row.counters;
                Ok(unless(true))
            })?;
            return Ok(!ended);
        };
        loop {
            if let Some((of_group, sums)) = groups.give() {
                key.extend_from_slice(of_group);
                *counters = sums;
                return Ok(true);
            }
            if groups.have_ended() {
                return Ok(false);
            }
            groups.begin()?;
            let ended = self.matching.each(|row| groups.add(row))?;
            groups.complete(ended);
        }
    }

    fn row(&self) -> (&[u8], Counters) {
        (&self.key, self.counters)
    }

    fn until(&mut self, time: Option<Instant>) {
        self.matching.scan.until(time);
    }

    fn rows_read(&self) -> u64 {
        self.matching.scan.rows()
    }

    fn holds_memory(&self) -> bool {
        self.groups.as_ref().is_some_and(Groups::are_many)
    }
}

/// Rows between two looks at the clock.
const STEPS_BETWEEN_LOOKS: u32 = 512;

/// Several sources as one.
#[derive(Debug)]
pub(super) struct Merged {
    sources: Vec<Box<dyn Source>>,
    /// Those that have a row, the one with the least key last.
    order: Vec<usize>,
    begun: bool,
    key: Vec<u8>,
    /// For each part of an answer.
    time_max: Duration,
    until: Option<Instant>,
    cancel: Cancel,
    steps_to_look: u32,
}

impl Merged {
    pub(super) fn new(sources: Vec<Box<dyn Source>>, time_max: Duration, cancel: Cancel) -> Merged {
        Merged {
            sources,
            order: Vec::new(),
            begun: false,
            key: Vec::new(),
            time_max,
            until: None,
            cancel,
            steps_to_look: STEPS_BETWEEN_LOOKS,
        }
    }

    /// Its time begins anew.
    pub(super) fn begin(&mut self) {
        self.until = bounds::from_now(self.time_max);
        for source in &mut self.sources {
            source.until(self.until);
        }
    }

    /// See [`Rows::holds_memory`](super::Rows::holds_memory).
    pub(super) fn holds_memory(&self) -> bool {
        self.sources.iter().any(|source| source.holds_memory())
    }

    pub(super) fn rows_read(&self) -> u64 {
        self.sources.iter().map(|source| source.rows_read()).sum()
    }

    /// The next row in key order.
    pub(super) fn next(&mut self) -> Result<Option<(&[u8], Counters)>, QueryError> {
        self.look()?;
        if !self.begun {
            self.begun = true;
            for source in 0..self.sources.len() {
                self.go_on(source)?;
            }
        }
        let Some(first) = self.order.pop() else {
            return Ok(None);
        };
        let (key, mut sums) = self.sources[first].row();
        self.key.clear();
        self.key.extend_from_slice(key);
        self.go_on(first)?;
        while let Some(&next) = self.order.last() {
            let (key, counters) = self.sources[next].row();
            if key != self.key {
                break;
            }
            sums.add(counters);
            self.order.pop();
            self.go_on(next)?;
        }
        Ok(Some((&self.key, sums)))
    }

    fn go_on(&mut self, source: usize) -> Result<(), QueryError> {
        if self.sources[source].advance()? {
            let key = |source: usize| self.sources[source].row().0;
            let at = (self.order).partition_point(|other| key(*other) > key(source));
            self.order.insert(at, source);
        }
        Ok(())
    }

    /// Stores look at the clock by themselves; rows of other nodes are counted here.
    fn look(&mut self) -> Result<(), QueryError> {
        self.steps_to_look -= 1;
        if self.steps_to_look > 0 {
            return Ok(());
        }
        self.steps_to_look = STEPS_BETWEEN_LOOKS;
        if self.cancel.is_cancelled() {
            return Err(QueryError::Cancelled);
        }
        match self.until {
            Some(until) if Instant::now() > until => Err(QueryError::TooLong),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct Given(std::vec::IntoIter<(&'static str, u64)>, (&'static str, u64));

    impl Source for Given {
        fn advance(&mut self) -> Result<bool, QueryError> {
            self.0.next().map_or(Ok(false), |row| {
                self.1 = row;
                Ok(true)
            })
        }

        fn row(&self) -> (&[u8], Counters) {
            let (key, tx) = self.1;
            (key.as_bytes(), Counters { tx, rx: 1 })
        }

        fn rows_read(&self) -> u64 {
            0
        }
    }

    #[test]
    fn what_several_have_is_added_up() {
        let sources = [
            vec![("a", 1), ("c", 2), ("d", 3)],
            vec![],
            vec![("b", 4), ("c", 5)],
            vec![("a", 6), ("c", u64::MAX)],
        ];
        let boxed = |rows: Vec<_>| Box::new(Given(rows.into_iter(), ("", 0))) as Box<dyn Source>;
        let sources = sources.map(boxed).into_iter().collect();
        let mut merged = Merged::new(sources, Duration::MAX, Cancel::default());
        let mut rows = Vec::new();
        while let Some((key, sums)) = merged.next().unwrap() {
            rows.push((String::from_utf8(key.to_vec()).unwrap(), sums.tx, sums.rx));
        }
        let expected = [("a", 7, 2), ("b", 4, 1), ("c", u64::MAX, 3), ("d", 3, 1)];
        assert_eq!(rows, expected.map(|(key, tx, rx)| (key.to_owned(), tx, rx)));
    }
}
