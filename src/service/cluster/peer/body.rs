//! The body of a peer's response, for a thread that may block.

use std::error::Error;
use std::io::{self, BufRead, Read};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::client::chain;
use crate::query::{QueryError, deadline_after};

/// A body that is received on demand: while it is not read, at most two chunks are in memory, and the peer has to wait.
/// Dropping it before its end closes the connection, so that the peer stops its scan.
#[derive(Debug)]
pub(super) struct PeerBody<B = Incoming> {
    /// The node that sends it, for errors.
    url: String,
    body: B,
    /// The chunk that was received and not read yet.
    chunk: Bytes,
    runtime: Handle,
    limits: ReadLimits,
}

/// Limits on the wait for a peer.
#[derive(Clone, Debug)]
pub(super) struct ReadLimits {
    /// Longest wait for a chunk.
    pub(super) stall_max: Duration,
    /// Deadline of the chunk of the response that is being produced.
    pub(super) deadline: Option<Instant>,
    pub(super) cancel: CancellationToken,
}

impl ReadLimits {
    /// The end of a wait that starts now.
    fn give_up(&self) -> Option<Instant> {
        let stalled = deadline_after(self.stall_max);
        [stalled, self.deadline].into_iter().flatten().min()
    }
}

impl<B> PeerBody<B> {
    /// Has to be called on the runtime.
    pub(super) fn new(url: &str, body: B, limits: ReadLimits) -> PeerBody<B> {
        PeerBody {
            url: url.to_owned(),
            body,
            chunk: Bytes::new(),
            runtime: Handle::current(),
            limits,
        }
    }

    pub(super) fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.limits.deadline = deadline;
    }

    /// The error of a failed read.
    pub(super) fn query_error(&self, error: io::Error) -> QueryError {
        error.downcast().unwrap_or_else(|error| {
            QueryError::Peer(format!("the response of {} ended early: {error}", self.url))
        })
    }
}

impl<B> PeerBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// The next chunk, which is not empty; `None` at the end.
    async fn receive(&mut self) -> io::Result<Option<Bytes>> {
        let (start, give_up) = (Instant::now(), self.limits.give_up());
        let body = &mut self.body;
        let timeout = async {
            match give_up {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let chunk = async {
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|error| io::Error::other(chain(&*error.into())))?;
                match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Ok(Some(data)),
                    _ => {}
                }
            }
            Ok(None)
        };
        tokio::select! {
            biased;
            () = self.limits.cancel.cancelled() => Err(io::Error::other(QueryError::Cancelled)),
            chunk = chunk => chunk,
            () = timeout => {
                let why = format!("nothing has arrived for {} s", start.elapsed().as_secs());
                Err(io::Error::new(io::ErrorKind::TimedOut, why))
            }
        }
    }
}

impl<B> BufRead for PeerBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.chunk.is_empty() {
            let runtime = self.runtime.clone();
            self.chunk = runtime.block_on(self.receive())?.unwrap_or_default();
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, bytes: usize) {
        self.chunk.advance(bytes);
    }
}

impl<B> Read for PeerBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.fill_buf()?.read(into)?;
        self.consume(bytes);
        Ok(bytes)
    }

    /// For the usual case, in which one chunk has all of it.
    #[inline]
    fn read_exact(&mut self, mut into: &mut [u8]) -> io::Result<()> {
        if let Some(bytes) = self.chunk.get(..into.len()) {
            into.copy_from_slice(bytes);
            self.chunk.advance(into.len());
            return Ok(());
        }
        while !into.is_empty() {
            match self.read(into)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                bytes => into = &mut into[bytes..],
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::convert::Infallible;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use http_body_util::Full;
    use hyper::body::Frame;
    use tokio::runtime::{Builder, Runtime};

    use super::*;

    fn runtime() -> Runtime {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(1).enable_all().build().unwrap()
    }

    fn limits() -> ReadLimits {
        ReadLimits {
            stall_max: Duration::MAX,
            deadline: None,
            cancel: CancellationToken::new(),
        }
    }

    /// A body of these bytes from the node `b`, and the runtime that it needs.
    pub(in super::super) fn body_of(bytes: &[u8]) -> (Runtime, PeerBody<Full<Bytes>>) {
        let runtime = Builder::new_current_thread().enable_time().build().unwrap();
        let body = {
            let _on_the_runtime = runtime.enter();
            PeerBody::new("b", Full::new(Bytes::copy_from_slice(bytes)), limits())
        };
        (runtime, body)
    }

    /// Sends one chunk, and then nothing more.
    #[derive(Debug)]
    struct Stalled(Option<Bytes>);

    impl Body for Stalled {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            let chunk = self.0.take();
            chunk.map_or(Poll::Pending, |chunk| {
                Poll::Ready(Some(Ok(Frame::data(chunk))))
            })
        }
    }

    /// The error of a stalled body; `stalled` is called before the wait.
    fn error_of(limits: ReadLimits, stalled: impl FnOnce()) -> QueryError {
        let runtime = runtime();
        let _on_the_runtime = runtime.enter();
        let mut body = PeerBody::new("b", Stalled(Some("x".into())), limits);
        let mut first = [0];
        body.read_exact(&mut first).unwrap();
        assert_eq!(first, [b'x']);
        stalled();
        let error = body.fill_buf().unwrap_err();
        body.query_error(error)
    }

    #[test]
    fn a_peer_that_stalls_is_an_error_of_that_peer() {
        let short = Duration::from_millis(50);
        let stalled = ReadLimits {
            stall_max: short,
            ..limits()
        };
        let late = ReadLimits {
            deadline: Some(Instant::now() + short),
            ..limits()
        };
        for limits in [stalled, late] {
            let error = error_of(limits, || ()).to_string();
            assert!(error.contains("response of b"), "{error}");
            assert!(error.contains("nothing has arrived"), "{error}");
        }
    }

    #[test]
    fn cancellation_ends_a_wait() {
        let limits = limits();
        let cancel = limits.cancel.clone();
        let error = error_of(limits, || {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(50));
                cancel.cancel();
            });
        });
        assert!(matches!(error, QueryError::Cancelled), "{error}");
    }
}
