//! Connections: accept, serve, and let go in good order.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::{Api, routes};

/// Pause after a failed accept (out of file descriptors, mostly): some connection has to end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Serves `api` on `listener` until `shutdown` resolves; then accepts no more, lets requests that
/// are under way end within `grace`, and breaks off the rest. Returns whether all ended by
/// themselves.
pub async fn serve(
    listener: TcpListener,
    api: Arc<Api>,
    shutdown: impl Future<Output = ()>,
    grace: Duration,
) -> bool {
    let service = TowerToHyperService::new(warp::service(routes::filter(api.clone())));
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(api.limits.head_time_max);
    server.http2().timer(TokioTimer::new());
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _peer)) => {
                    // Answers are written whole; waiting to fill a packet only delays them.
                    let _best_effort = stream.set_nodelay(true);
                    let connection = server
                        .serve_connection(TokioIo::new(stream), service.clone())
                        .into_owned();
                    let connection = graceful.watch(connection);
                    connections.spawn(async move {
                        if let Err(error) = connection.await {
                            tracing::debug!(%error, "a connection ended early");
                        }
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
    let all_ended = tokio::time::timeout(grace, graceful.shutdown())
        .await
        .is_ok();
    connections.shutdown().await;
    all_ended
}
