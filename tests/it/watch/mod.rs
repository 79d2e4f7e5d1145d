//! `flowtally-agent watch`: twenty hosts, each a network namespace with an agent of its own, move known numbers of bytes,
//! while agents and the service are killed. Each byte of TCP payload is counted once, under the right names.
//!
//! The kernel forgets a socket when it ends. So what ends while no agent runs cannot be counted; here, connections are
//! neither opened nor ended then, but go on sending.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rand::RngExt;

use crate::daemon::signal;
use crate::support::{Daemon, random};
use crate::wait::{DEADLINE, poll_for, until};

const HOSTS: usize = 20;
const TRAFFIC: &str = include_str!("traffic.py");
/// How long traffic runs.
const TRAFFIC_TIME: Duration = Duration::from_secs(25);
/// How long a connection takes at most to end after both sides were closed, on a busy machine.
const END_TIME: Duration = Duration::from_secs(1);

/// Network namespaces on one bridge.
struct Network {
    prefix: String,
}

impl Network {
    /// `None` if this user may not make namespaces.
    fn new() -> Option<Network> {
        let network = Network {
            prefix: format!("flowtally-{}", std::process::id()),
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
        for host in 1..=HOSTS {
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
    fn namespace(&self, number: usize) -> String {
        format!("{}-{number}", self.prefix)
    }

    fn command(&self, number: usize, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.namespace(number)])
            .arg(program);
        command
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for number in 0..=HOSTS {
            let _best_effort = ip(&format!("netns del {}", self.namespace(number)));
        }
    }
}

fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command.args(arguments.split(' ')).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn address(number: usize) -> String {
    format!("10.77.0.{}", number + 1)
}

/// A process that is killed when it is dropped.
struct Killed(Child);

impl Killed {
    fn spawn(command: &mut Command) -> Killed {
        Killed(command.spawn().unwrap())
    }

    fn kill(&mut self) {
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

struct World {
    network: Network,
    dir: tempfile::TempDir,
}

impl World {
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    fn touch(&self, name: &str) {
        std::fs::write(self.path(name), "").unwrap();
    }

    fn service(&self) -> Killed {
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

    fn get(&self, path: &str) -> Option<String> {
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
    fn agent(&self, host: usize) -> Killed {
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
        let log = std::fs::File::options()
            .append(true)
            .create(true)
            .open(self.path(format!("log-{host}")));
        let agent = Killed::spawn(command.args(["--vpc-id", "vpc-t"]).stderr(log.unwrap()));
        until("the agent to look", || metrics.exists());
        agent
    }

    /// The bytes between hosts that the service has, of all hours.
    fn counted(&self) -> Option<BTreeMap<(String, String), [u64; 2]>> {
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

#[test]
fn each_byte_is_counted_once_while_agents_are_killed() {
    let Some(network) = Network::new() else {
        return;
    };
    let mut random = random("watch");
    let dir = tempfile::tempdir().unwrap();
    let world = World { network, dir };
    let mut apps = format!("address,app\n{}:8080,service\n", address(0));
    for host in 1..=HOSTS {
        apps += &format!("{},app-{host}\n", address(host));
        let rule = format!("[[app]]\nname = \"app-{host}\"\n");
        std::fs::write(world.path(format!("rules-{host}")), rule).unwrap();
    }
    std::fs::write(world.path("apps"), apps).unwrap();
    std::fs::write(world.path("traffic.py"), TRAFFIC).unwrap();

    let mut service = world.service();
    let mut agents: Vec<Killed> = (1..=HOSTS).map(|host| world.agent(host)).collect();
    let addresses: Vec<String> = (1..=HOSTS).map(address).collect();
    let mut traffic: Vec<Killed> = Vec::new();
    for host in 1..=HOSTS {
        let mut command = world.network.command(host, "python3");
        command
            .arg(world.path("traffic.py"))
            .arg((host - 1).to_string())
            .arg(world.dir.path());
        traffic.push(Killed::spawn(
            command.args(&addresses).stdout(Stdio::piped()),
        ));
    }
    until("all hosts to serve", || {
        (0..HOSTS).all(|host| world.path(format!("serving-{host}")).exists())
    });
    world.touch("start");

    let began = Instant::now();
    let mut kills = 0;
    while began.elapsed() < TRAFFIC_TIME {
        let host = random.random_range(1..=HOSTS);
        let (pause, paused) = (
            format!("pause-{}", host - 1),
            format!("paused-{}", host - 1),
        );
        world.touch(&pause);
        until("the host to pause", || world.path(&paused).exists());
        std::thread::sleep(END_TIME);
        agents[host - 1].kill();
        if random.random_range(0..4) == 0 {
            service.kill();
            service = world.service();
        }
        agents[host - 1] = world.agent(host);
        kills += 1;
        std::fs::remove_file(world.path(&pause)).unwrap();
        until("the host to go on", || !world.path(&paused).exists());
    }
    world.touch("stop");
    let mut expected = BTreeMap::new();
    for (host, process) in (1..).zip(&mut traffic) {
        let mut line = String::new();
        let mut out = std::io::BufReader::new(process.0.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let moved: BTreeMap<String, [u64; 2]> = serde_json::from_str(&line).unwrap();
        for (to, bytes) in moved {
            let to = 1 + addresses.iter().position(|address| *address == to).unwrap();
            expected.insert((format!("app-{host}"), format!("app-{to}")), bytes);
        }
    }
    world.touch("end");
    assert!(kills >= 3, "{kills}");
    // The last report: at a signal.
    std::thread::sleep(END_TIME);
    for agent in &mut agents {
        signal(&agent.0, "TERM");
        assert!(agent.0.wait().unwrap().success());
    }
    // What the service did not take then is in the spool.
    let _agents: Vec<Killed> = (1..=HOSTS).map(|host| world.agent(host)).collect();
    let is_complete = poll_for(DEADLINE, || (world.counted()? == expected).then_some(()));
    if is_complete.is_none() {
        let counted = world.counted().unwrap();
        for (pair, bytes) in &expected {
            let found = counted.get(pair);
            if found != Some(bytes) {
                println!("{pair:?}: moved {bytes:?}, counted {found:?}");
            }
        }
        for pair in counted.keys().filter(|pair| !expected.contains_key(*pair)) {
            println!("{pair:?}: counted, but there was no such connection");
        }
        panic!("after {kills} kills");
    }
    println!("{} pairs, {kills} kills", expected.len());
}
