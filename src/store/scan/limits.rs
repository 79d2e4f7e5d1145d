//! Deadline and cancellation of reads.

use std::time::Instant;

use tokio_util::sync::CancellationToken;

use crate::store::error::StoreError;

/// The reason why a scan ended before its last row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanEnd {
    /// The time set by [`Scan::set_deadline`] has passed.
    DeadlineExceeded,
    /// The token set by [`Scan::set_cancel`] was cancelled.
    Cancelled,
}

/// Rows and seeks between two checks of the clock, which take a fraction of a millisecond.
const STEPS_PER_CHECK: u32 = 512;

/// Deadline and cancellation of a scan.
#[derive(Debug)]
pub(in crate::store) struct ScanLimits {
    steps_until_check: u32,
    until: Option<Instant>,
    cancel: CancellationToken,
}

impl Default for ScanLimits {
    /// No limits.
    fn default() -> ScanLimits {
        ScanLimits {
            steps_until_check: STEPS_PER_CHECK,
            until: None,
            cancel: CancellationToken::default(),
        }
    }
}

impl ScanLimits {
    pub(in crate::store) fn set_deadline(&mut self, time: Option<Instant>) {
        self.until = time;
    }

    pub(in crate::store) fn set_cancel(&mut self, cancel: CancellationToken) {
        self.cancel = cancel;
    }

    /// Call this for each row and each seek.
    #[inline]
    pub(in crate::store) fn step(&mut self) -> Result<(), StoreError> {
        self.steps_until_check -= 1;
        if self.steps_until_check > 0 {
            return Ok(());
        }
        self.enforce_limits()
    }

    #[cold]
    fn enforce_limits(&mut self) -> Result<(), StoreError> {
        self.steps_until_check = STEPS_PER_CHECK;
        if self.cancel.is_cancelled() {
            return Err(StoreError::ScanEnded(ScanEnd::Cancelled));
        }
        match self.until {
            Some(until) if Instant::now() > until => {
                Err(StoreError::ScanEnded(ScanEnd::DeadlineExceeded))
            }
            _ => Ok(()),
        }
    }
}
