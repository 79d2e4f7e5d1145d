//! The open connections, their requests, and the choice of a connection to evict when there are too many.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::long_target::TargetTail;
use super::socket::Socket;
use crate::ingest::Admission;
use crate::telemetry::Metrics;

/// A connection is idle for at least this long before it is evicted, since its first request may be in flight.
const IDLE_MIN: Duration = Duration::from_secs(1);
/// While others wait for a response, a client has to read its own at this rate.
const BYTES_PER_S_MIN: usize = 64 << 10;
/// Longest pause of a client in reading. Reading faster than required earns at most this much credit, too.
const READ_STALL_MAX: Duration = Duration::from_secs(20);
/// Memory for [long targets](super::long_target) of all connections.
const LONG_TARGETS_KIB_MAX: usize = 2 << 10;
/// Interval between attempts to evict a connection.
const EVICT_INTERVAL: Duration = Duration::from_millis(100);

/// All open connections. Their number is bounded.
#[derive(Debug)]
pub(super) struct Connections {
    slots: Arc<Semaphore>,
    admission: Admission,
    metrics: Metrics,
    /// In the order of acceptance.
    open: Mutex<BTreeMap<u64, Weak<Connection>>>,
    next: AtomicU64,
    /// Memory for long targets, in KiB.
    long_targets: Arc<Semaphore>,
}

/// A connection. It lives as long as its socket and its requests.
#[derive(Debug)]
pub(super) struct Connection {
    all: Arc<Connections>,
    number: u64,
    /// `None` in some tests.
    socket: Option<Socket>,
    activity: Mutex<Activity>,
    /// Notified when the connection is to be closed, unless a request has started.
    evict: Notify,
    /// Cancelled when the connection is to be closed even in the middle of a response.
    abort: CancellationToken,
}

/// A download of a backup's file. It ends with its connection, or when the next request starts: until then, the client
/// may still be reading the file.
pub(super) struct Download(Box<dyn FnOnce(Instant) + Send>);

impl Download {
    /// `end` gets the time of the client's last read.
    pub(super) fn new(end: impl FnOnce(Instant) + Send + 'static) -> Download {
        Download(Box::new(end))
    }
}

impl fmt::Debug for Download {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Download")
    }
}

#[derive(Debug)]
struct Activity {
    /// Requests in progress.
    requests: usize,
    /// Requests that have started.
    started: u64,
    /// The tail of the target of the request that is arriving.
    target_tail: Option<TargetTail>,
    /// When the last request ended, or else when the connection was opened.
    idle_since: Instant,
    /// The time since which the client has read nothing, although more data is waiting.
    stalled_since: Option<Instant>,
    /// Until this time, the client's reading counts as fast enough.
    fast_until: Instant,
    download: Option<Download>,
}

impl Activity {
    fn end_download(&mut self) {
        if let Some(download) = self.download.take() {
            (download.0)(self.stalled_since.unwrap_or_else(Instant::now));
        }
    }

    /// Whether a response waits for its client, which reads more slowly than [`BYTES_PER_S_MIN`].
    fn is_slow(&self) -> bool {
        self.stalled_since.is_some() && self.fast_until <= Instant::now()
    }

    /// Whether a request is in progress, or its response has not been read yet.
    fn is_busy(&self) -> bool {
        self.requests > 0 || self.stalled_since.is_some()
    }
}

/// Marks a request as in progress until it is dropped: after the last write of its streamed response.
#[derive(Debug)]
pub(super) struct RequestGuard(Arc<Connection>);

impl Connections {
    /// `admission` learns when a connection waits for a slot.
    pub(super) fn new(
        connections_max: usize,
        admission: Admission,
        metrics: Metrics,
    ) -> Arc<Connections> {
        Arc::new(Connections {
            slots: Arc::new(Semaphore::new(connections_max)),
            admission,
            metrics,
            open: Mutex::default(),
            next: AtomicU64::new(0),
            long_targets: Arc::new(Semaphore::new(LONG_TARGETS_KIB_MAX)),
        })
    }

