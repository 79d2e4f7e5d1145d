//! Files that grow or are cut, sent by commands that overlap and are killed, against a service that is a table.

mod cut_lines;
mod late;
mod writings;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::rc::Rc;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::inputs::{Chunk, Line, Location, RecordHashes, Skipped};
use flow::{Batch, BatchBuilder, Counters, Field, Hour, ReceiptInfo, codec};

#[derive(Debug, Default)]
struct Table {
    receipts: HashMap<String, (ReceiptInfo, u128)>,
    /// Under keys of their own, as in the store.
    notes: HashMap<String, ReceiptInfo>,
    /// How often each flow was counted.
    counted: BTreeMap<u64, u32>,
    /// Sums of bytes_tx by src_app.
    sums: BTreeMap<String, u64>,
    sum_rx: u64,
    now_s: u64,
    window_s: u64,
    /// The last column of lines; without it, their texts identify them.
    last_column: Option<Field>,
}

type Service = Rc<RefCell<Table>>;

impl ReceiptLookup for Service {
    fn look_up(
        &mut self,
        keys: &[IdempotencyKey],
    ) -> Result<Option<Vec<Option<ReceiptInfo>>>, String> {
        let table = self.borrow();
        let kept = |key: &IdempotencyKey| table.kept(key);
        Ok(Some(keys.iter().map(kept).collect()))
    }
}

struct Conflict;

impl Table {
    fn kept(&self, key: &IdempotencyKey) -> Option<ReceiptInfo> {
        let receipt = self.receipts.get(key.as_str()).map(|(kept, _)| kept);
        receipt.or_else(|| self.notes.get(key.as_str())).cloned()
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), Conflict> {
        let (key, fingerprint) = batch.receipt().unwrap();
        match self.receipts.get(key.as_str()) {
            Some((_, taken)) if *taken == fingerprint => return Ok(()),
            Some(_) => return Err(Conflict),
            None => {}
        }
        let notes = batch.notes().unwrap();
        if notes.excluded_by.iter().any(|key| self.kept(key).is_some()) {
            return Err(Conflict);
        }
        for record in codec::Records::new(batch.bytes()).unwrap() {
            let record = record.unwrap();
            let src_app = codec::FlowKey::decode(record.key)
                .unwrap()
                .src_app
                .into_owned();
            *self.sums.entry(src_app).or_default() += record.counters.tx;
            self.sum_rx += record.counters.rx;
            *self.counted.entry(record.counters.tx).or_default() += 1;
        }
        let kept = |note: &Note| ReceiptInfo {
            time_s: self.now_s,
            note: Some(note.as_str().into()),
        };
        let own = kept(notes.own.as_ref().unwrap());
        let others = notes.others.iter();
        let others = others.map(|(k, n)| (k.as_str().to_owned(), kept(n)));
        let others: Vec<_> = others.collect();
        self.notes.extend(others);
        self.receipts
            .insert(key.as_str().to_owned(), (own, fingerprint));
        Ok(())
    }

    fn forget(&mut self) {
        let oldest = self.now_s.saturating_sub(self.window_s);
        self.receipts.retain(|_, (kept, _)| kept.time_s >= oldest);
        self.notes.retain(|_, kept| kept.time_s >= oldest);
    }
}

/// A record: a flow with this number, or a record that is not a flow.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Item {
    Flow(u64),
    Text(u64),
}

fn items(random: &mut StdRng, first: u64, count: u64) -> Vec<Item> {
    let mostly = random.random_range(0..10_u32);
    (first..first + count)
        .map(|number| match random.random_range(0..10) {
            n if n < mostly.min(2) => Item::Text(number),
            _ => Item::Flow(number),
        })
        .collect()
}

fn flows(items: &[Item]) -> Vec<u64> {
    let flow = |item: &Item| match *item {
        Item::Flow(number) => Some(number),
        Item::Text(_) => None,
    };
    items.iter().filter_map(flow).collect()
}

fn chunk(items: &[Item], ends_within_a_line: bool) -> Chunk {
    let mut builder = BatchBuilder::with_capacity(0);
    let hour = Hour::new(1).unwrap();
    for tx in flows(items) {
        builder.push(hour, [b"s", b"d", b"v"], Counters { tx, rx: 0 });
    }
    let batch = builder.finish();
    let mut hashes =
        RecordHashes::of_flows(&batch, std::iter::repeat(Location::Line(1))).into_iter();
    let records = items.iter().map(|item| match item {
        Item::Flow(_) => hashes.next().unwrap(),
        Item::Text(number) => RecordHashes {
            content: xxh3_128(&number.to_le_bytes()),
            flow: None,
            is_in_batch: false,
            location: Location::Line(1),
            line: None,
        },
    });
    Chunk {
        records: records.collect(),
        batch: (batch.flows() > 0).then_some(batch),
        text: "".into(),
        ends_within_a_line,
        may_be_cut: false,
        late_from: None,
        refused: Vec::new(),
        skipped: Skipped::default(),
        last: Location::Line(1),
    }
}

