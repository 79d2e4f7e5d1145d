//! The composition root: wires store, committer and API, and owns the order in which they start
//! and stop. `flowtally serve` and the tests run the same [`run`].

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::backup::Offer;
use crate::http::{self, Access, AccessError, AccessFiles, Api, Backend, Hosts, Limits};
use crate::ingest::{Admission, Committer, HourGuard};
use crate::notify;
use crate::query::{Engine, QueryLimits};
#[cfg(feature = "kafka")]
use crate::service::cluster::{Cluster, ClusterError, Node};
use crate::store::{DataDir, Store, StoreError, StoreOptions};
use crate::telemetry::Metrics;

/// How long a request waits for memory that others hold, before it gets a 503.
const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(5);
/// Times and counts of [`Limits`].
const BODY_IDLE_MAX: Duration = Duration::from_secs(30);
const BODY_TIME_MAX: Duration = Duration::from_secs(120);
/// Also how long a connection may be idle. Longer than the minute after which load balancers drop one:
/// who closes first must not be the one that is about to be sent a request.
const HEAD_TIME_MAX: Duration = Duration::from_secs(75);
const ANSWER_IDLE_MAX: Duration = Duration::from_secs(60);
/// Pause between two looks for a backup that nobody fetches.
const TIDY_INTERVAL: Duration = Duration::from_secs(5);
/// How long the journal may refuse writes, for another reason than a full disk, before the process
/// ends and a supervisor starts it anew.
const WRITES_FAIL_MAX: Duration = Duration::from_secs(10);
/// The last flush gets the shutdown timeout, and this much at least.
const CLOSE_TIME_MIN: Duration = Duration::from_secs(5);
/// Between two attempts to join a cluster whose Kafka does not answer, and between two lines in the log
/// about it.
#[cfg(feature = "kafka")]
const JOIN_INTERVAL: Duration = Duration::from_secs(1);
#[cfg(feature = "kafka")]
const JOIN_LOG_INTERVAL: Duration = Duration::from_secs(60);
/// Beside a body there is, for a while, the batch made of it, which is never larger.
const MEMORY_PER_BODY_BYTE: usize = 2;

/// What a daemon needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    /// One node of many, whose journal is in Kafka.
    #[cfg(feature = "kafka")]
    pub cluster: Option<Node>,
    pub store: StoreOptions,
    /// Hours later than the clock's that are taken; `None` takes all.
    pub hour_ahead_max: Option<u32>,
    pub metrics: Metrics,
    pub access: AccessFiles,
    /// Under which names it may be asked.
    pub hosts: Hosts,
    /// Told each time that the files in `access` are to be read again.
    pub reload: watch::Receiver<()>,
    /// Told when the service is ready.
    pub ready: Arc<Notify>,
    /// Connections at a time.
    pub connections_max: usize,
    /// Largest body, as sent and after decompression.
    pub body_bytes_max: usize,
    /// What queries may cost.
    pub query: QueryLimits,
    /// Answers at a time.
    pub queries_max: usize,
    /// Bytes of all bodies under way.
    pub inflight_bytes_max: usize,
    /// Time that requests under way get when the daemon stops.
    pub shutdown_timeout: Duration,
}

/// Why a daemon ended other than asked to.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Access(#[from] AccessError),
    #[cfg(feature = "kafka")]
    #[error(transparent)]
    Cluster(#[from] ClusterError),
    #[error("cannot use the socket: {0}")]
    Listener(#[source] io::Error),
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    #[error(
        "{requests} requests were still under way {} seconds after the signal, and were broken off; \
         what they had been promised is stored",
        .after.as_secs()
    )]
    BrokenOff { requests: usize, after: Duration },
    #[error(
        "{why} for {} seconds; what was acknowledged is stored: \
         start again, and if it does not help, see the log and the disk",
        WRITES_FAIL_MAX.as_secs()
    )]
    WritesFail { why: &'static str },
    #[error("a task of the service panicked; the log has it")]
    Panicked,
}

