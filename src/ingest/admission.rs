//! Admission control by bytes: bounds the memory of all requests together.
//!
//! There are two pools. Each request starts in the common pool, where it may reserve a small share. A request that
//! needs more, or finds the common pool exhausted, moves into a **lane**, which covers the largest request; there are
//! few lanes. So requests never wait for each other in a cycle, a few huge bodies do not delay many small ones, and
//! bytes count on arrival: a sender that announces bytes and does not send them costs nothing. While other requests
//! wait for memory, the bytes of a request that holds some must arrive at a minimum rate.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Too much is in flight: the sender should retry shortly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Overloaded(pub String);

/// A body and its decoded batch are in memory together for a while; the batch is never larger.
pub const MEMORY_PER_BODY_BYTE: usize = 2;

/// Bytes per permit of the common pool.
const UNIT_BYTES: usize = 1024;
/// Number of full shares in the common pool.
const COMMON_SHARES: usize = 16;
/// While others wait, bytes must be granted at this rate, which is twice that of the body.
const BYTES_PER_S_MIN: usize = 1 << 20;
/// Longest allowed pause between bytes.
const ARRIVAL_GAP_MAX: Duration = Duration::from_secs(1);
/// Interval between checks whether others wait.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

/// Grants memory to requests; a request waits for a while if there is none.
#[derive(Clone, Debug)]
pub struct Admission {
    common: Arc<Semaphore>,
    /// Upper bound of a request in the common pool.
    share_bytes: usize,
    lanes: Arc<Semaphore>,
    lanes_max: usize,
    /// Bytes that a lane covers.
    lane_bytes: usize,
    /// Requests that wait for a lane.
    waiting: Arc<AtomicUsize>,
    /// Those that would fit into the common pool if it were not exhausted.
    waiting_small: Arc<AtomicUsize>,
    /// Connections that wait to be served.
    waiting_connections: Arc<AtomicUsize>,
    wait_max: Duration,
}

/// Memory granted to a request; released on drop.
#[derive(Debug)]
pub struct Permit {
    common: Option<OwnedSemaphorePermit>,
    lane: Option<OwnedSemaphorePermit>,
    /// Bytes that it covers.
    bytes: usize,
    /// Until this time, its bytes have arrived fast enough.
    fast_until: Instant,
}

impl Default for Permit {
    /// Covers nothing.
    fn default() -> Permit {
        Permit {
            common: None,
            lane: None,
            bytes: 0,
            fast_until: Instant::now() + ARRIVAL_GAP_MAX,
        }
    }
}

impl Permit {
    /// Records arrived bytes. Bytes that came faster than required allow for one pause.
    fn add_bytes(&mut self, bytes: usize) {
        let more = bytes.saturating_sub(self.bytes);
        self.bytes += more;
        let now = Instant::now();
        let time = Duration::from_secs_f64(more as f64 / BYTES_PER_S_MIN as f64);
        self.fast_until = (self.fast_until.max(now) + time).min(now + ARRIVAL_GAP_MAX);
    }

    fn units(&self) -> usize {
        self.common.as_ref().map_or(0, |p| p.num_permits())
    }
}

impl Admission {
    /// Shares `bytes_max` among all requests, of which one needs at most `request_bytes_max`: half of it is the
    /// common pool, the other half as many lanes as fit, at least one. A request waits at most `wait_max` for each
    /// grant.
    pub fn new(bytes_max: usize, request_bytes_max: usize, wait_max: Duration) -> Admission {
        let lanes = (bytes_max / 2 / request_bytes_max.max(1)).max(1);
        let common = bytes_max / 2;
        Admission {
            common: Arc::new(Semaphore::new(common / UNIT_BYTES)),
            share_bytes: common / COMMON_SHARES,
            lanes: Arc::new(Semaphore::new(lanes)),
            lanes_max: lanes,
            lane_bytes: request_bytes_max,
            waiting: Arc::default(),
            waiting_small: Arc::default(),
            waiting_connections: Arc::default(),
            wait_max,
        }
    }

    /// Bytes that are granted now; a lane counts in full.
    pub fn bytes_granted(&self) -> usize {
        let common = COMMON_SHARES * self.share_bytes / UNIT_BYTES;
        let units = common.saturating_sub(self.common.available_permits());
        let lanes = self.lanes_max - self.lanes.available_permits();
        units * UNIT_BYTES + lanes * self.lane_bytes
    }

