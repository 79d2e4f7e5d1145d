//! Names from the directory: addresses move from host to host, while connections are made to them. No byte gets a wrong
//! name, and nearly all get one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rand::RngExt;
use rand::seq::IndexedRandom;

use super::network::{END_TIME, Killed, Moved, World, add, address, floating, traffic_time};
use crate::daemon::signal;
use crate::support::random;
use crate::wait::{DEADLINE, poll_for, until};

const HOSTS: usize = 8;
const FLOATING: usize = 4;
/// How long traffic runs.
const TRAFFIC_SECONDS: u64 = 30;
/// Between two moves: many hosts have an address only between two looks of their agents, which are five seconds apart.
const MOVE_INTERVAL: Duration = Duration::from_secs(2);

#[test]
fn an_address_that_changes_hands_is_never_given_the_wrong_name() {
    let Some(world) = World::new("names", HOSTS) else {
        return;
    };
    let mut random = random("names");
    let mut owners = [1, 2, 3, 4];
    for (number, owner) in owners.iter().enumerate() {
        world.change_address("add", number, *owner);
    }
    let mut service = world.service();
    let targets: Vec<String> = (1..=HOSTS)
        .map(address)
        .chain((0..FLOATING).map(floating))
        .collect();
    let mut traffic: Vec<Killed> = (1..=HOSTS)
        .map(|host| world.servers(host, &targets))
        .collect();
    world.until_all("serving", 1..=HOSTS);
    let mut agents: Vec<Killed> = (1..=HOSTS).map(|host| world.agent(host, &[])).collect();
    until("the agents to claim", || {
        (1..=HOSTS).all(|host| world.claims(host) > 0)
    });
    world.touch("start");
    let (began, mut moves) = (Instant::now(), 0);
    while began.elapsed() < traffic_time(TRAFFIC_SECONDS) {
        std::thread::sleep(MOVE_INTERVAL);
        // Meanwhile, connections are neither opened nor closed: what the programs count must be what arrives.
        world.touch("pause");
        world.until_all("paused", 1..=HOSTS);
        std::thread::sleep(END_TIME / 4);
        let number = random.random_range(0..FLOATING);
        let others: Vec<usize> = (1..=HOSTS).filter(|host| *host != owners[number]).collect();
        let new = *others.choose(&mut random).unwrap();
        world.change_address("del", number, owners[number]);
        world.change_address("add", number, new);
        world.flush_neighbours(HOSTS, number);
        owners[number] = new;
        moves += 1;
        if moves == 2 {
            service.kill();
            service = world.service();
        }
        world.resume(1..=HOSTS);
    }
    world.touch("stop");
    // By source, address, and the host that has answered.
    let mut moved: BTreeMap<String, Moved> = BTreeMap::new();
    for (host, process) in (1..).zip(&mut traffic) {
        moved.insert(format!("app-{host}"), process.moved());
    }
    world.until_named(1..=HOSTS);
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
