//! Daemons for tests, clients for them, and the model for comparison.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use flow::{Batch, BatchBuilder, Counters, Hour, HourRange, Totals};
use flowtally::store::{Selection, Store};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub use crate::daemon::{Daemon, Disk};
use crate::wait::DEADLINE;

/// Hour, src_app, dest_app, vpc_id.
pub type Key = (u32, String, String, String);

/// The expected rows: sums that saturate.
pub type Model = BTreeMap<Key, Counters>;

/// A flow of a test.
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

/// The ledger, read directly from a store.
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

/// A generator whose seed is printed, so that a failure can be reproduced: `FLOWTALLY_TEST_SEED=…`.
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

/// A response with its body.
#[derive(Debug)]
pub struct Response {
    pub status: u16,
    pub headers: ureq::http::HeaderMap,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|v| v.to_str().unwrap())
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// Rows of a JSON response to `GET /flows`.
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

    /// For `https`, with the certificate or authority to trust.
    #[cfg(feature = "kafka")]
    pub fn tls(url: &str, authority: &[u8]) -> Client {
        let authority = ureq::tls::Certificate::from_pem(authority).unwrap();
        let tls = ureq::tls::TlsConfig::builder()
            .root_certs(ureq::tls::RootCerts::Specific(std::sync::Arc::new(vec![
                authority,
            ])))
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

    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> Result<Response, ureq::Error> {
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
    ) -> Result<Response, ureq::Error> {
        let mut request = self.agent.post(format!("{}{path}", self.base));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        read(request.send(body)?)
    }

    pub fn delete(&self, path: &str) -> Result<Response, ureq::Error> {
        read(self.agent.delete(format!("{}{path}", self.base)).call()?)
    }

    /// POSTs a JSON batch that has to be accepted.
    pub fn accept(&self, flows: &[TestFlow]) {
        let response = self
            .post("/flows", &[JSON], &json_body(flows))
            .unwrap_or_else(|e| panic!("{e}"));
        let text = String::from_utf8_lossy(&response.body);
        assert_eq!(response.status, 200, "{text}");
        assert_eq!(text, format!("{{\"accepted\":{}}}\n", flows.len()));
    }

    /// The value of a metric; `name` includes its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let value = self.find_metric(name);
        value.unwrap_or_else(|| panic!("no metric {name}"))
    }

    /// Like [`Client::metric`]; `None` before the first event with these labels.
    pub fn find_metric(&self, name: &str) -> Option<f64> {
        let text = String::from_utf8(self.get("/metrics", &[]).unwrap().body).unwrap();
        let of_line = |line: &str| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok();
        text.lines().find_map(of_line)
    }

    pub fn hour(&self, hour: u32) -> Vec<(Key, Counters)> {
        let response = self.get(&format!("/flows?hour={hour}"), &[]);
        response.unwrap_or_else(|e| panic!("{e}")).rows()
    }
}

pub const JSON: (&str, &str) = ("content-type", "application/json");

pub const NDJSON: (&str, &str) = ("content-type", "application/x-ndjson");

fn read(response: ureq::http::Response<ureq::Body>) -> Result<Response, ureq::Error> {
    let (parts, mut body) = response.into_parts();
    let body = body.with_config().limit(1 << 30).read_to_vec()?;
    Ok(Response {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body,
    })
}

/// A free port of the loopback interface, which no other test gets. The system does not assign it to a client or to
/// another listener before it is used: those get ports of the range above.
pub fn free_address() -> SocketAddr {
    static NEXT: LazyLock<AtomicU16> = LazyLock::new(|| AtomicU16::new(rand::random()));
    let mut addresses = std::iter::repeat_with(|| {
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 12_000;
        SocketAddr::from(([127, 0, 0, 1], port))
    });
    addresses
        .find(|address| TcpListener::bind(address).is_ok())
        .unwrap()
}

/// Sends the bytes of `request`, and reads until the server closes the connection or is silent for a while.
pub fn raw(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    // The server may respond and close the connection before everything is sent.
    let _sent = stream.write_all(request);
    let mut response = Vec::new();
    let mut part = [0; 4096];
    while let Ok(n @ 1..) = stream.read(&mut part) {
        response.extend_from_slice(&part[..n]);
    }
    String::from_utf8_lossy(&response).into_owned()
}

/// Whether a program is installed. Prints that something is not tested if it is not.
pub fn has_program(name: &str) -> bool {
    let found = Command::new("which")
        .arg(name)
        .stdout(Stdio::null())
        .status();
    let found = found.is_ok_and(|status| status.success());
    if !found {
        println!("{name}: NOT TESTED, it is not installed");
    }
    found
}
