//! Measures the cost of each step of the write path and the query path.
//!
//! `cargo bench --bench micro` measures; without `--bench` (as `cargo test --benches` runs it) each bench runs once at
//! a smoke size, so that it keeps working. Sizes are per element: flows or rows.

// A bench that cannot continue panics; the lint is meant for the service.
#![allow(clippy::expect_used)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use tokio_util::sync::CancellationToken;

use flow::codec::FlowKey;
use flow::decode::{Format, decode};
use flow::query::Query;
use flow::{Batch, BatchBuilder, Counters, Encoding, Hour};
use flowtally::query::{EncodedRows, Engine, QueryLimits, Row, RowFormat};
use flowtally::store::{Durability, Position, Selection, Store, StoreOptions, Tally};

/// Whether to measure; otherwise, it only runs.
fn measures() -> bool {
    std::env::args().any(|argument| argument == "--bench")
}

fn size(measured: usize, smoke: usize) -> usize {
    if measures() { measured } else { smoke }
}

/// Names of edge `k`, like those of the load driver.
fn names(k: usize) -> [String; 3] {
    [
        format!("svc-{}", k % 997),
        format!("svc-{}", k / 997 % 1009),
        format!("vpc-{}", k % 7),
    ]
}

/// Every edge once, in an order that defeats caches.
fn edges(count: usize) -> impl Iterator<Item = usize> {
    // A full-period walk: the stride is prime and does not divide the count.
    (0..count).map(move |i| i * 7919 % count)
}

fn batch(edges: impl Iterator<Item = usize>) -> Batch {
    let mut builder = BatchBuilder::with_capacity(1 << 16);
    let hour = Hour::new(12).expect("a small hour");
    for k in edges {
        let [src, dest, vpc] = names(k);
        let names = [src.as_bytes(), dest.as_bytes(), vpc.as_bytes()];
        let (tx, rx) = (k as u64 % 99_991, k as u64 % 77_777);
        builder.push(hour, names, Counters { tx, rx });
    }
    builder.finish()
}

fn body(count: usize, name: &str) -> Vec<u8> {
    let flows: Vec<String> = edges(count)
        .map(|k| {
            let [src, dest, vpc] = names(k);
            format!(
                r#"{{"src_app": "{src}{name}", "dest_app": "{dest}", "vpc_id": "{vpc}", "bytes_tx": {}, "bytes_rx": {}, "hour": 12}}"#,
                k % 99_991,
                k % 77_777,
            )
        })
        .collect();
    format!("[{}]", flows.join(",")).into_bytes()
}

fn bench_decode(c: &mut Criterion) {
    let count = size(1_000, 10);
    let mut group = c.benchmark_group("decode");
    group.throughput(Throughput::Elements(count as u64));
    // The fast decoder gives up at an escape.
    for (id, name) in [("as_agents_send", ""), ("any_json", "\\n")] {
        let body = body(count, name);
        group.bench_function(id, |b| b.iter(|| decode(black_box(&body), Format::Json)));
    }
    group.finish();
}

fn bench_codec(c: &mut Criterion) {
    let count = size(1_000, 10);
    let mut group = c.benchmark_group("codec");
    group.throughput(Throughput::Elements(count as u64));
    let flows: Vec<[String; 3]> = edges(count).map(names).collect();
    group.bench_function("encode", |b| {
        b.iter(|| {
            let mut builder = BatchBuilder::with_capacity(1 << 16);
            let hour = Hour::new(12).expect("a small hour");
            for [src, dest, vpc] in &flows {
                let names = [src.as_bytes(), dest.as_bytes(), vpc.as_bytes()];
                builder.push(hour, names, Counters { tx: 1000, rx: 2 });
            }
            builder.finish()
        });
    });
    let keys: Vec<Vec<u8>> = flows
        .iter()
        .map(|names| {
            let [src, dest, vpc] = names.each_ref().map(|name| name.as_bytes());
            let mut key = Vec::new();
            flow::codec::push_key(
                &mut key,
                Hour::new(12).expect("a small hour"),
                src,
                dest,
                vpc,
            );
            key
        })
        .collect();
    group.bench_function("decode_key", |b| {
        b.iter(|| {
            for key in &keys {
                let _decoded = black_box(FlowKey::decode(black_box(key)));
            }
        });
    });
    group.finish();
}

