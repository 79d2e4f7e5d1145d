//! A cluster during failures: nodes are killed, frozen, cut off, added, removed and restarted in turn, brokers and
//! senders are killed. Each response of each node is a 503 or correct, and at the end each node has exactly the
//! acknowledged bytes.
//!
//! The short form does each of these once. `scripts/chaos cluster` continues until it is stopped, or for
//! `FLOWTALLY_TEST_CLUSTER_CHAOS_S` seconds.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flowtally::store::verify;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::chaos::Sending;
use crate::cluster_load::{StopAll, World, log};
use crate::kafka::script_by;
use crate::nodes::{Network, Node, rows, until_answered};
use crate::support::{Daemon, TestFlow, ndjson_body, random};
use crate::wait::{at_most, poll_for};

const NODES: usize = 4;

/// The last node, which joins and leaves.
const FOURTH: usize = 3;

const PARTITIONS: u32 = 12;

const SENDERS: usize = 3;

const POSTERS: usize = 2;

/// The group revokes the partitions of a node that is silent for this long.
const SESSION: Duration = Duration::from_secs(10);

/// All failures have ended by then.
const RECOVERY_MAX: Duration = at_most(25);

/// Maximum time of a query, whichever nodes hang.
pub(crate) const ANSWER_MAX: Duration = at_most(8);

/// The last log line of a node that needs a restart.
const GAVE_UP: &str =
    "the Kafka client has stopped after a fatal error, so the journal could not be used for";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Kill,
    Freeze,
    CutOff,
    /// The fourth node joins or leaves.
    Fourth,
    RestartAll,
    KillSender,
}

const FAULTS: [Fault; 6] = [
    Fault::Kill,
    Fault::Freeze,
    Fault::CutOff,
    Fault::Fourth,
    Fault::RestartAll,
    Fault::KillSender,
];

/// Three brokers, ended when it is dropped.
pub(crate) struct Brokers {
    pub(crate) dir: PathBuf,
    pub(crate) namespace: Option<String>,
    pub(crate) host: String,
    pub(crate) addresses: String,
}

impl Brokers {
    pub(crate) fn start(dir: PathBuf, network: Option<&Network>) -> Brokers {
        let mut brokers = Brokers {
            dir,
            namespace: network.map(|n| n.hub_namespace().to_owned()),
            host: network.map_or("127.0.0.1".into(), |n| n.hub().to_string()),
            addresses: String::new(),
        };
        let addresses = brokers.script(&["start", "3", brokers.dir.to_str().unwrap()]);
        brokers.addresses = addresses.trim().to_owned();
        brokers
    }

    pub(crate) fn script(&self, arguments: &[&str]) -> String {
        let mut command = match &self.namespace {
            None => Command::new("bash"),
            Some(namespace) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace, "bash"]);
                command
            }
        };
        command.env("KAFKA_HOST", &self.host);
        script_by(command, arguments)
    }

    pub(crate) fn to(&self, action: &str, broker: usize) {
        self.script(&[action, self.dir.to_str().unwrap(), &broker.to_string()]);
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        // If they did not start, a second panic would end the process, and with it all other tests.
        if !self.addresses.is_empty() {
            self.script(&["stop", self.dir.to_str().unwrap()]);
        }
    }
}

/// The processes, and the faults that are injected.
struct Chaos<'a> {
    world: &'a World<'a>,
    network: Option<&'a Network>,
    daemons: Vec<Option<Daemon>>,
    sendings: Vec<Sending>,
    files: usize,
    dir: &'a Path,
    random: StdRng,
    counts: BTreeMap<Fault, u64>,
    gave_up: u64,
}

impl Drop for Chaos<'_> {
    /// Prints the logs of the nodes if the test has failed.
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (node, daemon) in self.world.nodes.iter().zip(&self.daemons) {
                let log = daemon.as_ref().map_or(String::new(), Daemon::log);
                let from = log.len().saturating_sub(20_000);
                let from = (from..).find(|at| log.is_char_boundary(*at)).unwrap();
                println!("--- {}\n{}", node.name, &log[from..]);
            }
        }
    }
}

