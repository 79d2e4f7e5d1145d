//! Names from the directory while agents are restarted: what is the same before and after was so in between, and what may
//! have been elsewhere has no name for that time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::network::{END_TIME, Killed, Moved, World, add, address, floating};
use crate::daemon::signal;
use crate::wait::{DEADLINE, poll_for, until};

/// How long traffic runs.
const TRAFFIC_TIME: Duration = Duration::from_secs(20);
/// How long something lasts, with traffic.
const WHILE: Duration = Duration::from_secs(3);

/// The bytes that host 1 has moved, as counted by destination. Its agent is ended for that.
fn counted(world: &World, agent: &mut Killed, moved: &Moved) -> BTreeMap<String, [u64; 2]> {
    world.until_named(1..=1);
    signal(&agent.0, "TERM");
    assert!(agent.0.wait().unwrap().success());
    // What the service did not take at once is in the spool.
    *agent = world.agent(1, &[]);
    let all = add(moved.values().flat_map(BTreeMap::values));
    let of_host = || -> Option<BTreeMap<String, [u64; 2]>> {
        let counted = world.counted()?.into_iter();
        let counted = counted.filter(|((src, _), _)| src == "app-1");
        Some(counted.map(|((_, dest), bytes)| (dest, bytes)).collect())
    };
    let complete = poll_for(DEADLINE, || {
        of_host().filter(|counted| add(counted.values()) == all)
    });
    complete.unwrap_or_else(|| panic!("moved {moved:?}, counted {:?}", of_host()))
}

/// Its host keeps its address, and the server goes on. So connections to it have its name, also those that were opened and
/// ended while its agent did not run.
#[test]
fn an_agent_that_was_restarted_goes_on_with_its_claims() {
    let Some(world) = World::new("restarts", 2) else {
        return;
    };
    let _service = world.service();
    let mut client = world.servers(1, &[address(2)]);
    let _server = world.servers(2, &[address(1)]);
    world.until_all("serving", 1..=2);
    let mut agents = [1, 2].map(|host| world.agent(host, &[]));
    until("the server's agent to claim", || world.claims(2) > 0);
    world.touch("start");
    let (began, mut restarts) = (Instant::now(), 0);
    while began.elapsed() < TRAFFIC_TIME {
        agents[1].kill();
        std::thread::sleep(WHILE);
        agents[1] = world.agent(2, &[]);
        std::thread::sleep(WHILE);
        restarts += 1;
    }
    world.touch("stop");
    let moved = client.moved();
    let counted = counted(&world, &mut agents[0], &moved);
    world.touch("end");
    let [named, unnamed] =
        ["app-2", &address(2)].map(|dest| counted.get(dest).copied().unwrap_or_default());
    println!("{restarts} restarts, {unnamed:?} of {named:?} bytes without a name");
    assert!(restarts >= 2, "{restarts}");
    assert!(unnamed[0] * 100 < named[0], "{counted:?}");
}

/// It is at another host while its agent does not run, and back when that is started again.
#[test]
fn an_address_that_was_elsewhere_while_its_agent_did_not_run_is_not_claimed_for_that_time() {
    let Some(world) = World::new("elsewhere", 3) else {
        return;
    };
    let _service = world.service();
    world.change_address("add", 0, 2);
    let mut client = world.servers(1, &[address(2), floating(0)]);
    let _servers = [2, 3].map(|host| world.servers(host, &[address(1)]));
    world.until_all("serving", 1..=3);
    // That of host 3 would claim the address, too.
    let mut agents = [1, 2].map(|host| world.agent(host, &[]));
    until("both addresses to be claimed", || world.claims(2) == 2);
    world.touch("start");
    std::thread::sleep(WHILE);
    let pause = || {
        world.touch("pause");
        world.until_all("paused", 1..=3);
        std::thread::sleep(END_TIME / 4);
    };
    let move_address = |from, to| {
        world.change_address("del", 0, from);
        world.change_address("add", 0, to);
        world.flush_neighbours(3, 0);
    };
    pause();
    agents[1].kill();
    move_address(2, 3);
    world.resume(1..=3);
    std::thread::sleep(WHILE);
    pause();
    move_address(3, 2);
    agents[1] = world.agent(2, &[]);
    world.resume(1..=3);
    std::thread::sleep(WHILE);
    world.touch("stop");
    let moved = client.moved();
    let counted = counted(&world, &mut agents[0], &moved);
    world.touch("end");
    let of = |dest: &str| counted.get(dest).copied().unwrap_or_default();
    let answered = |address: &str, host: &str| moved[address].get(host).copied().unwrap();
    let (fixed, moving) = (address(2), floating(0));
    let (named, unnamed) = (of("app-2"), of(&moving));
    println!("{moved:?}, counted {counted:?}");
    let elsewhere = answered(&moving, "3");
    for direction in [0, 1] {
        let there = answered(&fixed, "2")[direction] + answered(&moving, "2")[direction];
        assert!(named[direction] <= there, "{named:?}");
        assert!(unnamed[direction] >= elsewhere[direction], "{unnamed:?}");
    }
    // Its other address has stayed.
    assert!(of(&fixed)[0] * 100 < answered(&fixed, "2")[0]);
}
