//! Which connections there are, which requests are under way on them, and which connection goes when
//! there is no place for a new one.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use super::long_target::Rest;
use super::origin::Target;
use super::socket::Socket;
use crate::backup::InUse;
use crate::ingest::Admission;
use crate::telemetry::Metrics;

/// A connection without a request is not let go before that: its first may be on the way.
const QUIET_MIN: Duration = Duration::from_secs(1);
/// While others are not answered, a client has to take its answer at this rate.
const BYTES_PER_S_MIN: usize = 64 << 10;
/// How long it may take nothing; what it took faster than it had to makes up for so long, too.
const PAUSE_MAX: Duration = Duration::from_secs(20);
/// Memory for [long targets](super::long_target).
const LONG_TARGETS_KIB_MAX: usize = 2 << 10;
/// Pause between two looks for one that can go.
const LOOK_PAUSE: Duration = Duration::from_millis(100);

/// All connections. There is a bound on how many.
#[derive(Debug)]
pub(super) struct Connections {
    places: Arc<Semaphore>,
    admission: Admission,
    metrics: Metrics,
    /// In the order in which they came.
    open: Mutex<BTreeMap<u64, Weak<Connection>>>,
    next: AtomicU64,
    /// Memory for long targets, in KiB.
    long_targets: Arc<Semaphore>,
}

/// One connection, for as long as it or a request on it lives.
#[derive(Debug)]
pub(super) struct Connection {
    all: Arc<Connections>,
    number: u64,
    /// `None` in tests of what does not need one.
    socket: Option<Socket>,
    activity: Mutex<Activity>,
    let_go: Notify,
    /// The same, in the middle of an answer.
    break_off: Notify,
}

#[derive(Debug)]
struct Activity {
    /// Requests under way.
    requests: usize,
    /// Requests that have begun.
    begun: u64,
    /// Of the target of the request that is coming in.
    rest_of_target: Option<Rest>,
    /// When the last one ended, or the connection began.
    since: Instant,
    /// The client has not taken all that was written, and nothing since then.
    blocked_since: Option<Instant>,
    /// Until then the client has taken its answer fast enough.
    fast_until: Instant,
    /// Of a backup's file, from its request to the next one, or the end: before, the client need not have
    /// all of it.
    download: Option<InUse>,
}

impl Activity {
    fn end_download(&mut self) {
        if let Some(download) = self.download.take() {
            download.end(self.blocked_since.unwrap_or_else(Instant::now));
        }
    }

    /// The client keeps an answer waiting, and takes less of it than [`BYTES_PER_S_MIN`].
    fn is_slow(&self) -> bool {
        self.blocked_since.is_some() && self.fast_until <= Instant::now()
    }

    /// A request is under way, or its answer on the way.
    fn is_busy(&self) -> bool {
        self.requests > 0 || self.blocked_since.is_some()
    }
}

/// A request under way, until this is dropped: its streamed answer included, but for what is written and
/// not taken yet.
#[derive(Debug)]
pub(super) struct UnderWay(Arc<Connection>);

/// What is known of the other end of a request.
#[derive(Clone, Debug)]
pub(super) struct Peer {
    /// It has shown a certificate of the client CA.
    pub(super) certified: bool,
    pub(super) target: Target,
    /// The request lives as long as this does.
    pub(super) request: Arc<UnderWay>,
}

impl Connections {
    /// `admission` gets to know when one waits for a place.
    pub(super) fn new(
        connections_max: usize,
        admission: Admission,
        metrics: Metrics,
    ) -> Arc<Connections> {
        Arc::new(Connections {
            places: Arc::new(Semaphore::new(connections_max)),
            admission,
            metrics,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            long_targets: Arc::new(Semaphore::new(LONG_TARGETS_KIB_MAX)),
        })
    }