fn bench_tally(c: &mut Criterion) {
    let mut group = c.benchmark_group("tally");
    for (id, keys) in [
        ("hot_1k", 1_000),
        ("fleet_100k", 100_000),
        ("wide_1m", 1_000_000),
    ] {
        let keys = size(keys, 100);
        let batches: Vec<Batch> = edges(keys)
            .collect::<Vec<_>>()
            .chunks(1_000)
            .map(|chunk| batch(chunk.iter().copied()))
            .collect();
        let mut tally = Tally::new(Position::ZERO);
        for batch in &batches {
            tally.add(batch);
        }
        group.throughput(Throughput::Elements(keys as u64));
        group.bench_function(format!("add_known_{id}"), |b| {
            b.iter(|| {
                for batch in &batches {
                    let _stopped = black_box(tally.add(batch));
                }
            });
        });
        group.bench_function(format!("sort_{id}"), |b| {
            b.iter(|| tally.runs().map(|(_, run)| run.len()).sum::<usize>());
        });
    }
    group.finish();
}

fn open(durability: Durability) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let options = StoreOptions {
        durability,
        flush_interval: Duration::from_secs(3600),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).expect("an empty directory");
    (dir, store)
}

fn bench_store(c: &mut Criterion) {
    let mut group = c.benchmark_group("store");
    group.sample_size(10);
    let count = size(1_000, 10);
    for (id, durability) in [("fsync", Durability::Fsync), ("os", Durability::Os)] {
        let (_dir, store) = open(durability);
        let group_of_8: Vec<Batch> = (0..8).map(|_| batch(edges(count))).collect();
        group.throughput(Throughput::Elements(8 * count as u64));
        group.bench_function(format!("commit_8_batches_{id}"), |b| {
            b.iter_batched(
                || group_of_8.clone(),
                |group| store.commit(group).expect("a disk with space"),
                BatchSize::PerIteration,
            );
        });
    }
    let rows = size(100_000, 100);
    let every = vec![batch(edges(rows))];
    group.throughput(Throughput::Elements(rows as u64));
    let (_dir, store) = open(Durability::Os);
    group.bench_function("flush", |b| {
        b.iter_batched(
            || store.commit(every.clone()).expect("a disk with space"),
            |_outcomes| store.flush().expect("a disk with space"),
            BatchSize::PerIteration,
        );
    });
    let scan = || {
        let hour = Hour::new(12).expect("a small hour");
        let mut scan = store.select(Selection::hour(hour)).expect("an open store");
        let mut count = 0;
        while let Some(row) = scan.next().expect("a sound file") {
            black_box(row);
            count += 1;
        }
        assert_eq!(count, rows);
    };
    store.flush().expect("a disk with space");
    store.compact().expect("a disk with space");
    group.bench_function("scan_compacted", |b| b.iter(scan));
    store.commit(every.clone()).expect("a disk with space");
    group.bench_function("scan_compacted_and_tally", |b| b.iter(scan));
    let store = Arc::new(store);
    let engine = Engine::new(QueryLimits::NONE);
    for (id, format, encoding) in [
        ("json", RowFormat::Json, Encoding::Identity),
        ("csv", RowFormat::Csv, Encoding::Identity),
        ("arrow", RowFormat::Arrow, Encoding::Identity),
        ("json_gzip", RowFormat::Json, Encoding::Gzip),
        ("json_zstd", RowFormat::Json, Encoding::Zstd),
    ] {
        group.bench_function(format!("answer_{id}"), |b| {
            b.iter(|| {
                let question = Query::all_of((12..13).into());
                let rows = engine.ask(&store, &question, CancellationToken::default());
                let rows = rows.expect("an open store");
                let mut answer = EncodedRows::new(rows, format, encoding).expect("memory");
                while let Some(chunk) = answer.next_chunk().expect("a sound file") {
                    black_box(chunk);
                }
            });
        });
    }
    group.finish();
}

fn bench_row(c: &mut Criterion) {
    let mut group = c.benchmark_group("row");
    group.throughput(Throughput::Elements(1));
    let row = Row {
        src_app: Some("svc-123"),
        dest_app: Some("svc-456"),
        vpc_id: Some("vpc-1"),
        counters: Counters {
            tx: 123_456,
            rx: 7_654_321,
        },
        before: None,
        hour: Hour::new(12),
        is_other: false,
    };
    for (id, format) in [("json", RowFormat::Json), ("csv", RowFormat::Csv)] {
        let mut out = Vec::with_capacity(1 << 10);
        group.bench_function(id, |b| {
            b.iter(|| {
                out.clear();
                format.write(black_box(&row), &mut out);
            });
        });
    }
    group.finish();
}

criterion_group!(
    benches,
    bench_decode,
    bench_codec,
    bench_tally,
    bench_store,
    bench_row
);
criterion_main!(benches);
