use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::RngExt;
use rand::rngs::StdRng;

use super::*;
use crate::store::codec::{self, SPAN_PREFIX_BYTES};
use crate::store::crash_copy::{self, CrashCopier};
use crate::store::families::iterate;
use crate::store::{Selection, Step, StepHook, Store, StoreOptions, verify};
use flow::{BatchBuilder, Counters};

type Rows = BTreeMap<Vec<u8>, (u64, u64)>;

fn hour(hour: u32) -> Hour {
    Hour::new(hour.into()).unwrap()
}

fn commit(store: &Store, flows: &[(u32, String, u64)]) {
    let mut batch = BatchBuilder::with_capacity(0);
    for (of, name, tx) in flows {
        let counters = Counters { tx: *tx, rx: 1 };
        batch.push(hour(*of), [name.as_bytes(), b"d", b"v"], counters);
    }
    store.commit(vec![batch.finish()]).unwrap();
}

/// The rows of `settled` from `lower` to `upper`, added up by the part of their keys after `prefix_bytes`.
fn sums(store: &Store, lower: &[u8], upper: &[u8], prefix_bytes: usize) -> Rows {
    let inner = &store.inner;
    let mut rows = iterate(&inner.db, inner.settled().unwrap(), lower, upper);
    let mut sums = Rows::new();
    while let Some((key, value)) = rows.item() {
        let counters = codec::decode_counters(value).unwrap();
        let sum = sums.entry(key[prefix_bytes..].to_vec()).or_default();
        *sum = (sum.0 + counters.tx, sum.1 + counters.rx);
        rows.next();
    }
    rows.status().unwrap();
    sums
}

/// Checks that the rows of each summed span are the sums of those of its hours, and that there are no others. Returns
/// the summed spans.
fn check(store: &Store) -> Vec<Span> {
    let summed = store.inner.summed().unwrap();
    assert_eq!(*summed, Summed::read(&store.inner.db).unwrap());
    let spans: Vec<Span> = summed.of_hours(&[HourRange::ALL]).into_iter().collect();
    let mut rows = 0;
    for span in &spans {
        let (lower, upper) = codec::span_bounds(span.tier, span.number..span.number + 1);
        let of_span = sums(store, &lower, &upper, SPAN_PREFIX_BYTES);
        let (lower, upper) = codec::range_bounds(span.hours());
        assert!(
            of_span == sums(store, &lower, &upper, codec::HOUR_BYTES),
            "{span:?}"
        );
        rows += of_span.len();
    }
    let all = Tier::ALL.map(|tier| {
        let (lower, upper) = codec::span_bounds(tier, 0..tier.last_number() + 1);
        sums(store, &lower, &upper, 0).len()
    });
    assert_eq!(rows, all.into_iter().sum::<usize>());
    spans
}

/// The sums of `hours` by suffix, from hours alone or from spans as well.
fn scanned(store: &Store, hours: HourRange, names: &[String], tier: Option<Tier>) -> (Rows, u64) {
    let mut selection = Selection::hours(hours).between(names, &[], &[]);
    if let Some(tier) = tier {
        selection = selection.with_spans(tier);
    }
    let mut scan = store.select(selection).unwrap();
    let mut sums = Rows::new();
    while let Some(row) = scan.next_row().unwrap() {
        let sum = sums.entry(row.suffix.to_vec()).or_default();
        *sum = (sum.0 + row.counters.tx, sum.1 + row.counters.rx);
    }
    (sums, scan.rows())
}

/// Compares both for some ranges. Returns how many rows were read, from hours and with spans.
fn compare(store: &Store, random: &mut StdRng) -> (u64, u64) {
    let mut read = (0, 0);
    for _ in 0..3 {
        let start = random.random_range(0..1500);
        let hours = HourRange::from(start..random.random_range(start..1500) + 1);
        let names: Vec<String> = match random.random_range(0..3) {
            0 => vec!["7".into(), "11".into()],
            _ => Vec::new(),
        };
        let (expected, rows) = scanned(store, hours, &names, None);
        for tier in Tier::ALL {
            let (sums, of_spans) = scanned(store, hours, &names, Some(tier));
            assert!(sums == expected, "{hours:?} {names:?} {tier:?}");
            read = (read.0 + rows, read.1 + of_spans);
        }
    }
    read
}

