//! A daemon to test, clients for it, and the model that it is held against.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use flow::{Batch, BatchBuilder, Counters, Hour, HourRange, Totals};
use flowtally::store::{Selection, Store};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::wait::{DEADLINE, until_daemon};

/// Hour, src_app, dest_app, vpc_id.
pub type Key = (u32, String, String, String);

/// What the service has to answer: sums that stop at the top.
pub type Model = BTreeMap<Key, Counters>;

/// One flow, as a test makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct TestFlow {
    pub key: Key,
    pub tx: u64,
    pub rx: u64,
}

impl TestFlow {
    pub fn new(hour: u32, src: &str, dest: &str, vpc: &str, tx: u64, rx: u64) -> TestFlow {
        TestFlow {
            key: (hour, src.into(), dest.into(), vpc.into()),
            tx,
            rx,
        }
    }

    pub fn json(&self) -> serde_json::Value {
        let (hour, src, dest, vpc) = &self.key;
        serde_json::json!({
            "src_app": src, "dest_app": dest, "vpc_id": vpc,
            "bytes_tx": self.tx, "bytes_rx": self.rx, "hour": hour,
        })
    }
}

pub fn add_to(model: &mut Model, flows: &[TestFlow]) {
    for flow in flows {
        let (tx, rx) = (flow.tx, flow.rx);
        let sum = model.entry(flow.key.clone()).or_default();
        sum.add(Counters { tx, rx });
    }
}

pub fn hour_of(model: &Model, hour: u32) -> Vec<(Key, Counters)> {
    let rows = model.iter().filter(|(key, _)| key.0 == hour);
    rows.map(|(k, c)| (k.clone(), *c)).collect()
}

pub fn json_body(flows: &[TestFlow]) -> Vec<u8> {
    let flows: Vec<_> = flows.iter().map(TestFlow::json).collect();
    serde_json::to_vec(&flows).unwrap()
}

pub fn ndjson_body(flows: &[TestFlow]) -> Vec<u8> {
    let lines: Vec<_> = flows.iter().map(|f| f.json().to_string() + "\n").collect();
    lines.concat().into_bytes()
}

pub fn batch(flows: &[TestFlow]) -> Batch {
    let mut builder = BatchBuilder::with_capacity(0);
    for flow in flows {
        let (hour, src, dest, vpc) = &flow.key;
        builder.push(
            Hour::new(u64::from(*hour)).unwrap(),
            [src.as_bytes(), dest.as_bytes(), vpc.as_bytes()],
            Counters {
                tx: flow.tx,
                rx: flow.rx,
            },
        );
    }
    builder.finish()
}

/// The rows of an hour, straight from a store.
pub fn ledger_of(store: &Store) -> impl Iterator<Item = (Hour, Totals)> {
    store.ledger(HourRange::ALL).unwrap().map(Result::unwrap)
}

pub fn scan(store: &Store, hour: u32) -> Vec<(Key, Counters)> {
    let mut scan = store
        .select(Selection::hour(Hour::new(u64::from(hour)).unwrap()))
        .unwrap();
    let mut rows = Vec::new();
    while let Some((key, counters)) = scan.next().unwrap() {
        rows.push((
            (
                key.hour.get(),
                key.src_app.to_string(),
                key.dest_app.to_string(),
                key.vpc_id.to_string(),
            ),
            counters,
        ));
    }
    rows
}

