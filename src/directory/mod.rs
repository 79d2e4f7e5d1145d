//! The directory of the fleet's addresses: which application had which address and port, and when, as the agents claim.
//!
//! With each request, an agent replaces all of its claims, and asks about the endpoints that it has seen. Claims are
//! about the past, and the agent repeats each until [`CLAIM_KEPT_MS`] after its end. So the directory is in memory only:
//! after a restart it knows everything again when each agent has sent a request.
//!
//! Where two agents claim an endpoint for the same time under different names, neither is right for sure, and that time
//! has no name ([`overlap`]).

mod overlap;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::telemetry::Metrics;
use flow::NAME_BYTES_MAX;
use flow::directory::{AGENT_ID_BYTES_MAX, CLAIM_KEPT_MS, Claim, DirectoryRequest, Question};

/// An agent that has sent nothing for so long is not waited for: its host may be gone.
const SILENCE_MS_MAX: u64 = 60_000;
/// After a start, agents that are there have sent their claims within this time: they do so every 15 seconds at least.
const START_MS: u64 = 30_000;
/// Interval at which claims of agents that are gone are removed.
const EXPIRE_INTERVAL_MS: u64 = 10_000;
/// Claims of one endpoint. With further ones, it has no name: nobody may push out the claims of others.
const LEASES_PER_ENDPOINT_MAX: usize = 64;
/// Claims of one endpoint by one agent. A further one replaces the one that ended first.
const LEASES_PER_AGENT_MAX: usize = 16;
/// Memory of a claim in both tables, without its names.
const LEASE_BYTES: usize = 416;
/// Memory of an agent, without its claims.
const AGENT_BYTES: usize = 512;
/// Interval between log lines about claims that contradict each other.
const CONFLICT_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// There is no room for an agent's claims.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the directory of addresses is full: its agents have more than {claims} claims; flows are not affected, and \
     --memory-max gives it more room"
)]
pub struct DirectoryFull {
    claims: usize,
}

/// A request that the service cannot use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadClaims(String);

/// The directory.
#[derive(Debug)]
pub struct Directory {
    state: Mutex<State>,
    bytes_max: usize,
    /// When the process started. Claims from before are not complete until all agents have repeated theirs.
    started_at: u64,
}

/// An address and port in a VPC.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Endpoint {
    vpc_id: Arc<str>,
    address: SocketAddr,
}

/// An application had an endpoint from one moment to another, says an agent.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Lease {
    agent: u64,
    app: Arc<str>,
    from: u64,
    to: u64,
}

#[derive(Debug)]
struct Agent {
    number: u64,
    vpc_id: Arc<str>,
    confirmed_until: u64,
    seen_at: u64,
    endpoints: Vec<Endpoint>,
    bytes: usize,
}

/// Who claims an endpoint.
#[derive(Debug, Default)]
struct Claimed {
    leases: Vec<Lease>,
    /// There were more claims than fit, so that nobody knows who is right until this time.
    contested_until: u64,
}

/// Two agents claim the same endpoint for the same time.
struct Conflict {
    endpoint: SocketAddr,
    app: Arc<str>,
    other: Arc<str>,
}

#[derive(Debug, Default)]
struct State {
    agents: HashMap<Box<str>, Agent>,
    endpoints: HashMap<Endpoint, Claimed>,
    agents_ever: u64,
    claims: usize,
    bytes: usize,
    expired_at: u64,
    /// When claims were refused last, because there was no room.
    refused_at: Option<u64>,
    conflict_logged_at: Option<Instant>,
}

/// Figures about the directory.
#[derive(Clone, Copy, Debug)]
struct DirectoryTotals {
    agents: usize,
    claims: usize,
    /// Endpoints that are claimed for the same time under different names.
    conflicts: usize,
}

