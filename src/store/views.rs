//! Memory for what scans copy of rows that are not flushed yet.

use std::sync::{Arc, Condvar, Mutex};

use super::Inner;
use super::error::StoreError;

/// Bounds the memory of all scans' copies together: a client that reads slowly keeps its own.
#[derive(Debug)]
pub(super) struct ViewBudget {
    bytes_max: usize,
    bytes_free: Mutex<usize>,
    given_back: Condvar,
}

impl ViewBudget {
    pub(super) fn new(bytes_max: usize) -> ViewBudget {
        ViewBudget {
            bytes_max,
            bytes_free: Mutex::new(bytes_max),
            given_back: Condvar::new(),
        }
    }
}

/// Bytes of the [`ViewBudget`] that one scan has; given back when it is dropped, at the latest.
pub(super) struct Grant {
    inner: Arc<Inner>,
    bytes: usize,
}

impl Grant {
    /// Takes `bytes`, or all there is to have where that is less. Waits for them.
    pub(super) fn take(inner: &Arc<Inner>, bytes: usize) -> Result<Grant, StoreError> {
        let budget = &inner.views;
        let bytes = bytes.min(budget.bytes_max);
        let free = budget.bytes_free.lock().map_err(|_| StoreError::Closed)?;
        let (mut free, timeout) = budget
            .given_back
            .wait_timeout_while(free, inner.options.stall_max, |free| *free < bytes)
            .map_err(|_| StoreError::Closed)?;
        if timeout.timed_out() {
            return Err(StoreError::Views);
        }
        *free -= bytes;
        Ok(Grant {
            inner: inner.clone(),
            bytes,
        })
    }

    /// Whether it is enough for `bytes`, of which nobody gets more than there are.
    pub(super) fn covers(&self, bytes: usize, budget: &ViewBudget) -> bool {
        self.bytes >= bytes.min(budget.bytes_max)
    }

    /// Gives back all but `bytes`.
    pub(super) fn keep(&mut self, bytes: usize) {
        self.give_back(self.bytes.saturating_sub(bytes));
    }

    /// Gives back `bytes`, or all there is where that is less.
    pub(super) fn give_back(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        if let Ok(mut free) = self.inner.views.bytes_free.lock()
            && bytes > 0
        {
            *free += bytes;
            self.inner.views.given_back.notify_all();
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.give_back(self.bytes);
    }
}
