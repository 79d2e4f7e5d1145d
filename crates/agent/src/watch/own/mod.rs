//! The names of this host's applications (`src_app`): from rules over what the kernel and /proc know about the socket.

mod cgroups;
mod facts;
mod processes;
mod rules;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::cgroups::Cgroups;
use self::facts::Facts;
use self::processes::Processes;
use self::rules::Rules;
use super::sock_diag::TcpSocket;

pub(super) use rules::{RulesError, Verdict};

/// The name of connections whose application is not known.
const UNKNOWN: &str = "unknown";
/// How long it is remembered which application has connected to an endpoint.
const RECENT: Duration = Duration::from_secs(600);
/// Endpoints that are remembered.
const RECENT_MAX: usize = 20_000;

/// Names the applications that own sockets.
#[derive(Debug)]
pub(super) struct OwnNames {
    rules: Rules,
    cgroups: Cgroups,
    processes: Processes,
    /// Whether processes may be searched at this look.
    may_search: bool,
    /// Times that a connection had to wait for that.
    pub(super) postponed: u64,
    users: HashMap<u32, Option<Arc<str>>>,
    /// By namespace and endpoint.
    recent: HashMap<(u64, SocketAddr), Recent>,
    unknown: Arc<str>,
}

/// What has connected to an endpoint.
#[derive(Debug)]
struct Recent {
    /// `None` if there were several.
    app: Option<Arc<str>>,
    seen_at: Instant,
}

impl OwnNames {
    /// With the rules of this file, or else the default ones.
    pub(super) fn open(rules: Option<&Path>) -> Result<OwnNames, RulesError> {
        Ok(OwnNames {
            rules: Rules::open(rules)?,
            cgroups: Cgroups::default(),
            processes: Processes::default(),
            may_search: true,
            postponed: 0,
            users: HashMap::new(),
            recent: HashMap::new(),
            unknown: UNKNOWN.into(),
        })
    }

    /// To be called before each look at all namespaces. Processes are searched in it if the search before was long enough
    /// ago for what it has cost, or if the names cannot wait, `must_search`.
    pub(super) fn begin_look(&mut self, must_search: bool) {
        self.may_search = must_search || self.processes.are_due();
    }

    /// The applications of connections of a network namespace, or that they need a process and are to be asked for again at
    /// the next look.
    pub(super) fn of_connections(&mut self, namespace: u64, sockets: &[TcpSocket]) -> Vec<Verdict> {
        let verdicts = self.verdicts(namespace, sockets, self.may_search);
        let waits = |verdict: &&Verdict| **verdict == Verdict::NeedsProcess;
        self.postponed += verdicts.iter().filter(waits).count() as u64;
        verdicts
    }

    /// The applications of sockets of a network namespace; `None` where no rule fits.
    pub(super) fn of(&mut self, namespace: u64, sockets: &[TcpSocket]) -> Vec<Option<Arc<str>>> {
        let verdicts = self.verdicts(namespace, sockets, true).into_iter();
        verdicts.map(Verdict::into_name).collect()
    }

    fn verdicts(
        &mut self,
        namespace: u64,
        sockets: &[TcpSocket],
        may_search: bool,
    ) -> Vec<Verdict> {
        if sockets.is_empty() {
            return Vec::new();
        }
        self.cgroups
            .learn(sockets.iter().filter_map(|socket| socket.cgroup));
        let facts = |names: &mut OwnNames, socket: &TcpSocket| Facts {
            cgroup: socket.cgroup.and_then(|id| names.cgroups.get(id)),
            process: None,
            user: names.user(socket.user),
            port: Some(socket.remote.port()).filter(|port| *port != 0),
        };
        let all: Vec<Facts> = sockets.iter().map(|socket| facts(self, socket)).collect();
        let mut verdicts: Vec<_> = all.iter().map(|facts| self.rules.name(facts)).collect();
        let wanted = |verdict: &Verdict| matches!(verdict, Verdict::NeedsProcess);
        if may_search && verdicts.iter().any(wanted) {
            let inodes = sockets.iter().zip(&verdicts);
            let inodes = inodes.filter(|(_, verdict)| wanted(verdict));
            let inodes = inodes.map(|(socket, _)| socket.inode).collect();
            let found = self.processes.of_sockets(inodes);
            for ((socket, verdict), mut facts) in sockets.iter().zip(&mut verdicts).zip(all) {
                if !wanted(verdict) {
                    continue;
                }
                if let Some(process) = found.get(&socket.inode) {
                    if facts.cgroup.is_none() {
                        facts.cgroup = self.cgroups.of_path(&process.cgroup);
                    }
                    facts.process = Some(process.clone());
                }
                *verdict = self.rules.name_finally(&facts);
            }
        }
        for (socket, verdict) in sockets.iter().zip(&verdicts) {
            if let Verdict::Name(name) = verdict
                && socket.remote.port() != 0
            {
                self.remember(namespace, socket.remote, name);
            }
        }
        verdicts
    }

