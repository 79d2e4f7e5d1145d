//! The end of a pipe before its end: nothing more is read, and what was read before is handed over first.

use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::delivery::Sender;
use crate::inputs::{Quiet, Stopped};

/// How soon a reader that waits for input sees that it is to stop.
const LOOK_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// Silence after which what is here is looked at as if nothing more came.
const QUIET_AFTER: Duration = Duration::from_secs(1);

/// Says when to stop reading, and when all that was read is handed over.
#[derive(Debug, Default)]
pub struct Drain {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    is_stopped: bool,
    /// The reader has handed over all that it read.
    has_ended: bool,
}

impl Drain {
    /// From now on, reading fails.
    pub fn stop(&self) {
        self.state().is_stopped = true;
    }

    pub fn is_stopped(&self) -> bool {
        self.state().is_stopped
    }

    /// Waits until what was read is handed over, at most for `time_max`.
    pub fn wait(&self, time_max: Duration) {
        let waited = self
            .changed
            .wait_timeout_while(self.state(), time_max, |state| !state.has_ended);
        let _in_any_case = waited.unwrap_or_else(PoisonError::into_inner);
    }

    /// Says that the reader has ended, and holds nothing.
    pub fn end(&self) {
        self.state().has_ended = true;
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipe that can be stopped: what is not taken by then stays in it. After some silence it says so, once:
/// [`Quiet`].
#[derive(Debug)]
pub struct Drained {
    input: File,
    drain: Arc<Drain>,
    /// Takes what is read, until it fails.
    sender: Weak<Sender>,
    /// It was quiet, and nothing has come since.
    is_quiet: bool,
}

impl Drained {
    pub fn new(input: File, drain: Arc<Drain>, sender: Weak<Sender>) -> Drained {
        Drained {
            input,
            drain,
            sender,
            is_quiet: false,
        }
    }
}

impl Read for Drained {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let since = Instant::now();
        loop {
            let sender = self.sender.upgrade();
            if sender.is_some_and(|sender| sender.failure().is_some()) {
                self.drain.stop();
            }
            if self.drain.is_stopped() {
                return Err(io::Error::other(Stopped::default()));
            }
            let mut input = [PollFd::new(&self.input, PollFlags::IN)];
            match poll(&mut input, Some(&LOOK_INTERVAL)) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => break,
                Err(error) => return Err(error.into()),
            }
            if !self.is_quiet && since.elapsed() >= QUIET_AFTER {
                self.is_quiet = true;
                return Err(io::Error::other(Quiet));
            }
        }
        self.is_quiet = false;
        self.input.read(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    /// Whatever the moment at which it is stopped, what was read and what is left are all that was written.
    #[test]
    fn nothing_that_was_read_is_lost() {
        const BYTES: usize = 1 << 20;
        for micros in (0..2000).step_by(40) {
            let drain = Arc::new(Drain::default());
            let (reader, mut writer) = io::pipe().unwrap();
            let mut rest = reader.try_clone().unwrap();
            let mut input = Drained::new(OwnedFd::from(reader).into(), drain.clone(), Weak::new());
            let ends = drain.clone();
            let reading = std::thread::spawn(move || {
                let (mut bytes, mut read) = ([0; 4096], 0);
                while let Ok(some @ 1..) = input.read(&mut bytes) {
                    read += some;
                }
                ends.end();
                read
            });
            let writing = std::thread::spawn(move || writer.write_all(&vec![1; BYTES]).unwrap());
            // Many moments; what has to hold is the same at each.
            std::thread::sleep(Duration::from_micros(micros));
            drain.stop();
            drain.wait(Duration::from_secs(60));
            let mut left = Vec::new();
            rest.read_to_end(&mut left).unwrap();
            writing.join().unwrap();
            assert_eq!(reading.join().unwrap() + left.len(), BYTES, "{micros}");
        }
    }
}
