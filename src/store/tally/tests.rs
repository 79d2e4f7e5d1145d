use super::*;
use flow::BatchBuilder;
use flow::Hour;
use flow::codec::{self, Records};
use proptest::prelude::*;
use std::collections::BTreeMap;

fn batch(flows: &[(u32, [String; 3], Counters)]) -> Batch {
    let mut builder = BatchBuilder::with_capacity(0);
    for (hour, names, counters) in flows {
        let [a, b, c] = names;
        builder.push(
            Hour::new((*hour).into()).unwrap(),
            [a.as_bytes(), b.as_bytes(), c.as_bytes()],
            *counters,
        );
    }
    builder.finish()
}

fn name() -> impl Strategy<Value = String> {
    // Long shared prefixes, names that end inside and beyond the sort window, and NULs.
    prop_oneof![
        "[ab\0]{0,3}",
        "(payments-platform-){0,3}[ab]{0,2}",
        "[a-c]{11,14}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_tally_is_a_sorted_map(
        batches in prop::collection::vec(
            prop::collection::vec(
                (0..3u32, [name(), name(), name()], (0..1000u64, 0..1000u64)),
                0..200,
            ),
            1..5,
        )
    ) {
        let mut model: BTreeMap<(Hour, Vec<u8>), Counters> = BTreeMap::new();
        let (mut added, mut replayed) = (Tally::new(Position::new(7)), Tally::new(Position::new(7)));
        for flows in &batches {
            let flows: Vec<_> = flows
                .iter()
                .map(|(h, n, (tx, rx))| (*h, n.clone(), Counters { tx: *tx, rx: *rx }))
                .collect();
            let batch = batch(&flows);
            added.add(&batch);
            replayed.replay(batch.bytes()).unwrap();
            prop_assert!(assert_replay_adds_up(batch.bytes()));
            // A changed byte is detected, unless it is not part of the totals.
            let mut changed = batch.bytes().to_vec();
            let at = changed.len() / 2;
            changed[at] ^= 1;
            assert_replay_adds_up(&changed);
            for record in Records::new(batch.bytes()).unwrap() {
                let record = record.unwrap();
                let (hour, suffix) = codec::split_hour(record.key).unwrap();
                let key = (hour, suffix.to_vec());
                model.entry(key).or_default().add(record.counters);
            }
        }
        let expected: Vec<_> = model.into_iter().map(|((h, k), c)| (h, k, c)).collect();
        for tally in [&added, &replayed] {
            let mut got = Vec::new();
            for (hour, mut run) in tally.runs() {
                while let Some((suffix, counters)) = run.peek() {
                    got.push((hour, suffix.to_vec(), counters));
                    run.advance();
                }
            }
            prop_assert_eq!(&got, &expected);
            prop_assert_eq!(tally.keys(), expected.len());
            let memory: usize = tally.hours.iter().map(HourTally::memory_bytes).sum();
            prop_assert_eq!(tally.memory_bytes(), memory);
            prop_assert_eq!(tally.last().get(), 7 + batches.len() as u64);
        }
    }
}

#[test]
fn many_keys_survive_growth() {
    let flows: Vec<_> = (0..50_000u64)
        .map(|i| {
            (
                1,
                [format!("s{}", i % 313), format!("d{i}"), "v".into()],
                Counters { tx: i, rx: 1 },
            )
        })
        .collect();
    let batch = batch(&flows);
    let mut tally = Tally::new(Position::ZERO);
    tally.add(&batch);
    tally.add(&batch);
    assert_eq!(tally.keys(), 50_000);
    let (_, mut run) = tally.runs().next().unwrap();
    let (mut rows, mut tx, mut previous) = (0, 0, Vec::new());
    while let Some((suffix, counters)) = run.peek() {
        assert!(previous.as_slice() < suffix);
        previous = suffix.to_vec();
        rows += 1;
        tx += counters.tx;
        run.advance();
    }
    assert_eq!((rows, tx), (50_000, 2 * (50_000 * 49_999 / 2)));
}
