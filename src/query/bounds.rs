//! What a question may cost: memory that all questions share, and time.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::QueryError;

/// Bounds on what questions may cost.
#[derive(Clone, Copy, Debug)]
pub struct QueryLimits {
    /// Bytes that groups, sorted rows and pages may take, in all questions together.
    pub memory_bytes_max: usize,
    /// Time that one question may work for; waiting for its client does not count.
    pub time_max: Duration,
}

impl QueryLimits {
    /// For who is alone with the store.
    pub const NONE: QueryLimits = QueryLimits {
        memory_bytes_max: usize::MAX,
        time_max: Duration::MAX,
    };
}

/// Memory is taken from the pool in steps, so that it is not locked for every group.
const STEP_BYTES: usize = 1 << 20;

/// The memory that all questions share.
#[derive(Debug)]
pub(super) struct Pool {
    bytes_max: usize,
    bytes_taken: Mutex<usize>,
}

impl Pool {
    pub(super) fn new(bytes_max: usize) -> Arc<Pool> {
        Arc::new(Pool {
            bytes_max,
            bytes_taken: Mutex::new(0),
        })
    }
}

/// What one question has of the pool; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Memory {
    pool: Arc<Pool>,
    bytes: usize,
}

impl Memory {
    pub(super) fn new(pool: &Arc<Pool>) -> Memory {
        Memory {
            pool: pool.clone(),
            bytes: 0,
        }
    }

    /// Sees to it that the question has `bytes`.
    #[inline]
    pub(super) fn hold(&mut self, bytes: usize) -> Result<(), QueryError> {
        if bytes <= self.bytes {
            return Ok(());
        }
        self.take(bytes)
    }

    #[cold]
    fn take(&mut self, bytes: usize) -> Result<(), QueryError> {
        let bytes_max = self.pool.bytes_max;
        if bytes > bytes_max {
            return Err(QueryError::TooLarge { bytes_max });
        }
        let more = bytes.next_multiple_of(STEP_BYTES).min(bytes_max) - self.bytes;
        let mut taken = lock(&self.pool);
        if more > bytes_max - *taken {
            return Err(QueryError::Overloaded(
                "other questions hold the memory that this one needs; try again shortly".into(),
            ));
        }
        *taken += more;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        *lock(&self.pool) -= self.bytes;
    }
}

/// A number that is changed in one step cannot be left half changed.
fn lock(pool: &Pool) -> std::sync::MutexGuard<'_, usize> {
    let taken = pool.bytes_taken.lock();
    taken.unwrap_or_else(PoisonError::into_inner)
}

/// The time that one question works for.
#[derive(Debug)]
pub(super) struct Stopwatch {
    left: Duration,
    begun: Instant,
}

impl Stopwatch {
    pub(super) fn new(time_max: Duration) -> Stopwatch {
        Stopwatch {
            left: time_max,
            begun: Instant::now(),
        }
    }

    /// Time counts from now on; returns when it will be over, unless that is too far off to be said.
    pub(super) fn begin(&mut self) -> Option<Instant> {
        self.begun = Instant::now();
        self.begun.checked_add(self.left)
    }

    /// Time counts no more.
    pub(super) fn pause(&mut self) {
        self.left = self.left.saturating_sub(self.begun.elapsed());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_share_their_memory() {
        let pool = Pool::new(3 << 20);
        let (mut first, mut second) = (Memory::new(&pool), Memory::new(&pool));
        first.hold(1).unwrap();
        second.hold(STEP_BYTES + 1).unwrap();
        let refused = first.hold(STEP_BYTES + 1);
        assert!(matches!(refused, Err(QueryError::Overloaded(_))));
        drop(second);
        first.hold(3 << 20).unwrap();
        let refused = first.hold((3 << 20) + 1);
        assert!(matches!(refused, Err(QueryError::TooLarge { .. })));
        drop(first);
        assert_eq!(*lock(&pool), 0);
    }
}
