//! Limits of queries: memory, which all queries share, and time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::QueryError;

/// Limits of queries.
#[derive(Clone, Copy, Debug)]
pub struct QueryLimits {
    /// Memory of groups, sorted rows and pages, for all queries together; in addition, each query has a 128th of
    /// this.
    pub memory_bytes_max: usize,
    /// Time that a query may take until its response begins, and then for each chunk of the response. Waiting for the
    /// client does not count.
    pub time_max: Duration,
}

impl QueryLimits {
    /// No limits: for commands that have the store to themselves.
    pub const NONE: QueryLimits = QueryLimits {
        memory_bytes_max: usize::MAX,
        time_max: Duration::MAX,
    };
}

/// The deadline after `time_max`; `None` if it is too far away to be represented.
pub fn deadline_after(time_max: Duration) -> Option<Instant> {
    Instant::now().checked_add(time_max)
}

/// Memory is reserved from the pool in steps of this size, so that the pool is not locked for every group.
const STEP_BYTES: usize = 64 << 10;
/// Groups can use this fraction of the pool's size without reserving it, and so can ranked rows: small queries then
/// succeed even if the pool is exhausted.
const UNPOOLED_PART: usize = 256;
/// Maximum wait of a query for memory that others hold.
const WAIT_TIME_MAX: Duration = Duration::from_secs(5);

/// The memory that all queries share.
#[derive(Debug)]
pub(super) struct MemoryPool {
    bytes_max: usize,
    bytes_reserved: Mutex<usize>,
    released: Condvar,
}

impl MemoryPool {
    pub(super) fn new(bytes_max: usize) -> Arc<MemoryPool> {
        Arc::new(MemoryPool {
            bytes_max,
            bytes_reserved: Mutex::new(0),
            released: Condvar::new(),
        })
    }
}

/// Memory that a query, or a part of it, has reserved from the pool; released on drop.
#[derive(Debug)]
pub(super) struct MemoryReservation {
    pool: Arc<MemoryPool>,
    bytes: usize,
    /// Bytes reserved by all parts of the query. Changes with the pool's lock.
    of_query: Arc<AtomicUsize>,
}

impl MemoryReservation {
    pub(super) fn new(pool: &Arc<MemoryPool>) -> MemoryReservation {
        MemoryReservation {
            pool: pool.clone(),
            bytes: 0,
            of_query: Arc::default(),
        }
    }

    /// For another part of the same query. It does not wait for memory that other parts of the query hold.
    pub(super) fn for_same_query(&self) -> MemoryReservation {
        MemoryReservation {
            pool: self.pool.clone(),
            bytes: 0,
            of_query: self.of_query.clone(),
        }
    }

    /// Ensures that the reservation covers `bytes`, and waits if other queries hold the memory.
    #[inline]
    pub(super) fn grow_to(&mut self, bytes: usize) -> Result<(), QueryError> {
        let from_pool = bytes.saturating_sub(self.pool.bytes_max / UNPOOLED_PART);
        if from_pool <= self.bytes {
            return Ok(());
        }
        self.grow_from_pool(from_pool)
    }

    #[cold]
    fn grow_from_pool(&mut self, bytes: usize) -> Result<(), QueryError> {
        let bytes_max = self.pool.bytes_max;
        let mut taken = self.pool.bytes_reserved.lock();
        let of_others = self.of_query.load(Ordering::Relaxed) - self.bytes;
        let most = bytes_max - of_others;
        if bytes > most {
            return Err(QueryError::TooLarge { bytes_max });
        }
        let more = bytes.next_multiple_of(STEP_BYTES).min(most) - self.bytes;
        let is_full = |taken: &mut usize| more > bytes_max - *taken;
        let _timed_out = (self.pool.released).wait_while_for(&mut taken, is_full, WAIT_TIME_MAX);
        if is_full(&mut taken) {
            return Err(QueryError::Overloaded(
                "other queries hold the memory that this one needs; try again shortly".into(),
            ));
        }
        *taken += more;
        self.bytes += more;
        self.of_query.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for MemoryReservation {
    fn drop(&mut self) {
        let mut reserved = self.pool.bytes_reserved.lock();
        *reserved -= self.bytes;
        self.of_query.fetch_sub(self.bytes, Ordering::Relaxed);
        drop(reserved);
        self.pool.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_share_their_memory() {
        const MIB: usize = 1 << 20;
        let own = 8 * MIB / UNPOOLED_PART;
        let pool = MemoryPool::new(8 * MIB);
        let (mut first, mut second) =
            (MemoryReservation::new(&pool), MemoryReservation::new(&pool));
        first.grow_to(own + 6 * MIB).unwrap();
        // The unpooled part, and then the rest of the pool.
        second.grow_to(own).unwrap();
        second.grow_to(own + 2 * MIB).unwrap();
        assert_eq!(*pool.bytes_reserved.lock(), 8 * MIB);
        let mut third = MemoryReservation::new(&pool);
        third.grow_to(own).unwrap();
        let waits = std::thread::spawn(move || third.grow_to(own + MIB).map(|()| third));
        // A waiting thread is notified: it waits. It finds no more memory than before, and waits again.
        while !pool.released.notify_one() {
            assert!(!waits.is_finished());
            std::thread::yield_now();
        }
        assert!(!waits.is_finished());
        drop(second);
        let third = waits.join().unwrap().unwrap();
        let refused = first.grow_to(own + 8 * MIB + 1);
        assert!(matches!(refused, Err(QueryError::TooLarge { .. })));
        drop((first, third));
        assert_eq!(*pool.bytes_reserved.lock(), 0);
    }

    #[test]
    fn a_query_does_not_wait_for_itself() {
        let pool = MemoryPool::new(1 << 20);
        let mut first = MemoryReservation::new(&pool);
        let mut second = first.for_same_query();
        first.grow_to(700 << 10).unwrap();
        second.grow_to(300 << 10).unwrap();
        let start = Instant::now();
        let refused = second.grow_to(500 << 10);
        assert!(matches!(refused, Err(QueryError::TooLarge { .. })));
        assert!(start.elapsed() < WAIT_TIME_MAX / 5);
        drop(first);
        second.grow_to(500 << 10).unwrap();
        drop(second);
        assert_eq!(*pool.bytes_reserved.lock(), 0);
    }

    #[test]
    fn a_query_does_not_wait_forever() {
        let pool = MemoryPool::new(1 << 20);
        let (mut first, mut second) =
            (MemoryReservation::new(&pool), MemoryReservation::new(&pool));
        first.grow_to(1 << 20).unwrap();
        let refused = second.grow_to(1 << 20);
        assert!(matches!(refused, Err(QueryError::Overloaded(_))));
    }
}