#[test]
fn spans_have_the_hours_of_their_numbers() {
    let span = |tier: Tier, of| tier.span_of(hour(of));
    assert_eq!(span(Tier::Day, 23), span(Tier::Day, 0));
    assert_eq!(span(Tier::Day, 24).hours(), (24..48).into());
    assert_eq!(span(Tier::ThirtyDays, 720).hours(), (720..1440).into());
    let last = Tier::Day.span_of(Hour::LAST);
    assert_eq!(last.number, Tier::Day.last_number());
    assert!(last.hours().contains(Hour::LAST));
    assert_eq!(last.hours().end(), HourRange::ALL.end());
    for tier in Tier::ALL {
        for number in [0, 1, tier.last_number()] {
            let span = Span { tier, number };
            let key = codec::span_record_key(span);
            assert_eq!(codec::decode_span_record_key(&key), Ok(span));
            assert!(codec::decode_span_record_key(&key[..9]).is_err());
        }
        let number = tier.last_number() + 1;
        let key = codec::span_record_key(Span { tier, number });
        assert!(codec::decode_span_record_key(&key).is_err());
    }
}

#[test]
fn a_day_is_summed_when_it_is_complete_and_then_thirty_days() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        cold_after: Duration::ZERO,
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let flows = |hours: std::ops::Range<u32>| -> Vec<_> {
        hours
            .flat_map(|of| [(of, "a".to_owned(), 1), (of, of.to_string(), 2)])
            .collect()
    };
    let day = |number| Span {
        tier: Tier::Day,
        number,
    };
    commit(&store, &flows(3..40));
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    assert_eq!(check(&store), [day(0)]);
    // Late flows, also of an hour that had none.
    commit(&store, &flows(0..5));
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    assert_eq!(check(&store), [day(0)]);
    commit(&store, &flows(700..800));
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    let month = Span {
        tier: Tier::ThirtyDays,
        number: 0,
    };
    let days = [0, 1, 29, 30, 31, 32].map(day);
    assert_eq!(check(&store), [&days[..], &[month]].concat());
    // An hour is deleted: its day and its thirty days are summed again.
    store.delete_hours(hour(30).into()).unwrap().unwrap();
    assert_eq!(check(&store), [0, 29, 30, 31, 32].map(day));
    store.inner.settle_all().unwrap();
    assert_eq!(check(&store), [&days[..], &[month]].concat());
    drop(store);
    let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
    assert_eq!(check(&store), [&days[..], &[month]].concat());
}

#[test]
fn parts_of_a_scan_begin_with_thirty_days() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let flow = |n: u32| (n % 3600, (n % 997).to_string(), u64::from(n));
    for start in (0..100_000).step_by(10_000) {
        let flows: Vec<_> = (start..start + 10_000).map(flow).collect();
        commit(&store, &flows);
    }
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    // Late ones, in the tally and on disk.
    commit(&store, &[(700, "late".into(), 3)]);
    store.flush().unwrap();
    commit(
        &store,
        &[(2000, "late".into(), 4), (3599, "late".into(), 5)],
    );
    // The last is a query without an end.
    for hours in [0..3600, 5..3599, 720..1440, 30..1500, 0..u32::MAX] {
        let hours = HourRange::from(hours);
        let (expected, _) = scanned(&store, hours, &[], None);
        for tier in Tier::ALL {
            let selection = Selection::hours(hours).with_spans(tier);
            let mut scans = store.select_parts(selection, 3).unwrap();
            assert_eq!(scans.len() > 1, hours.len() > 720, "{hours:?} {tier:?}");
            let mut sums = Rows::new();
            for scan in &mut scans {
                while let Some(row) = scan.next_row().unwrap() {
                    let sum = sums.entry(row.suffix.to_vec()).or_default();
                    *sum = (sum.0 + row.counters.tx, sum.1 + row.counters.rx);
                }
            }
            assert!(sums == expected, "{hours:?} {tier:?}");
        }
    }
}