/// A chunk of lines, which ends within the last one if `is_cut`.
fn chunk_of_lines(batch: Batch, records: Vec<RecordHashes>, text: &str, is_cut: bool) -> Chunk {
    let last = records.last().unwrap().location;
    Chunk {
        records,
        batch: Some(batch),
        text: text.into(),
        ends_within_a_line: is_cut,
        may_be_cut: is_cut,
        late_from: None,
        refused: Vec::new(),
        skipped: Skipped::default(),
        last,
    }
}

/// A file in chunks of random sizes.
fn chunks(random: &mut StdRng, items: &[Item]) -> VecDeque<Chunk> {
    let most = [1, 3, 20, 300, 1000][random.random_range(0..5)];
    let mut chunks = VecDeque::new();
    let mut rest = items;
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(random.random_range(1..=most).min(rest.len()));
        chunks.push_back(chunk(head, tail.is_empty() && random.random()));
        rest = tail;
    }
    chunks
}

/// A command that sends a file.
struct Run {
    items: Vec<Item>,
    /// Chunks of lines; then `items` is not used.
    text: Option<String>,
    source: &'static str,
    service: Service,
    frontier: Frontier<Service>,
    chunks: VecDeque<Chunk>,
    /// Batches in flight.
    queue: VecDeque<Batch>,
    conflicts: u32,
}

impl Run {
    fn new(random: &mut StdRng, service: &Service, source: &'static str, items: &[Item]) -> Run {
        let identity = Identity::new(Some(source), Path::new("file"));
        Run {
            frontier: Frontier::new(Some(identity), service.clone()),
            chunks: chunks(random, items),
            items: items.to_vec(),
            text: None,
            source,
            service: service.clone(),
            queue: VecDeque::new(),
            conflicts: 0,
        }
    }

    /// Makes some progress; `None` while there is more to do.
    fn step(&mut self, random: &mut StdRng) -> Option<Result<(), FrontierError>> {
        if self.queue.len() > 4 || self.chunks.is_empty() || random.random() {
            if let Some(batch) = self.queue.pop_front() {
                if self.service.borrow_mut().commit(&batch).is_err() {
                    let conflicts = self.conflicts + 1;
                    let again = match &self.text {
                        Some(text) => {
                            cut_lines::run_of_lines(random, &self.service, self.source, text)
                        }
                        None => Run::new(random, &self.service, self.source, &self.items),
                    };
                    *self = Run { conflicts, ..again };
                    assert!(conflicts < 50);
                }
                return None;
            }
            if self.chunks.is_empty() {
                return Some(self.frontier.finish());
            }
        }
        match self.frontier.push(self.chunks.pop_front()?) {
            Ok(taken) => {
                assert!(taken.refused.is_empty());
                self.queue.extend(taken.batches);
                None
            }
            Err(stop) => Some(Err(stop)),
        }
    }

    /// Runs to the end, or is killed after this many steps.
    fn run(
        mut self,
        random: &mut StdRng,
        steps: usize,
    ) -> (Option<Result<(), FrontierError>>, AlreadyCounted) {
        for _ in 0..steps {
            if let Some(result) = self.step(random) {
                return (Some(result), self.frontier.known());
            }
        }
        (None, self.frontier.known())
    }
}

fn each_once(service: &Service, items: &[Item]) {
    let expected: BTreeMap<u64, u32> = flows(items).into_iter().map(|n| (n, 1)).collect();
    let counted = &service.borrow().counted;
    let wrong = expected.keys().chain(counted.keys());
    let wrong = wrong.filter(|flow| counted.get(flow) != Some(&1) || !expected.contains_key(flow));
    let wrong: Vec<_> = wrong
        .map(|flow| (flow, counted.get(flow)))
        .take(10)
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}

fn cases() -> impl Iterator<Item = StdRng> {
    let variable = |name: &str| std::env::var(name).ok()?.parse::<u64>().ok();
    let seed = variable("FLOWTALLY_TEST_SEED");
    let count = if seed.is_some() { 1 } else { 30 };
    (0..count).map(move |_| {
        let seed = seed.unwrap_or_else(rand::random);
        println!("FLOWTALLY_TEST_SEED={seed}");
        StdRng::seed_from_u64(seed)
    })
}

