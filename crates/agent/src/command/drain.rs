//! Stops reading a pipe before its end, and waits until the flows that were read already are in the queue.

use parking_lot::{Condvar, Mutex};
use std::fs::File;
use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use crate::delivery::Sender;
use crate::inputs::{Idle, Stopped};

/// Interval at which a reader that waits for input checks whether it was stopped.
const LOOK_INTERVAL: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};

/// After this time without input, the reader processes what it has as if the input had ended. Less than a second, so
/// that a flow is in the spool a second after it was read.
const IDLE_AFTER: Duration = Duration::from_millis(700);

/// Maximum bytes of a read, normally and when the disk of the spool is nearly full.
const READ_BYTES: usize = 16 << 10;
const READ_BYTES_MIN: usize = 512;
/// Maximum bytes that are read and not passed on: no line, record or array element is longer.
const HELD_BYTES_MAX: usize = 1 << 20;

/// Coordinates the thread that reads a pipe with the thread that stops it.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    state: Mutex<State>,
    changed: Condvar,
    /// Counts the flows that were passed on.
    passed: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    is_stopped: bool,
    /// The reader has passed on everything that it read.
    has_ended: bool,
}

impl Drain {
    /// Makes every later read fail.
    pub(crate) fn stop(&self) {
        self.state.lock().is_stopped = true;
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state.lock().is_stopped
    }

    /// Waits at most `time_max` until the reader has passed on everything that it read.
    pub(crate) fn wait(&self, time_max: Duration) {
        let mut state = self.state.lock();
        let _in_any_case =
            self.changed
                .wait_while_for(&mut state, |state| !state.has_ended, time_max);
    }

    /// Counts a flow that the reader has passed on.
    pub(crate) fn pass(&self) {
        self.passed.fetch_add(1, Ordering::Relaxed);
    }

    /// Marks the reader as ended; it holds no flows.
    pub(crate) fn end(&self) {
        self.state.lock().has_ended = true;
        self.changed.notify_all();
    }
}

/// A pipe that can be stopped: unread input stays in it. After a second without input, a read fails once with [`Idle`].
#[derive(Debug)]
pub(crate) struct Drained {
    input: File,
    drain: Arc<Drain>,
    /// Receives the flows. If it has failed, reading stops.
    sender: Weak<Sender>,
    /// [`Idle`] was reported, and no input has arrived since.
    is_idle: bool,
    /// Upper bound of the bytes that are read and not passed on, without those of the last read.
    held: usize,
    last_read: usize,
    /// Flows that were passed on before the last read.
    passed: u64,
}

impl Drained {
    /// `held`: the bytes that come before this input.
    pub(crate) fn new(
        input: File,
        drain: Arc<Drain>,
        sender: Weak<Sender>,
        held: usize,
    ) -> Drained {
        Drained {
            input,
            drain,
            sender,
            is_idle: false,
            held,
            last_read: held,
            passed: 0,
        }
    }

    /// Waits for room for the next read. Returns the maximum bytes of that read.
    fn wait_for_room(&mut self) -> io::Result<usize> {
        let passed = self.drain.passed.load(Ordering::Relaxed);
        if passed != self.passed {
            self.passed = passed;
            // Only the end of the last read may be left.
            self.held = self.last_read.min(READ_BYTES);
        }
        let held = self.held.min(HELD_BYTES_MAX);
        match self.sender.upgrade() {
            Some(sender) => sender
                .wait_for_read(held, [READ_BYTES, READ_BYTES_MIN])
                .map_err(io::Error::other),
            None => Ok(READ_BYTES),
        }
    }
}

impl Read for Drained {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let most = self.wait_for_room()?;
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
            if !self.is_idle && since.elapsed() >= IDLE_AFTER {
                self.is_idle = true;
                return Err(io::Error::other(Idle));
            }
        }
        self.is_idle = false;
        let most = bytes.len().min(most);
        let read = self.input.read(&mut bytes[..most])?;
        self.held += read;
        // The first reads add up until it is known whether they continue an earlier flow.
        self.last_read = match self.passed {
            0 => self.last_read + read,
            _ => read,
        };
        if let Some(sender) = self.sender.upgrade() {
            sender.record_read();
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::OwnedFd;

    /// No matter when the pipe is stopped, the input that was read and the input that is left are everything
    /// that was written.
    #[test]
    fn nothing_that_was_read_is_lost() {
        const BYTES: usize = 1 << 20;
        for micros in (0..2000).step_by(40) {
            let drain = Arc::new(Drain::default());
            let (reader, mut writer) = io::pipe().unwrap();
            let mut rest = reader.try_clone().unwrap();
            let mut input =
                Drained::new(OwnedFd::from(reader).into(), drain.clone(), Weak::new(), 0);
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
            // Stops at many moments; the assertions are the same for each.
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