/// Runs the service on `listener` until `shutdown` resolves and everything is flushed and closed.
///
/// It answers before the store is open, so that `/healthz` is there while a long journal is being
/// replayed; until then everything else is a 503.
///
/// # Errors
/// When the store does not open, or the end was not in good order. What was acknowledged is stored
/// in any case.
pub async fn run(
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), DaemonError> {
    // First, and before the log says anything: what is wrong with the directory, or with a file of
    // secrets, is one line.
    let access = Access::load(config.access.clone())?;
    let place = Place::of(&config)?;
    let address = listener.local_addr().map_err(DaemonError::Listener)?;
    tracing::info!(%address, version = env!("CARGO_PKG_VERSION"), "listening");
    notify::opening();
    let limits = Limits {
        body_bytes_max: config.body_bytes_max,
        body_idle_max: BODY_IDLE_MAX,
        body_time_max: BODY_TIME_MAX,
        head_time_max: HEAD_TIME_MAX,
        answer_idle_max: ANSWER_IDLE_MAX,
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

    // Opens in the background; a failure ends the daemon, so it is part of what stops the server.
    let stopping = Arc::new(AtomicBool::new(false));
    let opening = tokio::task::spawn_blocking({
        let (config, api, stopping) = (config.clone(), api.clone(), stopping.clone());
        move || open(place, &config, &api, &stopping)
    });
    let mut chores = JoinSet::new();
    chores.spawn(reload(api.clone(), config.reload.clone()));
    chores.spawn(tidy(api.clone()));
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
                stopping.store(true, Ordering::Relaxed);
                opened = Some(opening.await);
            }
        }
        tracing::info!("stopping");
        notify::stopping();
    };
    let broken_off = http::serve(listener, api.clone(), stop, config.shutdown_timeout).await;
    // Not one task may hold the store any more when this returns.
    chores.shutdown().await;
    let opened = match opened {
        Some(Ok(result)) => result?,
        _ => return Err(DaemonError::Panicked),
    };
    if let Some(why) = writes_failed {
        // No flush either: the journal has everything, and the disk has had its chance.
        return Err(DaemonError::WritesFail { why });
    }
    tokio::task::spawn_blocking(move || close(opened, &api, config.shutdown_timeout))
        .await
        .map_err(|_| DaemonError::Panicked)??;
    if broken_off > 0 {
        return Err(DaemonError::BrokenOff {
            requests: broken_off,
            after: config.shutdown_timeout,
        });
    }
    Ok(())
}

/// Reads the files of secrets whenever it is told to.
async fn reload(api: Arc<Api>, mut told: watch::Receiver<()>) {
    while told.changed().await.is_ok() {
        // Before the store is open, the end of a reload would say that the start is over.
        let started = api.backend().is_some();
        if started {
            notify::reloading();
        }
        let api = api.clone();
        let mut failure = None;
        match tokio::task::spawn_blocking(move || api.access().reload()).await {
            Ok(Ok(())) => tracing::info!("tokens and certificates are read again"),
            Ok(Err(error)) => {
                tracing::error!(%error, "tokens and certificates stay as they were");
                failure = Some(error.to_string());
            }
            Err(_panicked) => {}
        }
        if started {
            notify::reloaded(failure.as_deref());
        }
    }
}

/// Sees to backups that were begun and not ended.
async fn tidy(api: Arc<Api>) {
    loop {
        tokio::time::sleep(TIDY_INTERVAL).await;
        let Some(offer) = api.backend().and_then(|b| b.offer.clone()) else {
            continue;
        };
        let _a_panic_is_printed = tokio::task::spawn_blocking(move || offer.tidy()).await;
    }
}

/// Resolves when the journal has refused writes for too long, to why.
async fn writes_fail(api: &Api) -> &'static str {
    let mut failing_since = None;
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let Some(why) = api.backend().and_then(|b| b.journal.fails()) else {
            failing_since = None;
            continue;
        };
        if failing_since.get_or_insert_with(Instant::now).elapsed() >= WRITES_FAIL_MAX {
            return why;
        }
    }
}

/// Where sums are.
enum Place {
    Dir(DataDir),
    #[cfg(feature = "kafka")]
    Cluster(Box<Node>),
}

