//! Admission by bytes: what all requests together hold in memory stays under one bound.
//!
//! There are two pools. Each request begins in the common one, where it may hold a little. One that
//! turns out to need more, or finds the common pool used up, moves into a **lane**, which covers
//! whatever a request may need, and there are few of them. So requests never wait for one another
//! in a circle, a few huge bodies do not keep the many small ones waiting, and bytes count as they
//! arrive: what a sender announces and does not send costs nobody anything.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::IngestError;

/// One permit of the common pool stands for this many bytes.
const UNIT_BYTES: usize = 1024;
/// The common pool has room for this many requests that hold all they may.
const COMMON_SHARES: usize = 16;

/// Grants memory to requests; a request that finds none waits for a while.
#[derive(Clone, Debug)]
pub struct Admission {
    common: Arc<Semaphore>,
    /// What a request may hold of the common pool.
    share_bytes: usize,
    lanes: Arc<Semaphore>,
    wait_max: Duration,
}

/// Memory granted to one request. Dropping it gives it back.
#[derive(Debug, Default)]
pub struct Permit {
    common: Option<OwnedSemaphorePermit>,
    lane: Option<OwnedSemaphorePermit>,
}

impl Permit {
    fn units(&self) -> usize {
        self.common.as_ref().map_or(0, |p| p.num_permits())
    }
}

impl Admission {
    /// `bytes_max` for all requests together, of which one alone needs `request_bytes_max` at most:
    /// half of the bytes make the common pool, the other half as many lanes as fit, at least one.
    /// A request waits `wait_max` at most for each grant.
    pub fn new(bytes_max: usize, request_bytes_max: usize, wait_max: Duration) -> Admission {
        let lanes = (bytes_max / 2 / request_bytes_max.max(1)).max(1);
        let common = bytes_max / 2;
        Admission {
            common: Arc::new(Semaphore::new(common / UNIT_BYTES)),
            share_bytes: common / COMMON_SHARES,
            lanes: Arc::new(Semaphore::new(lanes)),
            wait_max,
        }
    }

    /// Makes `permit` cover `bytes` in all.
    ///
    /// # Errors
    /// [`IngestError::Overloaded`] when memory does not become free in time.
    pub async fn grow(&self, permit: &mut Permit, bytes: usize) -> Result<(), IngestError> {
        if permit.lane.is_some() {
            return Ok(());
        }
        let missing = bytes.div_ceil(UNIT_BYTES).saturating_sub(permit.units());
        if missing == 0 {
            return Ok(());
        }
        // Who holds some of the common pool does not wait for more of it: all the others might, too.
        // A lane is worth waiting for, since whoever has one can go on to its end.
        let common = u32::try_from(missing)
            .ok()
            .filter(|_| bytes <= self.share_bytes)
            .and_then(|units| self.common.clone().try_acquire_many_owned(units).ok());
        match (common, &mut permit.common) {
            (Some(more), Some(units)) => units.merge(more),
            (Some(more), none) => *none = Some(more),
            (None, _) => {
                permit.lane = Some(self.lane().await?);
                permit.common = None;
            }
        }
        Ok(())
    }

    async fn lane(&self) -> Result<OwnedSemaphorePermit, IngestError> {
        tokio::time::timeout(self.wait_max, self.lanes.clone().acquire_owned())
            .await
            .map_err(|_| IngestError::Overloaded("too many bytes are under way".into()))?
            .map_err(|_| IngestError::Closed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A common pool of 32 KiB, 2 KiB of it for each; two lanes.
    fn admission() -> Admission {
        Admission::new(64 << 10, 16 << 10, Duration::from_millis(10))
    }

    fn is_overloaded(result: &Result<(), IngestError>) -> bool {
        matches!(result, Err(IngestError::Overloaded(_)))
    }

    #[tokio::test]
    async fn bytes_are_granted_once_and_given_back() {
        let admission = admission();
        let mut permits: Vec<Permit> = Vec::new();
        for _ in 0..16 {
            let mut permit = Permit::default();
            admission.grow(&mut permit, 1000).await.unwrap();
            admission.grow(&mut permit, 2048).await.unwrap();
            assert_eq!(permit.units(), 2);
            permits.push(permit);
        }
        // The common pool is used up; there are lanes for two, and then there is nothing.
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

    /// Many that each hold a part and need more: one after the other gets a lane and ends.
    #[tokio::test]
    async fn nobody_waits_in_a_circle() {
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
    async fn large_requests_take_lanes_and_leave_the_common_pool_alone() {
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
}
