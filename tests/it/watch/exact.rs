//! `flowtally-agent watch`: twenty hosts, each a network namespace with an agent of its own, move known numbers of bytes,
//! while agents and the service are killed. Each byte of TCP payload is counted once, under the right names.
//!
//! The kernel forgets a socket when it ends. So what ends while no agent runs cannot be counted; here, connections are
//! neither opened nor ended then, but keep sending.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Instant;

use rand::RngExt;

use super::network::{END_TIME, Killed, Network, World, address, ipv6_address, traffic_time};
use crate::daemon::signal;
use crate::support::random;
use crate::wait::{DEADLINE, poll_for, until};

const HOSTS: usize = 20;
const TRAFFIC: &str = include_str!("traffic.py");
const TRAFFIC_SECONDS: u64 = 25;

#[test]
fn each_byte_is_counted_once_while_agents_are_killed() {
    let Some(network) = Network::new("flowtally", HOSTS) else {
        return;
    };
    let mut random = random("watch");
    let dir = tempfile::tempdir().unwrap();
    let world = World { network, dir };
    let mut apps = format!("address,app\n{}:8080,service\n", address(0));
    // The others have their names from the directory.
    for host in 1..=HOSTS / 2 {
        for address in [address(host), ipv6_address(host)] {
            apps += &format!("{address},app-{host}\n");
        }
    }
    for host in 1..=HOSTS {
        let rule = format!("[[app]]\nname = \"app-{host}\"\n");
        std::fs::write(world.path(format!("rules-{host}")), rule).unwrap();
    }
    std::fs::write(world.path("apps"), apps).unwrap();
    std::fs::write(world.path("traffic.py"), TRAFFIC).unwrap();

    let mut service = world.service();
    let mut agents: Vec<Killed> = (1..=HOSTS).map(|host| world.agent(host, &[])).collect();
    let addresses: Vec<String> = (1..=HOSTS).map(address).collect();
    let mut traffic: Vec<Killed> = Vec::new();
    for host in 1..=HOSTS {
        let mut command = world.network.command(host, "python3");
        command
            .arg(world.path("traffic.py"))
            .arg((host - 1).to_string())
            .arg(world.dir.path());
        for host in 1..=HOSTS {
            command.arg(world.network.spellings(host).join(","));
        }
        traffic.push(Killed::spawn(command.stdout(Stdio::piped())));
    }
    until("all hosts to serve", || {
        (0..HOSTS).all(|host| world.path(format!("serving-{host}")).exists())
    });
    world.touch("start");

    let began = Instant::now();
    let mut kills = 0;
    while began.elapsed() < traffic_time(TRAFFIC_SECONDS) {
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
        agents[host - 1] = world.agent(host, &[]);
        kills += 1;
        std::fs::remove_file(world.path(&pause)).unwrap();
        until("the host to resume", || !world.path(&paused).exists());
    }
    world.touch("stop");
    let mut expected: BTreeMap<(String, String), [u64; 2]> = BTreeMap::new();
    for (host, process) in (1..).zip(&mut traffic) {
        let mut line = String::new();
        let mut out = std::io::BufReader::new(process.0.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut line).unwrap();
        let moved: BTreeMap<String, [u64; 2]> = serde_json::from_str(&line).unwrap();
        for (to, bytes) in moved {
            let to = 1 + addresses.iter().position(|address| *address == to).unwrap();
            add(
                &mut expected,
                format!("app-{host}"),
                &format!("app-{to}"),
                bytes,
            );
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
    let _agents: Vec<Killed> = (1..=HOSTS).map(|host| world.agent(host, &[])).collect();
    let counted = || {
        let mut sums = BTreeMap::new();
        for ((src, dest), bytes) in world.counted()? {
            add(&mut sums, src, &dest, bytes);
        }
        Some(sums)
    };
    let is_complete = poll_for(DEADLINE, || (counted()? == expected).then_some(()));
    if is_complete.is_none() {
        let counted = counted().unwrap();
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

/// Adds bytes to those of their pair. Hosts that are not in the table are one: the directory names them, but maybe not all
/// that was moved while their agents were killed.
fn add(sums: &mut BTreeMap<(String, String), [u64; 2]>, src: String, dest: &str, bytes: [u64; 2]) {
    let number = dest
        .strip_prefix("app-")
        .and_then(|number| number.parse().ok());
    let is_in_table = number.is_some_and(|number: usize| number <= HOSTS / 2);
    let dest = if is_in_table { dest } else { "others" };
    let sum = sums.entry((src, dest.to_owned())).or_default();
    *sum = [sum[0] + bytes[0], sum[1] + bytes[1]];
}