impl Place {
    fn of(config: &Config) -> Result<Place, DaemonError> {
        #[cfg(feature = "kafka")]
        if let Some(node) = &config.cluster {
            return Ok(Place::Cluster(Box::new(node.clone())));
        }
        Ok(Place::Dir(DataDir::open(&config.data_dir)?))
    }
}

/// What has to be closed.
enum Opened {
    Store(Arc<Store>),
    #[cfg(feature = "kafka")]
    Cluster(Cluster),
    /// The end came first.
    #[cfg(feature = "kafka")]
    Nothing,
}

#[cfg_attr(not(feature = "kafka"), allow(unused_variables))]
fn open(
    place: Place,
    config: &Config,
    api: &Api,
    stopping: &AtomicBool,
) -> Result<Opened, DaemonError> {
    let opened = match place {
        Place::Dir(dir) => Opened::Store(open_store(dir, config, api)?),
        #[cfg(feature = "kafka")]
        Place::Cluster(node) => {
            let Some(cluster) = join(&node, config, stopping)? else {
                return Ok(Opened::Nothing);
            };
            api.open(Backend {
                journal: cluster.journal(),
                engine: Engine::of_parts(cluster.parts(), config.query),
                offer: None,
            });
            Opened::Cluster(cluster)
        }
    };
    notify::ready();
    config.ready.notify_one();
    Ok(opened)
}

/// Joins the cluster as soon as Kafka answers; `None` where the service is to stop before that.
#[cfg(feature = "kafka")]
fn join(
    node: &Node,
    config: &Config,
    stopping: &AtomicBool,
) -> Result<Option<Cluster>, DaemonError> {
    let runtime = tokio::runtime::Handle::current();
    let mut said: Option<Instant> = None;
    while !stopping.load(Ordering::Relaxed) {
        let data_dir = config.data_dir.clone();
        match Cluster::start(
            node.clone(),
            data_dir,
            &config.store,
            &runtime,
            &config.reload,
        ) {
            Err(error) if error.is_temporary() => {
                if said.is_none_or(|at| at.elapsed() >= JOIN_LOG_INTERVAL) {
                    said = Some(Instant::now());
                    tracing::warn!(%error, "cannot join the cluster yet, and goes on trying");
                }
                std::thread::sleep(JOIN_INTERVAL);
            }
            joined => return Ok(Some(joined?)),
        }
    }
    Ok(None)
}

fn open_store(dir: DataDir, config: &Config, api: &Api) -> Result<Arc<Store>, DaemonError> {
    let start = Instant::now();
    let (store, recovery) = Store::open_dir(dir, config.store.clone())?;
    let store = Arc::new(store);
    let committer = Committer::start(store.clone(), config.metrics.clone());
    api.open(Backend {
        journal: Arc::new(committer.map_err(DaemonError::Thread)?),
        engine: Engine::new(store.clone(), config.query),
        offer: Some(Arc::new(Offer::new(store.clone()))),
    });
    tracing::info!(
        data_dir = %config.data_dir.display(),
        replayed_batches = recovery.batches,
        replayed_flows = recovery.flows,
        replay_ms = recovery.time.as_millis() as u64,
        ms = start.elapsed().as_millis() as u64,
        "ready"
    );
    Ok(store)
}

/// Nothing comes in any more: commits what is queued, then moves all sums to their final files, so
/// that the next start has nothing to replay.
fn close(opened: Opened, api: &Api, time_max: Duration) -> Result<(), DaemonError> {
    if let Some(backend) = api.backend() {
        backend.offer.iter().for_each(|offer| offer.stop());
        backend.journal.finish();
    }
    match opened {
        Opened::Store(store) => {
            store.flush_within(time_max.max(CLOSE_TIME_MIN))?;
            if store.sums_stopped() > 0 {
                tracing::warn!(times = store.sums_stopped(), "sums were stopped at 2^64-1");
            }
        }
        #[cfg(feature = "kafka")]
        Opened::Cluster(cluster) => cluster.stop(),
        #[cfg(feature = "kafka")]
        Opened::Nothing => {}
    }
    Ok(())
}