    /// Grows `permit` to cover `bytes` in total.
    ///
    /// # Errors
    /// If memory does not become available in time.
    pub async fn grow(&self, permit: &mut Permit, bytes: usize) -> Result<(), Overloaded> {
        permit.add_bytes(bytes);
        if permit.lane.is_some() {
            return Ok(());
        }
        let missing = bytes.div_ceil(UNIT_BYTES).saturating_sub(permit.units());
        if missing == 0 {
            return Ok(());
        }
        // A request that holds a share of the common pool does not wait for more of it: all others might do the same.
        // It can wait for a lane, since a lane covers a request to its end.
        let common = u32::try_from(missing)
            .ok()
            .filter(|_| bytes <= self.share_bytes)
            .and_then(|units| self.common.clone().try_acquire_many_owned(units).ok());
        match (common, &mut permit.common) {
            (Some(more), Some(units)) => units.merge(more),
            (Some(more), none) => *none = Some(more),
            (None, _) => {
                permit.lane = Some(self.acquire_lane(bytes <= self.share_bytes).await?);
                permit.common = None;
                // No bytes were read while it waited.
                permit.fast_until = Instant::now() + ARRIVAL_GAP_MAX;
            }
        }
        Ok(())
    }

    /// Counts a connection as waiting until the returned value is dropped.
    pub fn count_waiting_connection(&self) -> impl Drop + use<'_> {
        WaitCount::new(&self.waiting_connections)
    }

    /// Resolves when the request of `permit` should be evicted: other requests wait for its memory, or connections
    /// wait to be served, and its bytes arrive too slowly.
    pub async fn until_evicted(&self, permit: &Permit) -> Overloaded {
        let for_memory = match (&permit.lane, &permit.common) {
            (Some(_), _) => Some(&self.waiting),
            (None, Some(_)) => Some(&self.waiting_small),
            (None, None) => None,
        };
        tokio::time::sleep_until(permit.fast_until).await;
        let others = || {
            let for_memory = for_memory.map_or(0, |count| count.load(Ordering::Relaxed));
            for_memory + self.waiting_connections.load(Ordering::Relaxed)
        };
        while others() == 0 {
            tokio::time::sleep(CHECK_INTERVAL).await;
        }
        Overloaded(format!(
            "this body arrives too slowly to keep its memory while other requests wait: \
             {} KiB a second is the minimum then; send smaller batches",
            BYTES_PER_S_MIN >> 11
        ))
    }

    async fn acquire_lane(&self, is_small: bool) -> Result<OwnedSemaphorePermit, Overloaded> {
        let _waits = WaitCount::new(&self.waiting);
        let _waits_for_common = is_small.then(|| WaitCount::new(&self.waiting_small));
        tokio::time::timeout(self.wait_max, self.lanes.clone().acquire_owned())
            .await
            .ok()
            .and_then(Result::ok)
            .ok_or_else(|| Overloaded("too many request bytes are in flight".into()))
    }
}

/// Counts a waiter until it is dropped.
struct WaitCount<'a>(&'a AtomicUsize);

impl WaitCount<'_> {
    fn new(count: &AtomicUsize) -> WaitCount<'_> {
        count.fetch_add(1, Ordering::Relaxed);
        WaitCount(count)
    }
}

