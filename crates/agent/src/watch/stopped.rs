//! Sockets without a connection that have ended: each of them may have listened.

use std::collections::HashMap;

/// Sockets between two looks. If there are more, nobody knows which they were.
const STOPPED_MAX: usize = 10_000;

/// The sockets that may have stopped listening since the last look.
#[derive(Debug, Default)]
pub(super) struct StoppedListeners {
    /// By port.
    sockets: HashMap<u16, Vec<Stopped>>,
    count: usize,
    lost_until: Option<u64>,
}

/// A socket that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stopped {
    pub(super) cookie: u64,
    /// It had ended at this time.
    pub(super) at: u64,
}

impl StoppedListeners {
    /// Adds a socket that had ended at this time.
    pub(super) fn add(&mut self, port: u16, cookie: u64, at: u64) {
        if port == 0 {
            return;
        }
        if self.count >= STOPPED_MAX {
            self.lose(at);
            return;
        }
        self.count += 1;
        let sockets = self.sockets.entry(port).or_default();
        sockets.push(Stopped { cookie, at });
    }

    /// Others may have ended before this time: messages about them were lost.
    pub(super) fn lose(&mut self, until: u64) {
        self.lost_until = self.lost_until.max(Some(until));
    }

    pub(super) fn of_port(&self, port: u16) -> &[Stopped] {
        let sockets = self.sockets.get(&port);
        sockets.map(Vec::as_slice).unwrap_or_default()
    }

    /// Others may have ended before this time.
    pub(super) fn lost_until(&self) -> Option<u64> {
        self.lost_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_lost() {
        let mut stopped = StoppedListeners::default();
        stopped.add(0, 1, 5);
        for cookie in 0..STOPPED_MAX as u64 {
            stopped.add(80, cookie, 10);
        }
        assert_eq!(stopped.lost_until(), None);
        assert_eq!(stopped.of_port(80).len(), STOPPED_MAX);
        assert!(stopped.of_port(0).is_empty() && stopped.of_port(81).is_empty());
        stopped.add(81, 7, 20);
        stopped.lose(15);
        assert_eq!(stopped.lost_until(), Some(20));
        assert!(stopped.of_port(81).is_empty());
    }
}