    /// Waits for a place. Where all are taken, the connection goes that has been without a request for
    /// longest, also one that has begun to send a head and does not end it; or a request whose body
    /// arrives too slowly, or whose answer nobody takes.
    pub(super) async fn find_place(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(place) = self.places.clone().try_acquire_owned() {
            return Some(place);
        }
        let _waits = self.admission.waits_for_place();
        loop {
            if !self.let_go_quietest() {
                self.break_off_slowest();
            }
            let place = self.places.clone().acquire_owned();
            if let Ok(place) = tokio::time::timeout(LOOK_PAUSE, place).await {
                return place.ok();
            }
        }
    }

    pub(super) fn open(self: &Arc<Connections>, socket: Option<Socket>) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            all: self.clone(),
            number: self.next.fetch_add(1, Ordering::Relaxed),
            socket,
            activity: Mutex::new(Activity {
                requests: 0,
                begun: 0,
                rest_of_target: None,
                since: Instant::now(),
                blocked_since: None,
                fast_until: Instant::now() + PAUSE_MAX,
                download: None,
            }),
            let_go: Notify::new(),
            break_off: Notify::new(),
        });
        lock(&self.open).insert(connection.number, Arc::downgrade(&connection));
        self.metrics.http().connections.inc();
        connection
    }

    pub(super) fn requests_under_way(&self) -> usize {
        self.count(Activity::is_busy)
    }

    /// How many of them are answers that wait for their clients.
    pub(super) fn waiting_answers(&self) -> usize {
        self.count(|activity| activity.blocked_since.is_some())
    }

    fn count(&self, counts: impl Fn(&Activity) -> bool) -> usize {
        let counts = |connection: &&Arc<Connection>| counts(&lock(&connection.activity));
        self.all().iter().filter(counts).count()
    }

    fn let_go_quietest(&self) -> bool {
        let quietest = self.oldest(QUIET_MIN, |activity| {
            (!activity.is_busy()).then_some(activity.since)
        });
        quietest
            .inspect(|connection| connection.let_go.notify_one())
            .is_some()
    }

    /// Ends the answer that has been taken too slowly for longest, so that others get theirs.
    pub(super) fn break_off_slowest(&self) {
        let slowest = self.oldest(Duration::ZERO, |activity| {
            activity.is_slow().then_some(activity.fast_until)
        });
        if let Some(connection) = slowest {
            connection.break_off.notify_one();
        }
    }

    /// Ends all downloads of backups: a stop does not wait for those.
    pub(super) fn break_off_downloads(&self) {
        for connection in self.all() {
            if lock(&connection.activity).download.is_some() {
                connection.break_off.notify_one();
            }
        }
    }

    /// The connection for which `since` gives the earliest time, where that is at least `min` ago.
    fn oldest(
        &self,
        min: Duration,
        since: impl Fn(&Activity) -> Option<Instant>,
    ) -> Option<Arc<Connection>> {
        let all = self.all().into_iter().filter_map(|connection| {
            let since = since(&lock(&connection.activity))?;
            (since.elapsed() >= min).then_some((since, connection))
        });
        all.min_by_key(|(since, _)| *since)
            .map(|(_, connection)| connection)
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
        let mut activity = lock(&self.activity);
        activity.requests += 1;
        activity.begun += 1;
        activity.fast_until = Instant::now() + PAUSE_MAX;
        activity.end_download();
        UnderWay(self.clone())
    }

    /// How many requests have begun, where none is under way.
    pub(super) fn begun_before_next(&self) -> Option<u64> {
        let activity = lock(&self.activity);
        (activity.requests == 0).then_some(activity.begun)
    }

    /// Memory for so much more of a long target, if there is any.
    pub(super) fn memory_for(&self, kib: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(kib).ok()?;
        let memory = self.all.long_targets.clone().try_acquire_many_owned(kib);
        memory.ok()
    }

    /// Keeps what is left of a target until its request begins.
    pub(super) fn keep(&self, rest: Rest) {
        lock(&self.activity).rest_of_target = Some(rest);
    }

    /// What is kept of the request's target.
    pub(super) fn take_rest(&self) -> Option<Rest> {
        lock(&self.activity).rest_of_target.take()
    }

    /// Counts a request that did not become one.
    pub(super) fn count_refused(&self, reason: &str) {
        let metrics = self.all.metrics.http();
        metrics.rejected.with_label_values(&[reason]).inc();
    }

    /// Reads and forgets what the client still sends, for a moment: closed before that, it would find the
    /// connection broken, and not read the answer.
    pub(super) async fn drain(&self) {
        if let Some(socket) = &self.socket {
            socket.drain().await;
        }
    }

    /// See [`Socket::reset_unless_shut_down`].
    pub(super) fn reset_unless_shut_down(&self) {
        if let Some(socket) = &self.socket {
            socket.reset_unless_shut_down();
        }
    }

    /// Resolves when another needs the place, or a stop breaks it off.
    pub(super) async fn let_go(&self) {
        loop {
            tokio::select! {
                () = self.break_off.notified() => return,
                () = self.let_go.notified() => {}
            }
            // One that has come meanwhile is not broken off.
            if !lock(&self.activity).is_busy() {
                return;
            }
        }
    }

    /// Notes whether the client takes what is written to `stream`.
    pub(super) fn watch<S>(self: &Arc<Connection>, stream: S) -> Watched<S> {
        Watched {
            stream,
            connection: self.clone(),
        }
    }

    fn note_write(&self, written: &Poll<io::Result<usize>>) {
        let now = Instant::now();
        let mut activity = lock(&self.activity);
        match written {
            Poll::Pending => {
                activity.blocked_since.get_or_insert(now);
            }
            Poll::Ready(Ok(bytes)) => {
                let time = Duration::from_secs_f64(*bytes as f64 / BYTES_PER_S_MIN as f64);
                activity.fast_until = (activity.fast_until.max(now) + time).min(now + PAUSE_MAX);
                if activity.blocked_since.take().is_some() {
                    activity.since = now;
                }
            }
            // After an error, nothing more is taken.
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        lock(&self.activity).end_download();
        lock(&self.all.open).remove(&self.number);
        self.all.metrics.http().connections.dec();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut activity = lock(&self.0.activity);
        activity.requests -= 1;
        activity.since = Instant::now();
    }
}