impl Directory {
    /// An empty directory that uses up to `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> Directory {
        Directory {
            state: Mutex::default(),
            bytes_max,
            started_at: now_ms(),
        }
    }

    /// Checks what an agent claims, before [`Directory::renew`].
    ///
    /// # Errors
    /// The field that is wrong, and why.
    pub fn validate(request: &DirectoryRequest) -> Result<(), BadClaims> {
        let agent = request.agent.as_bytes();
        if !(1..=AGENT_ID_BYTES_MAX).contains(&agent.len())
            || !agent.iter().all(u8::is_ascii_graphic)
        {
            return Err(BadClaims(format!(
                "agent: it has {} bytes; it must be 1 to {AGENT_ID_BYTES_MAX} visible ASCII characters",
                agent.len()
            )));
        }
        if request.vpc_id.len() > NAME_BYTES_MAX {
            return Err(BadClaims(format!(
                "vpc_id: it has {} bytes; the limit is {NAME_BYTES_MAX}",
                request.vpc_id.len()
            )));
        }
        for (index, claim) in request.claims.iter().enumerate() {
            let wrong = |what: String| Err(BadClaims(format!("claims[{index}]: {what}")));
            if !(1..=NAME_BYTES_MAX).contains(&claim.app.len()) {
                return wrong(format!(
                    "app: it has {} bytes; the limits are 1 and {NAME_BYTES_MAX}",
                    claim.app.len()
                ));
            }
            if claim.from > claim.to {
                return wrong(format!("from is {}, after to: {}", claim.from, claim.to));
            }
        }
        Ok(())
    }

    /// Replaces the claims of an agent. Questions in the request are ignored. Takes milliseconds if there are many.
    ///
    /// # Errors
    /// If there is no room. The agent's former claims stay.
    pub fn renew(&self, request: DirectoryRequest) -> Result<(), DirectoryFull> {
        self.renew_at(request, now_ms())
    }

    fn renew_at(&self, request: DirectoryRequest, now: u64) -> Result<(), DirectoryFull> {
        let agent = request.agent.clone();
        let renewed = self.state.lock().renew(request, now, self.bytes_max);
        let conflict = renewed?.filter(|_| self.may_log());
        if let Some(conflict) = conflict {
            tracing::warn!(
                address = %conflict.endpoint.ip(),
                port = conflict.endpoint.port(),
                agent,
                app = &*conflict.app,
                other = &*conflict.other,
                "two agents claim the same address and port; it has no name for that time"
            );
        }
        Ok(())
    }

    /// Whether a conflict is to be logged, which happens once a minute.
    fn may_log(&self) -> bool {
        let logged_at = &mut self.state.lock().conflict_logged_at;
        let is_silent = logged_at.is_some_and(|at| at.elapsed() < CONFLICT_LOG_INTERVAL);
        if !is_silent {
            *logged_at = Some(Instant::now());
        }
        !is_silent
    }

    /// Names of the endpoints in `questions`, for the times at which exactly one is claimed.
    pub fn names(&self, vpc_id: &str, questions: &[Question]) -> Vec<Claim> {
        self.names_at(vpc_id, questions, now_ms())
    }

    fn names_at(&self, vpc_id: &str, questions: &[Question], now: u64) -> Vec<Claim> {
        // Each endpoint once: so the names are no more than what the directory has.
        let mut asked: HashMap<SocketAddr, (u64, u64)> = HashMap::new();
        for question in questions {
            let span = asked.entry(question.endpoint());
            let span = span.or_insert((question.from, question.to));
            *span = (span.0.min(question.from), span.1.max(question.to));
        }
        let vpc_id: Arc<str> = vpc_id.into();
        let mut names = Vec::new();
        for (address, (from, to)) in asked {
            let endpoint = Endpoint {
                vpc_id: vpc_id.clone(),
                address,
            };
            // For each of them, so that others need not wait.
            let state = self.state.lock();
            let Some(claimed) = state.endpoints.get(&endpoint) else {
                continue;
            };
            if now < claimed.contested_until {
                continue;
            }
            let spans = overlap::unambiguous(&claimed.leases).into_iter();
            let asked_for = spans.filter(|(_, start, end)| *start <= to && from <= *end);
            names.extend(asked_for.map(|(app, from, to)| Claim {
                app: app.to_string(),
                address: address.ip(),
                port: address.port(),
                from,
                to,
            }));
        }
        names
    }

    /// The time up to which the claims of all agents of this VPC that are known are complete; 0 if that is not known.
    pub fn complete_until(&self, vpc_id: &str) -> u64 {
        self.complete_until_at(vpc_id, now_ms())
    }

    fn complete_until_at(&self, vpc_id: &str, now: u64) -> u64 {
        let state = self.state.lock();
        let was_refused = |at: u64| now < at + SILENCE_MS_MAX;
        if now < self.started_at + START_MS || state.refused_at.is_some_and(was_refused) {
            return 0;
        }
        let agents = state.agents.values();
        let heard = agents.filter(|agent| {
            agent.seen_at + SILENCE_MS_MAX >= now
                && agent.confirmed_until > 0
                && *agent.vpc_id == *vpc_id
        });
        heard.map(|agent| agent.confirmed_until).min().unwrap_or(0)
    }

    /// Sets the gauges.
    pub fn observe(&self, metrics: &Metrics) {
        let totals = self.totals();
        let as_gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let metrics = metrics.directory();
        metrics.agents.set(as_gauge(totals.agents));
        metrics.claims.set(as_gauge(totals.claims));
        metrics.conflicts.set(as_gauge(totals.conflicts));
    }

    fn totals(&self) -> DirectoryTotals {
        let state = self.state.lock();
        let endpoints = state.endpoints.values();
        let conflicts = endpoints.filter(|claimed| overlap::have_conflict(&claimed.leases));
        DirectoryTotals {
            agents: state.agents.len(),
            claims: state.claims,
            conflicts: conflicts.count(),
        }
    }
}

