//! Hosts as network namespaces on one bridge, each with an agent of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::Daemon;
use crate::wait::until;

/// How long a connection takes at most to end after both sides were closed, on a busy machine.
pub(super) const END_TIME: Duration = Duration::from_secs(1);

/// The hour in which the first of these tests began.
static FIRST_HOUR: LazyLock<u64> = LazyLock::new(hour_now);

/// The current hour, since the epoch.
fn hour_now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_secs() / 3600
}

/// How long traffic runs: so many seconds, or longer with `FLOWTALLY_TEST_TRAFFIC_SECONDS=…`.
pub(super) fn traffic_time(seconds: u64) -> Duration {
    let longer = std::env::var("FLOWTALLY_TEST_TRAFFIC_SECONDS");
    let longer = longer.ok().and_then(|text| text.parse::<u64>().ok());
    Duration::from_secs(longer.unwrap_or(0).max(seconds))
}

/// Network namespaces on one bridge.
pub(super) struct Network {
    prefix: String,
    hosts: usize,
    /// The system has IPv6, and each host has an address of it, too.
    has_ipv6: bool,
}

impl Network {
    /// `None` if this user may not make namespaces.
    pub(super) fn new(prefix: &str, hosts: usize) -> Option<Network> {
        LazyLock::force(&FIRST_HOUR);
        let mut network = Network {
            prefix: format!("{prefix}-{}", std::process::id()),
            hosts,
            has_ipv6: Path::new("/proc/net/if_inet6").exists(),
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
            // It may be used at once: nobody else has it.
            let address = ipv6_address(host);
            let command = format!("-n {name} addr add {address}/64 dev eth0 nodad");
            network.has_ipv6 = network.has_ipv6 && ip(&command);
        }
        if !network.has_ipv6 {
            println!("watch: IPv6 is NOT TESTED, this system has none");
        }
        Some(network)
    }

    /// The ways to write the address of a host, or its addresses: IPv4, IPv6, and IPv4 as IPv6.
    pub(super) fn spellings(&self, number: usize) -> Vec<String> {
        let ipv4 = address(number);
        match self.has_ipv6 {
            true => vec![ipv4.clone(), ipv6_address(number), format!("::ffff:{ipv4}")],
            false => vec![ipv4],
        }
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

pub(super) fn ipv6_address(number: usize) -> String {
    format!("fd77::{:x}", number + 1)
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
        command.args(["agent", "watch"]);
        self.agent_arguments(&mut command, host);
        let agent = Killed::spawn(command.args(arguments));
        until("the agent to look", || metrics.exists());
        agent
    }

    /// The arguments of the agent of a host, and its log.
    pub(super) fn agent_arguments(&self, command: &mut Command, host: usize) {
        command.args(["--interval", "1", "--vpc-id", "vpc-t", "--url"]);
        command.arg(format!("http://{}:8080", address(0)));
        for (flag, file) in [
            ("--state-dir", format!("state-{host}")),
            ("--app-rules", format!("rules-{host}")),
            ("--metrics-file", format!("metrics-{host}")),
            ("--apps", "apps".to_owned()),
        ] {
            command.arg(flag).arg(self.path(file));
        }
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path(format!("log-{host}")));
        command.stderr(log.unwrap());
    }

    /// A metric of the agent of a host, with the space behind its name.
    pub(super) fn metric(&self, host: usize, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.path(format!("metrics-{host}"))).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    }

    /// The bytes between hosts that the service has, of the VPC of all agents, and of the hours since the first test.
    pub(super) fn counted(&self) -> Option<BTreeMap<(String, String), [u64; 2]>> {
        let hours = format!("from={}&to={}", *FIRST_HOUR, hour_now() + 1);
        let answer = self.get(&format!(
            "/flows?{hours}&vpc_id=vpc-t&group_by=src_app,dest_app"
        ))?;
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
