//! `--netns all`: what a container's connections carry is counted by the agent of its host, and without it, it is not.

use std::collections::BTreeMap;
use std::process::Stdio;

use super::network::{Killed, Network, World, address};
use super::relay::{Relay, sum, web_server};
use crate::support::Daemon;
use crate::wait::{DEADLINE, poll_for, until};

const HOST: usize = 1;
/// A network namespace of the same machine.
const CONTAINER: usize = 2;
const SERVER: usize = 3;
/// No other test has it: the agent sees their network namespaces, too.
const PORT: u16 = 8011;
/// Looks of the agent while the connection is open.
const LOOKS: u64 = 2;
/// Runs curl in a network namespace when the file `go` appears, and the agent in that of the host: both in one container of
/// processes, so that the agent finds what is in it.
const SCRIPT: &str = r#"
dir=$1 container=$2 url=$3
shift 3
(
  until [ -e "$dir/go" ]; do sleep 0.05; done
  ip netns exec "$container" curl --silent --fail --noproxy '*' --output /dev/null "$url" && touch "$dir/done"
) &
exec "$@"
"#;

#[test]
fn connections_of_containers_count_if_asked_for() {
    for (selection, is_counted) in [("all", true), ("host", false)] {
        let Some(network) = Network::new(&format!("netns-{selection}"), 3) else {
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let world = World { network, dir };
        let [service, server] = [0, SERVER].map(address);
        let apps = format!("address,app\n{service}:8080,service\n{server}:{PORT},web\n");
        std::fs::write(world.path("apps"), apps).unwrap();
        let rule = "[[app]]\nname = \"{executable}\"\n";
        std::fs::write(world.path(format!("rules-{HOST}")), rule).unwrap();
        let _service = world.service();
        let _web = web_server(&world, SERVER, 18_011);
        let relay = Relay::start(&world, SERVER, [(PORT, 18_011)].into_iter());
        let _host = host(&world, selection);
        world.touch("go");
        let looks = || {
            world
                .metric(HOST, "flowtally_agent_looks_total")
                .unwrap_or(0)
        };
        let before = looks();
        until("the agent to look", || looks() >= before + LOOKS);
        world.touch("stop");
        until("curl to end", || world.path("done").exists());
        let moved = sum(&relay.finish(&world)[&PORT]);
        let expected = match is_counted {
            true => BTreeMap::from([(("curl".to_owned(), "web".to_owned()), moved)]),
            false => BTreeMap::new(),
        };
        // Only of this server: others have no names here.
        let counted = || {
            let mut counted = world.counted()?;
            counted.retain(|(_, dest_app), _| dest_app == "web");
            Some(counted)
        };
        let before = looks();
        until("the agent to look", || looks() >= before + LOOKS);
        let is_complete = poll_for(DEADLINE, || (counted()? == expected).then_some(()));
        if is_complete.is_none() {
            assert_eq!(counted().unwrap(), expected, "--netns {selection}");
        }
        assert!(moved[1] > 10_000, "{moved:?}");
    }
}

/// The script, with the agent.
fn host(world: &World, selection: &str) -> Killed {
    let mut command = world.network.command(HOST, "unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc"]);
    command
        .args(["sh", "-c", SCRIPT, "sh"])
        .arg(world.dir.path());
    command.arg(world.network.namespace(CONTAINER));
    command.arg(format!("http://{}:{PORT}/long", address(SERVER)));
    command.arg(Daemon::binary()).args(["agent", "watch"]);
    world.agent_arguments(&mut command, HOST);
    command.args(["--netns", selection]).stdin(Stdio::null());
    let host = Killed::spawn(&mut command);
    until("the agent to look", || {
        world.path(format!("metrics-{HOST}")).exists()
    });
    host
}
