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
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use crate::telemetry::Metrics;
use flow::NAME_BYTES_MAX;
use flow::directory::{AGENT_ID_BYTES_MAX, CLAIM_KEPT_MS, Claim, DirectoryRequest, Question};

/// An agent that has sent nothing for so long is not waited for: its host may be gone.
const SILENCE_MS_MAX: u64 = 60_000;
/// Interval at which claims of agents that are gone are removed.
const EXPIRE_INTERVAL_MS: u64 = 10_000;
/// Claims of one endpoint. A further one replaces the one that ended first.
const LEASES_PER_ENDPOINT_MAX: usize = 64;
/// Memory of a claim in both tables, without its names.
const LEASE_BYTES: usize = 320;
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

#[derive(Debug, Default)]
struct State {
    agents: HashMap<Box<str>, Agent>,
    leases: HashMap<Endpoint, Vec<Lease>>,
    agents_ever: u64,
    claims: usize,
    bytes: usize,
    expired_at: u64,
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
        if !(1..=AGENT_ID_BYTES_MAX).contains(&request.agent.len()) {
            return Err(BadClaims(format!(
                "agent: it has {} bytes; the limits are 1 and {AGENT_ID_BYTES_MAX}",
                request.agent.len()
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

    /// Replaces the claims of an agent. Questions in the request are ignored.
    ///
    /// # Errors
    /// If there is no room. The agent's former claims stay.
    pub fn renew(&self, request: DirectoryRequest) -> Result<(), DirectoryFull> {
        self.renew_at(request, now_ms())
    }

    fn renew_at(&self, request: DirectoryRequest, now: u64) -> Result<(), DirectoryFull> {
        let state = &mut *self.state.lock();
        state.expire(now);
        // A claim about the future may turn out wrong, and one of the past is of no use.
        let is_recent =
            |claim: &Claim| claim.to.saturating_add(CLAIM_KEPT_MS) >= now && claim.from <= now;
        let claims: Vec<Claim> = request.claims.into_iter().filter(is_recent).collect();
        let names: usize = claims.iter().map(|claim| claim.app.len()).sum();
        let bytes = AGENT_BYTES + request.vpc_id.len() + claims.len() * LEASE_BYTES + names;
        let before = state
            .agents
            .get(&*request.agent)
            .map_or(0, |agent| agent.bytes);
        if state.bytes - before + bytes > self.bytes_max {
            let claims = state.claims;
            return Err(DirectoryFull { claims });
        }
        state.remove(&request.agent);
        let number = state.agents_ever;
        state.agents_ever += 1;
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
            let leases = state.leases.entry(endpoint.clone()).or_default();
            let contradicts = |other: &&Lease| overlap::contradict(other, &lease);
            if let Some(other) = leases.iter().find(contradicts) {
                conflict = Some((
                    claim.address,
                    claim.port,
                    lease.app.clone(),
                    other.app.clone(),
                ));
            }
            if leases.len() >= LEASES_PER_ENDPOINT_MAX {
                let ended_first = leases.iter().enumerate().min_by_key(|(_, lease)| lease.to);
                if let Some((at, _)) = ended_first {
                    leases.swap_remove(at);
                    state.claims -= 1;
                }
            }
            leases.push(lease);
            state.claims += 1;
            endpoints.push(endpoint);
        }
        if let Some((address, port, app, other)) = conflict {
            state.log_conflict(&request.agent, address, port, &app, &other);
        }
        state.bytes += bytes;
        let agent = Agent {
            number,
            vpc_id,
            confirmed_until: request.confirmed_until.min(now),
            seen_at: now,
            endpoints,
            bytes,
        };
        state.agents.insert(request.agent.into(), agent);
        Ok(())
    }

    /// Names of the endpoints in `questions`, for the times at which exactly one is claimed.
    pub fn names(&self, vpc_id: &str, questions: &[Question]) -> Vec<Claim> {
        let state = self.state.lock();
        let vpc_id: Arc<str> = vpc_id.into();
        let mut names = Vec::new();
        for question in questions {
            let endpoint = Endpoint {
                vpc_id: vpc_id.clone(),
                address: question.endpoint(),
            };
            let leases = state.leases.get(&endpoint).map_or(&[][..], |leases| leases);
            for (app, from, to) in overlap::unambiguous(leases) {
                if from <= question.to && question.from <= to {
                    names.push(Claim {
                        app: app.to_string(),
                        address: question.address,
                        port: question.port,
                        from,
                        to,
                    });
                }
            }
        }
        names
    }

    /// The time up to which the claims of all agents of this VPC that are known are complete; 0 if that is not known.
    pub fn complete_until(&self, vpc_id: &str) -> u64 {
        self.complete_until_at(vpc_id, now_ms())
    }

    fn complete_until_at(&self, vpc_id: &str, now: u64) -> u64 {
        if now < self.started_at + SILENCE_MS_MAX {
            return 0;
        }
        let state = self.state.lock();
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
        let leases = state.leases.values();
        let conflicts = leases.filter(|leases| overlap::have_conflict(leases));
        DirectoryTotals {
            agents: state.agents.len(),
            claims: state.claims,
            conflicts: conflicts.count(),
        }
    }
}

impl State {
    fn remove(&mut self, agent: &str) {
        let Some(agent) = self.agents.remove(agent) else {
            return;
        };
        self.bytes -= agent.bytes;
        for endpoint in agent.endpoints {
            let Some(leases) = self.leases.get_mut(&endpoint) else {
                continue;
            };
            let before = leases.len();
            leases.retain(|lease| lease.agent != agent.number);
            self.claims -= before - leases.len();
            if leases.is_empty() {
                self.leases.remove(&endpoint);
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

    fn log_conflict(&mut self, agent: &str, address: IpAddr, port: u16, app: &str, other: &str) {
        let is_silent = |at: Instant| at.elapsed() < CONFLICT_LOG_INTERVAL;
        if self.conflict_logged_at.is_some_and(is_silent) {
            return;
        }
        self.conflict_logged_at = Some(Instant::now());
        tracing::warn!(
            %address,
            port,
            agent,
            app,
            other,
            "two agents claim the same address and port; it has no name for that time"
        );
    }
}

/// The service's clock, in milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
