use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rand::RngExt;
use rocksdb::ColumnFamily;

use super::plan::HOURS_MIN;
use super::*;
use crate::store::crash_copy::{self, CrashCopier};
use crate::store::families::iterate;
use crate::store::tiers::Tier;
use crate::store::{Recovery, Selection, Step, Store, codec, verify};
use flow::{BatchBuilder, Counters};

type Rows = BTreeMap<(Hour, Vec<u8>), (u64, u64)>;

fn hour(hour: u32) -> Hour {
    Hour::new(hour.into()).unwrap()
}

fn rows(store: &Store) -> Rows {
    let mut rows = Rows::new();
    let mut scan = store.select(Selection::hours(HourRange::ALL)).unwrap();
    while let Some(row) = scan.next_row().unwrap() {
        let sums = (row.counters.tx, row.counters.rx);
        let earlier = rows.insert((row.hour, row.suffix.to_vec()), sums);
        assert_eq!(earlier, None, "each key once");
    }
    rows
}

fn commit(store: &Store, flows: &[(u32, String, u64)]) {
    let mut batch = BatchBuilder::with_capacity(0);
    for (of, name, tx) in flows {
        let counters = Counters { tx: *tx, rx: 1 };
        batch.push(hour(*of), [name.as_bytes(), b"d", b"v"], counters);
    }
    store.commit(vec![batch.finish()]).unwrap();
}

/// Opens what a kill left, read-only and for writing. All must be there, or all but the hour that was being dropped.
fn check_copy(dir: &Path, before: &Rows, after: &Rows) {
    let verified = verify(dir).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    let reader = Store::open_read_only(dir).unwrap();
    let found = rows(&reader);
    assert!(found == *before || found == *after);
    drop(reader);
    let (store, Recovery { .. }) = Store::open(dir, StoreOptions::default()).unwrap();
    assert_eq!(rows(&store), found);
    store.flush().unwrap();
    store.compact().unwrap();
    assert_eq!(rows(&store), found);
    drop(store);
    let verified = verify(dir).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert_eq!(verified.rows, found.len() as u64);
}

/// Random commits, flushes, settlements, drops and restarts, with kills between the steps that change both families.
#[test]
fn rows_are_the_same_whatever_is_settled() {
    let mut random = crash_copy::random();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    let copier = CrashCopier::default();
    let options = StoreOptions {
        cold_after: Duration::from_secs(3600),
        on_step: Some(copier.hook()),
        ..StoreOptions::default()
    };
    let open = || Store::open(&dir, options.clone()).unwrap().0;
    let (mut store, mut model) = (open(), Rows::new());
    let mut copies = 0;
    for number in 0..200 {
        let steps = [
            Step::SettleWritten,
            Step::Settled,
            Step::Moved,
            Step::DropWritten,
            Step::Dropped,
            Step::Ingested,
        ];
        let to = temp.path().join(format!("copy-{number}"));
        copier.arm_one_of(&mut random, &steps, &dir, &to);
        let before = model.clone();
        match random.random_range(0..10) {
            0 => {
                drop(store);
                store = open();
            }
            1 => {
                let of = hour(random.random_range(0..6));
                store.delete_hours(of.into()).unwrap();
                model.retain(|(hour, _), _| *hour != of);
            }
            2 => store.flush().unwrap(),
            3 | 4 => store.inner.settle_all().unwrap(),
            5 => drop(store.compact()),
            _ => {
                let flow = |_| {
                    let name = random.random_range(0..30_u32).to_string();
                    (random.random_range(0..6), name, random.random_range(0..9))
                };
                let flows: Vec<_> = (0..20).map(flow).collect();
                commit(&store, &flows);
                for (of, name, tx) in flows {
                    let mut key = Vec::new();
                    flow::codec::push_key(&mut key, hour(of), name.as_bytes(), b"d", b"v");
                    let suffix = codec::suffix(&key).unwrap().to_vec();
                    let sums = model.entry((hour(of), suffix)).or_default();
                    *sums = (sums.0 + tx, sums.1 + 1);
                }
            }
        }
        assert_eq!(rows(&store), model, "after operation {number}");
        if to.exists() {
            copies += 1;
            check_copy(&to, &before, &model);
            std::fs::remove_dir_all(to).unwrap();
        }
    }
    drop(store);
    let verified = verify(&dir).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
    assert!(copies > 5, "{copies}");
}

/// Every commit adds one to each key, so that all rows of a scan are equal.
#[test]
fn a_scan_sees_each_row_once_while_hours_are_settled() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let keys: Vec<_> = (0..40).map(|n| (n % 4, n.to_string(), 1)).collect();
    commit(&store, &keys);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let mut scans = 0;
            while !is_over.load(Ordering::Relaxed) {
                let rows = rows(&store);
                let first = rows.values().next().unwrap();
                assert_eq!(rows.len(), 40);
                assert!(rows.values().all(|sums| sums == first), "{rows:?}");
                scans += 1;
            }
            scans
        });
        for _ in 0..60 {
            commit(&store, &keys);
            store.flush().unwrap();
            store.inner.settle_all().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        assert!(reader.join().unwrap() > 10);
    });
}

