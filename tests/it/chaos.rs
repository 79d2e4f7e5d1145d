//! All failures together: the service and senders are killed, connections are cut in the middle of a body, the disk is
//! full. At the end the rows, the ledger and the senders' flows agree to the byte.
//!
//! `scripts/chaos` runs it until it is stopped, or for `FLOWTALLY_TEST_CHAOS_S` seconds.

use std::io::Read;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flowtally::store::verify;
use rand::RngExt;
use rand::rngs::StdRng;

use crate::support::{
    Daemon, Disk, Model, TestFlow, add_to, free_address, hour_of, ndjson_body, random,
};
use crate::wait::until_daemon;

const HOURS: std::ops::Range<u32> = 10..14;
const SENDERS: usize = 3;
const DISK_MIB: usize = 192;

/// Forwards connections, and cuts some of them after some bytes.
struct Proxy {
    address: SocketAddr,
    cuts: Arc<AtomicU64>,
    calm: Arc<AtomicBool>,
}

impl Proxy {
    fn new(to: SocketAddr) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Proxy {
            address: listener.local_addr().unwrap(),
            cuts: Arc::default(),
            calm: Arc::default(),
        };
        let (cuts, calm) = (proxy.cuts.clone(), proxy.calm.clone());
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let Ok(server) = TcpStream::connect(to) else {
                    continue;
                };
                let cut = !calm.load(Ordering::Relaxed) && rand::random_bool(0.4);
                // Cuts the request in the middle of a body, or the response.
                let (up, down) = match (cut, rand::random_bool(0.5)) {
                    (false, _) => (u64::MAX, u64::MAX),
                    (true, true) => (rand::random_range(0..200_000), u64::MAX),
                    (true, false) => (u64::MAX, rand::random_range(0..2_000)),
                };
                cuts.fetch_add(u64::from(cut), Ordering::Relaxed);
                for (from, to, most) in [
                    (client.try_clone().unwrap(), server.try_clone().unwrap(), up),
                    (server, client, down),
                ] {
                    std::thread::spawn(move || {
                        let (mut from, mut to) = (from, to);
                        let _cut = std::io::copy(&mut Read::by_ref(&mut from).take(most), &mut to);
                        let _gone = from.shutdown(Shutdown::Both);
                        let _gone = to.shutdown(Shutdown::Both);
                    });
                }
            }
        });
        proxy
    }
}

/// A process that sends a file, and is restarted until it has succeeded.
pub struct Sending {
    file: PathBuf,
    spool: PathBuf,
    url: String,
    child: Child,
}

impl Sending {
    pub fn start(file: PathBuf, spool: PathBuf, url: String) -> Sending {
        let child = Sending::child(&file, &spool, &url);
        Sending {
            file,
            spool,
            url,
            child,
        }
    }

    fn child(file: &Path, spool: &Path, url: &str) -> Child {
        Command::new(Daemon::binary())
            .args([
                "send",
                "--batch-flows",
                "200",
                "--retry-for",
                "600",
                "--url",
                url,
                "--spool",
            ])
            .args([spool, file])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    /// Whether it has sent everything.
    pub fn is_done(&mut self) -> bool {
        match self.child.try_wait().unwrap() {
            None => false,
            Some(status) if status.success() => true,
            Some(status) => {
                let mut error = String::new();
                self.child
                    .stderr
                    .take()
                    .unwrap()
                    .read_to_string(&mut error)
                    .unwrap();
                panic!("{status}: {error}");
            }
        }
    }

    pub fn kill_and_start(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Sending::child(&self.file, &self.spool, &self.url);
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

fn some_flows(random: &mut StdRng, count: usize) -> Vec<TestFlow> {
    let flow = |_| {
        let hour = random.random_range(HOURS);
        let source = format!("svc-{}", random.random_range(0..300));
        let dest = format!("svc-{}", random.random_range(0..30));
        TestFlow::new(
            hour,
            &source,
            &dest,
            "vpc-0",
            random.random_range(0..100_000),
            random.random_range(0..100_000),
        )
    };
    (0..count).map(flow).collect()
}

#[test]
fn senders_service_disk_and_connections_fail_and_every_byte_counts_once() {
    let seconds = std::env::var("FLOWTALLY_TEST_CHAOS_S")
        .ok()
        .and_then(|s| s.parse().ok());
    let end = Instant::now() + Duration::from_secs(seconds.unwrap_or(12));
    let mut random = random("chaos");
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::new(dir.path().join("disk"), DISK_MIB);
    let db = disk.path.join("db");
    // The port is the same each time, so that senders find it again.
    let port = free_address();
    let listen = port.to_string();
    let arguments = [
        "--listen",
        &listen,
        "--flush-interval",
        "1",
        "--memory-max",
        "128",
    ];
    let mut daemon = Daemon::start_with(&db, &arguments);
    let proxy = Proxy::new(port);
    let url = format!("http://{}", proxy.address);

    let mut model = Model::new();
    let (mut flows_sent, mut files) = (0, 0);
    let mut next_file = |random: &mut StdRng, slot: usize| {
        let flows = some_flows(random, 20_000);
        let file = dir.path().join(format!("flows-{files}.ndjson"));
        std::fs::write(&file, ndjson_body(&flows)).unwrap();
        files += 1;
        flows_sent += flows.len();
        add_to(&mut model, &flows);
        Sending::start(file, dir.path().join(format!("spool-{slot}")), url.clone())
    };
    let mut sendings: Vec<_> = (0..SENDERS)
        .map(|slot| next_file(&mut random, slot))
        .collect();
    let (mut kills, mut sender_kills, mut fills, mut ends) = (0, 0, 0, 0);
    while Instant::now() < end {
        // Faults happen at random moments, and last for random times.
        std::thread::sleep(Duration::from_millis(random.random_range(50..500)));
        match random.random_range(0..10) {
            0..3 => {
                daemon.kill();
                kills += 1;
                disk.free();
                daemon = Daemon::start_with(&db, &arguments);
            }
            3..6 => {
                sendings[random.random_range(0..SENDERS)].kill_and_start();
                sender_kills += 1;
            }
            6 if disk.mounted => {
                disk.fill(0);
                fills += 1;
                std::thread::sleep(Duration::from_millis(random.random_range(200..2_000)));
                disk.free();
            }
            _ => {}
        }
        // Acts as the supervisor if the process has exited because of the disk.
        if daemon.has_ended() {
            ends += 1;
            daemon = Daemon::start_with(&db, &arguments);
        }
        for (slot, sending) in sendings.iter_mut().enumerate() {
            if sending.is_done() {
                *sending = next_file(&mut random, slot);
            }
        }
    }
    proxy.calm.store(true, Ordering::Relaxed);
    disk.free();
    until_daemon(&mut daemon, "all senders to end", |daemon| {
        if daemon.has_ended() {
            ends += 1;
            *daemon = Daemon::start_with(&db, &arguments);
        }
        sendings.iter_mut().all(Sending::is_done)
    });
    for hour in HOURS {
        assert!(
            daemon.client.hour(hour) == hour_of(&model, hour),
            "hour {hour}"
        );
    }
    daemon.stop();
    let verified = verify(&db).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert_eq!(verified.flows, flows_sent as u64);
    println!(
        "{flows_sent} flows in {files} files; service killed {kills} times, ended by itself {ends}; \
         senders killed {sender_kills}; {} connections cut; disk filled {fills} times",
        proxy.cuts.load(Ordering::Relaxed)
    );
    assert!(kills + sender_kills > 0);
}
