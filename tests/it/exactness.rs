//! Random batches with odd names, compared with a sorted map, across everything that moves sums: flushes, compactions,
//! restarts, kills.

use std::collections::BTreeMap;
use std::time::Duration;

use flow::{Counters, Hour, Totals};
use flowtally::store::{Store, StoreOptions};
use rand::RngExt;

use crate::support::{
    Daemon, JSON, Key, Model, NDJSON, TestFlow, add_to, batch, hour_of, json_body, ledger_of,
    ndjson_body, odd_flow, random, row, scan,
};

const HOURS: [u32; 5] = [0, 1, 23, 480_000, Hour::MAX];

#[test]
fn the_store_is_a_sorted_map() {
    let mut random = random("the_store_is_a_sorted_map");
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        // So small that the flusher is always busy, in parallel to all steps below.
        tally_bytes_max: 16 << 10,
        flush_interval: Duration::from_millis(50),
        ..StoreOptions::default()
    };
    let open = || Store::open(dir.path(), options.clone()).unwrap().0;
    let (mut store, mut model) = (open(), Model::new());
    let mut ledger: BTreeMap<Hour, Totals> = BTreeMap::new();
    for step in 0..600 {
        match random.random_range(0..20) {
            0 => store.flush().unwrap(),
            1 => store.compact().unwrap(),
            2 => {
                store.flush().unwrap();
                drop(store);
                store = open();
            }
            3 => {
                drop(store);
                store = open();
            }
            _ => {
                let group: Vec<Vec<TestFlow>> = (0..random.random_range(1..4))
                    .map(|_| {
                        let flows = random.random_range(0..60);
                        (0..flows).map(|_| odd_flow(&mut random, &HOURS)).collect()
                    })
                    .collect();
                let batches: Vec<_> = group.iter().map(|flows| batch(flows)).collect();
                store.commit(batches.clone()).unwrap();
                group.iter().for_each(|flows| add_to(&mut model, flows));
                for flow in group.iter().flatten() {
                    let hour = Hour::new(flow.key.0.into()).unwrap();
                    let (tx, rx) = (flow.tx, flow.rx);
                    ledger.entry(hour).or_default().count(Counters { tx, rx });
                }
            }
        }
        assert!(ledger_of(&store).eq(ledger.clone()), "step {step}");
        let hour = HOURS[random.random_range(0..HOURS.len())];
        assert_eq!(scan(&store, hour), hour_of(&model, hour), "step {step}");
    }
    store.flush().unwrap();
    store.compact().unwrap();
    assert!(ledger_of(&store).eq(ledger));
    for hour in HOURS {
        assert_eq!(scan(&store, hour), hour_of(&model, hour));
        assert_eq!(scan(&store, hour.wrapping_sub(2).min(7)), []);
    }
}