    /// Waits for a slot. If all are taken, evicts the connection that has been without a request for longest, even if
    /// it has sent a part of a head; if there is none, aborts the slowest response. Meanwhile admission refuses bodies
    /// that arrive too slowly.
    pub(super) async fn acquire_slot(&self) -> Option<OwnedSemaphorePermit> {
        if let Ok(slot) = self.slots.clone().try_acquire_owned() {
            return Some(slot);
        }
        let _waits = self.admission.count_waiting_connection();
        loop {
            if !self.evict_most_idle() {
                self.abort_slowest();
            }
            let slot = self.slots.clone().acquire_owned();
            if let Ok(slot) = tokio::time::timeout(EVICT_INTERVAL, slot).await {
                return slot.ok();
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
                started: 0,
                target_tail: None,
                idle_since: Instant::now(),
                stalled_since: None,
                fast_until: Instant::now() + READ_STALL_MAX,
                download: None,
            }),
            evict: Notify::new(),
            abort: CancellationToken::new(),
        });
        self.open
            .lock()
            .insert(connection.number, Arc::downgrade(&connection));
        self.metrics.http().connections.inc();
        connection
    }

    pub(super) fn requests_in_progress(&self) -> usize {
        self.count(Activity::is_busy)
    }

    /// Number of requests in progress whose responses wait for their clients.
    pub(super) fn waiting_responses(&self) -> usize {
        self.count(|activity| activity.stalled_since.is_some())
    }

    fn count(&self, counts: impl Fn(&Activity) -> bool) -> usize {
        let counts = |connection: &&Arc<Connection>| counts(&connection.activity.lock());
        self.all().iter().filter(counts).count()
    }

    fn evict_most_idle(&self) -> bool {
        let most_idle = self.oldest(IDLE_MIN, |activity| {
            (!activity.is_busy()).then_some(activity.idle_since)
        });
        most_idle
            .inspect(|connection| connection.evict.notify_one())
            .is_some()
    }

    /// Aborts the response that has been read too slowly for longest, so that others can proceed.
    pub(super) fn abort_slowest(&self) {
        let slowest = self.oldest(Duration::ZERO, |activity| {
            activity.is_slow().then_some(activity.fast_until)
        });
        if let Some(connection) = slowest {
            connection.abort.cancel();
        }
    }

    /// Aborts all downloads of backups, since a shutdown does not wait for them.
    pub(super) fn abort_downloads(&self) {
        for connection in self.all() {
            if connection.activity.lock().download.is_some() {
                connection.abort.cancel();
            }
        }
    }

    /// The connection with the earliest time by `since`, if that is at least `min` ago.
    fn oldest(
        &self,
        min: Duration,
        since: impl Fn(&Activity) -> Option<Instant>,
    ) -> Option<Arc<Connection>> {
        let all = self.all().into_iter().filter_map(|connection| {
            let since = since(&connection.activity.lock())?;
            (since.elapsed() >= min).then_some((since, connection))
        });
        all.min_by_key(|(since, _)| *since)
            .map(|(_, connection)| connection)
    }

    /// Copied because dropping the last reference to a connection locks the list to remove it.
    fn all(&self) -> Vec<Arc<Connection>> {
        self.open
            .lock()
            .values()
            .filter_map(Weak::upgrade)
            .collect()
    }
}

impl Connection {
    /// Starts a request.
    pub(super) fn start_request(self: &Arc<Connection>) -> RequestGuard {
        let mut activity = self.activity.lock();
        activity.requests += 1;
        activity.started += 1;
        activity.fast_until = Instant::now() + READ_STALL_MAX;
        activity.end_download();
        RequestGuard(self.clone())
    }

    /// Number of requests that have started, if none is in progress.
    pub(super) fn requests_started_if_idle(&self) -> Option<u64> {
        let activity = self.activity.lock();
        (activity.requests == 0).then_some(activity.started)
    }

    /// Reserves memory for a long target, if there is enough.
    pub(super) fn try_acquire_memory(&self, kib: usize) -> Option<OwnedSemaphorePermit> {
        let kib = u32::try_from(kib).ok()?;
        let memory = self.all.long_targets.clone().try_acquire_many_owned(kib);
        memory.ok()
    }

    /// Keeps the tail of a target until its request starts.
    pub(super) fn set_target_tail(&self, rest: TargetTail) {
        self.activity.lock().target_tail = Some(rest);
    }

    /// Takes the kept tail of the request's target.
    pub(super) fn take_target_tail(&self) -> Option<TargetTail> {
        self.activity.lock().target_tail.take()
    }

    /// Counts a request that was refused before it started.
    pub(super) fn count_refused(&self, reason: &str) {
        let metrics = self.all.metrics.http();
        metrics.rejected.with_label_values(&[reason]).inc();
    }

    /// Reads and discards what the client still sends, for a limited time. If the connection were closed immediately,
    /// the client would get a reset, and might not read the response.
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

