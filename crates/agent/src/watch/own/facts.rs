//! What is known about the owner of a socket.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// What a control group's path says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct CgroupFacts {
    /// The systemd unit, as in `nginx.service`.
    pub(super) unit: Option<String>,
    /// The container's name.
    pub(super) container: Option<String>,
    pub(super) pod: Option<PodFacts>,
}

/// A Kubernetes pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct PodFacts {
    pub(super) namespace: String,
    pub(super) name: String,
    /// Where the pod has a volume of the downward API with its labels.
    pub(super) labels: BTreeMap<String, String>,
}

impl PodFacts {
    /// The name of what has made the pod: its name without the suffixes of a deployment, daemon set or stateful set.
    pub(super) fn workload(&self) -> &str {
        let name = &*self.name;
        let Some((rest, last)) = name.rsplit_once('-') else {
            return name;
        };
        // Kubernetes makes these of letters and digits without vowels, so that they are no words.
        let is_random = |text: &str| {
            text.bytes()
                .all(|byte| b"bcdfghjklmnpqrstvwxz2456789".contains(&byte))
        };
        let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        let is_of_set = last.len() == 5 && is_random(last);
        match rest.rsplit_once('-') {
            // Of a deployment, whose replica set has a name, or of a cron job, whose job has a number.
            Some((name, of)) if is_of_set && (8..=10).contains(&of.len()) && is_random(of) => name,
            Some((name, of)) if is_of_set && of.len() >= 8 && is_number(of) => name,
            _ if is_of_set || is_number(last) => rest,
            _ => name,
        }
    }
}

/// The process that holds a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Process {
    pub(super) executable: PathBuf,
    /// The path of its control group.
    pub(super) cgroup: String,
}

/// All of it, of one socket.
#[derive(Clone, Debug, Default)]
pub(super) struct Facts {
    pub(super) cgroup: Option<Arc<CgroupFacts>>,
    /// `None` if it was not looked for, or not found.
    pub(super) process: Option<Process>,
    pub(super) user: Option<Arc<str>>,
    /// The port that the socket is connected to; `None` if it listens.
    pub(super) port: Option<u16>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_a_pods_name_without_its_suffixes() {
        for (pod, workload) in [
            ("checkout-7c6d9f8b5b-x2b4z", "checkout"),
            ("node-exporter-x2b4z", "node-exporter"),
            ("checkout-7c6d9f8b5b-24567", "checkout"),
            ("backup-28391234-x2b4z", "backup"),
            ("db-0", "db"),
            ("web-proxy", "web-proxy"),
            ("web-hello", "web-hello"),
            ("standalone", "standalone"),
        ] {
            let facts = PodFacts {
                name: pod.into(),
                ..PodFacts::default()
            };
            assert_eq!(facts.workload(), workload);
        }
    }
}