#[test]
fn odd_names_survive_every_format_and_kills() {
    let mut random = random("odd_names_survive_every_format_and_kills");
    let dir = tempfile::tempdir().unwrap();
    let mut model = Model::new();
    for round in 0..8 {
        let mut daemon = Daemon::start_with(dir.path(), &["--flush-interval", "1"]);
        for _ in 0..20 {
            let flows: Vec<_> = (0..random.random_range(0..80))
                .map(|_| odd_flow(&mut random, &HOURS))
                .collect();
            let (kind, body) = match random.random_range(0..2) {
                0 => (JSON, json_body(&flows)),
                _ => (NDJSON, ndjson_body(&flows)),
            };
            let (encoding, body) = match random.random_range(0..3) {
                0 => ("identity", body),
                1 => ("gzip", gzip(&body)),
                _ => ("zstd", zstd::encode_all(body.as_slice(), 1).unwrap()),
            };
            let headers = [kind, ("content-encoding", encoding)];
            let response = daemon.client.post("/flows", &headers, &body).unwrap();
            assert_eq!(response.status, 200, "{response:?}");
            assert_eq!(response.json()["accepted"], flows.len());
            add_to(&mut model, &flows);
        }
        for hour in HOURS {
            let expected = hour_of(&model, hour);
            assert_eq!(daemon.client.hour(hour), expected, "round {round}");
            for encoding in ["identity", "gzip", "zstd"] {
                for (accept, parse) in [
                    ("application/json", parse_json as fn(&[u8]) -> _),
                    ("application/x-ndjson", parse_ndjson),
                    ("text/csv", parse_csv),
                ] {
                    let headers = [("accept", accept), ("accept-encoding", encoding)];
                    let path = format!("/flows?hour={hour}");
                    let response = daemon.client.get(&path, &headers).unwrap();
                    let got = match response.header("content-encoding") {
                        None => response.body.clone(),
                        Some("gzip") => gunzip(&response.body),
                        Some("zstd") => zstd::decode_all(response.body.as_slice()).unwrap(),
                        other => panic!("{other:?}"),
                    };
                    let content_type = response.header("content-type").unwrap();
                    assert!(content_type.starts_with(accept), "{content_type}");
                    assert_eq!(parse(&got), expected, "{accept} {encoding}");
                }
            }
        }
        if round % 2 == 0 {
            daemon.kill();
        } else {
            daemon.stop();
        }
    }
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(plain).unwrap();
    gzip.finish().unwrap()
}

fn gunzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Read;
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(bytes)
        .read_to_end(&mut plain)
        .unwrap();
    plain
}

fn parse_json(bytes: &[u8]) -> Vec<(Key, Counters)> {
    let rows: Vec<serde_json::Value> = serde_json::from_slice(bytes).unwrap();
    rows.iter().map(row).collect()
}

fn parse_ndjson(bytes: &[u8]) -> Vec<(Key, Counters)> {
    let text = std::str::from_utf8(bytes).unwrap();
    assert!(text.is_empty() || text.ends_with('\n'));
    text.split_terminator('\n')
        .map(|line| row(&serde_json::from_str(line).unwrap()))
        .collect()
}

fn parse_csv(bytes: &[u8]) -> Vec<(Key, Counters)> {
    let mut csv = csv::Reader::from_reader(bytes);
    let expected = [
        "src_app", "dest_app", "vpc_id", "bytes_tx", "bytes_rx", "hour",
    ];
    assert_eq!(csv.headers().unwrap(), expected.as_slice());
    csv.records()
        .map(|record| {
            let record = record.unwrap();
            let number = |i: usize| record[i].parse::<u64>().unwrap();
            let key = (
                number(5) as u32,
                record[0].to_owned(),
                record[1].to_owned(),
                record[2].to_owned(),
            );
            let (tx, rx) = (number(3), number(4));
            (key, Counters { tx, rx })
        })
        .collect()
}

#[test]
fn sums_saturate_on_every_path_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let huge = [TestFlow::new(1, "a", "b", "c", u64::MAX - 1, 1)];
    let one = [TestFlow::new(1, "a", "b", "c", 5, 1)];
    let expect = |tx: u64, rx: u64| {
        assert_eq!(
            scan(&store, 1),
            [((1, "a".into(), "b".into(), "c".into()), Counters { tx, rx })]
        );
    };
    store.commit(vec![batch(&huge)]).unwrap();
    expect(u64::MAX - 1, 1);
    store.flush().unwrap();
    // Tally on disk: added while reading.
    store.commit(vec![batch(&one)]).unwrap();
    expect(u64::MAX, 2);
    // Two operands on disk: added by the merge operator.
    store.flush().unwrap();
    expect(u64::MAX, 2);
    assert!(store.sums_saturated() > 0);
    // In the tally alone.
    let before = store.sums_saturated();
    store.commit(vec![batch(&huge), batch(&one)]).unwrap();
    // A compaction of flushed operands may count meanwhile.
    assert!(store.sums_saturated() > before);
    expect(u64::MAX, 4);
    store.flush().unwrap();
    store.compact().unwrap();
    expect(u64::MAX, 4);
}
