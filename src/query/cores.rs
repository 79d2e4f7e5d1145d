//! Lets a query use extra threads while cores are idle.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::available_parallelism;

/// The cores of the machine, and the extra threads that queries use.
#[derive(Debug)]
pub(super) struct Cores {
    all: usize,
    in_use: AtomicUsize,
}

impl Cores {
    pub(super) fn of_machine() -> Arc<Cores> {
        Cores::new(available_parallelism().map_or(1, NonZeroUsize::get))
    }

    fn new(all: usize) -> Arc<Cores> {
        Arc::new(Cores {
            all,
            in_use: AtomicUsize::new(0),
        })
    }

    /// The idle threads that a query may use in addition to its own. The extra threads of all queries and one more are
    /// at most as many as there are cores, or half as many while flows come in.
    pub(super) fn extra(self: &Arc<Cores>, is_ingesting: bool) -> ExtraThreads {
        let usable = if is_ingesting { self.all / 2 } else { self.all };
        let free = |in_use: usize| usable.saturating_sub(1).saturating_sub(in_use);
        let (success, failure) = (Ordering::Relaxed, Ordering::Relaxed);
        let taken =
            (self.in_use).fetch_update(success, failure, |in_use| Some(in_use + free(in_use)));
        ExtraThreads {
            cores: self.clone(),
            count: taken.map_or(0, free),
        }
    }
}

/// A number of extra threads, given back on drop.
#[derive(Debug)]
pub(super) struct ExtraThreads {
    cores: Arc<Cores>,
    count: usize,
}

impl ExtraThreads {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Gives back all but `count`.
    pub(super) fn shrink_to(&mut self, count: usize) {
        let back = self.count.saturating_sub(count);
        self.count -= back;
        self.cores.in_use.fetch_sub(back, Ordering::Relaxed);
    }
}

impl Drop for ExtraThreads {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_share_the_cores() {
        let cores = Cores::new(8);
        let mut first = cores.extra(false);
        assert_eq!(first.count(), 7);
        assert_eq!(cores.extra(false).count(), 0);
        first.shrink_to(2);
        let second = cores.extra(true);
        assert_eq!(second.count(), 1);
        let third = cores.extra(false);
        assert_eq!(third.count(), 4);
        drop((first, second, third));
        assert_eq!(cores.extra(true).count(), 3);
        assert_eq!(Cores::new(2).extra(true).count(), 0);
        assert_eq!(Cores::new(1).extra(false).count(), 0);
    }
}
