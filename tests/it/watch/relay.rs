//! A relay before servers, which counts what clients move, and a web server for it.

use std::collections::BTreeMap;
use std::process::Stdio;

use super::network::{Killed, World};
use crate::wait::until;

const RELAY: &str = include_str!("relay.py");
const WEB: &str = include_str!("web.py");

/// The bytes that clients have sent and received, by port of the relay and by connection.
pub(super) type Moved = BTreeMap<u16, Vec<[u64; 2]>>;

pub(super) struct Relay(Killed);

impl Relay {
    /// On a host, from ports to those of servers at its loopback address.
    pub(super) fn start(
        world: &World,
        host: usize,
        ports: impl Iterator<Item = (u16, u16)>,
    ) -> Relay {
        std::fs::write(world.path("relay.py"), RELAY).unwrap();
        let mut command = world.network.command(host, "python3");
        command.arg(world.path("relay.py")).arg(world.dir.path());
        command.args(ports.map(|(port, target)| format!("{port}:{target}")));
        let relay = Relay(Killed::spawn(command.stdout(Stdio::piped())));
        until("the relay to listen", || world.path("relaying").exists());
        relay
    }

    /// Waits until all connections have ended.
    #[track_caller]
    pub(super) fn finish(mut self, world: &World) -> Moved {
        world.touch("relay-end");
        let output = self.0.0.stdout.take().unwrap();
        let moved = serde_json::from_reader(output).expect("the relay has seen a connection fail");
        assert!(self.0.0.wait().unwrap().success());
        moved
    }
}

pub(super) fn sum(connections: &[[u64; 2]]) -> [u64; 2] {
    connections
        .iter()
        .fold([0, 0], |sum, bytes| [sum[0] + bytes[0], sum[1] + bytes[1]])
}

/// A web server on a host, at its loopback address: see `web.py`.
pub(super) fn web_server(world: &World, host: usize, port: u16) -> Killed {
    std::fs::write(world.path("web.py"), WEB).unwrap();
    let mut command = world.network.command(host, "python3");
    command.arg(world.path("web.py")).arg(world.dir.path());
    let server = Killed::spawn(command.arg(port.to_string()));
    until("the web server to listen", || listens(world, host, port));
    server
}

pub(super) fn listens(world: &World, host: usize, port: u16) -> bool {
    let mut command = world.network.command(host, "ss");
    command.args(["-Hltn", "sport", "=", &format!(":{port}")]);
    !command.output().unwrap().stdout.is_empty()
}
