//! Nodes of a cluster for tests: they can be restarted at the same address, and, if permitted, each is in its own
//! network namespace, so that it can be disconnected.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flow::Counters;

use crate::support::{Client, Daemon, Key, Model, Response, free_address};
use crate::wait::{DEADLINE, poll_for};

/// A node that can be restarted at the same address.
#[derive(Clone)]
pub struct Node {
    pub name: String,
    pub topic: String,
    pub brokers: String,
    pub partitions: u32,
    pub dir: PathBuf,
    /// The address for tests.
    pub address: SocketAddr,
    /// The address for the other nodes.
    pub url: String,
    /// Its network namespace, if it has one.
    pub namespace: Option<String>,
    pub more: Vec<String>,
}

impl Node {
    pub fn new(brokers: &str, topic: &str, name: &str, dir: &Path) -> Node {
        let address = free_address();
        Node {
            name: name.into(),
            topic: topic.into(),
            brokers: brokers.into(),
            partitions: 6,
            dir: dir.join(name),
            address,
            url: format!("http://{address}"),
            namespace: None,
            more: Vec::new(),
        }
    }

    /// The URL for clients outside of the cluster.
    pub fn base(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn client(&self) -> Client {
        Client::new(self.address)
    }

    pub fn start(&self) -> Daemon {
        let partitions = self.partitions.to_string();
        let listen = match self.namespace {
            Some(_) => format!("0.0.0.0:{}", self.address.port()),
            None => self.address.to_string(),
        };
        let mut arguments = vec![
            "--listen",
            &listen,
            "--allow-anonymous",
            "--node-url",
            &self.url,
            "--node-name",
            &self.name,
            "--kafka-brokers",
            &self.brokers,
            "--kafka-topic",
            &self.topic,
            "--kafka-partitions",
            &partitions,
        ];
        arguments.extend(self.more.iter().map(String::as_str));
        let command = match &self.namespace {
            None => Command::new(Daemon::binary()),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]);
                command.arg(Daemon::binary());
                command
            }
        };
        let mut daemon = Daemon::launch_by(command, &self.dir, &arguments);
        daemon.address = self.address;
        daemon.client = self.client();
        daemon
    }
}

/// Waits until it responds to `path` with 200.
pub fn until_answered(client: &Client, path: &str) -> Response {
    let mut last = None;
    let answered = poll_for(DEADLINE, || {
        let response = client.get(path, &[]);
        if response
            .as_ref()
            .is_ok_and(|response| response.status == 200)
        {
            return response.ok();
        }
        last = Some(response);
        None
    });
    answered.unwrap_or_else(|| panic!("no response to {path}: {last:?}"))
}

/// The expected rows of all hours, as in a response to `GET /flows?from=0`.
pub fn rows(model: &Model) -> Vec<(Key, Counters)> {
    model
        .iter()
        .map(|(key, sums)| (key.clone(), *sums))
        .collect()
}

/// Namespaces: one for the brokers, with a bridge, and one for each node. A node has two links: one to the bridge,
/// which can be cut, and one to the test, which remains usable.
pub struct Network {
    name: String,
    /// Distinguishes the addresses of concurrent tests.
    number: u8,
    nodes: usize,
}

impl Network {
    /// `None`, and a printed line, without the permission.
    pub fn new(nodes: usize) -> Option<Network> {
        let process = std::process::id();
        // A test that was killed may have left its addresses behind.
        let addresses = Command::new("ip").args(["-o", "-4", "address"]).output();
        let used = addresses.map_or(Vec::new(), |output| output.stdout);
        let used = String::from_utf8_lossy(&used).into_owned();
        let is_free = |number: &u8| !used.contains(&format!(" 198.19.{number}."));
        let mut numbers = (0..=250).map(|n| ((process + n) % 251) as u8);
        let network = Network {
            name: format!("ft{process}"),
            number: numbers.find(is_free).unwrap_or_default(),
            nodes,
        };
        let made = network.make();
        if !made {
            println!("cutting nodes off: NOT RUN, this user may not make network namespaces");
        }
        made.then_some(network)
    }

    fn make(&self) -> bool {
        let hub = &self.name;
        let hub_address = self.hub();
        let mut commands = format!(
            "netns add {hub}
            -n {hub} link set lo up
            -n {hub} link add hub type bridge
            -n {hub} addr add {hub_address}/24 dev hub
            -n {hub} link set hub up\n"
        );
        for node in 0..self.nodes {
            let namespace = self.namespace(node);
            let (cluster, ours, theirs) =
                (self.on_bridge(node), self.link(node, 1), self.link(node, 2));
            commands += &format!(
                "netns add {namespace}
                -n {namespace} link set lo up
                -n {hub} link add node{node} type veth peer name cluster netns {namespace}
                -n {hub} link set node{node} master hub up
                -n {namespace} addr add {cluster}/24 dev cluster
                -n {namespace} link set cluster up
                link add {namespace} type veth peer name tests netns {namespace}
                addr add {ours}/30 dev {namespace}
                link set {namespace} up
                -n {namespace} addr add {theirs}/30 dev tests
                -n {namespace} link set tests up\n"
            );
        }
        commands.lines().all(ip)
    }

    /// The address of brokers. These ranges are for tests of networks (RFC 2544).
    pub fn hub(&self) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 1)
    }

    /// In it, a command reaches the cluster.
    pub fn hub_namespace(&self) -> &str {
        &self.name
    }

    fn on_bridge(&self, node: usize) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, 10 + node as u8)
    }

    fn link(&self, node: usize, end: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 19, self.number, 4 * node as u8 + end)
    }

    fn namespace(&self, node: usize) -> String {
        format!("{}-{node}", self.name)
    }

    /// Moves a node into its namespace.
    pub fn place(&self, number: usize, node: &mut Node) {
        let port = node.address.port();
        node.address = (self.link(number, 2), port).into();
        node.url = format!("http://{}:{port}", self.on_bridge(number));
        node.namespace = Some(self.namespace(number));
    }

    /// Silently drops everything between this node and the rest of the cluster.
    pub fn cut(&self, node: usize) {
        assert!(ip(&format!("-n {} link set node{node} down", self.name)));
    }

    pub fn heal(&self, node: usize) {
        assert!(ip(&format!("-n {} link set node{node} up", self.name)));
    }
}

fn ip(arguments: &str) -> bool {
    let mut command = Command::new("ip");
    command
        .args(arguments.split_whitespace())
        .stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            ip(&format!("netns del {}", self.namespace(node)));
        }
        ip(&format!("netns del {}", self.name));
    }
}
