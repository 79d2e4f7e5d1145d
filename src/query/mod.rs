//! Questions to the store, answered as rows.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::domain::{Flow, Hour, Totals};
use crate::store::{Scan, Store, StoreError};

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Other answers hold the memory that this one needs; try again shortly.
    #[error("{0}")]
    Overloaded(StoreError),
    #[error(transparent)]
    Store(StoreError),
}

impl From<StoreError> for QueryError {
    fn from(error: StoreError) -> QueryError {
        match error {
            StoreError::Views => QueryError::Overloaded(error),
            error => QueryError::Store(error),
        }
    }
}

/// Answers queries from a store.
#[derive(Clone, Debug)]
pub struct Engine {
    store: Arc<Store>,
}

impl Engine {
    pub fn new(store: Arc<Store>) -> Engine {
        Engine { store }
    }

    /// Every hour that holds flows, ascending, and what they add up to.
    pub fn hours(&self) -> Result<Vec<(Hour, Totals)>, QueryError> {
        Ok(self.store.ledger()?)
    }

    /// The sums of `hour`, one row a (src_app, dest_app, vpc_id), in their order. Blocks on the disk.
    pub fn hour(&self, hour: Hour) -> Result<Rows, QueryError> {
        Ok(Rows {
            scan: self.store.scan(hour)?,
        })
    }
}

/// An answer that is read row by row; it shows one moment, however long the reading takes.
#[derive(Debug)]
pub struct Rows {
    scan: Scan,
}

impl Rows {
    /// Hands rows to `each` until it breaks or the answer ends; returns whether it has ended.
    /// Blocks on the disk.
    pub fn read(
        &mut self,
        mut each: impl FnMut(&Flow<'_>) -> ControlFlow<()>,
    ) -> Result<bool, QueryError> {
        while let Some((key, counters)) = self.scan.next()? {
            if each(&key.flow(counters)).is_break() {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
