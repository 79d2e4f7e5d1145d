//! Answers from spans are those of their hours.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use tokio_util::sync::CancellationToken;

use super::{EncodedRows, Engine, QueryLimits, RowFormat};
use crate::store::{Store, StoreOptions};
use flow::query::{Query, text};
use flow::{BatchBuilder, Counters, Encoding, Hour};

type Key = (Option<u32>, [Option<String>; 3]);
type Row = (Key, (u64, u64));

/// Most hours of two and a half months, settled and summed, and then late flows and some that are not flushed.
fn filled(dir: &std::path::Path, random: &mut StdRng) -> Store {
    let (store, _) = Store::open(dir, StoreOptions::default()).unwrap();
    let mut commit = |flows: u32, hours: std::ops::Range<u64>| {
        let mut batch = BatchBuilder::with_capacity(0);
        for _ in 0..flows {
            let names = [7, 5, 2].map(|names| random.random_range(0..names).to_string());
            let names = names.each_ref().map(|name| name.as_bytes());
            let (tx, rx) = (random.random_range(0..1000), 1);
            let hour = Hour::new(random.random_range(hours.clone())).unwrap();
            batch.push(hour, names, Counters { tx, rx });
        }
        store.commit(vec![batch.finish()]).unwrap();
    };
    commit(4000, 0..1800);
    store.flush().unwrap();
    store.compact().unwrap();
    commit(300, 0..1800);
    store.flush().unwrap();
    commit(100, 1000..1900);
    store
}

fn ask(engine: &Engine, store: &Store, query: &Query) -> (Vec<Row>, Option<String>) {
    let mut rows = engine.ask(store, query, CancellationToken::new()).unwrap();
    let mut all = Vec::new();
    let ended = rows.read(|row| {
        let names = [row.src_app, row.dest_app, row.vpc_id];
        let key = (
            row.hour.map(Hour::get),
            names.map(|name| name.map(str::to_owned)),
        );
        all.push((key, (row.counters.tx, row.counters.rx)));
        ControlFlow::Continue(())
    });
    assert!(ended.unwrap());
    (all, rows.next_page().map(str::to_owned))
}

#[test]
fn answers_with_steps_and_spans_are_those_of_the_hours() {
    let mut random = StdRng::seed_from_u64(7);
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), &mut random);
    let engine = Engine::new(QueryLimits::NONE);
    let mut few = 0;
    for _ in 0..40 {
        let from = random.random_range(0..1900);
        let to = random.random_range(from..2000);
        let filter = ["", "&src_app=3", "&dest_app=1&vpc_id=0"][random.random_range(0..3)];
        let of = format!("from={from}&to={to}{filter}");
        let hours = text::parse_flows(&of).unwrap();
        let hours = ask(&engine, &store, &hours).0;
        for columns in [
            "",
            "src_app",
            "dest_app",
            "src_app,vpc_id",
            "src_app,dest_app,vpc_id",
            "hour",
            "hour,src_app",
            "hour,dest_app",
            "hour,src_app,dest_app,vpc_id",
        ] {
            for step in [1, 5, 24, 48, 720] {
                let by_hour = columns.starts_with("hour");
                if !by_hour && step > 1 {
                    continue;
                }
                let names = ["src_app", "dest_app", "vpc_id"].map(|name| columns.contains(name));
                let mut expected = BTreeMap::<Key, (u64, u64)>::new();
                for ((hour, of_row), sums) in &hours {
                    let mut key = of_row.clone();
                    for (name, has) in key.iter_mut().zip(names) {
                        *name = name.take().filter(|_| has);
                    }
                    let hour = hour.filter(|_| by_hour).map(|hour| hour - hour % step);
                    let sum = expected.entry((hour, key)).or_default();
                    *sum = (sum.0 + sums.0, sum.1 + sums.1);
                }
                let steps = if step > 1 {
                    format!("&step={step}")
                } else {
                    String::new()
                };
                let mut query =
                    text::parse_flows(&format!("{of}&group_by={columns}{steps}")).unwrap();
                let (rows, _) = ask(&engine, &store, &query);
                assert!(
                    rows == expected.clone().into_iter().collect::<Vec<_>>(),
                    "{query:?}"
                );
                // Page by page.
                let mut paged = Vec::new();
                query.limit = Some(random.random_range(1..20));
                for _ in 0..5 {
                    let (rows, next) = ask(&engine, &store, &query);
                    paged.extend(rows);
                    query.cursor = next;
                    if query.cursor.is_none() {
                        few += 1;
                        break;
                    }
                }
                let first: Vec<Row> = expected.into_iter().take(paged.len()).collect();
                assert!(paged == first, "{query:?}");
            }
        }
    }
    assert!(few > 10);
}