    /// The application of a connection whose socket was not seen alive, or not for long enough: the only one that has
    /// connected to this endpoint recently, or unknown.
    pub(super) fn of_unseen(&self, namespace: u64, remote: SocketAddr) -> Arc<str> {
        let recent = self.recent.get(&(namespace, remote));
        let recent = recent.filter(|recent| recent.seen_at.elapsed() < RECENT);
        let name = recent.and_then(|recent| recent.app.clone());
        name.unwrap_or_else(|| match self.rules.constant() {
            Some(name) => name.clone(),
            None => self.unknown.clone(),
        })
    }

    /// Whether this is the name of applications that are not known.
    pub(super) fn is_unknown(&self, name: &Arc<str>) -> bool {
        *name == self.unknown
    }

    fn remember(&mut self, namespace: u64, remote: SocketAddr, name: &Arc<str>) {
        let now = Instant::now();
        if self.recent.len() >= RECENT_MAX {
            self.recent
                .retain(|_, recent| now.duration_since(recent.seen_at) < RECENT);
            if self.recent.len() >= RECENT_MAX {
                self.recent.clear();
            }
        }
        let recent = self.recent.entry((namespace, remote));
        let recent = recent.or_insert_with(|| Recent {
            app: Some(name.clone()),
            seen_at: now,
        });
        if recent.app.as_ref().is_some_and(|known| known != name) {
            recent.app = None;
        }
        recent.seen_at = now;
    }

    fn user(&mut self, id: u32) -> Option<Arc<str>> {
        let user = self.users.entry(id);
        user.or_insert_with(|| user_name(&std::fs::read_to_string("/etc/passwd").ok()?, id))
            .clone()
    }
}

/// The name of a user in `/etc/passwd`.
fn user_name(passwd: &str, id: u32) -> Option<Arc<str>> {
    let id = id.to_string();
    let mut users = passwd.lines().map(|line| line.split(':'));
    users.find_map(|mut fields| {
        let name = fields.next()?;
        (fields.nth(1)? == id).then(|| name.into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_number() {
        let passwd = "root:x:0:0:root:/root:/bin/bash\nweb:x:33:33::/:/bin/sh\n\nbroken\n";
        assert_eq!(user_name(passwd, 33).as_deref(), Some("web"));
        assert_eq!(user_name(passwd, 3), None);
    }

    /// Two applications that use one database: a connection that was too short to be seen may be of either.
    #[test]
    fn an_unseen_connection_gets_no_name_that_may_be_wrong() {
        let mut names = OwnNames::open(None).unwrap();
        let remote: SocketAddr = "10.0.0.7:5432".parse().unwrap();
        assert_eq!(&*names.of_unseen(1, remote), "unknown");
        names.remember(1, remote, &"a".into());
        names.remember(1, remote, &"a".into());
        assert_eq!(&*names.of_unseen(1, remote), "a");
        assert_eq!(&*names.of_unseen(2, remote), "unknown");
        names.remember(1, remote, &"b".into());
        names.remember(1, remote, &"b".into());
        assert_eq!(&*names.of_unseen(1, remote), "unknown");
    }
}