/// The file grows by random steps and is sent in random chunks, commands are killed at any time, and shorter copies of
/// the file are sent.
#[test]
fn a_file_that_grows_counts_once() {
    for mut random in cases() {
        let service = Service::default();
        let length = [5, 40, 700, 3000][random.random_range(0..4)];
        let items = items(&mut random, 1, length);
        let mut longest = 0;
        for _ in 0..20 {
            service.borrow_mut().now_s += 1;
            let length = random.random_range(0..=items.len());
            let file = &items[..length];
            let steps = match random.random() {
                true => random.random_range(0..30),
                false => usize::MAX,
            };
            let before = service.borrow().counted.clone();
            let run = Run::new(&mut random, &service, "", file);
            let (result, known) = run.run(&mut random, steps);
            match result {
                _ if length < longest => {
                    assert_eq!(service.borrow().counted, before, "nothing in it is new");
                    assert!(matches!(
                        result,
                        None | Some(Ok(()) | Err(FrontierError::Shorter { .. }))
                    ));
                }
                Some(result) => {
                    assert_eq!(result, Ok(()));
                    each_once(&service, file);
                    let flows: u32 = before.values().sum();
                    assert_eq!(known.flows, u64::from(flows));
                    longest = length;
                }
                None => longest = longest.max(service.borrow().counted.len()),
            }
            assert!(service.borrow().counted.values().all(|&count| count == 1));
            longest = longest.max(counted_upto(&service, &items));
        }
        let run = Run::new(&mut random, &service, "", &items);
        assert_eq!(run.run(&mut random, usize::MAX).0, Some(Ok(())));
        each_once(&service, &items);
    }
}

/// The records up to the last flow that was counted.
fn counted_upto(service: &Service, items: &[Item]) -> usize {
    let counted = &service.borrow().counted;
    let is_counted = |item: &Item| matches!(item, Item::Flow(n) if counted.contains_key(n));
    items.iter().rposition(is_counted).map_or(0, |at| at + 1)
}

/// Several commands send the same file at the same time, in different states.
#[test]
fn overlapping_commands_count_a_file_once() {
    let mut conflicts = 0;
    for mut random in cases() {
        let service = Service::default();
        let items = items(&mut random, 1, 400);
        for _ in 0..3 {
            let mut longest = counted_upto(&service, &items);
            let mut runs: Vec<Run> = (0..3)
                .map(|_| {
                    longest = random.random_range(longest..=items.len());
                    Run::new(&mut random, &service, "", &items[..longest])
                })
                .collect();
            while !runs.is_empty() {
                let at = random.random_range(0..runs.len());
                match runs[at].step(&mut random) {
                    None => {}
                    Some(Ok(()) | Err(FrontierError::Shorter { .. })) => {
                        conflicts += runs.remove(at).conflicts;
                    }
                    Some(Err(stop)) => panic!("{stop:?}"),
                }
            }
            each_once(&service, &items[..longest]);
        }
    }
    assert!(
        conflicts > 10 || std::env::var("FLOWTALLY_TEST_SEED").is_ok(),
        "{conflicts}"
    );
}

/// The file grows for longer than its receipts are kept.
#[test]
fn a_file_that_outgrows_its_receipts_counts_once() {
    for mut random in cases() {
        let service = Service::default();
        service.borrow_mut().window_s = 20;
        let items = items(&mut random, 1, 2000);
        let (mut length, mut was_killed) = (0, false);
        while length < items.len() {
            service.borrow_mut().now_s += random.random_range(0..5);
            service.borrow_mut().forget();
            length = (length + random.random_range(1..100)).min(items.len());
            let file = &items[..length];
            was_killed = !was_killed && random.random();
            let steps = if was_killed {
                random.random_range(0..30)
            } else {
                usize::MAX
            };
            let result = Run::new(&mut random, &service, "", file).run(&mut random, steps);
            assert!(matches!(result.0, None | Some(Ok(()))), "{result:?}");
            if result.0.is_some() {
                each_once(&service, file);
            }
        }
        let run = Run::new(&mut random, &service, "", &items);
        assert_eq!(run.run(&mut random, usize::MAX).0, Some(Ok(())));
        each_once(&service, &items);
    }
}