#[test]
fn filters_select_what_they_say() {
    let mut random = StdRng::seed_from_u64(9);
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let all = ["", "a", "web", "web-1", "web-22", "we", "b\0", "\u{e9}"];
    for _ in 0..2 {
        let mut batch = BatchBuilder::with_capacity(0);
        for _ in 0..600 {
            let names = [(); 3].map(|()| all[random.random_range(0..all.len())].as_bytes());
            let hour = Hour::new(random.random_range(0..3)).unwrap();
            batch.push(hour, names, Counters { tx: 1, rx: 2 });
        }
        store.commit(vec![batch.finish()]).unwrap();
        store.flush().unwrap();
        store.compact().unwrap();
    }
    let engine = Engine::new(QueryLimits::NONE);
    let rows_of = |text: &str| {
        let query = text::parse_flows(text).unwrap();
        ask(&engine, &store, &query).0
    };
    let every = rows_of("from=0&to=3");
    type Wanted = fn(&str, &str, &str) -> bool;
    let cases: [(&str, Wanted); 14] = [
        ("src_app=web", |s, _, _| s == "web"),
        ("src_app^=web", |s, _, _| s.starts_with("web")),
        ("src_app^=", |_, _, _| true),
        ("src_app^=we&src_app!=web", |s, _, _| {
            s.starts_with("we") && s != "web"
        }),
        ("src_app=a&src_app^=web-", |s, _, _| {
            s == "a" || s.starts_with("web-")
        }),
        ("src_app!=", |s, _, _| !s.is_empty()),
        ("src_app=a&dest_app^=w", |s, d, _| {
            s == "a" && d.starts_with('w')
        }),
        ("src_app^=b%00&dest_app=a", |s, d, _| {
            s.starts_with("b\0") && d == "a"
        }),
        ("dest_app!=a&dest_app!=web", |_, d, _| {
            d != "a" && d != "web"
        }),
        ("vpc_id^=%C3%A9&vpc_id=a", |_, _, v| {
            v == "\u{e9}" || v == "a"
        }),
        ("peer=a", |s, d, _| s == "a" || d == "a"),
        ("peer^=web&peer!=web-1", |s, d, _| {
            (s.starts_with("web") || d.starts_with("web")) && s != "web-1" && d != "web-1"
        }),
        ("peer!=a", |s, d, _| s != "a" && d != "a"),
        ("src_app=a&dest_app=a&dest_app=web&vpc_id!=a", |s, d, v| {
            s == "a" && (d == "a" || d == "web") && v != "a"
        }),
    ];
    for (filter, wanted) in cases {
        let expected = every.iter().filter(|((_, names), _)| {
            let [src, dest, vpc] = names.each_ref().map(|name| name.as_deref().unwrap());
            wanted(src, dest, vpc)
        });
        let expected: Vec<Row> = expected.cloned().collect();
        assert!(!expected.is_empty(), "{filter}");
        assert!(
            rows_of(&format!("from=0&to=3&{filter}")) == expected,
            "{filter}"
        );
    }
}

#[test]
fn the_other_rows_are_the_rest_of_all() {
    let mut random = StdRng::seed_from_u64(10);
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), &mut random);
    let engine = Engine::new(QueryLimits::NONE);
    let body_of = |text: &str, format| {
        let query = text::parse_flows(text).unwrap();
        let rows = engine
            .ask(&store, &query, CancellationToken::new())
            .unwrap();
        let totals = rows.totals();
        let mut rows = EncodedRows::new(rows, format, Encoding::Identity).unwrap();
        let mut body = Vec::new();
        while let Some(chunk) = rows.next_chunk().unwrap() {
            body.extend_from_slice(&chunk);
        }
        (String::from_utf8(body).unwrap(), totals)
    };
    let sums = |text: &str| -> (u64, u64) {
        let json: serde_json::Value = serde_json::from_str(text).unwrap();
        let rows = json.as_array().unwrap().iter();
        let of = |row: &serde_json::Value| (row["bytes_tx"].as_u64(), row["bytes_rx"].as_u64());
        rows.map(of).fold((0, 0), |all, (tx, rx)| {
            (all.0 + tx.unwrap(), all.1 + rx.unwrap())
        })
    };
    for of in [
        "from=0&to=2000",
        "hour=7",
        "from=3&to=900&src_app=3",
        "hour=1999",
    ] {
        for group_by in [
            "",
            "&group_by=src_app",
            "&group_by=dest_app,vpc_id",
            "&group_by=",
        ] {
            let text = format!("{of}{group_by}&sort=bytes&limit=3");
            let (all, none) = body_of(&format!("{of}{group_by}"), RowFormat::Json);
            let (first, _) = body_of(&text, RowFormat::Json);
            let (with_other, totals) = body_of(&format!("{text}&other=true"), RowFormat::Json);
            let totals = totals.unwrap();
            assert_eq!(none, None);
            let (tx, rx) = sums(&all);
            assert_eq!((totals.tx, totals.rx), (tx.into(), rx.into()), "{text}");
            assert_eq!(sums(&with_other), (tx, rx), "{text}");
            let is_cut = with_other.contains("{\"other\":true,\"bytes_tx\":");
            assert_eq!(is_cut, sums(&first) != (tx, rx), "{text}");
            let (csv, _) = body_of(&format!("{text}&other=true"), RowFormat::Csv);
            let mut lines = csv.lines();
            assert!(lines.next().unwrap().ends_with(",other"), "{csv}");
            let last = lines.last().unwrap_or_default();
            assert_eq!(last.ends_with(",true"), is_cut, "{csv}");
        }
    }
}

