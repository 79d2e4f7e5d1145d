//! Which connections there are, which requests are under way on them, and which connection goes when
//! there is no place for a new one.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

/// A connection without a request is not let go before that: its first may be on the way.
const QUIET_MIN: Duration = Duration::from_secs(1);
/// Pause between two looks for one that can go.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// All connections. There is a bound on how many.
#[derive(Debug)]
pub(super) struct Connections {
    places: Arc<Semaphore>,
    /// In the order in which they came.
    open: Mutex<BTreeMap<u64, Weak<Connection>>>,
    next: AtomicU64,
}

/// One connection, for as long as it or a request on it lives.
#[derive(Debug)]
pub(super) struct Connection {
    all: Arc<Connections>,
    number: u64,
    activity: Mutex<Activity>,
    let_go: Notify,
}

#[derive(Debug)]
struct Activity {
    /// Requests under way.
    requests: usize,
    /// When the last one ended, or the connection began.
    since: Instant,
}

/// A request under way, its streamed answer included, until this is dropped.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Connection>);

/// What is known of the other end of a request.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// It has shown a certificate of the client CA.
    pub(super) certified: bool,
    /// The request lives as long as this does.
    pub(super) request: Arc<UnderWay>,
}

impl Connections {
    pub(super) fn new(connections_max: usize) -> Arc<Connections> {
        Arc::new(Connections {
            places: Arc::new(Semaphore::new(connections_max)),
            open: Mutex::default(),
            next: AtomicU64::new(0),
        })
    }

    /// Waits for a place. Where all are taken, the connection goes that has been without a request for
    /// longest, also one that has begun to send a head and does not end it.
    pub(super) async fn find_place(&self) -> Option<OwnedSemaphorePermit> {
        loop {
            if let Ok(place) = self.places.clone().try_acquire_owned() {
                return Some(place);
            }
            self.let_go_quietest();
            let place = self.places.clone().acquire_owned();
            if let Ok(place) = tokio::time::timeout(LOOK_PAUSE, place).await {
                return place.ok();
            }
        }
    }

    pub(super) fn open(self: &Arc<Connections>) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            all: self.clone(),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            activity: Mutex::new(Activity {
                requests: 0,
                since: Instant::now(),
            }),
            let_go: Notify::new(),
        });
        lock(&self.open).insert(connection.number, Arc::downgrade(&connection));
        connection
    }

    pub(super) fn requests_under_way(&self) -> usize {
        let count = |connection: Arc<Connection>| lock(&connection.activity).requests;
        self.all().into_iter().map(count).sum()
    }

    fn let_go_quietest(&self) {
        let quiet = self.all().into_iter().filter_map(|connection| {
            let activity = lock(&connection.activity);
            let (requests, since) = (activity.requests, activity.since);
            drop(activity);
            (requests == 0 && since.elapsed() >= QUIET_MIN).then_some((since, connection))
        });
        if let Some((_, connection)) = quiet.min_by_key(|(since, _)| *since) {
            connection.let_go.notify_one();
        }
    }

    /// Not under the lock: the last owner of a connection takes it off the list.
    fn all(&self) -> Vec<Arc<Connection>> {
        lock(&self.open)
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

impl Connection {
    /// Begins a request.
    pub(super) fn begin(self: &Arc<Connection>) -> UnderWay {
        lock(&self.activity).requests += 1;
        UnderWay(self.clone())
    }

    /// Resolves when another needs the place.
    pub(super) async fn let_go(&self) {
        loop {
            self.let_go.notified().await;
            // One that has come meanwhile is not broken off.
            if lock(&self.activity).requests == 0 {
                return;
            }
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.all.open).remove(&self.number);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut activity = lock(&self.0.activity);
        activity.requests -= 1;
        activity.since = Instant::now();
    }
}

/// Every change is complete before a lock is let go.
fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_quietest_makes_room() {
        let all = Connections::new(3);
        let (busy, first, second) = (all.open(), all.open(), all.open());
        let mut places = Vec::new();
        for _ in 0..3 {
            places.push(all.find_place().await.unwrap());
        }
        let request = busy.begin();
        lock(&busy.activity).since -= QUIET_MIN * 4;
        assert_eq!(all.requests_under_way(), 1);
        let found = tokio::spawn({
            let all = all.clone();
            async move { all.find_place().await }
        });
        // Nobody has been quiet for long enough.
        tokio::time::sleep(LOOK_PAUSE * 3).await;
        assert!(!found.is_finished());
        lock(&first.activity).since -= QUIET_MIN * 2;
        lock(&second.activity).since -= QUIET_MIN * 3;
        second.let_go().await;
        places.pop();
        assert!(found.await.unwrap().is_some());
        drop((second, request));
        assert_eq!((all.all().len(), all.requests_under_way()), (2, 0));
    }
}
