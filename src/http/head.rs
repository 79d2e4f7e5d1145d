//! Adds to hyper what it lacks for request heads: it accepts [long targets](super::long_target), and explains why it
//! refuses a head. It sits between hyper and a connection's bytes.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::connections::Connection;
use super::error::Problem;
use super::long_target::{Cut, Cutter, Dropped, TargetTail};

const KIB: usize = 1 << 10;

/// A connection's byte stream, as hyper sees it.
#[derive(Debug)]
pub(super) struct Heads<S> {
    stream: S,
    connection: Arc<Connection>,
    /// Reads the arriving head.
    cutter: Option<Cutter>,
    /// Number of requests that had started when the last head began to arrive.
    started: Option<u64>,
    /// Memory for the tail of a long target, as far as it has arrived.
    memory: Option<OwnedSemaphorePermit>,
    /// A response that is sent instead of hyper's.
    refusal: Option<Refusal>,
}

/// A response that is being written.
#[derive(Debug)]
struct Refusal {
    response: Vec<u8>,
    written: usize,
    /// Length of hyper's response, which it replaces.
    replaced_bytes: usize,
}

impl<S> Heads<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>) -> Heads<S> {
        Heads {
            stream,
            connection,
            cutter: None,
            started: None,
            memory: None,
            refusal: None,
        }
    }

    /// The cutter, if a head is arriving: when no request is in progress, the next bytes are a head.
    fn reads_head(&mut self) -> Option<&mut Cutter> {
        if self.cutter.is_none() {
            let started = self.connection.requests_started_if_idle();
            if started.is_some() && started != self.started {
                self.started = started;
                self.cutter = Some(Cutter::default());
            }
        }
        self.cutter.as_mut()
    }
}

impl<S> Heads<S> {
    /// Reserves memory for the tail of the target; if there is none, discards the tail. One read is ahead of the
    /// reservation.
    fn acquire_tail_memory(&mut self) {
        let Some(cutter) = &mut self.cutter else {
            return;
        };
        let has = self.memory.as_ref().map_or(0, |m| m.num_permits());
        let missing = cutter.kept_bytes().div_ceil(KIB).saturating_sub(has);
        if missing == 0 {
            return;
        }
        match (
            self.connection.try_acquire_memory(missing),
            &mut self.memory,
        ) {
            (Some(more), Some(memory)) => memory.merge(more),
            (Some(more), none) => *none = Some(more),
            (None, memory) => {
                *memory = None;
                cutter.discard(Dropped::NoMemory);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Heads<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let before = buffer.filled().len();
        loop {
            ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
            let read = &mut buffer.filled_mut()[before..];
            if read.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let Some(cutter) = this.reads_head() else {
                return Poll::Ready(Ok(()));
            };
            let (left, cut) = cutter.cut(read);
            buffer.set_filled(before + left);
            match cut {
                Cut::Incomplete => this.acquire_tail_memory(),
                Cut::Done(rest) => {
                    this.cutter = None;
                    let memory = this.memory.take();
                    if let Some(rest) = rest {
                        this.connection
                            .set_target_tail(TargetTail::kept(rest, memory));
                    }
                }
                Cut::Dropped(why) => {
                    this.cutter = None;
                    this.connection.set_target_tail(TargetTail::Dropped(why));
                }
                Cut::Unbounded => {
                    let what = "the target of a request does not end";
                    return Poll::Ready(Err(io::Error::other(what)));
                }
            }
            // A read of no bytes would mean the end of the stream.
            if left > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl Refusal {
    /// The problem to send instead of `response`, if hyper generated that: then it has no body.
    fn problem_for_hyper_response(response: &[u8]) -> Option<Problem> {
        let status = response.strip_prefix(b"HTTP/1.")?.get(2..5)?;
        let problem = match status {
            b"400" => Problem::BadHead,
            b"414" => Problem::TargetTooLong,
            b"431" => Problem::HeadTooLarge,
            _ => return None,
        };
        let text = std::str::from_utf8(response).ok()?;
        let is_empty = text.contains("\r\ncontent-length: 0\r\n");
        is_empty.then_some(problem)
    }
}

impl<S: AsyncWrite + Unpin> Heads<S> {
    /// Writes a response in place of hyper's. Returns `None` if `bytes` are not to be replaced.
    fn poll_refusal(
        &mut self,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Option<Poll<io::Result<usize>>> {
        if self.refusal.is_none() {
            let problem = Refusal::problem_for_hyper_response(bytes)?;
            self.connection.count_refused(problem.name());
            self.refusal = Some(Refusal {
                response: problem.into_bytes(),
                written: 0,
                replaced_bytes: bytes.len(),
            });
        }
        let refusal = self.refusal.as_mut()?;
        while refusal.written < refusal.response.len() {
            let rest = &refusal.response[refusal.written..];
            match Pin::new(&mut self.stream).poll_write(context, rest) {
                Poll::Ready(Ok(0)) => {
                    return Some(Poll::Ready(Err(io::ErrorKind::WriteZero.into())));
                }
                Poll::Ready(Ok(bytes)) => refusal.written += bytes,
                other => return Some(other),
            }
        }
        let replaced = refusal.replaced_bytes;
        self.refusal = None;
        Some(Poll::Ready(Ok(replaced)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Heads<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.poll_refusal(context, bytes) {
            Some(refused) => refused,
            None => Pin::new(&mut self.stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let first = slices.first().map_or(&[][..], |slice| slice);
        match self.poll_refusal(context, first) {
            Some(refused) => refused,
            None => Pin::new(&mut self.stream).poll_write_vectored(context, slices),
        }
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
