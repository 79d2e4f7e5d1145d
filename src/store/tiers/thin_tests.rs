use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;

use super::*;
use crate::store::crash_copy::{self, CrashCopier};
use crate::store::{
    Outcome, RetentionPeriods, Selection, Step, Store, StoreError, StoreOptions, verify,
};
use flow::{BatchBuilder, Counters};

fn hour(hour: u32) -> Hour {
    Hour::new(hour.into()).unwrap()
}

/// The flows that count: bytes_tx and bytes_rx by hour and name.
type Model = BTreeMap<(u32, String), (u64, u64)>;

/// The rows of `hours`, added up by name; `None` if they are only in longer spans.
fn scanned(
    store: &Store,
    hours: HourRange,
    largest: Option<Tier>,
) -> Option<BTreeMap<String, (u64, u64)>> {
    let mut selection = Selection::hours(hours);
    if let Some(tier) = largest {
        selection = selection.with_spans(tier);
    }
    let mut scans = match store.select_parts(selection, 2) {
        Err(StoreError::TooCoarse { .. }) => return None,
        scans => scans.unwrap(),
    };
    let mut sums = BTreeMap::new();
    for scan in &mut scans {
        while let Some((key, counters)) = scan.next().unwrap() {
            let sum: &mut (u64, u64) = sums.entry(key.src_app.to_string()).or_default();
            *sum = (sum.0 + counters.tx, sum.1 + counters.rx);
        }
    }
    Some(sums)
}

/// Compares random ranges with the model. Returns how many were read, and refused.
fn compare(store: &Store, model: &Model, random: &mut StdRng) -> (u32, u32) {
    let (mut read, mut refused) = (0, 0);
    for _ in 0..6 {
        let newest = store.newest_hour().map_or(1, Hour::get);
        let step = [1, 24, 720][random.random_range(0..3)];
        let start = random.random_range(0..newest / step + 1) * step;
        let hours = HourRange::from(start..start + step * random.random_range(1..40));
        let largest = [None, Some(Tier::Day), Some(Tier::ThirtyDays)][random.random_range(0..3)];
        let cutoffs = store.inner.retention.cutoffs();
        let kept = cutoffs.clipped(hours);
        let is_refused = store
            .finest_rows()
            .unwrap()
            .validate(kept, largest)
            .is_err();
        let found = scanned(store, hours, largest);
        assert_eq!(found.is_none(), is_refused, "{hours:?} {largest:?}");
        let Some(found) = found else {
            refused += 1;
            continue;
        };
        read += 1;
        let mut expected = BTreeMap::new();
        for ((_, name), (tx, rx)) in model
            .range((kept.start(), String::new())..(kept.end().max(kept.start()), String::new()))
        {
            let sum: &mut (u64, u64) = expected.entry(name.clone()).or_default();
            *sum = (sum.0 + tx, sum.1 + rx);
        }
        assert_eq!(found, expected, "{hours:?} {largest:?} {cutoffs:?}");
    }
    (read, refused)
}

/// The ledger has the flows of the model by hour.
fn compare_ledger(store: &Store, model: &Model) {
    let ledger: BTreeMap<u32, u128> = (store.ledger(HourRange::ALL).unwrap())
        .map(|entry| entry.map(|(hour, totals)| (hour.get(), totals.tx)).unwrap())
        .collect();
    let mut expected: BTreeMap<u32, u128> = BTreeMap::new();
    for ((hour, _), (tx, _)) in model {
        *expected.entry(*hour).or_default() += u128::from(*tx);
    }
    if ledger != expected {
        let differs = |hour: &&u32| ledger.get(hour) != expected.get(hour);
        let hours: Vec<_> = ledger
            .keys()
            .chain(expected.keys())
            .filter(differs)
            .collect();
        panic!("the ledger differs from the model in hours {hours:?}");
    }
}

fn periods(hours: u32, days: Option<u32>, thirty_days: Option<u32>) -> RetentionPeriods {
    RetentionPeriods {
        hours: Some(hours),
        days,
        thirty_days,
    }
}