/// Files with an equal beginning are different files; with different sources, even equal files are.
#[test]
fn files_with_the_same_beginning_count_separately() {
    for mut random in cases() {
        let service = Service::default();
        let length = [2, 5, 30, 400][random.random_range(0..4)];
        let shared = items(&mut random, 1, length);
        let mut expected = BTreeMap::new();
        for first in [10_000, 20_000, 30_000] {
            // Enough records that there is a mark within them.
            let more = length + random.random_range(1..100);
            let other = items(&mut random, first, more);
            let other = [&[Item::Flow(first + 5000)], &other[..]].concat();
            let file = [&shared[..], &other].concat();
            for source in ["", "host-7"] {
                // In one chunk, so that none ends where the shared records end.
                let mut run = Run::new(&mut random, &service, source, &file);
                run.chunks = VecDeque::from([chunk(&file, false)]);
                assert_eq!(run.run(&mut random, usize::MAX).0, Some(Ok(())));
                for flow in flows(&file) {
                    *expected.entry(flow).or_insert(0) += 1;
                }
                // Sending a file again counts nothing.
                let run = Run::new(&mut random, &service, source, &file);
                let (result, known) = run.run(&mut random, usize::MAX);
                assert_eq!(result, Some(Ok(())));
                assert_eq!(known.flows as usize, flows(&file).len());
                assert_eq!(service.borrow().counted, expected);
            }
        }
    }
}

#[test]
fn records_that_give_other_flows_are_refused() {
    let mut random = StdRng::seed_from_u64(1);
    let service = Service::default();
    service.borrow_mut().now_s = 7;
    let items: Vec<Item> = (1..50).map(Item::Flow).collect();
    let run = Run::new(&mut random, &service, "", &items);
    assert_eq!(run.run(&mut random, usize::MAX).0, Some(Ok(())));
    let mut other = chunk(&items, false);
    other.records[30].flow = Some(1);
    let mut run = Run::new(&mut random, &service, "", &items);
    run.chunks = VecDeque::from([other]);
    let (result, _) = run.run(&mut random, usize::MAX);
    assert_eq!(result, Some(Err(FrontierError::OtherFlows { since_s: 7 })));
}

#[test]
fn a_changed_copy_is_noticed_by_its_name() {
    let service = Service::default();
    service.borrow_mut().now_s = 7;
    let items: Vec<Item> = (1..50).map(Item::Flow).collect();
    let changed = [&[Item::Flow(99)], &items[1..]].concat();
    let take = |name: &str, items: &[Item]| {
        let identity = Identity::new(None, Path::new(name));
        let mut frontier = Frontier::new(Some(identity), service.clone());
        let taken = frontier.push(chunk(items, false)).unwrap();
        for batch in &taken.batches {
            assert!(service.borrow_mut().commit(batch).is_ok());
        }
        (taken.batches.len(), taken.changed_since_s)
    };
    assert_eq!(take("a/file.gz", &items), (1, None));
    assert_eq!(take("other", &changed), (1, None));
    // The same file, by a command that looked up receipts before the other one counted.
    let sent_meanwhile = || {
        let identity = Identity::new(None, Path::new("file"));
        let mut frontier = Frontier::new(Some(identity), service.clone());
        frontier.is_new = true;
        let taken = frontier.push(chunk(&items, false)).unwrap();
        assert!(service.borrow_mut().commit(&taken.batches[0]).is_ok());
        taken.changed_since_s
    };
    assert_eq!(sent_meanwhile(), None);
    assert_eq!(
        take("b/file", &[&changed[..], &[Item::Flow(100)]].concat()),
        (1, None)
    );
    let again = [&[Item::Flow(98)], &items[1..]].concat();
    assert_eq!(take("b/file", &again), (1, Some(7)));
}

#[test]
fn notes_are_read_as_they_are_written() {
    for noted in [
        IdentityNote::End {
            flows: u128::MAX,
            since_s: Some(u64::from(u32::MAX)),
            upto: 1 << 40,
        },
        IdentityNote::End {
            flows: 0,
            since_s: None,
            upto: 0,
        },
        IdentityNote::Mark {
            offset: 1 << 19,
            count: 1 << 20,
        },
        IdentityNote::Sketch,
        IdentityNote::Grown,
    ] {
        assert_eq!(
            IdentityNote::parse(noted.note().unwrap().as_str()),
            Some(noted)
        );
    }
    for text in ["", "e", "e0.0", "m2.2", "m0.1", "m1.1048577", "x", "é"] {
        assert_eq!(IdentityNote::parse(text), None, "{text}");
    }
}