/// A generator whose seed is printed, so that a failure can be run again: `FLOWTALLY_TEST_SEED=…`.
pub fn random(test: &str) -> StdRng {
    let seed = std::env::var("FLOWTALLY_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok())
        .unwrap_or_else(rand::random);
    println!("{test}: FLOWTALLY_TEST_SEED={seed}");
    StdRng::seed_from_u64(seed)
}

/// Names that are hard on keys, JSON and CSV: empty, NULs, largest code points, quotes, prefixes of
/// one another, and as long as allowed.
pub fn odd_name(random: &mut StdRng) -> String {
    let fixed = [
        "",
        "\0",
        "\0\0",
        "a",
        "a\0",
        "a\0b",
        "ab",
        "abc",
        "\u{1}",
        "\u{ff}",
        "\u{fffd}",
        "\u{10ffff}",
        "\"",
        "\\",
        "\"quoted\"",
        "a,b",
        "line\nbreak",
        "\r\n",
        "\t",
        " ",
        "🦀",
        "👩‍👩‍👧‍👦",
        "<script>",
        "=1+1",
        "null",
        "\u{7f}",
        "\u{2028}",
        "svc-1",
        "svc-10",
        "svc-100",
    ];
    match random.random_range(0..40) {
        0 => "x".repeat(1024),
        1 => "\0".repeat(1024),
        2 => "é".repeat(512),
        3..8 => (0..random.random_range(0..12))
            .map(|_| random.random::<char>())
            .collect(),
        _ => fixed[random.random_range(0..fixed.len())].to_owned(),
    }
}

pub fn odd_flow(random: &mut StdRng, hours: &[u32]) -> TestFlow {
    let bytes = |random: &mut StdRng| match random.random_range(0..20) {
        0 => u64::MAX,
        1 => u64::MAX - 1,
        2 => random.random(),
        3 => 0,
        _ => random.random_range(0..1_000_000),
    };
    TestFlow {
        key: (
            hours[random.random_range(0..hours.len())],
            odd_name(random),
            odd_name(random),
            odd_name(random),
        ),
        tx: bytes(random),
        rx: bytes(random),
    }
}

/// An answer with its body read.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Rows of a JSON answer to `GET /flows`.
    pub fn rows(&self) -> Vec<(Key, Counters)> {
        assert_eq!(
            self.status,
            200,
            "{:?}",
            String::from_utf8_lossy(&self.body)
        );
        let rows = self.json();
        rows.as_array().unwrap().iter().map(row).collect()
    }
}

pub fn row(row: &serde_json::Value) -> (Key, Counters) {
    let text = |field: &str| row[field].as_str().unwrap().to_owned();
    let number = |field: &str| row[field].as_u64().unwrap();
    assert_eq!(row.as_object().unwrap().len(), 6, "{row}");
    (
        (
            number("hour") as u32,
            text("src_app"),
            text("dest_app"),
            text("vpc_id"),
        ),
        Counters {
            tx: number("bytes_tx"),
            rx: number("bytes_rx"),
        },
    )
}

/// Keep-alive HTTP client of one daemon.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            .build()
            .into();
        Client {
            agent,
            base: format!("http://{address}"),
        }
    }

    /// For `https`, with a certificate or authority that counts.
    #[cfg(feature = "kafka")]
    pub fn tls(url: &str, authority: &[u8]) -> Client {
        let authority = ureq::tls::Certificate::from_pem(authority).unwrap();
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::Specific(Arc::new(vec![authority])))
            .build();
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(DEADLINE))
            .tls_config(tls)
            .build()
            .into();
        Client {
            agent,
            base: url.into(),
        }
    }

    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer, ureq::Error> {
        let mut request = self.agent.get(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.call()?)
    }

    pub fn post(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<Answer, ureq::Error> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send(body)?)
    }

    pub fn delete(&self, path: &str) -> Result<Answer, ureq::Error> {
        read(self.agent.delete(format!("{}{path}", self.base)).call()?)
    }

    /// POSTs a JSON batch that has to be accepted.
    pub fn accept(&self, flows: &[TestFlow]) {
        let answer = self
            .post("/flows", &[JSON], &json_body(flows))
            .unwrap_or_else(|e| panic!("{e}"));
        let text = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status, 200, "{text}");
        assert_eq!(text, format!("{{\"accepted\":{}}}\n", flows.len()));
    }

    /// The value of a metric, which is named with its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let value = self.find_metric(name);
        value.unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// The same, where labels appear with their first event.
    pub fn find_metric(&self, name: &str) -> Option<f64> {
        let text = String::from_utf8(self.get("/metrics", &[]).unwrap().body).unwrap();
        let of_line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(of_line)
    }

    pub fn hour(&self, hour: u32) -> Vec<(Key, Counters)> {
        let answer = self.get(&format!("/flows?hour={hour}"), &[]);
        answer.unwrap_or_else(|e| panic!("{e}")).rows()
    }
}

pub const JSON: (&str, &str) = ("content-type", "application/json");
pub const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

fn read(response: ureq::http::Response<ureq::Body>) -> Result<Answer, ureq::Error> {
    let (parts, mut body) = response.into_parts();
    let body = body.with_config().limit(1 << 30).read_to_vec()?;
    Ok(Answer {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
    })
}

/// Sends `request` as it is and reads until the server closes or is silent for a while.
pub fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    // The server may have answered and closed before all of it is sent.
    let _sent = stream.write_all(request);
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut part) {
        answer.extend_from_slice(&part[..n]);
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// A small disk of its own, where there is the right to mount one.
#[derive(Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub mounted: bool,
}

