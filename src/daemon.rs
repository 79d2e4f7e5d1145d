//! The composition root: wires store, committer and API, and owns the order in which they start
//! and stop. `flowtally serve` and the tests run the same [`run`].

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpListener;

use crate::http::{self, Api, Backend, Limits};
use crate::ingest::{Admission, Committer};
use crate::query::Engine;
use crate::store::{Store, StoreError, StoreOptions};

/// How long a request waits for memory that others hold, before it gets a 503.
const ADMISSION_WAIT_MAX: Duration = Duration::from_secs(5);
/// See [`Limits`].
const BODY_IDLE_MAX: Duration = Duration::from_secs(30);
const HEAD_TIME_MAX: Duration = Duration::from_secs(30);
const QUERIES_MAX: usize = 256;

/// What a daemon needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub data_dir: PathBuf,
    pub store: StoreOptions,
    /// Largest body, as sent and after decompression.
    pub body_bytes_max: usize,
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
    #[error("cannot start a thread: {0}")]
    Thread(#[source] io::Error),
    #[error(
        "requests were still under way {} seconds after the signal, and were broken off; \
         what they had been promised is stored",
        .0.as_secs()
    )]
    BrokenOff(Duration),
    #[error("a task of the service panicked; the log has it")]
    Panicked,
}

/// Runs the service on `listener` until `shutdown` resolves and everything is flushed and closed.
///
/// It listens before the store is open, so that `/healthz` answers while a long journal is being
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
    let limits = Limits {
        body_bytes_max: config.body_bytes_max,
        body_idle_max: BODY_IDLE_MAX,
        head_time_max: HEAD_TIME_MAX,
        queries_max: QUERIES_MAX,
    };
    let admission = Admission::new(config.inflight_bytes_max, ADMISSION_WAIT_MAX);
    let api = Arc::new(Api::new(limits, admission));

    // Opens in the background; a failure ends the daemon, so it is part of what stops the server.
    let opening = tokio::task::spawn_blocking({
        let (config, api) = (config.clone(), api.clone());
        move || open(&config, &api)
    });
    let mut opened = None;
    let stop = async {
        tokio::pin!(shutdown, opening);
        tokio::select! {
            result = &mut opening => {
                let failed = !matches!(result, Ok(Ok(_)));
                opened = Some(result);
                if !failed {
                    shutdown.await;
                }
            }
            () = &mut shutdown => opened = Some(opening.await),
        }
        tracing::info!("stopping");
    };
    let all_ended = http::serve(listener, api.clone(), stop, config.shutdown_timeout).await;
    let store = match opened {
        Some(Ok(result)) => result?,
        _ => return Err(DaemonError::Panicked),
    };
    tokio::task::spawn_blocking(move || close(&store, &api))
        .await
        .map_err(|_| DaemonError::Panicked)??;
    if !all_ended {
        return Err(DaemonError::BrokenOff(config.shutdown_timeout));
    }
    Ok(())
}

fn open(config: &Config, api: &Api) -> Result<Arc<Store>, DaemonError> {
    let start = Instant::now();
    let (store, recovery) = Store::open(&config.data_dir, config.store.clone())?;
    let store = Arc::new(store);
    api.open(Backend {
        committer: Committer::start(store.clone()).map_err(DaemonError::Thread)?,
        engine: Engine::new(store.clone()),
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
fn close(store: &Store, api: &Api) -> Result<(), DaemonError> {
    if let Some(backend) = api.backend() {
        backend.committer.finish();
    }
    store.flush()?;
    if store.sums_stopped() > 0 {
        tracing::warn!(times = store.sums_stopped(), "sums were stopped at 2^64-1");
    }
    Ok(())
}