impl State {
    /// Returns one of the conflicts with claims of others.
    fn renew(
        &mut self,
        request: DirectoryRequest,
        now: u64,
        bytes_max: usize,
    ) -> Result<Option<Conflict>, DirectoryFull> {
        self.expire(now);
        let is_first = request.claims.is_empty() && request.confirmed_until == 0;
        if is_first && let Some(agent) = self.agents.get_mut(&*request.agent) {
            // It has been restarted, and does not know the service's clock yet: what it claimed before stays true.
            agent.seen_at = now;
            return Ok(None);
        }
        // A claim about the future may turn out wrong, and one of the past is of no use.
        let is_recent =
            |claim: &Claim| claim.to.saturating_add(CLAIM_KEPT_MS) >= now && claim.from <= now;
        let claims: Vec<Claim> = request.claims.into_iter().filter(is_recent).collect();
        let names: usize = claims.iter().map(|claim| claim.app.len()).sum();
        let bytes = AGENT_BYTES + request.vpc_id.len() + claims.len() * LEASE_BYTES + names;
        let before = self.agents.get(&*request.agent);
        let before = before.map_or(0, |agent| agent.bytes);
        if self.bytes - before + bytes > bytes_max {
            self.refused_at = Some(now);
            let claims = self.claims;
            return Err(DirectoryFull { claims });
        }
        self.remove(&request.agent);
        let number = self.agents_ever;
        self.agents_ever += 1;
        let vpc_id: Arc<str> = request.vpc_id.into();
        let mut endpoints = Vec::with_capacity(claims.len());
        let mut conflict = None;
        for claim in claims {
            let endpoint = Endpoint {
                vpc_id: vpc_id.clone(),
                address: claim.endpoint(),
            };
            let lease = Lease {
                agent: number,
                from: claim.from,
                to: claim.to.min(now),
                app: claim.app.into(),
            };
            let claimed = self.endpoints.entry(endpoint.clone()).or_default();
            let contradicts = |other: &&Lease| overlap::contradict(other, &lease);
            if let Some(other) = claimed.leases.iter().find(contradicts) {
                conflict = Some(Conflict {
                    endpoint: endpoint.address,
                    app: lease.app.clone(),
                    other: other.app.clone(),
                });
            }
            if claimed.add(lease, now) {
                self.claims += 1;
            }
            endpoints.push(endpoint);
        }
        self.bytes += bytes;
        let agent = Agent {
            number,
            vpc_id,
            confirmed_until: request.confirmed_until.min(now),
            seen_at: now,
            endpoints,
            bytes,
        };
        self.agents.insert(request.agent.into(), agent);
        Ok(conflict)
    }

    fn remove(&mut self, agent: &str) {
        let Some(agent) = self.agents.remove(agent) else {
            return;
        };
        self.bytes -= agent.bytes;
        for endpoint in agent.endpoints {
            let Some(claimed) = self.endpoints.get_mut(&endpoint) else {
                continue;
            };
            let before = claimed.leases.len();
            claimed.leases.retain(|lease| lease.agent != agent.number);
            self.claims -= before - claimed.leases.len();
            if claimed.leases.is_empty() {
                self.endpoints.remove(&endpoint);
            }
        }
    }

    /// Removes the agents whose claims are too old to be asked for.
    fn expire(&mut self, now: u64) {
        if now < self.expired_at + EXPIRE_INTERVAL_MS {
            return;
        }
        self.expired_at = now;
        let is_gone = |agent: &Agent| agent.seen_at + CLAIM_KEPT_MS < now;
        let agents = self.agents.iter().filter(|(_, agent)| is_gone(agent));
        let gone: Vec<Box<str>> = agents.map(|(id, _)| id.clone()).collect();
        for agent in gone {
            self.remove(&agent);
        }
    }
}

impl Claimed {
    /// Returns whether there is one more now.
    fn add(&mut self, lease: Lease, now: u64) -> bool {
        let own = self.leases.iter_mut().filter(|of| of.agent == lease.agent);
        let own: Vec<&mut Lease> = own.collect();
        if own.len() >= LEASES_PER_AGENT_MAX {
            if let Some(ended_first) = own.into_iter().min_by_key(|lease| lease.to) {
                *ended_first = lease;
            }
            return false;
        }
        if self.leases.len() >= LEASES_PER_ENDPOINT_MAX {
            self.contested_until = now + CLAIM_KEPT_MS;
            return false;
        }
        self.leases.push(lease);
        true
    }
}

/// The service's clock, in milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
