//! The API over HTTP: routes, handlers (one file an endpoint), and how errors look.
//!
//! Handlers are plain functions from a request to `Result<Response, Problem>`; `error.rs` alone
//! knows status codes of failures. `server.rs` owns connections.

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

/// The media type of what is one JSON value.
const JSON: &str = "application/json";

/// Bounds on what a request may cost.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Largest body, as sent and after decompression.
    pub body_bytes_max: usize,
    /// Longest pause between two parts of a body.
    pub body_idle_max: Duration,
    /// Longest time for a whole body.
    pub body_time_max: Duration,
    /// Longest pause of a client in the middle of an answer.
    pub answer_idle_max: Duration,
    /// Connections at a time. Further ones take the places of those that are without a request, or wait.
    pub connections_max: usize,
    /// Longest time for the head of a request, and for a connection to begin one; also for a TLS
    /// handshake.
    pub head_time_max: Duration,
    /// Answers that may be read at the same time.
    pub queries_max: usize,
}

/// One in this many permits for answers is only for short ones, which release it at once, so that clients that read
/// long answers slowly do not keep those waiting.
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
    /// Those permits of [`Api::queries`] that long answers may have.
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

    /// Who may do what.
    pub fn access(&self) -> &Access {
        &self.access
    }

    /// Starts to answer. Has no effect the second time.
    pub fn open(&self, service: Arc<dyn Service>) {
        self.hour_guard.trusts_clock(service.newest_hour());
        let _already_open = self.service.set(service);
    }

    /// Tells load balancers, by `/readyz`, to send no more.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// What [`Api::open`] was given.
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

    /// A permit for one of the answers that may be in progress at a time; `weight` permits for an answer that takes the
    /// memory of several. If there is none, the slowest answer is aborted.
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

    /// A second permit for an answer that does not end with its first chunk.
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