impl Disk {
    pub fn new(path: PathBuf, mib: usize) -> Disk {
        std::fs::create_dir(&path).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"])
            .arg(&path)
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            println!("full disk: NOT TESTED, this user may not mount one");
        }
        Disk { path, mounted }
    }

    /// Takes all space but `leave_mib`.
    pub fn fill(&self, leave_mib: u64) {
        let mut file = std::fs::File::create(self.path.join("filler")).unwrap();
        while file.write_all(&[1; 64 << 10]).is_ok() {}
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(leave_mib << 20))
            .unwrap();
    }

    pub fn free(&self) {
        let _there_is_none = std::fs::remove_file(self.path.join("filler"));
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if self.mounted {
            let _best_effort = Command::new("umount").arg("-l").arg(&self.path).status();
        }
    }
}

/// The real binary on a free port.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    pub address: SocketAddr,
    pub client: Client,
    log: Arc<Mutex<String>>,
    /// Ends when the daemon has, and all that it logged is in `log`.
    drain: Option<JoinHandle<()>>,
}

impl Daemon {
    pub fn binary() -> PathBuf {
        PathBuf::from(env!("CARGO_BIN_EXE_flowtally"))
    }

    pub fn start(data_dir: &Path) -> Daemon {
        Daemon::start_with(data_dir, &[])
    }

    /// Starts it and waits until it is ready, and has logged that.
    pub fn start_with(data_dir: &Path, arguments: &[&str]) -> Daemon {
        let mut daemon = Daemon::launch(data_dir, arguments);
        until_daemon(&mut daemon, "it to be ready", |daemon| {
            let answer = daemon.client.get("/readyz", &[]);
            answer.is_ok_and(|a| a.status == 200) && daemon.log().contains("replay_ms")
        });
        daemon
    }

    /// Starts it and waits until it listens.
    pub fn launch(data_dir: &Path, arguments: &[&str]) -> Daemon {
        Daemon::launch_by(Command::new(Daemon::binary()), data_dir, arguments)
    }

    /// The same, with room for this many open files.
    pub fn launch_with_files(data_dir: &Path, files: usize) -> Daemon {
        let mut command = Command::new("prlimit");
        command.arg(format!("--nofile={files}:{files}"));
        command.arg(Daemon::binary());
        Daemon::launch_by(command, data_dir, &[])
    }

    /// The same, by `command`, which is the binary with what a test wants around it.
    pub fn launch_by(mut command: Command, data_dir: &Path, arguments: &[&str]) -> Daemon {
        command.args(["serve", "--data-dir"]).arg(data_dir);
        command.env("FLOWTALLY_LOG_FORMAT", "text");
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        let mut child = command
            .args(arguments)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let mut address = None;
        for line in lines.by_ref() {
            let line = line.unwrap() + "\n";
            log.lock().push_str(&line);
            let found = line
                .split_once("address=")
                .or(line.split_once("\"address\":\""));
            if let Some((_, rest)) = found {
                let end = rest.find([' ', '"', '\n']).unwrap();
                address = rest[..end].parse().ok();
                break;
            }
        }
        // Drains the pipe, so that the daemon never waits for its log to be read.
        let drained = log.clone();
        let drain = std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                drained.lock().push_str(&(line + "\n"));
            }
        });
        let address = address.unwrap_or_else(|| {
            let status = child.wait();
            panic!("it ended with {status:?}: {}", log.lock())
        });
        Daemon {
            child,
            address,
            client: Client::new(address),
            log,
            drain: Some(drain),
        }
    }

    /// Of its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        self.log.lock().clone()
    }

    /// Resident memory.
    pub fn memory_mib(&self) -> u64 {
        self.status_mib("VmRSS")
    }

    /// The most that there was.
    pub fn memory_mib_max(&self) -> u64 {
        self.status_mib("VmHWM")
    }

    fn status_mib(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = std::fs::read_to_string(path).unwrap();
        let line = status.lines().find(|l| l.starts_with(name)).unwrap();
        let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        kib / 1024
    }

    /// `TERM`, `INT` and the like.
    pub fn signal(&self, name: &str) {
        let status = Command::new("kill")
            .args([format!("-{name}"), self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(status.success());
    }

    /// SIGKILL, and wait.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits for it to end by itself.
    pub fn wait(&mut self) -> ExitStatus {
        until_daemon(self, "it to end", Daemon::has_ended);
        if let Some(drain) = self.drain.take() {
            drain.join().unwrap();
        }
        self.child.wait().unwrap()
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// SIGTERM, and an end in good order.
    pub fn stop(mut self) {
        self.signal("TERM");
        let status = self.wait();
        assert!(status.success(), "{status:?}: {}", self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}