/// Only hours before the newest are settled, and only once no flows come for them.
#[test]
fn an_hour_that_went_cold_is_settled() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        cold_after: Duration::from_millis(200),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let flows = |of| -> Vec<_> { (0..3).map(|n| (of, n.to_string(), 1)).collect() };
    // Many small hours are worth a settlement, as few large ones are.
    for of in 0..HOURS_MIN as u32 {
        commit(&store, &flows(of));
    }
    let newest = hour(1_000);
    commit(&store, &flows(newest.get()));
    store.flush().unwrap();
    let inner = &store.inner;
    let has_rows = |family, of| {
        let (lower, upper) = codec::hour_bounds(of);
        iterate(&inner.db, family, &lower, &upper).key().is_some()
    };
    let give_up = Instant::now() + Duration::from_secs(120);
    while has_rows(inner.flows().unwrap(), hour(0)) {
        assert!(Instant::now() < give_up);
        std::thread::sleep(Duration::from_millis(5));
    }
    for of in 0..HOURS_MIN as u32 {
        assert!(has_rows(inner.settled().unwrap(), hour(of)));
        assert!(!has_rows(inner.flows().unwrap(), hour(of)));
    }
    assert!(has_rows(inner.flows().unwrap(), newest));
    assert!(!has_rows(inner.settled().unwrap(), newest));
    assert_eq!(rows(&store).len(), 3 * (HOURS_MIN + 1));
    // Late flows of a settled hour.
    commit(&store, &flows(3));
    store.flush().unwrap();
    assert_eq!(rows(&store).values().filter(|sums| sums.0 == 2).count(), 3);
}

/// A sum may take long. Hours that go cold meanwhile are settled, and late flows of its own hours stay where they are.
#[test]
fn other_hours_are_settled_while_a_day_is_summed() {
    let dir = tempfile::tempdir().unwrap();
    // The settler's thread does nothing for an hour. After a restart, hours on disk are cold.
    let options = || StoreOptions {
        cold_after: Duration::from_secs(3600),
        ..StoreOptions::default()
    };
    let flows = |hours: std::ops::Range<u32>| -> Vec<(u32, String, u64)> {
        let of_hour = |of: u32| (0..10).map(move |n: u32| (of, n.to_string(), 1));
        hours.flat_map(of_hour).collect()
    };
    let (store, _) = Store::open(dir.path(), options()).unwrap();
    commit(&store, &flows(0..25));
    store.flush().unwrap();
    let mut unreadable = HashSet::new();
    while store
        .inner
        .settle_hours(SettleScope::All, &mut unreadable)
        .unwrap()
    {}
    commit(&store, &flows(3..4));
    let newest = 25 + u32::try_from(HOURS_MIN).unwrap() + 1;
    commit(&store, &flows(25..newest + 1));
    store.flush().unwrap();
    let expected = rows(&store);
    drop(store);

    let (store, _) = Store::open(dir.path(), options()).unwrap();
    let inner = &store.inner;
    let mut spans = HashSet::new();
    let summed = inner.sum_next_spans(SettleScope::Cold, &mut spans, &mut unreadable);
    assert!(summed.unwrap() && spans.is_empty() && unreadable.is_empty());
    assert!(inner.summed().unwrap().contains(Tier::Day.span(0)));
    let has_rows = |family: &ColumnFamily, of: u32| {
        let (lower, upper) = codec::hour_bounds(hour(of));
        has_rows(&inner.db, family, &lower, &upper).unwrap()
    };
    for of in 25..newest {
        assert!(has_rows(inner.settled().unwrap(), of), "{of}");
        assert!(!has_rows(inner.flows().unwrap(), of), "{of}");
    }
    assert!(has_rows(inner.flows().unwrap(), 3));
    assert!(rows(&store) == expected);
    store.compact().unwrap();
    assert!(rows(&store) == expected);
    drop(store);
    let verified = verify(dir.path()).unwrap();
    assert!(verified.faults.is_empty(), "{:?}", verified.faults);
}

/// A drop of hours that are not in the span does not matter to its sum.
#[test]
fn a_sum_goes_on_when_other_hours_are_dropped() {
    for (dropped, is_summed) in [(30, true), (3, false)] {
        let dir = tempfile::tempdir().unwrap();
        let options = StoreOptions {
            cold_after: Duration::from_secs(3600),
            ..StoreOptions::default()
        };
        let (store, _) = Store::open(dir.path(), options).unwrap();
        let flows: Vec<_> = (0..40).map(|of| (of, "a".to_owned(), 1)).collect();
        commit(&store, &flows);
        store.flush().unwrap();
        let families = &store.inner.families;
        let mut seen = families.last_drop();
        store.delete_hours(hour(dropped).into()).unwrap();
        let day = [Tier::Day.span(0)];
        assert_eq!(families.still_has(&mut seen, &day), is_summed);
        // Two drops: nobody remembers the first.
        store.delete_hours(hour(31).into()).unwrap();
        store.delete_hours(hour(32).into()).unwrap();
        assert!(!families.still_has(&mut seen, &day));
    }
}

