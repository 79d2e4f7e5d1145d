//! Hosts as network namespaces on one bridge, each with an agent of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::Daemon;
use crate::wait::until;

/// How long a connection takes at most to end after both sides were closed, on a busy machine.
pub(super) const END_TIME: Duration = Duration::from_secs(1);

/// How long traffic runs: so many seconds, or longer with `FLOWTALLY_TEST_TRAFFIC_SECONDS=…`.
pub(super) fn traffic_time(seconds: u64) -> Duration {
    let longer = std::env::var("FLOWTALLY_TEST_TRAFFIC_SECONDS");
    let longer = longer.ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(longer.unwrap_or(0).max(seconds))
}

/// Network namespaces on one bridge.
pub(super) struct Network {
    prefix: String,
    hosts: usize,
}

impl Network {
    /// `None` if this user may not make namespaces.
    pub(super) fn new(prefix: &str, hosts: usize) -> Option<Network> {
        let network = Network {
            prefix: format!("{prefix}-{}", std::process::id()),
            hosts,
        };
        let bridge = network.namespace(0);
        if !ip(&format!("netns add {bridge}")) {
            println!("watch: NOT TESTED, this user may not make network namespaces");
            return None;
        }
        for command in [
            "link add bridge0 type bridge".to_owned(),
            "link set bridge0 up".to_owned(),
            "link set lo up".to_owned(),
            format!("addr add {}/16 dev bridge0", address(0)),
        ] {
            assert!(ip(&format!("-n {bridge} {command}")), "{command}");
        }
        for host in 1..=hosts {
            let name = network.namespace(host);
            for command in [
                format!("netns add {name}"),
                format!("-n {name} link set lo up"),
                format!("-n {name} link add eth0 type veth peer name port{host} netns {bridge}"),
                format!("-n {bridge} link set port{host} master bridge0 up"),
                format!("-n {name} addr add {}/16 dev eth0", address(host)),
                format!("-n {name} link set eth0 up"),
            ] {
                assert!(ip(&command), "{command}");
            }
        }
        Some(network)
    }

    /// Number 0 has the service, the others are hosts.
    pub(super) fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.prefix)
    }

    pub(super) fn command(&self, number: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(number)])
            .arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for number in 0..=self.hosts {
            let _best_effort = ip(&format!("netns del {}", self.namespace(number)));
        }
    }
}

/// Runs `ip` with these arguments.
pub(super) fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split(' ')).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

pub(super) fn address(number: usize) -> String {
    format!("10.77.0.{}", number + 1)
}

/// A process that is killed when it is dropped.
pub(super) struct Killed(pub(super) Child);

impl Killed {
    pub(super) fn spawn(command: &mut Command) -> Killed {
        Killed(command.spawn().unwrap())
    }

    pub(super) fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

/// Hosts, and a directory for their files.
pub(super) struct World {
    pub(super) network: Network,
    pub(super) dir: tempfile::TempDir,
}

impl World {
    pub(super) fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    pub(super) fn service(&self) -> Killed {
        let mut command = self.network.command(0, Daemon::binary());
        command.args([
            "serve",
            "--allow-anonymous",
            "--listen",
            &format!("{}:8080", address(0)),
            "--data-dir",
        ]);
        let service = Killed::spawn(command.arg(self.path("db")).stderr(Stdio::null()));
        until("the service to be ready", || self.get("/readyz").is_some());
        service
    }

    pub(super) fn get(&self, path: &str) -> Option<String> {
        let url = format!("http://{}:8080{path}", address(0));
        let answer = self
            .network
            .command(0, "curl")
            .args(["-sf", &url])
            .output()
            .unwrap();
        answer
            .status
            .success()
            .then(|| String::from_utf8(answer.stdout).unwrap())
    }

    /// Starts the agent of a host, and waits until it has looked at all sockets.
    pub(super) fn agent(&self, host: usize, arguments: &[&str]) -> Killed {
        let metrics = self.path(format!("metrics-{host}"));
        let _there_may_be_none = std::fs::remove_file(&metrics);
        let mut command = self.network.command(host, Daemon::binary());
        command.args(["agent", "watch", "--interval", "1", "--url"]);
        command.arg(format!("http://{}:8080", address(0)));
        for (flag, file) in [
            ("--state-dir", format!("state-{host}")),
            ("--app-rules", format!("rules-{host}")),
            ("--metrics-file", format!("metrics-{host}")),
            ("--apps", "apps".to_owned()),
        ] {
            command.arg(flag).arg(self.path(file));
        }
        command.args(arguments);
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path(format!("log-{host}")));
        let agent = Killed::spawn(command.args(["--vpc-id", "vpc-t"]).stderr(log.unwrap()));
        until("the agent to look", || metrics.exists());
        agent
    }

    /// The bytes between hosts that the service has, of all hours.
    pub(super) fn counted(&self) -> Option<BTreeMap<(String, String), [u64; 2]>> {
        let answer = self.get("/flows?from=0&to=4294967295&group_by=src_app,dest_app")?;
        let rows: Vec<serde_json::Value> = serde_json::from_str(&answer).unwrap();
        let name = |row: &serde_json::Value, key: &str| row[key].as_str().unwrap().to_owned();
        let rows = rows.iter().map(|row| {
            let bytes = ["bytes_tx", "bytes_rx"].map(|key| row[key].as_u64().unwrap());
            ((name(row, "src_app"), name(row, "dest_app")), bytes)
        });
        // The agents' reports are connections, too.
        Some(rows.filter(|((_, dest), _)| dest != "service").collect())
    }
}