#[test]
fn days_stay_when_their_hours_go() {
    let dir = tempfile::tempdir().unwrap();
    let open = |retention| {
        let options = StoreOptions {
            retention,
            cold_after: Duration::from_secs(3600),
            ..StoreOptions::default()
        };
        Store::open(dir.path(), options).unwrap().0
    };
    let store = open(periods(30, Some(1500), None));
    let commit = |store: &Store, of: u32| {
        let mut batch = BatchBuilder::with_capacity(0);
        batch.push(hour(of), [b"a", b"d", b"v"], Counters { tx: 1, rx: 2 });
        store.commit(vec![batch.finish()]).unwrap()
    };
    for of in 0..3000 {
        commit(&store, of);
    }
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    let stored = store.inner.summed().unwrap().finest;
    // Hour 2969 is the first that is kept, in the day of hours 2952 to 2975; day 1488 in the thirty days from 1440 on.
    assert_eq!(
        (stored.hours_from, stored.days_from),
        (hour(2952), hour(1440))
    );
    let exact = store.finest_rows().unwrap();
    assert_eq!(
        (exact.hours_from, exact.days_from),
        (hour(2969), hour(1488))
    );
    let sum = |hours: std::ops::Range<u32>, largest| {
        scanned(&store, hours.into(), largest).map(|sums| sums["a"].0)
    };
    assert_eq!(sum(2969..3000, None), Some(31));
    assert_eq!(sum(2968..3000, None), None);
    assert_eq!(sum(2952..3000, Some(Tier::Day)), Some(48));
    assert_eq!(sum(1488..3000, Some(Tier::Day)), Some(1512));
    assert_eq!(sum(1464..3000, Some(Tier::Day)), None);
    assert_eq!(sum(0..3000, Some(Tier::ThirtyDays)), Some(3000));
    // Late flows are added to what is kept.
    for of in [2968, 2951, 1500, 1439, 3] {
        assert!(matches!(
            commit(&store, of)[0],
            Outcome::Counted { flows: 1, .. }
        ));
    }
    assert_eq!(sum(0..3000, Some(Tier::ThirtyDays)), Some(3005));
    store.flush().unwrap();
    assert_eq!(sum(1440..2160, Some(Tier::ThirtyDays)), Some(721));
    store.inner.settle_all().unwrap();
    assert_eq!(sum(0..3000, Some(Tier::ThirtyDays)), Some(3005));
    assert_eq!(sum(2928..2952, Some(Tier::Day)), Some(25));
    // Only whole spans can be deleted.
    let deleted = |hours: std::ops::Range<u32>| store.delete_hours(hours.into());
    for refused in [2951..2952, 2928..2950, 1416..1440, 0..24] {
        let error = deleted(refused.clone()).unwrap_err().to_string();
        assert!(error.contains("multiples of"), "{refused:?}: {error}");
    }
    assert_eq!(deleted(2928..2952).unwrap().unwrap().flows, 25);
    assert_eq!(deleted(720..1440).unwrap().unwrap().flows, 721);
    assert_eq!(deleted(2999..3000).unwrap().unwrap().flows, 1);
    store.inner.settle_all().unwrap();
    assert_eq!(
        sum(0..3000, Some(Tier::ThirtyDays)),
        Some(3005 - 25 - 721 - 1)
    );
    drop(store);
    assert_eq!(verify(dir.path()).unwrap().faults_found, 0);
    // With other periods, hours that were thinned remain as days, and whole days are dropped.
    let store = open(RetentionPeriods::of_hours(Some(1000)));
    commit(&store, 3001);
    store.flush().unwrap();
    let kept = store.inner.retention.cutoffs();
    assert_eq!((kept.finest.hours_from, kept.all), (hour(2001), hour(1992)));
    let sum = scanned(&store, (0..4000).into(), Some(Tier::Day)).unwrap();
    assert_eq!(sum["a"].0, 3000 - 1992 - 25 + 1 + 1);
    drop(store);
    assert_eq!(verify(dir.path()).unwrap().faults_found, 0);
}

