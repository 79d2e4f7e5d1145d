//! The state that all requests share.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::CancellationToken;

use super::access::Access;
use super::error::Problem;
use super::origin::Hosts;
use super::request::RequestContext;
use crate::ingest::{Admission, HourGuard};
use crate::service::{Health, Service};
use crate::telemetry::Metrics;

/// Limits on the resources of requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body, both as sent and after decompression.
    pub body_bytes_max: usize,
    /// Longest pause between two parts of a body.
    pub body_idle_max: Duration,
    /// Longest time for a whole body.
    pub body_time_max: Duration,
    /// Longest time for which a client may read nothing in the middle of a response.
    pub response_idle_max: Duration,
    /// Maximum number of open connections. At this number, a new one evicts a connection without a request, or waits.
    pub connections_max: usize,
    /// Longest time for a client to start a request, to send its head, and to complete a TLS handshake.
    pub head_time_max: Duration,
    /// Responses to queries that may be in progress at the same time.
    pub queries_max: usize,
}

/// One permit in this many is reserved for short responses, which release it immediately, so that clients that read
/// long responses slowly cannot block them.
const SHORT_RESPONSES_PART: usize = 4;

/// State shared by all requests.
#[derive(Debug)]
pub struct Api {
    pub(super) limits: Limits,
    pub(super) access: Access,
    pub(super) hosts: Hosts,
    pub(super) admission: Admission,
    pub(super) hour_guard: HourGuard,
    pub(super) metrics: Metrics,
    queries: Arc<tokio::sync::Semaphore>,
    /// The permits of [`Api::queries`] that long responses may take.
    long_responses: Arc<tokio::sync::Semaphore>,
    pub(super) service: OnceLock<Arc<dyn Service>>,
    stopping: CancellationToken,
}

impl Api {
    /// An API that responds with 503 until [`Api::open`].
    pub fn new(
        limits: Limits,
        access: Access,
        hosts: Hosts,
        admission: Admission,
        hour_guard: HourGuard,
        metrics: Metrics,
    ) -> Api {
        let long_responses_max = limits.queries_max - limits.queries_max / SHORT_RESPONSES_PART;
        Api {
            limits,
            access,
            hosts,
            admission,
            hour_guard,
            metrics,
            queries: Arc::new(tokio::sync::Semaphore::new(limits.queries_max)),
            long_responses: Arc::new(tokio::sync::Semaphore::new(long_responses_max)),
            service: OnceLock::new(),
            stopping: CancellationToken::new(),
        }
    }

    /// The access rules.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Starts to serve requests from `service`. A second call has no effect.
    pub fn open(&self, service: Arc<dyn Service>) {
        self.hour_guard.trusts_clock(service.newest_hour());
        let _already_open = self.service.set(service);
    }

    /// Makes `/readyz` fail, so that load balancers send no more requests.
    pub fn stop(&self) {
        self.stopping.cancel();
    }

    /// The service, once [`Api::open`] was called.
    pub fn service(&self) -> Option<&Arc<dyn Service>> {
        self.service.get()
    }

    pub(super) fn not_stopping(&self) -> Result<(), Problem> {
        match self.stopping.is_cancelled() {
            true => Err(Problem::Stopping),
            false => Ok(()),
        }
    }

    pub(super) fn require_ready(&self) -> Result<(), Problem> {
        self.not_stopping()?;
        match self.opened()?.health() {
            Health::Ready => Ok(()),
            Health::NotReady(why) | Health::Failing { ready: why, .. } => {
                Err(Problem::NotReady { why })
            }
        }
    }

    /// Acquires a permit for a response, or `weight` permits for one that needs the memory of several. If there are not
    /// enough, aborts the slowest response.
    pub(super) fn acquire_response_permit(
        &self,
        context: &RequestContext,
        weight: u32,
    ) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = self.queries.clone().try_acquire_many_owned(weight);
        permit.map_err(|_| {
            context.guard.connections().abort_slowest();
            Problem::TooManyQueries
        })
    }

    /// Acquires the second permit that a response of several chunks needs.
    pub(super) fn acquire_long_response_permit(
        &self,
        context: &RequestContext,
    ) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = self.long_responses.clone().try_acquire_owned();
        permit.map_err(|_| {
            context.guard.connections().abort_slowest();
            Problem::TooManyQueries
        })
    }

    /// The service, once it is open.
    pub(super) fn opened(&self) -> Result<&Arc<dyn Service>, Problem> {
        self.service.get().ok_or(Problem::Recovering)
    }
}