impl Chaos<'_> {
    fn next_file(&mut self, sender: usize) -> Sending {
        let random = &mut self.random;
        let flow = |_| {
            let (src, dest) = (random.random_range(0..60), random.random_range(0..6));
            let (src, dest) = (format!("svc-{src}"), format!("svc-{dest}"));
            let (tx, rx) = (random.random_range(1..1_000), random.random_range(0..1_000));
            TestFlow::new(random.random_range(0..5), &src, &dest, "v", tx, rx)
        };
        let flows: Vec<_> = (0..3_000).map(flow).collect();
        self.world.sums().sends(&flows);
        let file = self.dir.join(format!("flows-{}.ndjson", self.files));
        std::fs::write(&file, ndjson_body(&flows)).unwrap();
        self.files += 1;
        let spool = self.dir.join(format!("spool-{sender}"));
        Sending::start(file, spool, self.world.nodes[sender].base())
    }

    /// Waits, and acts as supervisor and source of flows meanwhile.
    fn pause(&mut self, time: Duration, more_flows: bool) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.world.has_ended() {
            for sender in 0..self.sendings.len() {
                if more_flows && self.sendings[sender].is_done() {
                    self.sendings[sender] = self.next_file(sender);
                }
            }
            for number in 0..NODES {
                if self.daemons[number].as_mut().is_some_and(Daemon::has_ended) {
                    // Kafka may fence a node that was suspended; then it has to be restarted.
                    let mut daemon = self.daemons[number].take().unwrap();
                    let (status, said) = (daemon.wait(), daemon.log());
                    let gave_up = status.code() == Some(1) && said.contains(GAVE_UP);
                    assert!(gave_up, "node {number} has ended, {status:?}: {said}");
                    log(&format!("node {number} has given up, and is started again"));
                    self.gave_up += 1;
                    let stood_still = [Fault::Freeze, Fault::CutOff]
                        .map(|fault| self.counts.get(&fault).copied().unwrap_or(0));
                    assert!(
                        self.gave_up <= stood_still.iter().sum(),
                        "a node that was never suspended has given up: {said}"
                    );
                    self.start(number);
                }
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        assert!(!self.world.has_ended(), "another thread has failed");
    }

    fn start(&mut self, number: usize) {
        self.daemons[number] = Some(self.world.nodes[number].start());
    }

    fn millis(&mut self, range: std::ops::Range<u64>) -> Duration {
        Duration::from_millis(self.random.random_range(range))
    }

    fn running(&mut self) -> usize {
        let running: Vec<_> = (0..NODES).filter(|n| self.daemons[*n].is_some()).collect();
        running[self.random.random_range(0..running.len())]
    }

    fn fault(&mut self, fault: Fault) {
        let number = self.running();
        let name = &self.world.nodes[number].name;
        log(&format!("{fault:?}, where it is about one node: {name}"));
        *self.counts.entry(fault).or_default() += 1;
        match fault {
            Fault::Kill => {
                self.daemons[number].take().unwrap().kill();
                let pause = self.millis(0..14_000);
                self.pause(pause, true);
                self.start(number);
            }
            Fault::Freeze => {
                let daemon = self.daemons[number].as_ref().unwrap();
                daemon.signal("STOP");
                let pause = SESSION + self.millis(3_000..7_000);
                self.pause(pause, true);
                // Its first responses are to current queries, although others own its partitions now.
                let (world, seed) = (self.world, self.random.random::<u64>());
                let daemon = self.daemons[number].as_ref().unwrap();
                std::thread::scope(|scope| {
                    for n in 0..8 {
                        scope.spawn(move || {
                            let _stop = StopAll(&world.stop);
                            let mut random = StdRng::seed_from_u64(seed + n);
                            let node = &world.nodes[number];
                            world.ask(node, &node.client(), &mut random);
                        });
                    }
                    // The queries reach it while it is suspended.
                    world.pause(Duration::from_millis(300));
                    daemon.signal("CONT");
                });
            }
            Fault::CutOff => {
                let Some(network) = self.network else { return };
                network.cut(number);
                let pause = self.millis(2_000..20_000);
                self.pause(pause, true);
                network.heal(number);
            }
            Fault::Fourth => match self.daemons[FOURTH].take() {
                Some(daemon) => daemon.stop(),
                None => self.start(FOURTH),
            },
            Fault::RestartAll => {
                for number in 0..NODES {
                    if let Some(daemon) = self.daemons[number].take() {
                        daemon.stop();
                        self.start(number);
                    }
                    let pause = self.millis(0..1_000);
                    self.pause(pause, true);
                }
            }
            Fault::KillSender => {
                let sender = self.random.random_range(0..SENDERS);
                self.sendings[sender].kill_and_start();
            }
        }
        self.recover(true);
    }

    /// Waits until all nodes answer queries of all partitions again.
    fn recover(&mut self, more_flows: bool) {
        let start = Instant::now();
        for number in 0..NODES {
            let Some(client) = self.daemons[number].as_ref().map(|d| d.client.clone()) else {
                continue;
            };
            let name = &self.world.nodes[number].name;
            self.until(more_flows, |_| {
                let response = client.get("/hours", &[]);
                match &response {
                    Ok(found) if found.status == 200 => Ok(()),
                    _ => Err(format!("{name} does not respond: {response:?}")),
                }
            });
        }
        log(&format!("all respond, after {:?}", start.elapsed()));
    }

    /// Waits until `holds` returns no reason to wait longer.
    fn until(&mut self, more_flows: bool, mut holds: impl FnMut(&mut Self) -> Result<(), String>) {
        let mut reason = String::new();
        let held = poll_for(RECOVERY_MAX, || match holds(self) {
            Ok(()) => Some(()),
            Err(why) => {
                reason = why;
                self.pause(Duration::from_millis(50), more_flows);
                None
            }
        });
        assert!(held.is_some(), "not after {RECOVERY_MAX:?}: {reason}");
    }
}