/// Between the ingest that removes rows of hours and the moment when readers know of it, a view would have neither the
/// hours nor the days.
#[test]
fn a_view_that_is_opened_while_rows_are_thinned_waits_for_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let (reached, is_reached) = std::sync::mpsc::channel();
    let (resume, is_resumed) = std::sync::mpsc::channel();
    let is_resumed = parking_lot::Mutex::new(is_resumed);
    let is_thinning = AtomicBool::new(false);
    let options = StoreOptions {
        retention: periods(30, None, None),
        on_step: Some(Arc::new(move |step| match step {
            Step::ThinWritten => is_thinning.store(true, Ordering::SeqCst),
            Step::SpansIngested if is_thinning.load(Ordering::SeqCst) => {
                reached.send(()).unwrap();
                is_resumed.lock().recv().unwrap();
            }
            _ => {}
        })),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let mut batch = BatchBuilder::with_capacity(0);
    for of in 0..100 {
        batch.push(hour(of), [b"a", b"d", b"v"], Counters { tx: 1, rx: 2 });
    }
    store.commit(vec![batch.finish()]).unwrap();
    store.flush().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| store.inner.settle_all().unwrap());
        is_reached.recv().unwrap();
        let (opened, is_opened) = std::sync::mpsc::channel();
        let store = &store;
        let scan = scope.spawn(move || {
            let sums = scanned(store, (0..100).into(), Some(Tier::Day));
            opened.send(()).unwrap();
            sums.unwrap()["a"].0
        });
        let waits = is_opened.recv_timeout(Duration::from_millis(100));
        resume.send(()).unwrap();
        assert!(waits.is_err(), "it was opened while rows were thinned");
        assert_eq!(scan.join().unwrap(), 100);
    });
}

/// The period of days is shorter than thirty days, so the block with the newest hour has days that are not kept.
#[test]
fn a_query_up_to_the_newest_hour_is_not_refused() {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        retention: periods(30, Some(336), None),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let mut batch = BatchBuilder::with_capacity(0);
    for of in 0..2871 {
        batch.push(hour(of), [b"a", b"d", b"v"], Counters { tx: 1, rx: 2 });
    }
    store.commit(vec![batch.finish()]).unwrap();
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    for end in [2871, 2880, 9999, u32::MAX] {
        let sums = scanned(&store, (0..end).into(), Some(Tier::ThirtyDays)).unwrap();
        assert_eq!(sums["a"].0, 2871, "{end}");
    }
    assert_eq!(
        scanned(&store, (0..2870).into(), Some(Tier::ThirtyDays)),
        None
    );
}

#[test]
fn a_wrong_row_of_a_span_without_hours_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let options = || StoreOptions {
        retention: periods(30, None, None),
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options()).unwrap();
    let mut batch = BatchBuilder::with_capacity(0);
    for of in 0..100 {
        batch.push(hour(of), [b"a", b"d", b"v"], Counters { tx: 1, rx: 2 });
    }
    store.commit(vec![batch.finish()]).unwrap();
    store.flush().unwrap();
    store.inner.settle_all().unwrap();
    let inner = &store.inner;
    let mut key = crate::store::codec::span_prefix(Tier::Day.span(1)).to_vec();
    for name in [b"a", b"d", b"v"] {
        crate::store::codec::push_name(&mut key, name);
    }
    let value = crate::store::codec::encode_counters(Counters { tx: 5, rx: 0 });
    inner
        .db
        .merge_cf(inner.settled().unwrap(), key, value)
        .unwrap();
    drop(store);
    let faults = verify(dir.path()).unwrap().faults;
    let found: Vec<_> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(
        found,
        [
            "the day of hours 24 to 47: the rows add up to bytes_tx 29, bytes_rx 48; the ledger has 24 and 48"
        ]
    );
}

