//! Names from the directory: addresses move from host to host, while connections are made to them. No byte gets a wrong
//! name, and nearly all get one.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::network::{END_TIME, Killed, Network, World, address, ip, traffic_time};
use crate::daemon::signal;
use crate::support::random;
use crate::wait::{DEADLINE, poll_for, until};

const HOSTS: usize = 8;
const FLOATING: usize = 4;
const SERVERS: &str = include_str!("servers.py");
const TRAFFIC_SECONDS: u64 = 30;
/// Times that the agents look, after the traffic: until then, everything has its name.
const LOOKS: u64 = 3;
/// Between two moves. A host that has an address only between two looks of its agent, which are five seconds apart, does not
/// claim it.
const MOVE_INTERVAL: Duration = Duration::from_secs(4);

fn floating(number: usize) -> String {
    format!("10.77.1.{}", number + 1)
}

impl World {
    /// Gives a floating address to a host, or takes it away.
    fn change_address(&self, change: &str, number: usize, host: usize) {
        let namespace = self.network.namespace(host);
        let address = floating(number);
        let command = format!("-n {namespace} addr {change} {address}/16 dev eth0");
        assert!(ip(&command), "{command}");
    }

    /// Makes all hosts forget who had the address.
    fn flush_neighbours(&self, number: usize) {
        for host in 1..=HOSTS {
            let namespace = self.network.namespace(host);
            let _there_may_be_none = ip(&format!(
                "-n {namespace} neigh flush to {}",
                floating(number)
            ));
        }
    }
}