impl Drop for WaitCount<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::task::Poll;

    /// A common pool of 32 KiB, 2 KiB of it for each; two lanes.
    fn admission() -> Admission {
        Admission::new(64 << 10, 16 << 10, Duration::from_millis(10))
    }

    fn is_overloaded(result: &Result<(), Overloaded>) -> bool {
        matches!(result, Err(Overloaded(_)))
    }

    #[tokio::test]
    async fn bytes_are_granted_once_and_released() {
        let admission = admission();
        let mut permits: Vec<Permit> = Vec::new();
        for _ in 0..16 {
            let mut permit = Permit::default();
            admission.grow(&mut permit, 1000).await.unwrap();
            admission.grow(&mut permit, 2048).await.unwrap();
            assert_eq!(permit.units(), 2);
            permits.push(permit);
        }
        // The common pool is exhausted, and there are two lanes.
        for _ in 0..2 {
            let mut permit = Permit::default();
            admission.grow(&mut permit, 1).await.unwrap();
            assert!(permit.lane.is_some());
            permits.push(permit);
        }
        let mut one_more = Permit::default();
        assert!(is_overloaded(&admission.grow(&mut one_more, 1).await));
        permits.remove(0);
        admission.grow(&mut one_more, 1).await.unwrap();
        assert_eq!(one_more.units(), 1);
    }

    /// Many requests hold a share and need more: each in turn gets a lane and completes.
    #[tokio::test]
    async fn requests_do_not_deadlock() {
        let admission = Admission::new(64 << 10, 16 << 10, Duration::from_secs(5));
        let requests = (0..64).map(|_| {
            let admission = admission.clone();
            tokio::spawn(async move {
                let mut permit = Permit::default();
                for bytes in [500, 1000, 1500, 2000] {
                    admission.grow(&mut permit, bytes).await.unwrap();
                    tokio::task::yield_now().await;
                }
            })
        });
        for request in requests.collect::<Vec<_>>() {
            request.await.unwrap();
        }
    }

    #[tokio::test]
    async fn large_requests_take_lanes_and_not_the_common_pool() {
        let admission = admission();
        let (mut a, mut b, mut c) = (Permit::default(), Permit::default(), Permit::default());
        for large in [&mut a, &mut b] {
            admission.grow(large, 2048).await.unwrap();
            admission.grow(large, 2049).await.unwrap();
            admission.grow(large, 16 << 10).await.unwrap();
            assert_eq!(large.units(), 0);
        }
        assert!(is_overloaded(&admission.grow(&mut c, 3000).await));
        let mut small = Permit::default();
        admission.grow(&mut small, 2048).await.unwrap();
        drop(a);
        admission.grow(&mut c, 3000).await.unwrap();
    }

    /// Waits until one of `permits` is evicted while another request waits for memory. Returns which one, and after
    /// how long.
    async fn evicted_of(
        admission: &Admission,
        permits: &[Permit],
        other: usize,
    ) -> Option<(usize, Duration)> {
        let begin = Instant::now();
        let mut waits = Permit::default();
        let mut all: Vec<_> = permits
            .iter()
            .map(|permit| Box::pin(admission.until_evicted(permit)))
            .collect();
        let first = poll_fn(|context| {
            let mut gone = all
                .iter_mut()
                .map(|future| future.as_mut().poll(context).is_ready());
            match gone.position(|gone| gone) {
                Some(which) => Poll::Ready(which),
                None => Poll::Pending,
            }
        });
        tokio::select! {
            which = first => Some((which, begin.elapsed())),
            _ = admission.grow(&mut waits, other) => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_request_is_evicted_while_others_wait() {
        let admission = Admission::new(4 << 20, 1 << 20, Duration::from_secs(60));
        let (mut fast, mut stalls) = (Permit::default(), Permit::default());
        for (permit, bytes) in [(&mut fast, 1 << 20), (&mut stalls, 192 << 10)] {
            admission.grow(permit, bytes).await.unwrap();
            assert!(permit.lane.is_some());
        }
        // No other request waits, so slow requests are not evicted.
        assert_eq!(admission.lanes.available_permits(), 0);
        tokio::time::sleep(Duration::from_millis(1300)).await;
        admission.grow(&mut fast, 3 << 19).await.unwrap();
        let lanes = [fast, stalls];
        let (which, after) = evicted_of(&admission, &lanes, 192 << 10).await.unwrap();
        assert_eq!(which, 1);
        assert!(after < Duration::from_millis(500), "{after:?}");
        // The other request was fast enough for another half second.
        evicted_of(&admission, &lanes[..1], 192 << 10)
            .await
            .unwrap();
        assert!(lanes[0].fast_until <= Instant::now());
    }

    #[tokio::test(start_paused = true)]
    async fn slow_requests_do_not_hold_the_common_pool() {
        let admission = Admission::new(64 << 10, 16 << 10, Duration::from_secs(2));
        let mut permits = Vec::new();
        for _ in 0..18 {
            let mut permit = Permit::default();
            admission.grow(&mut permit, 2048).await.unwrap();
            permits.push(permit);
        }
        // A large request waits for a lane, so only those in a lane are affected.
        let (which, _) = evicted_of(&admission, &permits, 9 << 10).await.unwrap();
        assert!(which >= 16, "{which}");
        let common = &permits[..16];
        assert_eq!(evicted_of(&admission, common, 9 << 10).await, None);
        let (_, after) = evicted_of(&admission, common, 2048).await.unwrap();
        assert!(after < Duration::from_secs(1), "{after:?}");
    }
}