/// Random commits, settlements, deletions, restarts with other periods, and kills at any step: every query that is not
/// refused has the sums of the model.
#[test]
fn sums_are_exact_whatever_is_kept() {
    let mut random = crash_copy::random();
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("db");
    let copier = CrashCopier::default();
    let options = |random: &mut StdRng| {
        let hours = random.random_range(20..200);
        let days = random
            .random_bool(0.9)
            .then(|| random.random_range(hours..1600));
        let thirty_days = days.and_then(|days| {
            random
                .random_bool(0.7)
                .then(|| random.random_range(days..3000))
        });
        StoreOptions {
            retention: periods(hours, days, thirty_days),
            cold_after: Duration::from_secs(3600),
            on_step: Some(copier.hook()),
            ..StoreOptions::default()
        }
    };
    let open = |options: StoreOptions| Store::open(&dir, options).unwrap().0;
    let mut used = options(&mut random);
    let mut store = open(used.clone());
    let mut model = Model::new();
    let mut newest = 0_u32;
    let mut counts = (0, 0);
    let mut copies = Vec::new();
    let rounds = std::env::var("ROUNDS").map_or(150, |n| n.parse().unwrap());
    for number in 0..rounds {
        let steps = [
            Step::SettleWritten,
            Step::Settled,
            Step::Moved,
            Step::DropWritten,
            Step::Dropped,
            Step::SpanWritten,
            Step::SpanSummed,
            Step::ThinWritten,
            Step::Thinned,
        ];
        let copy = temp.path().join(format!("copy-{number}"));
        copier.arm_one_of(&mut random, &steps, &dir, &copy);
        let mut deletes = false;
        let mut before_other_periods = None;
        match random.random_range(0..12) {
            0 => {
                // Drop the hours that are too old. Longer periods would make them visible again.
                store.flush().unwrap();
                store.inner.drop_old_hours().unwrap();
                if copy.exists() {
                    before_other_periods = Some((model.clone(), used.clone()));
                }
                drop(store);
                used = options(&mut random);
                store = open(used.clone());
            }
            1 => {
                let step = [1, 24, 720][random.random_range(0..3)];
                let start = random.random_range(0..newest / step + 1) * step;
                let hours =
                    HourRange::from(start..(start + step).min(newest.saturating_sub(1)).max(start));
                if !hours.is_empty() {
                    deletes = true;
                    match store.delete_hours(hours) {
                        Err(StoreError::TooCoarse { .. }) => {
                            assert!(
                                store
                                    .finest_rows()
                                    .unwrap()
                                    .validate(hours, Some(Tier::ThirtyDays))
                                    .is_err()
                            );
                        }
                        deleted => {
                            deleted.unwrap();
                            model.retain(|(of, _), _| !hours.contains(hour(*of)));
                        }
                    }
                }
            }
            2 => store.flush().unwrap(),
            3..=5 => {
                store.flush().unwrap();
                store.inner.settle_all().unwrap();
            }
            _ => {
                newest += [3, 30, 100][random.random_range(0..3)];
                let mut batch = BatchBuilder::with_capacity(0);
                let mut flows = Vec::new();
                for at in 0..40_u64 {
                    let age = if at == 0 {
                        0
                    } else {
                        random.random_range(0..3000)
                    };
                    let name = random.random_range(0..12_u32).to_string();
                    let of = u32::saturating_sub(newest, age);
                    batch.push(
                        hour(of),
                        [name.as_bytes(), b"d", b"v"],
                        Counters { tx: at, rx: 1 },
                    );
                    flows.push((of, name, at));
                }
                store.commit(vec![batch.finish()]).unwrap();
                let cutoff = store.inner.retention.cutoff().get();
                for (of, name, tx) in flows {
                    if of >= cutoff {
                        let sum = model.entry((of, name)).or_default();
                        *sum = (sum.0 + tx, sum.1 + 1);
                    }
                }
            }
        }
        let cutoff = store.inner.retention.cutoff().get();
        model.retain(|(of, _), _| *of >= cutoff);
        compare_ledger(&store, &model);
        let (read, refused) = compare(&store, &model, &mut random);
        counts = (counts.0 + read, counts.1 + refused);
        if copy.exists() {
            let (model, used) =
                before_other_periods.unwrap_or_else(|| (model.clone(), used.clone()));
            copies.push((copy, (!deletes).then_some(model), used));
        }
    }
    drop(store);
    assert_eq!(verify(&dir).unwrap().faults_found, 0);
    println!(
        "{counts:?} ranges were read and refused, {} copies",
        copies.len()
    );
    assert!(counts.0 > rounds && counts.1 > 10 && copies.len() as u32 > rounds / 15);
    for (copy, model, mut options) in copies {
        assert_eq!(verify(&copy).unwrap().faults_found, 0, "{copy:?}");
        options.on_step = None;
        let (store, _) = Store::open(&copy, options).unwrap();
        for _ in 0..2 {
            if let Some(model) = &model {
                compare(&store, model, &mut random);
            }
            store.flush().unwrap();
            store.inner.settle_all().unwrap();
        }
        drop(store);
        assert_eq!(verify(&copy).unwrap().faults_found, 0, "{copy:?}");
    }
}
