//! The composition root: connects the service to the API, and starts and stops them in order. `flowtally serve` and the
//! tests run the same [`run`].

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::http::{self, Access, AccessError, AccessFiles, Api, Hosts, Limits};
use crate::ingest::{Admission, HourGuard, MEMORY_PER_BODY_BYTE};
use crate::notify;
use crate::query::QueryLimits;
use crate::service::{self, Health, Mode, OpenError};
use crate::store::{StoreError, StoreOptions};
use crate::telemetry::Metrics;
use crate::traffic::TrafficMetrics;

/// Maximum wait of a request for memory that other requests hold; then it gets a 503.
const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(5);
/// See [`Limits`].
const BODY_IDLE_MAX: Duration = Duration::from_secs(30);
const BODY_TIME_MAX: Duration = Duration::from_secs(120);
/// Also the maximum idle time of a connection. It exceeds the minute after which load balancers close one, because the
/// server must not close a connection on which the client is about to send a request.
const HEAD_TIME_MAX: Duration = Duration::from_secs(75);
const RESPONSE_IDLE_MAX: Duration = Duration::from_secs(60);
/// Interval between checks for idle backup sessions.
const BACKUP_CHECK_INTERVAL: Duration = Duration::from_secs(5);
/// Maximum time for which the journal may refuse writes, for a reason other than a full disk. Then the process exits,
/// so that a supervisor restarts it.
const WRITES_FAIL_MAX: Duration = Duration::from_secs(10);
/// The last flush gets the shutdown timeout, and at least this long.
const CLOSE_TIME_MIN: Duration = Duration::from_secs(5);

/// The configuration of a daemon.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub mode: Mode,
    pub store: StoreOptions,
    /// Maximum number of hours ahead of the clock; `None` means no limit.
    pub hour_ahead_max: Option<u32>,
    pub metrics: Metrics,
    pub access: AccessFiles,
    /// The host names that requests may have.
    pub hosts: Hosts,
    /// Notified when the files in `access` have to be read again.
    pub reload: watch::Receiver<()>,
    /// Notified when the service is ready.
    pub ready: Arc<Notify>,
    /// Maximum number of open connections.
    pub connections_max: usize,
    /// Largest body, as sent and after decompression.
    pub body_bytes_max: usize,
    /// Limits of each query.
    pub query: QueryLimits,
    /// Maximum memory of the directory of addresses.
    pub directory_bytes_max: usize,
    /// Maximum number of responses in progress.
    pub queries_max: usize,
    /// Maximum memory of all bodies, in bytes.
    pub inflight_bytes_max: usize,
    /// Maximum number of pairs of applications in the metrics of traffic; `None`: there are no such metrics.
    pub traffic_pairs_max: Option<usize>,
    /// Maximum time for requests in progress at shutdown.
    pub shutdown_timeout: Duration,
}

/// The reason why the daemon did not start, or did not shut down gracefully.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("cannot use the socket: {0}")]
    Listener(#[source] io::Error),
    #[error(
        "{requests} requests were still in progress {} seconds after the signal, and were aborted; every acknowledged batch is stored",
        .after.as_secs()
    )]
    Aborted { requests: usize, after: Duration },
    #[error(
        "{why} for {} seconds; all acknowledged batches are stored: \
         start again, and if it does not help, see the log and the disk",
        WRITES_FAIL_MAX.as_secs()
    )]
    WritesFail { why: &'static str },
    #[error("a task of the service panicked; see the log")]
    Panicked,
}