#[test]
fn spans_are_compared_to_the_byte() {
    let mut random = StdRng::seed_from_u64(11);
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), &mut random);
    let engine = Engine::new(QueryLimits::NONE);
    let asked = |text: &str| {
        let query = text::parse_flows(text).unwrap();
        let mut rows = engine
            .ask(&store, &query, CancellationToken::new())
            .unwrap();
        let mut all = Vec::new();
        let ended = rows.read(|row| {
            let names = [row.src_app, row.dest_app, row.vpc_id];
            let names = names.map(|name| name.map(str::to_owned));
            let before = row.before.map_or((0, 0), |before| (before.tx, before.rx));
            all.push((names, (row.counters.tx, row.counters.rx), before));
            ControlFlow::Continue(())
        });
        assert!(ended.unwrap());
        all
    };
    for (from, to, compare, start) in [
        (100, 200, "previous", 0),
        (900, 1700, "previous", 100),
        (5, 1500, "300", 300),
        (1700, 1701, "3", 3),
    ] {
        for group_by in ["", "src_app", "src_app,dest_app,vpc_id"] {
            let one =
                |from: u32, to: u32| asked(&format!("from={from}&to={to}&group_by={group_by}"));
            let mut expected = BTreeMap::new();
            for (names, sums, _) in one(from, to) {
                expected.entry(names).or_insert([(0, 0); 2])[0] = sums;
            }
            for (names, sums, _) in one(start, start + to - from) {
                expected.entry(names).or_insert([(0, 0); 2])[1] = sums;
            }
            let mut expected: Vec<_> = expected
                .into_iter()
                .map(|(names, [now, before])| (names, now, before))
                .collect();
            let text = format!("from={from}&to={to}&group_by={group_by}&compare={compare}");
            assert!(asked(&text) == expected, "{text}");
            // By change, and of equal changes by name.
            let change = |row: &(_, (u64, u64), (u64, u64))| {
                let (_, now, before) = row;
                (now.0 + now.1) as i64 - (before.0 + before.1) as i64
            };
            expected.sort_by_key(|row| -change(row));
            assert!(
                asked(&format!("{text}&sort=change&limit=10000")) == expected,
                "{text}"
            );
            expected.sort_by(|a, b| change(a).cmp(&change(b)).then(a.0.cmp(&b.0)));
            expected.truncate(7);
            assert!(
                asked(&format!("{text}&sort=-change&limit=7")) == expected,
                "{text}"
            );
        }
    }
}

/// A year costs as many rows as its spans have.
#[test]
fn few_rows_are_read_where_spans_are_summed() {
    let mut random = StdRng::seed_from_u64(8);
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path(), &mut random);
    let engine = Engine::new(QueryLimits::NONE);
    let read = |text: &str| {
        let query = text::parse_flows(text).unwrap();
        let mut rows = engine
            .ask(&store, &query, CancellationToken::new())
            .unwrap();
        rows.read(|_| ControlFlow::Continue(())).unwrap();
        rows.rows_read()
    };
    let hours = read("from=0&to=1440&group_by=hour,src_app");
    let months = read("from=0&to=1440&group_by=src_app");
    let days = read("from=0&to=1440&group_by=hour&step=24");
    assert!(
        months < hours / 5 && days < hours * 4 / 5,
        "{hours} {days} {months}"
    );
}
