//! Admission by bytes: what all requests together hold in memory stays under one bound.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::IngestError;

/// One permit of the semaphore stands for this many bytes.
const UNIT_BYTES: usize = 1024;

/// Grants bytes of memory to requests; a request that finds none waits for a while.
#[derive(Clone, Debug)]
pub struct Admission {
    units: Arc<Semaphore>,
    bytes_max: usize,
    wait_max: Duration,
}

/// Bytes granted to one request. Dropping it gives them back.
#[derive(Debug, Default)]
pub struct Permit {
    units: Option<OwnedSemaphorePermit>,
}

impl Permit {
    fn units(&self) -> usize {
        self.units.as_ref().map_or(0, |p| p.num_permits())
    }
}

impl Admission {
    /// `bytes_max` for all requests together; each waits `wait_max` at most.
    pub fn new(bytes_max: usize, wait_max: Duration) -> Admission {
        Admission {
            units: Arc::new(Semaphore::new(bytes_max / UNIT_BYTES)),
            bytes_max,
            wait_max,
        }
    }

    /// Makes `permit` cover `bytes` in all, or all that there is: alone, a request always gets by.
    ///
    /// # Errors
    /// [`IngestError::Overloaded`] when the bytes do not become free in time.
    pub async fn grow(&self, permit: &mut Permit, bytes: usize) -> Result<(), IngestError> {
        let units = bytes.div_ceil(UNIT_BYTES).min(self.bytes_max / UNIT_BYTES);
        let missing = units.saturating_sub(permit.units());
        if missing == 0 {
            return Ok(());
        }
        let overloaded = || IngestError::Overloaded("too many bytes are in flight".into());
        let missing = u32::try_from(missing).map_err(|_| overloaded())?;
        let acquire = self.units.clone().acquire_many_owned(missing);
        let more = tokio::time::timeout(self.wait_max, acquire)
            .await
            .map_err(|_| overloaded())?
            .map_err(|_| IngestError::Closed)?;
        match &mut permit.units {
            Some(units) => units.merge(more),
            none => *none = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn bytes_are_granted_once_and_given_back() {
        let admission = Admission::new(10 << 10, Duration::from_millis(10));
        let (mut a, mut b) = (Permit::default(), Permit::default());
        admission.grow(&mut a, 6000).await.unwrap();
        admission.grow(&mut a, 5000).await.unwrap(); // has them
        assert_eq!(a.units(), 6);
        admission.grow(&mut b, 4096).await.unwrap();
        let full = admission.grow(&mut b, 4097).await;
        assert!(matches!(full, Err(IngestError::Overloaded(_))));
        drop(a);
        admission.grow(&mut b, 1 << 20).await.unwrap();
        assert_eq!(b.units(), 10);
    }
}
