//! Accepts connections, serves them, and shuts them down.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tokio_rustls::TlsAcceptor;
use warp::http::{Method, Request, Version};

use super::api::Api;
use super::connections::{Connection, Connections};
use super::error::Problem;
use super::head::Heads;
use super::long_target::HEAD_BYTES_MAX;
use super::request::RequestContext;
use super::request::Target;
use super::routes;
use super::socket::Socket;

/// Pause after a failed accept. The usual cause is too many open files, and a connection has to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After the last request, time for its response to be sent and for its client to close the connection.
const LINGER: Duration = Duration::from_millis(300);

/// Serves `api` on `listener` until `shutdown` resolves. Then it accepts no more connections, gives requests that are
/// in progress `grace` to end, and aborts the rest. Returns how many were aborted. Downloads of backups are aborted
/// immediately, since they can be repeated.
pub async fn serve(
    listener: TcpListener,
    api: Arc<Api>,
    shutdown: impl Future<Output = ()>,
    grace: Duration,
) -> usize {
    let filter = TowerToHyperService::new(warp::service(routes::filter(api.clone())));
    let mut server = http1::Builder::new();
    server
        .timer(TokioTimer::new())
        .header_read_timeout(api.limits.head_time_max)
        .max_buf_size(HEAD_BYTES_MAX)
        // A client may close its side when it has sent the request, and still wants the response.
        .half_close(true);
    let graceful = GracefulShutdown::new();
    let connections = Connections::new(
        api.limits.connections_max,
        api.admission.clone(),
        api.metrics.clone(),
    );
    let mut tasks = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _address)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let slot = tokio::select! {
            () = &mut shutdown => break,
            slot = connections.acquire_slot() => slot,
        };
        // Reap tasks that have ended.
        while tasks.try_join_next().is_some() {}
        let socket = Socket::new(stream);
        let connection = connections.open(Some(socket.clone()));
        let stream = connection.wrap_stream(Box::pin(with_write_timeout(
            socket,
            api.limits.response_idle_max,
        )));
        let (server, watcher) = (server.clone(), graceful.watcher());
        let (filter, tls) = (filter.clone(), api.access.tls());
        let handshake_max = api.limits.head_time_max;
        tasks.spawn(async move {
            let converse = async {
                let (own, filter) = (connection.clone(), filter);
                match tls {
                    None => serve_on(stream, own, false, &server, filter, watcher).await,
                    Some(tls) => {
                        let (stream, certified) = handshake(stream, tls, handshake_max).await?;
                        serve_on(stream, own, certified, &server, filter, watcher).await
                    }
                }
            };
            let ended = tokio::select! {
                ended = converse => ended,
                () = connection.evicted() => Err("it was evicted or aborted".to_owned()),
            };
            if let Err(error) = ended {
                tracing::debug!(error, "a connection ended early");
            }
            drop(slot);
        });
    }
    drop(listener);
    api.stop();
    connections.abort_downloads();
    let no_request_left = async {
        // Do not wait for connections without a request or with an incomplete head.
        loop {
            tokio::time::sleep(LINGER).await;
            if connections.requests_in_progress() == 0 {
                break;
            }
        }
    };
    let aborted = tokio::select! {
        // A connection that has just ended may still be on the list.
        () = graceful.shutdown() => 0,
        () = no_request_left => 0,
        () = tokio::time::sleep(grace) => {
            // Their clients see that the responses are incomplete, and can repeat the requests.
            let waiting = connections.waiting_responses();
            if waiting > 0 {
                let responses = waiting;
                tracing::warn!(responses, "responses aborted because their clients did not read them");
            }
            connections.requests_in_progress().saturating_sub(waiting)
        }
    };
    tasks.shutdown().await;
    aborted
}

/// Fails a write when the client reads nothing for `idle_max`. That releases everything the response holds.
fn with_write_timeout(socket: Socket, idle_max: Duration) -> TimeoutStream<Socket> {
    let mut stream = TimeoutStream::new(socket);
    stream.set_write_timeout(Some(idle_max));
    stream
}

type Filter<S> = TowerToHyperService<S>;