/// Operators see the work that is left, and rows that cannot be read.
#[test]
fn what_is_left_to_settle_and_to_sum_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        cold_after: Duration::from_millis(20),
        flush_interval: Duration::from_secs(3600),
        ..StoreOptions::default()
    };
    let metrics = options.metrics.clone();
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let inner = &store.inner;
    let expect = |expected: Backlog| {
        let give_up = Instant::now() + Duration::from_secs(120);
        loop {
            let found = store.backlog();
            if found == expected {
                return;
            }
            assert!(
                Instant::now() < give_up,
                "{found:?} instead of {expected:?}"
            );
            std::thread::sleep(Duration::from_millis(5));
            // The settler does not look again if nothing has been written for a while.
            inner.settler.state.lock().written = Some(Instant::now());
        }
    };
    // A few small hours wait for others. Hour 100 is the newest, and not cold.
    let flows = [1, 2, 3, 30, 100].map(|of| (of, "a".to_owned(), 1));
    commit(&store, &flows);
    store.flush().unwrap();
    let mut backlog = Backlog {
        cold_hours: 4,
        ..Backlog::default()
    };
    expect(backlog);
    // While flows of a day are in memory, it is not summed. The other is, since a later hour has flows.
    commit(&store, &[(3, "late".into(), 5)]);
    let mut unreadable = HashSet::new();
    let mut settle = || {
        while inner
            .settle_hours(SettleScope::All, &mut unreadable)
            .unwrap()
        {}
    };
    settle();
    backlog = Backlog {
        unsummed_days: 1,
        ..Backlog::default()
    };
    expect(backlog);
    // A row of it is damaged, which shows when it is summed.
    let mut key = codec::encode_hour(hour(2)).to_vec();
    for name in [b"z", b"d", b"v"] {
        codec::push_name(&mut key, name);
    }
    let settled = inner.settled().unwrap();
    inner.db.put_cf(settled, key, b"short").unwrap();
    store.flush().unwrap();
    settle();
    backlog.unreadable_spans = 1;
    expect(backlog);
    store.observe().unwrap();
    let gauges = metrics.store();
    let shown = [&gauges.unsummed_days, &gauges.unreadable_spans].map(|gauge| gauge.get());
    assert_eq!(shown, [1, 1]);
    let more = Backlog {
        cold_hours: 3,
        unsummed_days: 0,
        ..Backlog::default()
    };
    let both = Backlog {
        cold_hours: 3,
        ..backlog
    };
    assert_eq!(backlog.or_larger(more), both);
}

/// Such a file would make compaction rewrite all settled hours between its own.
#[test]
fn no_file_of_a_settlement_spans_settled_hours() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
    for hours in [&[5][..], &[1, 2, 9]] {
        let flows: Vec<_> = hours.iter().map(|&of| (of, "a".into(), 1)).collect();
        commit(&store, &flows);
        store.flush().unwrap();
        store.inner.settle_all().unwrap();
    }
    let files = store.inner.db.live_files().unwrap();
    let of_rows = files.iter().filter_map(|file| {
        let (start, end) = (file.start_key.as_ref()?, file.end_key.as_ref()?);
        let hours = (
            codec::split_hour(start).ok()?.0,
            codec::split_hour(end).ok()?.0,
        );
        (file.column_family_name == codec::SETTLED).then_some(hours)
    });
    let mut hours: Vec<_> = of_rows
        .map(|(start, end)| (start.get(), end.get()))
        .collect();
    hours.sort_unstable();
    assert_eq!(hours, [(1, 2), (5, 5), (9, 9)]);
    assert_eq!(rows(&store).len(), 4);
}

/// Late flows come for an hour while its rows are being rewritten, and others after them.
#[test]
fn late_flows_during_a_settlement_count_once() {
    let dir = tempfile::tempdir().unwrap();
    let opened: Arc<Mutex<Option<Arc<Store>>>> = Arc::default();
    let (for_hook, is_first) = (opened.clone(), AtomicBool::new(true));
    let options = StoreOptions {
        // Hours are remembered no longer than necessary.
        cold_after: Duration::ZERO,
        on_step: Some(Arc::new(move |step| {
            let store = for_hook.lock().clone();
            if let Some(store) = store
                && step == Step::SettleWritten
                && is_first.swap(false, Ordering::SeqCst)
            {
                for of in [1, 2] {
                    commit(&store, &[(of, "late".into(), 5)]);
                    store.flush().unwrap();
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        })),
        ..StoreOptions::default()
    };
    let store = Arc::new(Store::open(dir.path(), options).unwrap().0);
    commit(&store, &[(1, "early".into(), 1), (9, "newest".into(), 1)]);
    store.flush().unwrap();
    *opened.lock() = Some(store.clone());
    store.inner.settle_all().unwrap();
    let sums: Vec<u64> = rows(&store).values().map(|sums| sums.0).collect();
    assert_eq!(sums, [1, 5, 5, 1]);
    *opened.lock() = None;
}
