//! Hosts as network namespaces on one bridge, each with an agent of its own.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::support::Daemon;
use crate::wait::until;

/// How long a connection takes at most to end after both sides were closed, on a busy machine.
pub(super) const END_TIME: Duration = Duration::from_secs(1);
/// Serves and connects.
const SERVERS: &str = include_str!("servers.py");
/// Times that an agent looks, after the traffic: until then, everything has its name.
const LOOKS: u64 = 3;

/// Bytes that `servers.py` has sent and received, by address and the host that has answered.
pub(super) type Moved = BTreeMap<String, BTreeMap<String, [u64; 2]>>;

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

/// An address that no host has from the beginning.
pub(super) fn floating(number: usize) -> String {
    format!("10.77.1.{}", number + 1)
}

pub(super) fn add<'a>(bytes: impl Iterator<Item = &'a [u64; 2]>) -> [u64; 2] {
    bytes.fold([0, 0], |sum, bytes| [sum[0] + bytes[0], sum[1] + bytes[1]])
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

    /// What `servers.py` prints at its end.
    pub(super) fn moved(&mut self) -> Moved {
        let mut line = String::new();
        let mut out = BufReader::new(self.0.stdout.take().unwrap());
        out.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap()
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
    /// Hosts whose applications are named `app-1` and so on. That of the service, which has no agent, is in the table.
    /// `None` if this user may not make namespaces.
    pub(super) fn new(prefix: &str, hosts: usize) -> Option<World> {
        let world = World {
            network: Network::new(prefix, hosts)?,
            dir: tempfile::tempdir().unwrap(),
        };
        for host in 1..=hosts {
            let rule = format!("[[app]]\nname = \"app-{host}\"\n");
            std::fs::write(world.path(format!("rules-{host}")), rule).unwrap();
        }
        let apps = format!("address,app\n{}:8080,service\n", address(0));
        std::fs::write(world.path("apps"), apps).unwrap();
        std::fs::write(world.path("servers.py"), SERVERS).unwrap();
        Some(world)
    }

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

    /// Starts `servers.py` on a host, which connects to these addresses.
    pub(super) fn servers(&self, host: usize, targets: &[String]) -> Killed {
        let mut command = self.network.command(host, "python3");
        command
            .arg(self.path("servers.py"))
            .arg(host.to_string())
            .arg(self.dir.path());
        Killed::spawn(command.args(targets).stdout(Stdio::piped()))
    }

    /// Waits until these hosts have made a file of this name and their number.
    pub(super) fn until_all(&self, name: &str, hosts: RangeInclusive<usize>) {
        until(format!("all hosts to be {name}"), || {
            hosts
                .clone()
                .all(|host| self.path(format!("{name}-{host}")).exists())
        });
    }

    /// Ends the pause of `servers.py` on these hosts.
    pub(super) fn resume(&self, hosts: RangeInclusive<usize>) {
        std::fs::remove_file(self.path("pause")).unwrap();
        until("the hosts to resume", || {
            hosts
                .clone()
                .all(|host| !self.path(format!("paused-{host}")).exists())
        });
    }

    /// Gives a floating address to a host, or takes it away.
    pub(super) fn change_address(&self, change: &str, number: usize, host: usize) {
        let namespace = self.network.namespace(host);
        let address = floating(number);
        let command = format!("-n {namespace} addr {change} {address}/16 dev eth0");
        assert!(ip(&command), "{command}");
    }

    /// Makes all hosts forget who had the address.
    pub(super) fn flush_neighbours(&self, hosts: usize, number: usize) {
        for host in 1..=hosts {
            let namespace = self.network.namespace(host);
            let _there_may_be_none = ip(&format!(
                "-n {namespace} neigh flush to {}",
                floating(number)
            ));
        }
    }

    /// A metric of a host's agent, as of its last look.
    pub(super) fn metric(&self, host: usize, name: &str) -> Option<u64> {
        let text = std::fs::read_to_string(self.path(format!("metrics-{host}"))).ok()?;
        let mut values = text.lines().filter_map(|line| {
            let value = line.strip_prefix(name)?.strip_prefix(' ')?;
            value.trim().parse().ok()
        });
        values.next()
    }

    pub(super) fn claims(&self, host: usize) -> u64 {
        self.metric(host, "flowtally_agent_claims").unwrap_or(0)
    }

    /// Waits until the agents have named all bytes that were moved before.
    pub(super) fn until_named(&self, hosts: RangeInclusive<usize>) {
        let looks = |host| self.metric(host, "flowtally_agent_looks_total");
        let looked: Vec<_> = hosts.map(|host| (host, looks(host).unwrap_or(0))).collect();
        until("everything to have a name", || {
            let waiting = |host| self.metric(host, "flowtally_agent_waiting_connections");
            looked.iter().all(|(host, before)| {
                looks(*host).is_some_and(|looks| looks >= before + LOOKS)
                    && waiting(*host) == Some(0)
            })
        });
    }

    /// Starts the agent of a host, and waits until it has looked at all sockets.
    pub(super) fn agent(&self, host: usize, arguments: &[&str]) -> Killed {
        let command = self.network.command(host, Daemon::binary());
        self.agent_by(command, host, arguments)
    }

    /// The same, by a command that runs the program.
    pub(super) fn agent_by(&self, mut command: Command, host: usize, arguments: &[&str]) -> Killed {
        let metrics = self.path(format!("metrics-{host}"));
        let _there_may_be_none = std::fs::remove_file(&metrics);
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