    /// Resolves when the connection has to be closed.
    pub(super) async fn evicted(&self) {
        loop {
            tokio::select! {
                () = self.abort.cancelled() => return,
                () = self.evict.notified() => {}
            }
            // A request that has started meanwhile is not interrupted.
            if !self.activity.lock().is_busy() {
                return;
            }
        }
    }

    /// Wraps `stream` to track whether the client reads the bytes that are written to it.
    pub(super) fn wrap_stream<S>(self: &Arc<Connection>, stream: S) -> WatchedStream<S> {
        WatchedStream {
            stream,
            connection: self.clone(),
        }
    }

    fn record_write(&self, written: &Poll<io::Result<usize>>) {
        let now = Instant::now();
        let mut activity = self.activity.lock();
        match written {
            Poll::Pending => {
                activity.stalled_since.get_or_insert(now);
            }
            Poll::Ready(Ok(bytes)) => {
                let time = Duration::from_secs_f64(*bytes as f64 / BYTES_PER_S_MIN as f64);
                activity.fast_until =
                    (activity.fast_until.max(now) + time).min(now + READ_STALL_MAX);
                if activity.stalled_since.take().is_some() {
                    activity.idle_since = now;
                }
            }
            // After an error, the client can read nothing more.
            Poll::Ready(Err(_)) => {}
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.activity.lock().end_download();
        self.all.open.lock().remove(&self.number);
        self.all.metrics.http().connections.dec();
    }
}

impl Drop for RequestGuard {
    fn drop(&mut self) {
        let mut activity = self.0.activity.lock();
        activity.requests -= 1;
        activity.idle_since = Instant::now();
    }
}

impl RequestGuard {
    /// Cancelling it aborts the connection. It does not keep the request in progress.
    pub(super) fn abort_token(&self) -> CancellationToken {
        self.0.abort.clone()
    }

    /// Resolves when the client has disconnected.
    pub(super) async fn disconnected(&self) {
        match &self.0.socket {
            Some(socket) => socket.disconnected().await,
            None => std::future::pending().await,
        }
    }

    /// Records that the response is a backup's file.
    pub(super) fn set_download(&self, download: Download) {
        self.0.activity.lock().download = Some(download);
    }

    /// All connections.
    pub(super) fn connections(&self) -> &Connections {
        &self.0.all
    }
}

/// See [`Connection::wrap_stream`].
#[derive(Debug)]
pub(super) struct WatchedStream<S> {
    stream: S,
    connection: Arc<Connection>,
}

impl<S: AsyncRead + Unpin> AsyncRead for WatchedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WatchedStream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.connection.record_write(&written);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.connection.record_write(&written);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_most_idle_connection_is_evicted() {
        let admission = Admission::new(1 << 20, 1 << 16, Duration::from_secs(1));
        let all = Connections::new(3, admission, Metrics::default());
        let (busy, first, second) = (all.open(None), all.open(None), all.open(None));
        let mut slots = Vec::new();
        for _ in 0..3 {
            slots.push(all.acquire_slot().await.unwrap());
        }
        let request = busy.start_request();
        busy.activity.lock().idle_since -= IDLE_MIN * 4;
        assert_eq!(all.requests_in_progress(), 1);
        let found = tokio::spawn({
            let all = all.clone();
            async move { all.acquire_slot().await }
        });
        // No connection has been idle for long enough.
        tokio::time::sleep(EVICT_INTERVAL * 3).await;
        assert!(!found.is_finished());
        first.activity.lock().idle_since -= IDLE_MIN * 2;
        second.activity.lock().idle_since -= IDLE_MIN * 3;
        second.evicted().await;
        slots.pop();
        assert!(found.await.unwrap().is_some());
        drop((second, request));
        assert_eq!((all.all().len(), all.requests_in_progress()), (2, 0));
    }

    /// A response that the client has not read yet is in progress, although its request has ended.
    #[tokio::test]
    async fn an_unread_response_is_in_progress() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let admission = Admission::new(1 << 20, 1 << 16, Duration::from_secs(1));
        let all = Connections::new(3, admission, Metrics::default());
        let connection = all.open(None);
        let (mut client, server) = tokio::io::duplex(100);
        let mut server = connection.wrap_stream(server);
        let writing = tokio::spawn(async move { server.write_all(&[0; 150]).await });
        while all.requests_in_progress() == 0 {
            tokio::task::yield_now().await;
        }
        connection.activity.lock().idle_since -= IDLE_MIN * 2;
        assert!(!all.evict_most_idle());
        client.read_exact(&mut [0; 150]).await.unwrap();
        writing.await.unwrap().unwrap();
        assert_eq!(all.requests_in_progress(), 0);
    }
}
