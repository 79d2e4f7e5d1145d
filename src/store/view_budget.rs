//! Memory for the copies that [views](super::view) make of unflushed rows.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex};

use super::Inner;
use super::error::StoreError;

/// Bounds the memory of all scans' copies together. A slow client holds its copy for as long as it reads.
#[derive(Debug)]
pub(super) struct ViewBudget {
    bytes_max: usize,
    bytes_free: Mutex<usize>,
    released: Condvar,
}

impl ViewBudget {
    pub(super) fn new(bytes_max: usize) -> ViewBudget {
        ViewBudget {
            bytes_max,
            bytes_free: Mutex::new(bytes_max),
            released: Condvar::new(),
        }
    }
}

/// Bytes of the [`ViewBudget`] that one scan has reserved; released on drop at the latest.
pub(super) struct ViewGrant {
    inner: Arc<Inner>,
    bytes: usize,
}

impl ViewGrant {
    /// Waits for `bytes` (at most the whole budget) and reserves them.
    pub(super) fn reserve(inner: &Arc<Inner>, bytes: usize) -> Result<ViewGrant, StoreError> {
        let budget = &inner.views;
        let bytes = bytes.min(budget.bytes_max);
        let mut free = budget.bytes_free.lock();
        let waited = budget.released.wait_while_for(
            &mut free,
            |free| *free < bytes,
            inner.options.stall_max,
        );
        if waited.timed_out() && *free < bytes {
            return Err(StoreError::ViewMemoryFull);
        }
        *free -= bytes;
        Ok(ViewGrant {
            inner: inner.clone(),
            bytes,
        })
    }

    /// Whether it covers `bytes`; the whole budget covers any number.
    pub(super) fn covers(&self, bytes: usize, budget: &ViewBudget) -> bool {
        self.bytes >= bytes.min(budget.bytes_max)
    }

    /// Splits off up to `bytes`.
    pub(super) fn split_off(&mut self, bytes: usize) -> ViewGrant {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        ViewGrant {
            inner: self.inner.clone(),
            bytes,
        }
    }

    /// Releases all but `bytes`.
    pub(super) fn shrink_to(&mut self, bytes: usize) {
        self.release(self.bytes.saturating_sub(bytes));
    }

    /// Releases up to `bytes`.
    pub(super) fn release(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if bytes > 0 {
            *self.inner.views.bytes_free.lock() += bytes;
            self.inner.views.released.notify_all();
        }
    }
}

impl Drop for ViewGrant {
    fn drop(&mut self) {
        self.release(self.bytes);
    }
}