#[test]
fn during_failures_every_response_is_correct_or_a_503_and_every_byte_counts_once() {
    let seconds = std::env::var("FLOWTALLY_TEST_CLUSTER_CHAOS_S")
        .ok()
        .and_then(|s| s.parse().ok())
        .map(Duration::from_secs);
    let mut random = random("cluster_chaos");
    let dir = tempfile::tempdir().unwrap();
    let network = Network::new(NODES);
    let brokers = Brokers::start(dir.path().join("kafka"), network.as_ref());
    let nodes: Vec<_> = (0..NODES)
        .map(|number| {
            let name = format!("node-{number}");
            let mut node = Node::new(&brokers.addresses, "chaos", &name, dir.path());
            node.partitions = PARTITIONS;
            if let Some(network) = &network {
                network.place(number, &mut node);
            }
            node
        })
        .collect();
    let world = World {
        nodes: &nodes,
        sums: Mutex::default(),
        stop: AtomicBool::new(false),
        right: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        away: AtomicU64::new(0),
        partial: AtomicU64::new(0),
        slowest_ms: AtomicU64::new(0),
        steps: AtomicU64::new(0),
    };
    let mut chaos = Chaos {
        world: &world,
        network: network.as_ref(),
        daemons: (0..NODES).map(|_| None).collect(),
        sendings: Vec::new(),
        files: 0,
        dir: dir.path(),
        random: StdRng::seed_from_u64(random.random()),
        counts: BTreeMap::new(),
        gave_up: 0,
    };
    (0..FOURTH).for_each(|number| chaos.start(number));
    for node in &nodes[..FOURTH] {
        until_answered(&node.client(), "/hours");
    }
    chaos.sendings = (0..SENDERS).map(|sender| chaos.next_file(sender)).collect();

    let failing = AtomicBool::new(true);
    let mut broker_kills = 0;
    std::thread::scope(|scope| {
        let (world, failing, brokers) = (&world, &failing, &brokers);
        let _stop = StopAll(&world.stop);
        for number in 0..NODES {
            let seed = random.random();
            scope.spawn(move || world.check(number, seed));
        }
        let threads: Vec<_> = (0..POSTERS)
            .map(|poster| {
                let seed = random.random();
                scope.spawn(move || world.post(poster, seed, failing))
            })
            .collect();
        let seed = random.random();
        let killer = scope.spawn(move || world.kill_brokers(brokers, seed, failing));

        let end = seconds.map(|seconds| Instant::now() + seconds);
        loop {
            let mut faults = FAULTS;
            faults.shuffle(&mut random);
            for fault in faults {
                chaos.fault(fault);
                let pause = chaos.millis(0..2_000);
                chaos.pause(pause, true);
            }
            if end.is_none_or(|end| Instant::now() >= end) {
                break;
            }
        }
        failing.store(false, Ordering::SeqCst);
        broker_kills = killer.join().unwrap();
        threads
            .into_iter()
            .for_each(|thread| thread.join().unwrap());
        chaos.recover(false);
        chaos.until(false, |chaos| {
            match chaos.sendings.iter_mut().all(Sending::is_done) {
                true => Ok(()),
                false => Err("senders do not end".into()),
            }
        });
        // Batches that were sent without waiting are in Kafka; they will be in the sums soon.
        let expected = rows(&world.sums().ceiling);
        for (number, node) in nodes.iter().enumerate() {
            if chaos.daemons[number].is_none() {
                continue;
            }
            chaos.until(false, |_| {
                let response = until_answered(&node.client(), "/flows?from=0&to=100");
                match response.rows() == expected {
                    true => Ok(()),
                    false => Err(format!("node {number} has other rows")),
                }
            });
        }
        world.stop.store(true, Ordering::SeqCst);
    });
    // Stores of earlier owners are older, and consistent.
    chaos.daemons.drain(..).flatten().for_each(Daemon::stop);
    let mut stores = 0;
    for node in &nodes {
        for store in std::fs::read_dir(node.dir.join("partitions"))
            .into_iter()
            .flatten()
        {
            let verified = verify(&store.unwrap().path()).unwrap();
            assert!(verified.faults.is_empty(), "{:?}", verified.faults);
            stores += 1;
        }
    }
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    println!(
        "{:?}, brokers killed {broker_kills}, nodes that gave up {}; {} files, {} steps; responses: {} right, {} \
         partial, {} refused, {} none, the slowest after {} ms; {stores} stores verified",
        chaos.counts,
        chaos.gave_up,
        chaos.files,
        count(&world.steps),
        count(&world.right),
        count(&world.partial),
        count(&world.refused),
        count(&world.away),
        count(&world.slowest_ms),
    );
    assert!(count(&world.steps) > 10 && count(&world.right) > 10 && broker_kills > 0);
}
