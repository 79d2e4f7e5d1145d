//! The end of a pipe before its end: nothing more is read, and what was read before is handed over first.

use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Says when to stop reading, and when all that was read is handed over.
#[derive(Debug, Default)]
pub(super) struct Drain {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_stopped: bool,
    /// The reader waits for input, or has ended: it holds no flows.
    is_idle: bool,
}

impl Drain {
    /// From now on, reading fails.
    pub(super) fn stop(&self) {
        self.state().is_stopped = true;
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    /// Waits until what was read is handed over, at most for `time_max`.
    pub(super) fn wait(&self, time_max: Duration) {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), time_max, |state| !state.is_idle);
        let _in_any_case = waited.unwrap_or_else(PoisonError::into_inner);
    }

    /// Says that the reader has ended.
    pub(super) fn end(&self) {
        self.state().is_idle = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_idle(&self, is_idle: bool) -> io::Result<()> {
        let mut state = self.state();
        if state.is_stopped {
            state.is_idle = true;
            self.changed.notify_all();
            return Err(io::Error::other("stopped"));
        }
        state.is_idle = is_idle;
        self.changed.notify_all();
        Ok(())
    }
}

/// An input that can be stopped.
#[derive(Debug)]
pub(super) struct Drained<R> {
    input: R,
    drain: Arc<Drain>,
}

impl<R> Drained<R> {
    pub(super) fn new(input: R, drain: Arc<Drain>) -> Drained<R> {
        Drained { input, drain }
    }
}

impl<R: Read> Read for Drained<R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.drain.set_idle(true)?;
        let read = self.input.read(bytes);
        // What comes in the moment of a stop may not be handed over any more.
        self.drain.set_idle(false)?;
        read
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_ends_when_it_is_stopped() {
        let drain = Arc::new(Drain::default());
        let mut input = Drained::new(&b"abcdef"[..], drain.clone());
        let mut bytes = [0; 3];
        assert_eq!(input.read(&mut bytes).unwrap(), 3);
        // It may hold something.
        assert!(!drain.state().is_idle);
        drain.stop();
        assert!(input.read(&mut bytes).is_err());
        drain.wait(Duration::from_secs(60));
    }
}