/// Runs the service on `listener` until `shutdown` resolves and everything is flushed and closed.
///
/// It listens before the store is open, so that `/healthz` responds while a long journal is replayed. Until then, all
/// other requests get a 503.
///
/// # Errors
/// If the store cannot be opened, or the shutdown was not graceful. Acknowledged batches are stored in any case.
pub async fn run(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    // Before anything is logged, so that an unusable directory or file of secrets is reported in one line.
    let access = Access::load(config.access.clone())?;
    let open = service::prepare(
        config.mode.clone(),
        service::ServiceOptions {
            data_dir: config.data_dir.clone(),
            store: config.store.clone(),
            query: config.query,
            directory_bytes_max: config.directory_bytes_max,
            metrics: config.metrics.clone(),
            reload: config.reload.clone(),
        },
    )?;
    let address = listener.local_addr().map_err(DaemonError::Listener)?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
    notify::opening();
    let limits = Limits {
        body_bytes_max: config.body_bytes_max,
        body_idle_max: BODY_IDLE_MAX,
        body_time_max: BODY_TIME_MAX,
        head_time_max: HEAD_TIME_MAX,
        response_idle_max: RESPONSE_IDLE_MAX,
        queries_max: config.queries_max,
        connections_max: config.connections_max,
    };
    let admission = Admission::new(
        config.inflight_bytes_max,
        config.body_bytes_max * MEMORY_PER_BODY_BYTE,
        ADMISSION_WAIT_MAX,
    );
    let hour_guard = HourGuard::new(config.hour_ahead_max, config.metrics.clone());
    let metrics = config.metrics.clone();
    let api = Arc::new(Api::new(
        limits,
        access,
        config.hosts.clone(),
        admission,
        hour_guard,
        metrics,
    ));

    // Opens in the background. A failure stops the server, like a signal.
    let stopping = CancellationToken::new();
    let opening = tokio::task::spawn_blocking({
        let (ready, api, stopping) = (config.ready.clone(), api.clone(), stopping.clone());
        move || -> Result<_, OpenError> {
            let service = open(&stopping)?;
            if let Some(service) = &service {
                api.open(service.clone());
                service.log_ready();
                notify::ready();
                ready.notify_one();
            }
            Ok(service)
        }
    });
    let mut chores = JoinSet::new();
    chores.spawn(reload(api.clone(), config.reload.clone()));
    chores.spawn(end_idle_backups(api.clone()));
    let traffic_stop = CancellationToken::new();
    let traffic = config.traffic_pairs_max.map(|pairs_max| {
        let traffic = TrafficMetrics::new(pairs_max, config.metrics.clone());
        let api = api.clone();
        tokio::spawn(traffic.run(move || api.service().cloned(), traffic_stop.clone()))
    });
    let traffic_stop = traffic_stop.drop_guard();
    let mut opened = None;
    let mut writes_failed = None;
    let stop = async {
        tokio::pin!(shutdown, opening);
        tokio::select! {
            result = &mut opening => {
                let failed = !matches!(result, Ok(Ok(_)));
                opened = Some(result);
                if failed {
                    return;
                }
                tokio::select! {
                    () = &mut shutdown => {}
                    why = writes_fail(&api) => {
                        writes_failed = Some(why);
                        return;
                    }
                }
            }
            () = &mut shutdown => {
                stopping.cancel();
                opened = Some(opening.await);
            }
        }
        tracing::info!("stopping");
        notify::stopping();
    };
    let aborted = http::serve(listener, api.clone(), stop, config.shutdown_timeout).await;
    // No task may hold the store after this function returns.
    chores.shutdown().await;
    drop(traffic_stop);
    if let Some(traffic) = traffic {
        let _a_panic_is_printed = traffic.await;
    }
    let opened = match opened {
        Some(Ok(result)) => result?,
        _ => return Err(DaemonError::Panicked),
    };
    if let Some(why) = writes_failed {
        // Without a flush: the journal has everything, and the disk refuses writes.
        return Err(DaemonError::WritesFail { why });
    }
    if let Some(service) = opened {
        let time_max = config.shutdown_timeout.max(CLOSE_TIME_MIN);
        tokio::task::spawn_blocking(move || service.close(time_max))
            .await
            .map_err(|_| DaemonError::Panicked)??;
    }
    if aborted > 0 {
        return Err(DaemonError::Aborted {
            requests: aborted,
            after: config.shutdown_timeout,
        });
    }
    Ok(())
}

/// Reads the files of secrets again at each notification.
async fn reload(api: Arc<Api>, mut reload: watch::Receiver<()>) {
    while reload.changed().await.is_ok() {
        // While the store is being opened, the notification after a reload would tell systemd that startup is complete.
        let started = api.service().is_some();
        if started {
            notify::reloading();
        }
        let api = api.clone();
        let mut failure = None;
        match tokio::task::spawn_blocking(move || api.access().reload()).await {
            Ok(Ok(())) => tracing::info!("tokens and certificates reloaded"),
            Ok(Err(error)) => {
                tracing::error!(%error, "reload failed; previous tokens and certificates remain in use");
                failure = Some(error.to_string());
            }
            Err(_panicked) => {}
        }
        if started {
            notify::reloaded(failure.as_deref());
        }
    }
}

/// Ends backup sessions whose clients have stopped reading.
async fn end_idle_backups(api: Arc<Api>) {
    loop {
        tokio::time::sleep(BACKUP_CHECK_INTERVAL).await;
        let Some(Ok(sessions)) = api.service().map(|service| service.backups()) else {
            continue;
        };
        let _a_panic_is_printed = tokio::task::spawn_blocking(move || sessions.end_idle()).await;
    }
}

/// Resolves to the cause when the journal has refused writes for too long.
async fn writes_fail(api: &Api) -> &'static str {
    let mut failing_since = None;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(Health::Failing { cause, .. }) = api.service().map(|service| service.health())
        else {
            failing_since = None;
            continue;
        };
        if failing_since.get_or_insert_with(Instant::now).elapsed() >= WRITES_FAIL_MAX {
            return cause;
        }
    }
}