impl UnderWay {
    /// Something that ends the connection in the middle of an answer, and does not keep the request.
    pub(super) fn break_off_later(&self) -> impl FnOnce() + Send + use<> {
        let connection = Arc::downgrade(&self.0);
        move || {
            if let Some(connection) = connection.upgrade() {
                connection.break_off.notify_one();
            }
        }
    }

    /// Resolves when the client is seen to have left; never, where it stays.
    pub(super) async fn left(&self) {
        match &self.0.socket {
            Some(socket) => socket.left().await,
            None => std::future::pending().await,
        }
    }

    /// Notes that the answer is a backup's file.
    pub(super) fn hold(&self, download: InUse) {
        lock(&self.0.activity).download = Some(download);
    }

    /// All connections, this request's among them.
    pub(super) fn connections(&self) -> &Connections {
        &self.0.all
    }
}

/// See [`Connection::watch`].
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    connection: Arc<Connection>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.connection.note_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.connection.note_write(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
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
        let admission = Admission::new(1 << 20, 1 << 16, Duration::from_secs(1));
        let all = Connections::new(3, admission, Metrics::default());
        let (busy, first, second) = (all.open(None), all.open(None), all.open(None));
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

    /// What a client has not taken yet is under way, though its request has ended.
    #[tokio::test]
    async fn an_answer_that_is_not_taken_is_under_way() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let admission = Admission::new(1 << 20, 1 << 16, Duration::from_secs(1));
        let all = Connections::new(3, admission, Metrics::default());
        let connection = all.open(None);
        let (mut client, server) = tokio::io::duplex(100);
        let mut server = connection.watch(server);
        let writing = tokio::spawn(async move { server.write_all(&[0; 150]).await });
        while all.requests_under_way() == 0 {
            tokio::task::yield_now().await;
        }
        lock(&connection.activity).since -= QUIET_MIN * 2;
        assert!(!all.let_go_quietest());
        client.read_exact(&mut [0; 150]).await.unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(all.requests_under_way(), 0);
    }
}
