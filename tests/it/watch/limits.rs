//! What an agent does when it has not enough of something.

use super::network::{World, address, ip};
use crate::daemon::{Daemon, signal};
use crate::wait::until;

/// With a limit of open files for four network namespaces.
#[test]
fn namespaces_beyond_the_limit_of_open_files_are_counted_and_named_once() {
    const HOSTS: usize = 8;
    let Some(world) = World::new("limits", HOSTS) else {
        return;
    };
    let mut command = world.network.command(1, "sh");
    command
        .args(["-c", "ulimit -n 80 && exec \"$0\" \"$@\""])
        .arg(Daemon::binary());
    let mut agent = world.agent_by(command, 1, &["--netns", "all", "--no-directory"]);
    until("the agent to look again and again", || {
        world.metric(1, "flowtally_agent_looks_total") >= Some(3)
    });
    let namespaces = world.metric(1, "flowtally_agent_namespaces").unwrap();
    assert!((1..=4).contains(&namespaces), "{namespaces}");
    // Those of the hosts, and of the service.
    let unopened = world.metric(1, "flowtally_agent_unopened_namespaces");
    assert!(unopened >= Some(HOSTS as u64 + 1 - 4), "{unopened:?}");
    let log = std::fs::read_to_string(world.path("log-1")).unwrap();
    assert!(log.contains("watches up to 4 network namespaces"), "{log}");
    assert_eq!(
        log.matches("are watched: with a limit of 80").count(),
        1,
        "{log}"
    );
    assert!(log.contains("LimitNOFILE="), "{log}");
    assert!(agent.0.try_wait().unwrap().is_none(), "{log}");
}

/// The kernel drops messages about addresses while the agent is stopped. The one that stays is claimed all the time.
#[test]
fn lost_messages_about_addresses_are_counted_and_made_up_for() {
    let Some(world) = World::new("overrun", 1) else {
        return;
    };
    let _server = world.servers(1, &[address(1)]);
    world.until_all("serving", 1..=1);
    let agent = world.agent(1, &[]);
    until("the address to be claimed", || world.claims(1) == 1);
    let mut batch = String::new();
    for number in 0..2000 {
        let address = format!("10.78.{}.{}/32", number / 250, 1 + number % 250);
        for change in ["add", "del"] {
            batch += &format!("addr {change} {address} dev eth0\n");
        }
    }
    std::fs::write(world.path("batch"), batch).unwrap();
    signal(&agent.0, "STOP");
    let namespace = world.network.namespace(1);
    let file = world.path("batch");
    let changed = ip(&format!("-n {namespace} -batch {}", file.display()));
    signal(&agent.0, "CONT");
    assert!(changed);
    until("the loss to be counted", || {
        world.metric(1, "flowtally_agent_lost_address_changes_total") >= Some(1)
    });
    // It would be two if it had ended and begun again.
    assert_eq!(world.claims(1), 1);
    world.change_address("add", 0, 1);
    until("the new address to be claimed", || world.claims(1) == 2);
}