#[test]
fn an_address_that_changes_hands_is_never_given_the_wrong_name() {
    let Some(network) = Network::new("names", HOSTS) else {
        return;
    };
    let mut random = random("names");
    let dir = tempfile::tempdir().unwrap();
    let world = World { network, dir };
    for host in 1..=HOSTS {
        let rule = format!("[[app]]\nname = \"app-{host}\"\n");
        std::fs::write(world.path(format!("rules-{host}")), rule).unwrap();
    }
    // The service's host has no agent.
    let apps = format!("address,app\n{}:8080,service\n", address(0));
    std::fs::write(world.path("apps"), apps).unwrap();
    std::fs::write(world.path("servers.py"), SERVERS).unwrap();
    let mut owners = [1, 2, 3, 4];
    for (number, owner) in owners.iter().enumerate() {
        world.change_address("add", number, *owner);
    }
    let mut service = world.service();
    let mut traffic: Vec<Killed> = Vec::new();
    let targets: Vec<String> = (1..=HOSTS)
        .map(address)
        .chain((0..FLOATING).map(floating))
        .collect();
    for host in 1..=HOSTS {
        let mut command = world.network.command(host, "python3");
        command
            .arg(world.path("servers.py"))
            .arg(host.to_string())
            .arg(world.dir.path());
        traffic.push(Killed::spawn(command.args(&targets).stdout(Stdio::piped())));
    }
    until("all hosts to serve", || {
        (1..=HOSTS).all(|host| world.path(format!("serving-{host}")).exists())
    });
    let mut agents: Vec<Killed> = (1..=HOSTS).map(|host| world.agent(host, &[])).collect();
    let claims = |host| world.metric(host, "flowtally_agent_claims ");
    until("the agents to claim", || {
        (1..=HOSTS).all(|host| claims(host).is_some_and(|claims| claims > 0))
    });
    world.touch("start");
    let (began, mut moves) = (Instant::now(), 0);
    while began.elapsed() < traffic_time(TRAFFIC_SECONDS) {
        std::thread::sleep(MOVE_INTERVAL);
        // Meanwhile, connections are neither opened nor closed: what the programs count must be what arrives.
        world.touch("pause");
        until("the hosts to pause", || {
            (1..=HOSTS).all(|host| world.path(format!("paused-{host}")).exists())
        });
        std::thread::sleep(END_TIME / 4);
        let number = random.random_range(0..FLOATING);
        let others: Vec<usize> = (1..=HOSTS).filter(|host| *host != owners[number]).collect();
        let new = *others.choose(&mut random).unwrap();
        world.change_address("del", number, owners[number]);
        world.change_address("add", number, new);
        world.flush_neighbours(number);
        owners[number] = new;
        moves += 1;
        if moves == 2 {
            service.kill();
            service = world.service();
        }
        std::fs::remove_file(world.path("pause")).unwrap();
        until("the hosts to resume", || {
            (1..=HOSTS).all(|host| !world.path(format!("paused-{host}")).exists())
        });
    }
    world.touch("stop");
    // By source, address, and the host that has answered.
    let mut moved: BTreeMap<String, Moved> = BTreeMap::new();
    for (host, process) in (1..).zip(&mut traffic) {
        let mut line = String::new();
        let mut out = std::io::BufReader::new(process.0.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        moved.insert(format!("app-{host}"), serde_json::from_str(&line).unwrap());
    }
    let looks = |host| {
        world
            .metric(host, "flowtally_agent_looks_total ")
            .unwrap_or(0)
    };
    let looked: Vec<u64> = (1..=HOSTS).map(looks).collect();
    until("everything to have a name", || {
        let waiting = |host| world.metric(host, "flowtally_agent_waiting_connections ");
        (1..=HOSTS).all(|host| looks(host) >= looked[host - 1] + LOOKS && waiting(host) == Some(0))
    });
    for agent in &mut agents {
        signal(&agent.0, "TERM");
        assert!(agent.0.wait().unwrap().success());
    }
    world.touch("end");
    // What the service did not take at once is in the spool.
    let _agents: Vec<Killed> = (1..=HOSTS).map(|host| world.agent(host, &[])).collect();
    let all_moved = add(moved
        .values()
        .flat_map(BTreeMap::values)
        .flat_map(BTreeMap::values));
    let counted = poll_for(DEADLINE, || {
        world
            .counted()
            .filter(|counted| add(counted.values()) == all_moved)
    });
    let counted = counted.unwrap_or_else(|| {
        let counted = world.counted().unwrap();
        panic!("moved {all_moved:?}, counted {:?}", add(counted.values()))
    });
    let of = |src: &str, dest: &str| {
        let bytes = counted.get(&(src.to_owned(), dest.to_owned()));
        bytes.copied().unwrap_or_default()
    };
    let mut unnamed = 0;
    for (src, by_address) in &moved {
        unnamed += by_address
            .keys()
            .map(|address| of(src, address)[0])
            .sum::<u64>();
        for host in 1..=HOSTS {
            let there: Vec<(&String, [u64; 2])> = by_address
                .iter()
                .filter_map(|(address, hosts)| Some((address, *hosts.get(&host.to_string())?)))
                .collect();
            let named = of(src, &format!("app-{host}"));
            for direction in [0, 1] {
                let moved: u64 = there.iter().map(|(_, bytes)| bytes[direction]).sum();
                let may_lack: u64 = there
                    .iter()
                    .map(|(address, bytes)| bytes[direction].min(of(src, address)[direction]))
                    .sum();
                let expected = moved - may_lack..=moved;
                assert!(
                    expected.contains(&named[direction]),
                    "{src} to app-{host}: {} of {expected:?}; {there:?}",
                    named[direction]
                );
            }
        }
    }
    println!(
        "{moves} moves, {unnamed} of {} bytes without a name",
        all_moved[0]
    );
    assert!(moves > 4, "{moves}");
    assert!(
        unnamed * 100 < all_moved[0],
        "{unnamed} of {}",
        all_moved[0]
    );
}

/// Bytes sent and received, by address and host.
type Moved = BTreeMap<String, BTreeMap<String, [u64; 2]>>;

fn add<'a>(bytes: impl Iterator<Item = &'a [u64; 2]>) -> [u64; 2] {
    bytes.fold([0, 0], |sum, bytes| [sum[0] + bytes[0], sum[1] + bytes[1]])
}
