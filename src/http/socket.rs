//! A connection's socket. It can be observed while it is in use.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

/// A client that has closed its side may still want the response; one that has disconnected looks the same. So the
/// response is sent for this long.
const DISCONNECTED_AFTER: Duration = Duration::from_secs(1);
/// Interval between checks of a socket with unread bytes.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Bytes of a response that the kernel may buffer beyond those in flight to the client.
const UNSENT_BYTES_MAX: u32 = 128 << 10;

/// See [`Socket::drain`].
const DRAIN_STEP_BYTES: usize = 16 << 10;
const DRAIN_BYTES_MAX: usize = 16 << 20;
const DRAIN_TIME_MAX: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub(super) struct Socket(Arc<TcpStream>);

impl Socket {
    pub(super) fn new(stream: TcpStream) -> Socket {
        // Responses are written in large chunks, so Nagle's algorithm would only delay them.
        let _best_effort = stream.set_nodelay(true);
        // Without it, the socket becomes writable only when a third of the kernel's send buffer is free. The buffer
        // grows to megabytes, which a slow client would have to read before it counts as alive.
        let _best_effort = SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
        Socket(Arc::new(stream))
    }

    /// Reads and discards what arrives, up to limits of time and bytes.
    pub(super) async fn drain(&self) {
        let mut bytes = vec![0; DRAIN_STEP_BYTES];
        let mut left = DRAIN_BYTES_MAX;
        let rest = async {
            while left > 0 && self.0.readable().await.is_ok() {
                match self.0.try_read(&mut bytes) {
                    Ok(0) => return,
                    Ok(read) => left = left.saturating_sub(read),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                    Err(_) => return,
                }
            }
        };
        let _in_time = tokio::time::timeout(DRAIN_TIME_MAX, rest).await;
    }

    /// Makes the connection end with a reset, unless it is shut down properly first. However the process or the
    /// connection ends, the client then does not mistake a part of a response for all of it.
    pub(super) fn reset_unless_shut_down(&self) {
        let _best_effort = SockRef::from(&*self.0).set_linger(Some(Duration::ZERO));
    }

    /// Resolves when the client has disconnected: [`DISCONNECTED_AFTER`] it has closed its side, or when the connection is
    /// broken.
    pub(super) async fn disconnected(&self) {
        loop {
            match self.0.ready(Interest::READABLE).await {
                Ok(ready) if ready.is_read_closed() => break,
                Ok(_) => tokio::time::sleep(POLL_INTERVAL).await,
                Err(_) => return,
            }
        }
        tokio::time::sleep(DISCONNECTED_AFTER).await;
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(context))?;
            match self.0.try_read_buf(buffer) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(|_| ())),
            }
        }
    }
}

impl Socket {
    fn poll_try_write(
        &self,
        context: &mut Context<'_>,
        write: impl Fn(&TcpStream) -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(context))?;
            match write(&self.0) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_try_write(context, |stream| stream.try_write(bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_try_write(context, |stream| stream.try_write_vectored(slices))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let socket = SockRef::from(&*self.0);
        // Everything is written; the kernel delivers it even after the socket is closed.
        let _best_effort = socket.set_linger(None);
        Poll::Ready(socket.shutdown(Shutdown::Write))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    async fn pair() -> (TcpStream, Socket) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        (client.unwrap(), Socket::new(server.unwrap().0))
    }

    async fn disconnects_within(socket: &Socket, time: Duration) -> bool {
        tokio::time::timeout(time, socket.disconnected())
            .await
            .is_ok()
    }

    /// The result of a client's read of a response of a few bytes, up to its end.
    async fn end_of(shut_down: bool) -> Result<usize, std::io::ErrorKind> {
        let (mut client, mut socket) = pair().await;
        socket.reset_unless_shut_down();
        socket.write_all(b"a part").await.unwrap();
        if shut_down {
            socket.shutdown().await.unwrap();
        }
        drop(socket);
        let read = client.read_to_end(&mut Vec::new()).await;
        read.map_err(|error| error.kind())
    }

    #[tokio::test]
    async fn a_truncated_response_ends_with_a_reset() {
        assert_eq!(end_of(true).await, Ok(6));
        assert_eq!(end_of(false).await, Err(io::ErrorKind::ConnectionReset));
    }

    #[tokio::test]
    async fn a_disconnect_is_detected() {
        let (mut client, socket) = pair().await;
        // Even after a request that has not been read yet.
        client.write_all(b"GET").await.unwrap();
        assert!(!disconnects_within(&socket, POLL_INTERVAL * 3).await);
        drop(client);
        assert!(!disconnects_within(&socket, DISCONNECTED_AFTER / 2).await);
        assert!(disconnects_within(&socket, DISCONNECTED_AFTER * 4).await);
    }
}
