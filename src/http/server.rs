//! Connections: accept, serve, and let go in good order.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use warp::http::{Method, Request};

use super::error::Problem;
use super::{Api, routes};

/// Pause after a failed accept (out of file descriptors, mostly): some connection has to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// After the last request has ended, time for its answer to leave and for its client to close.
const GOODBYE: Duration = Duration::from_millis(300);

/// Serves `api` on `listener` until `shutdown` resolves; then accepts no more, lets requests that
/// are under way end within `grace`, and breaks off the rest. Returns how many had to be.
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
        // A client may close its side when it has sent all, and still wants the answer.
        .half_close(true);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(api.limits.connections_max));
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        let accept = async {
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        tokio::select! {
            () = &mut shutdown => break,
            (accepted, place) = accept => match accepted {
                Ok((stream, _peer)) => {
                    // Answers are written whole; waiting to fill a packet only delays them.
                    let _best_effort = stream.set_nodelay(true);
                    let filter = filter.clone();
                    let service = service_fn(move |request| answer(filter.clone(), request));
                    // A client that takes nothing of its answer for so long loses it, and whatever
                    // the answer holds.
                    let mut stream = TimeoutStream::new(stream);
                    stream.set_write_timeout(Some(api.limits.answer_idle_max));
                    let io = TokioIo::new(Box::pin(stream));
                    let connection = server.serve_connection(io, service);
                    let connection = graceful.watch(connection);
                    connections.spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "a connection ended early");
                        }
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_ended) = connections.join_next() => {}
        }
    }
    drop(listener);
    api.stop();
    let no_request_left = async {
        // Beside connections with requests there are idle ones, and ones that never send a whole
        // head. Those are not worth waiting for.
        loop {
            tokio::time::sleep(GOODBYE).await;
            if api.requests_under_way() == 0 {
                break;
            }
        }
    };
    tokio::select! {
        () = graceful.shutdown() => {}
        () = no_request_left => {}
        () = tokio::time::sleep(grace) => {}
    }
    let broken_off = api.requests_under_way();
    connections.shutdown().await;
    broken_off
}

type Filter<S> = TowerToHyperService<S>;

/// Warp reads a path from every request, and panics where there is none: `CONNECT host:port`.
async fn answer<S>(
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