/// Serves the requests of one connection until it ends.
async fn serve_on<S>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    connection: Arc<Connection>,
    certified: bool,
    server: &http1::Builder,
    filter: Filter<S>,
    watcher: Watcher,
) -> Result<(), String>
where
    Filter<S>: hyper::service::Service<
            Request<Incoming>,
            Response = warp::reply::Response,
            Error = Infallible,
        > + Clone,
{
    let own = connection.clone();
    let service = service_fn(move |mut request: Request<Incoming>| {
        let guard = Arc::new(connection.start_request());
        let target = Target {
            version: request.version(),
            authority: request.uri().authority().cloned(),
            tail: connection.take_target_tail().map(Arc::new),
        };
        let version = request.version();
        request.extensions_mut().insert(RequestContext {
            certified,
            target,
            guard,
        });
        let (connection, filter) = (connection.clone(), filter.clone());
        async move {
            let response = serve_request(filter, request).await?;
            // For an HTTP/1.0 client, the end of the connection ends a response without a length.
            let has_length = response.body().size_hint().exact().is_some();
            if version < Version::HTTP_11 && !has_length {
                connection.reset_unless_shut_down();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let stream = Heads::new(stream, own.clone());
    let served = server.serve_connection(TokioIo::new(stream), service);
    let served = watcher.watch(served).await;
    if served.as_ref().is_err_and(hyper::Error::is_parse) {
        own.drain().await;
    }
    served.map_err(|e| e.to_string())
}

/// Performs the TLS handshake. Returns whether the client has shown a certificate.
async fn handshake<I: AsyncRead + AsyncWrite + Unpin>(
    stream: I,
    tls: Arc<rustls::ServerConfig>,
    time_max: Duration,
) -> Result<(tokio_rustls::server::TlsStream<I>, bool), String> {
    let accepted = tokio::time::timeout(time_max, TlsAcceptor::from(tls).accept(stream)).await;
    let stream = accepted
        .map_err(|_| "the TLS handshake took too long".to_owned())?
        .map_err(|e| format!("TLS: {e}"))?;
    let certified = stream.get_ref().1.peer_certificates().is_some();
    Ok((stream, certified))
}

/// Handles what warp would panic on: a request without a path, as in `CONNECT host:port`.
async fn serve_request<S>(
    filter: Filter<S>,
    request: Request<Incoming>,
) -> Result<warp::reply::Response, Infallible>
where
    Filter<S>: hyper::service::Service<
            Request<Incoming>,
            Response = warp::reply::Response,
            Error = Infallible,
        >,
{
    if request.uri().path().is_empty() || request.method() == Method::CONNECT {
        let problem = Problem::MethodNotAllowed {
            method: request.method().clone(),
            allow: "GET, HEAD, POST, OPTIONS",
        };
        return Ok(problem.into_response());
    }
    hyper::service::Service::call(&filter, request).await
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    /// A client that reads 400 KB per second, and then stops.
    #[tokio::test]
    async fn a_slow_client_gets_its_response_and_a_dead_one_times_out() {
        // A busy machine may let the client wait for a second.
        const IDLE_TIME_MAX: Duration = Duration::from_secs(3);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap());
        let (client, server) = tokio::join!(client, listener.accept());
        let (mut client, server) = (client.unwrap(), server.unwrap().0);
        let mut server = std::pin::pin!(with_write_timeout(Socket::new(server), IDLE_TIME_MAX));
        let mut part = vec![0; 40_000];
        let mut write = std::pin::pin!(async {
            loop {
                if let Err(error) = server.write_all(&[0; 256 << 10]).await {
                    return error.kind();
                }
            }
        });
        let read = async {
            for _ in 0..80 {
                tokio::time::sleep(Duration::from_millis(100)).await;
                client.read_exact(&mut part).await.unwrap();
            }
        };
        tokio::select! {
            error = &mut write => panic!("cut off: {error}"),
            () = read => {}
        }
        let write = tokio::time::timeout(IDLE_TIME_MAX * 4, write).await;
        assert_eq!(write.unwrap(), ErrorKind::TimedOut);
    }
}
