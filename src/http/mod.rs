//! The HTTP API: routes, handlers (one file for each endpoint), and problem documents.
//!
//! Handlers are async functions from a request to `Result<Response, Problem>`. `error` alone knows the status codes of
//! failures, and `server` owns the connections.

mod access;
mod backups;
mod body;
mod connections;
mod error;
mod flows_delete;
mod flows_get;
mod flows_post;
mod head;
mod health;
mod hours;
mod long_target;
mod metrics;
mod negotiate;
mod openapi;
mod origin;
mod page;
mod parameters;
mod partitions;
mod receipts_post;
mod routes;
mod secrets;
mod server;
mod socket;
mod tls;
mod trace;

pub use access::Access;
pub use origin::{HostName, Hosts};
#[cfg(fuzzing)]
pub use parameters::check_query;
pub use secrets::{AccessError, AccessFiles, TlsFiles};
pub use server::serve;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use connections::RequestContext;
use error::Problem;
use tokio::sync::OwnedSemaphorePermit;
use warp::http::header::{self, HeaderValue};
use warp::reply::Response;

use crate::ingest::{Admission, HourGuard};
use crate::service::{Health, Service};
use crate::telemetry::Metrics;

/// A response with a body of `media_type`.
fn response(media_type: &'static str, body: impl Into<bytes::Bytes>) -> Response {
    let mut response = Response::new(body.into().into());
    let value = HeaderValue::from_static(media_type);
    response.headers_mut().insert(header::CONTENT_TYPE, value);
    response
}

/// The media type of a body that is one JSON value.
const JSON: &str = "application/json";

/// Limits on what requests may use.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body, both as sent and after decompression.
    pub body_bytes_max: usize,
    /// Longest pause between two parts of a body.
    pub body_idle_max: Duration,
    /// Longest time for a whole body.
    pub body_time_max: Duration,
    /// Longest time for which a client may read nothing in the middle of a response.
    pub answer_idle_max: Duration,
    /// Open connections. When there are as many, a new one evicts a connection that has no request, or waits.
    pub connections_max: usize,
    /// Longest time for a client to start a request, to send its head, and to complete a TLS handshake.
    pub head_time_max: Duration,
    /// Responses to queries that may be in progress at the same time.
    pub queries_max: usize,
}

/// One permit in this many is reserved for short responses, which release it at once. Clients that read long responses
/// slowly cannot block those.
const SHORT_ANSWERS_PART: usize = 4;

/// State shared by all requests.
#[derive(Debug)]
pub struct Api {
    limits: Limits,
    access: Access,
    hosts: Hosts,
    admission: Admission,
    hour_guard: HourGuard,
    metrics: Metrics,
    queries: Arc<tokio::sync::Semaphore>,
    /// The permits of [`Api::queries`] that long responses may take.
    long_answers: Arc<tokio::sync::Semaphore>,
    service: OnceLock<Arc<dyn Service>>,
    stopping: AtomicBool,
}

impl Api {
    /// An API that answers 503 until [`Api::open`].
    pub fn new(
        limits: Limits,
        access: Access,
        hosts: Hosts,
        admission: Admission,
        hour_guard: HourGuard,
        metrics: Metrics,
    ) -> Api {
        let long_answers_max = limits.queries_max - limits.queries_max / SHORT_ANSWERS_PART;
        Api {
            limits,
            access,
            hosts,
            admission,
            hour_guard,
            metrics,
            queries: Arc::new(tokio::sync::Semaphore::new(limits.queries_max)),
            long_answers: Arc::new(tokio::sync::Semaphore::new(long_answers_max)),
            service: OnceLock::new(),
            stopping: AtomicBool::new(false),
        }
    }

    /// The access rules.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Starts to answer requests from `service`. A second call has no effect.
    pub fn open(&self, service: Arc<dyn Service>) {
        self.hour_guard.trusts_clock(service.newest_hour());
        let _already_open = self.service.set(service);
    }

    /// Makes `/readyz` fail, so that load balancers send no more requests.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// The service, once [`Api::open`] was called.
    pub fn service(&self) -> Option<&Arc<dyn Service>> {
        self.service.get()
    }

    fn not_stopping(&self) -> Result<(), Problem> {
        match self.stopping.load(Ordering::Relaxed) {
            true => Err(Problem::Stopping),
            false => Ok(()),
        }
    }

    fn check_ready(&self) -> Result<(), Problem> {
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
    fn acquire_answer_permit(
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
    fn acquire_long_answer_permit(
        &self,
        context: &RequestContext,
    ) -> Result<OwnedSemaphorePermit, Problem> {
        let permit = self.long_answers.clone().try_acquire_owned();
        permit.map_err(|_| {
            context.guard.connections().abort_slowest();
            Problem::TooManyQueries
        })
    }

    /// The service, once it is open.
    fn opened(&self) -> Result<&Arc<dyn Service>, Problem> {
        self.service.get().ok_or(Problem::Recovering)
    }
}