#[test]
fn a_wrong_row_of_a_span_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Store::open(dir.path(), StoreOptions::default()).unwrap().0;
    let store = open();
    let flows: Vec<_> = (0..1000).map(|of| (of, "a".to_owned(), 1)).collect();
    commit(&store, &flows);
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    drop(store);
    let faults = || {
        let verified = verify(dir.path()).unwrap();
        let faults = verified.faults.iter();
        faults.map(|fault| fault.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(faults(), Vec::<String>::new());
    let change = |span: Span, name: &[u8], tx| {
        let store = open();
        let mut key = codec::span_prefix(span).to_vec();
        for name in [name, b"d", b"v"] {
            codec::push_name(&mut key, name);
        }
        let value = codec::encode_counters(Counters { tx, rx: 0 });
        let db = &store.inner.db;
        db.merge_cf(store.inner.settled().unwrap(), key, value)
            .unwrap();
        drop(store);
    };
    let [day, month] = Tier::ALL.map(|tier| tier.span_of(hour(50)));
    change(day, b"a", 5);
    let of_day = "the day of hours 48 to 71: its hours have a to d in v: bytes_tx 24, bytes_rx 24 where it has a to d in v: bytes_tx 29, bytes_rx 24";
    let of_month = "the thirty days of hours 0 to 719: its hours have a to d in v: bytes_tx 725, bytes_rx 720 where it has a to d in v: bytes_tx 720, bytes_rx 720";
    assert_eq!(faults(), [of_day, of_month]);
    change(month, b"z", 1);
    change(Span { number: 41, ..day }, b"z", 1);
    let found = faults();
    assert_eq!(found.len(), 3, "{found:?}");
    assert_eq!(
        found[2],
        "the day of hours 984 to 1007: it has rows without a record"
    );
}

/// Random commits, settlements, deletions and restarts: at each moment, and after a kill at any step, spans are the sums of
/// their hours.
#[test]
fn spans_are_always_the_sums_of_their_hours() {
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
    let mut store = open();
    let (mut seen, mut rows) = (0, (0, 0));
    for number in 0..200 {
        let steps = [
            Step::SettleWritten,
            Step::Settled,
            Step::Moved,
            Step::Dropped,
            Step::SpanWritten,
            Step::SpanSummed,
        ];
        let copy = temp.path().join(format!("copy-{number}"));
        copier.arm_one_of(&mut random, &steps, &dir, &copy);
        match random.random_range(0..10) {
            0 => {
                drop(store);
                store = open();
            }
            1 => drop(store.delete_hours(hour(random.random_range(0..1500)).into())),
            2 => store.flush().unwrap(),
            3..=5 => {
                store.flush().unwrap();
                store.inner.settle_all().unwrap();
            }
            _ => {
                let flow = |_| {
                    let name = random.random_range(0..30_u32).to_string();
                    (
                        random.random_range(0..1500),
                        name,
                        random.random_range(0..9),
                    )
                };
                commit(&store, &(0..20).map(flow).collect::<Vec<_>>());
            }
        }
        seen += check(&store).len();
        let read = compare(&store, &mut random);
        rows = (rows.0 + read.0, rows.1 + read.1);
    }
    println!(
        "{} rows of hours were read, and {} with spans",
        rows.0, rows.1
    );
    assert!(rows.1 < rows.0 * 9 / 10, "{rows:?}");
    drop(store);
    let mut copies = 0;
    for number in 0..200 {
        let copy = temp.path().join(format!("copy-{number}"));
        if !copy.exists() {
            continue;
        }
        copies += 1;
        assert_eq!(verify(&copy).unwrap().faults_found, 0);
        let (store, _) = Store::open(&copy, StoreOptions::default()).unwrap();
        check(&store);
        compare(&store, &mut random);
        store.flush().unwrap();
        store.inner.settle_all().unwrap();
        check(&store);
        compare(&store, &mut random);
    }
    assert!(seen > 100 && copies > 10, "{seen} {copies}");
}

/// A hook that runs `act` with the store when `step` is reached for the first time.
fn hook_with_store(
    step: Step,
    act: impl Fn(&Store) + Send + Sync + 'static,
) -> (StepHook, Arc<Mutex<Option<Arc<Store>>>>) {
    let opened: Arc<Mutex<Option<Arc<Store>>>> = Arc::default();
    let (for_hook, is_first) = (opened.clone(), AtomicBool::new(true));
    let hook = move |at| {
        let store = for_hook.lock().clone();
        if let Some(store) = store
            && at == step
            && is_first.swap(false, Ordering::SeqCst)
        {
            act(&store);
        }
    };
    (Arc::new(hook), opened)
}

/// The rows of the hour were read for the sums of its day, which must not be stored.
#[test]
fn an_hour_that_is_deleted_while_its_day_is_summed_is_gone() {
    for step in [Step::SpanWritten, Step::SettleWritten] {
        let dir = tempfile::tempdir().unwrap();
        let delete =
            |store: &Store| assert!(store.delete_hours(hour(30).into()).unwrap().is_some());
        let (hook, opened) = hook_with_store(step, delete);
        let options = StoreOptions {
            cold_after: Duration::from_secs(3600),
            on_step: Some(hook),
            ..StoreOptions::default()
        };
        let store = Arc::new(Store::open(dir.path(), options).unwrap().0);
        let flows: Vec<_> = (0..100).map(|of| (of, "a".to_owned(), 1)).collect();
        commit(&store, &flows);
        store.flush().unwrap();
        *opened.lock() = Some(store.clone());
        store.inner.settle_all().unwrap();
        assert_eq!(check(&store).len(), 4);
        let (sums, _) = scanned(&store, (24..48).into(), &[], Some(Tier::Day));
        assert_eq!(sums.into_values().collect::<Vec<_>>(), [(23, 23)]);
        *opened.lock() = None;
        drop(store);
        assert_eq!(verify(dir.path()).unwrap().faults_found, 0);
    }
}

/// A view that is opened while the sums of a day become visible has them or the hours, not both.
#[test]
fn a_view_that_is_opened_while_a_day_is_summed_has_its_rows_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(dir.path(), StoreOptions::default()).unwrap();
    let flows: Vec<_> = (0..800).map(|of| (of, "a".to_owned(), 1)).collect();
    commit(&store, &flows);
    store.flush().unwrap();
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            store.inner.settle_all().unwrap();
            for of in [30, 400, 790] {
                store.delete_hours(hour(of).into()).unwrap().unwrap();
                commit(&store, &[(of, "a".to_owned(), 1)]);
                store.flush().unwrap();
                store.inner.settle_all().unwrap();
            }
            is_over.store(true, Ordering::SeqCst);
        });
        let mut views = 0;
        while !is_over.load(Ordering::SeqCst) {
            let (sums, _) = scanned(&store, (0..800).into(), &[], Some(Tier::ThirtyDays));
            let sum = sums.into_values().map(|(tx, _)| tx).sum::<u64>();
            assert!((799..=800).contains(&sum), "{sum}");
            views += 1;
        }
        println!("{views} views");
    });
}

/// A directory that is opened between the two ingests of a drop, to be read only, has the sums without the hours.
#[test]
fn spans_of_dropped_hours_are_not_read() {
    let temp = tempfile::tempdir().unwrap();
    let (dir, copy) = (temp.path().join("db"), temp.path().join("copy"));
    let copier = CrashCopier::default();
    let options = StoreOptions {
        on_step: Some(copier.hook()),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(&dir, options).unwrap();
    let flows: Vec<_> = (0..800).map(|of| (of, "a".to_owned(), 1)).collect();
    commit(&store, &flows);
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    copier.arm(Step::Dropped, &dir, &copy);
    store.delete_hours(hour(30).into()).unwrap().unwrap();
    let store = Store::open_read_only(&copy).unwrap();
    let (expected, _) = scanned(&store, (0..800).into(), &[], None);
    assert_eq!(expected.values().map(|(tx, _)| tx).sum::<u64>(), 799);
    for tier in Tier::ALL {
        let (sums, _) = scanned(&store, (0..800).into(), &[], Some(tier));
        assert_eq!(sums, expected, "{tier:?}");
    }
}
