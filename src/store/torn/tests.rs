//! Every state that a power cut can leave, and changed bytes, which it cannot leave: in logs that a store wrote, and in
//! synthetic ones.

use std::collections::BTreeSet;
use std::io::Cursor;
use std::path::Path;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::*;
use crate::store::{Durability, Store, StoreOptions};
use flow::{BatchBuilder, Counters, Hour, IdempotencyKey};

fn find_end(log: &[u8], of: LogKind) -> LogEndResult {
    super::find_end(Cursor::new(log), of).unwrap()
}

fn seeded() -> StdRng {
    let seed = rand::random();
    println!("seed {seed}");
    StdRng::seed_from_u64(seed)
}

/// A log of records, and the end of each: record `n` has bytes of `payload(n)`.
fn synthetic(payloads: impl IntoIterator<Item = Vec<u8>>) -> (Vec<u8>, Vec<usize>) {
    let (mut log, mut is_last) = (Vec::new(), Vec::new());
    for payload in payloads {
        let (mut rest, mut is_first) = (payload.as_slice(), true);
        loop {
            let begin = next_begin(log.len());
            log.resize(begin, 0);
            let room = block_end(begin) - begin - HEADER_BYTES;
            let (part, after) = rest.split_at(rest.len().min(room));
            let kind: u8 = match (is_first, after.is_empty()) {
                (true, true) => 1,
                (true, false) => 2,
                (false, false) => 3,
                (false, true) => 4,
            };
            log.extend(masked_crc(kind, part));
            log.extend((part.len() as u16).to_le_bytes());
            log.push(kind);
            log.extend(part);
            (rest, is_first) = (after, false);
            if after.is_empty() {
                break;
            }
        }
        is_last.push(log.len());
    }
    (log, is_last)
}

/// Bytes without a zero, of this length, that end in the mark.
fn payload(length: usize) -> Vec<u8> {
    let mut payload: Vec<u8> = (0..length).map(|i| (i % 251) as u8 | 1).collect();
    let mark = length.saturating_sub(codec::SYNCED.len());
    payload[mark..].copy_from_slice(&codec::SYNCED[codec::SYNCED.len() - (length - mark)..]);
    payload
}

/// A log that a store wrote, and the ends of its records: batches of many sizes, with keys and without.
fn real(durability: Durability) -> (Vec<u8>, Vec<usize>) {
    let dir = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        durability,
        ..StoreOptions::default()
    };
    let (store, _) = Store::open(dir.path(), options).unwrap();
    let log = || newest_log(&dir.path().join("rocks"));
    let mut is_last = vec![log().len()];
    for (n, flows) in [1, 3, 40, 900, 2, 25, 2500, 60].into_iter().enumerate() {
        let mut batch = BatchBuilder::with_capacity(0);
        for flow in 0..flows {
            let name = format!("service-{n}-{flow}");
            let counters = Counters { tx: flow, rx: 0 };
            let hour = Hour::new(1).unwrap();
            batch.push(hour, [name.as_bytes(), b"\0\0\0", b"v"], counters);
        }
        let batch = batch.finish();
        let key = IdempotencyKey::new(format!("key-{n}").as_bytes()).unwrap();
        let batch = if n % 2 == 0 {
            batch
        } else {
            batch.with_key(key)
        };
        store.commit(vec![batch]).unwrap();
        is_last.push(log().len());
        if n == 2 {
            store
                .flush_tallies(std::time::Duration::from_secs(60))
                .unwrap();
            is_last.push(log().len()); // the trim
        }
    }
    (log(), is_last)
}

fn newest_log(rocks: &Path) -> Vec<u8> {
    let logs = std::fs::read_dir(rocks).unwrap().map(|e| e.unwrap().path());
    let logs: BTreeSet<_> = logs
        .filter(|path| path.extension().is_some_and(|e| e == "log"))
        .collect();
    std::fs::read(logs.last().unwrap()).unwrap()
}

/// The content of `log` on disk if everything up to `synced` was synced and, of the sectors after it, only those in
/// `is_there` were written.
fn after_a_cut(
    log: &[u8],
    synced: usize,
    sector_bytes: usize,
    is_there: impl Fn(usize) -> bool,
) -> Vec<u8> {
    let mut left = log.to_vec();
    let sectors = (synced - synced % sector_bytes..log.len()).step_by(sector_bytes);
    for (n, sector) in sectors.enumerate() {
        if !is_there(n) {
            let end = (sector + sector_bytes).min(log.len());
            left[sector.max(synced)..end].fill(0);
        }
    }
    left
}

/// Asserts that only bytes after `synced` are cut off, and that only complete records remain.
fn assert_cut_keeps_synced(left: &[u8], synced: usize, whole: &[u8], what: &str) {
    match find_end(left, LogKind::Journal) {
        Ok(LogEnd::Torn { keep, unsynced }) => {
            assert!(keep >= synced && !unsynced, "{what}: {keep} of {synced}");
            assert_eq!(
                find_end(&left[..keep], LogKind::Journal),
                Ok(LogEnd::Good),
                "{what}"
            );
        }
        Ok(LogEnd::Good) => {
            // It is complete, or RocksDB sees a file that ends too early.
            let is_whole = left.starts_with(whole);
            let at = whole_end(left);
            assert!(is_whole || at >= synced, "{what}: {at}");
        }
        Err(damage) => panic!("{what}: refused at {}", damage.at),
    }
}

/// The end of the complete records at the beginning.
fn whole_end(log: &[u8]) -> usize {
    let (mut at, mut end) = (0, 0);
    while let Parsed::Fragment(part, fragment_end) = fragment(log, at).1 {
        at = fragment_end;
        if part.is_last() {
            end = at;
        }
    }
    end
}

/// Tries all subsets of the last record's sectors if they are few, otherwise many random ones, with the file at its
/// original length, longer and shorter.
fn all_cuts(log: &[u8], synced: usize, random: &mut StdRng) -> usize {
    let mut cuts = 0;
    for sector_bytes in [512, 4096] {
        let sectors = (log.len() - (synced - synced % sector_bytes)).div_ceil(sector_bytes);
        let subsets = if sectors <= 8 { 1 << sectors } else { 200 };
        for subset in 0..subsets {
            let mut bits = vec![false; sectors];
            for (n, bit) in bits.iter_mut().enumerate() {
                *bit = match sectors {
                    0..=8 => subset >> n & 1 == 1,
                    // One missing sector, one written sector, and random ones.
                    _ if subset < sectors => n != subset,
                    _ if subset < 2 * sectors => n == subset - sectors,
                    _ => random.random(),
                };
            }
            let mut left = after_a_cut(log, synced, sector_bytes, |n| bits[n]);
            let what = format!("{synced}..{}, {sector_bytes}: {subset:b}", log.len());
            assert_cut_keeps_synced(&left, synced, log, &what);
            left.extend(vec![0; random.random_range(0..9000)]);
            assert_cut_keeps_synced(&left, synced, log, &format!("{what}, longer"));
            left.truncate(random.random_range(synced..=log.len()));
            assert_cut_keeps_synced(&left, synced, log, &format!("{what}, {} bytes", left.len()));
            cuts += 3;
        }
    }
    cuts
}

#[test]
fn the_last_record_is_dropped_after_any_power_cut() {
    let mut random = seeded();
    let (log, is_last) = real(Durability::Fsync);
    let bytes = log.len();
    assert!(
        bytes > 3 * BLOCK_BYTES && is_last.len() > 9,
        "{bytes}, {is_last:?}"
    );
    let mut cuts = 0;
    for pair in is_last.windows(2) {
        cuts += all_cuts(&log[..pair[1]], pair[0], &mut random);
    }
    // Records that begin and end at each offset in a sector, and around the ends of blocks.
    let places = (0..SECTOR_BYTES).chain(BLOCK_BYTES - 20..BLOCK_BYTES + 20);
    for place in places.step_by(13) {
        for length in [1, 9, 300, 505, 700, 1024, 4000] {
            let first = place.max(SECTOR_BYTES) - HEADER_BYTES;
            let (log, is_last) = synthetic([payload(first), payload(length)]);
            cuts += all_cuts(&log, is_last[0], &mut random);
        }
    }
    for length in [40_000, 100_000] {
        let (log, is_last) = synthetic([payload(400), payload(length)]);
        cuts += all_cuts(&log, is_last[0], &mut random);
    }
    // For large records, the time is linear in their size.
    let (log, is_last) = synthetic([payload(400), payload(8 << 20)]);
    let begin = std::time::Instant::now();
    for seed in 0..3 {
        let mut random = StdRng::seed_from_u64(seed);
        let there: Vec<bool> = (0..=log.len() / 512).map(|_| random.random()).collect();
        let left = after_a_cut(&log, is_last[0], 512, |n| there[n]);
        assert_cut_keeps_synced(&left, is_last[0], &log, "a large one");
    }
    assert!(begin.elapsed().as_secs() < 60, "{:?}", begin.elapsed());
    println!("{cuts} states");
    assert!(cuts > 10_000);
}

/// Regression test: the last sector is missing and begins inside the record.
#[test]
fn the_last_sector_is_missing() {
    let (log, is_last) = synthetic([
        payload(3905 - HEADER_BYTES),
        payload(4396 - 3905 - HEADER_BYTES),
    ]);
    assert_eq!(is_last, [3905, 4396]);
    let mut left = log;
    left[4096..].fill(0);
    let torn = LogEnd::Torn {
        keep: 3905,
        unsynced: false,
    };
    assert_eq!(find_end(&left, LogKind::Journal), Ok(torn));
    left.truncate(4096);
    assert_eq!(find_end(&left, LogKind::Journal), Ok(LogEnd::Good));
}

#[test]
fn complete_and_truncated_logs_are_valid() {
    assert_eq!(find_end(&[], LogKind::Journal), Ok(LogEnd::Good));
    let (log, _) = real(Durability::Fsync);
    for length in (0..log.len()).step_by(257).chain([log.len()]) {
        for of in [LogKind::Journal, LogKind::Manifest] {
            assert_eq!(find_end(&log[..length], of), Ok(LogEnd::Good), "{length}");
        }
    }
}

/// A changed bit anywhere, a sector that is lost before the last record, and a sector of another log.
#[test]
fn a_log_that_no_power_cut_leaves_is_damaged() {
    let (log, is_last) = real(Durability::Fsync);
    let is_padding = |at: usize| at % BLOCK_BYTES > BLOCK_BYTES - HEADER_BYTES;
    let last = is_last[is_last.len() - 2];
    let everywhere = (0..log.len()).step_by(97).map(|at| (at, at % 8));
    let at_its_end = (last..last + 60).chain(log.len() - 60..log.len());
    let at_its_end = at_its_end.flat_map(|at| (0..8).map(move |bit| (at, bit)));
    for (at, bit) in everywhere.chain(at_its_end) {
        let mut changed = log.clone();
        changed[at] ^= 1 << bit;
        for of in [LogKind::Journal, LogKind::Manifest] {
            let end = find_end(&changed, of);
            assert!(end.is_err() || is_padding(at), "{at}, {bit}: {end:?}");
        }
    }
    // The last record of every length, and each of its bits; and with zeros after it.
    for length in [1, 2, 8, 100, 504, 505, 506, 520, 1000] {
        let (log, is_last) = synthetic([payload(300), payload(length)]);
        for at in is_last[0]..log.len() {
            for bit in 0..8 {
                let mut changed = log.clone();
                changed[at] ^= 1 << bit;
                let end = find_end(&changed, LogKind::Journal);
                assert!(end.is_err(), "{length}: {at}, {bit}: {end:?}");
                let is_length = (4..6).contains(&(at - is_last[0]));
                changed.resize(log.len() + 5000, 0);
                let end = find_end(&changed, LogKind::Journal);
                assert!(end.is_err() || is_length, "{length}: {at}, {bit}: {end:?}");
            }
        }
    }
    let lost = |sector: usize| {
        let mut lost = log.clone();
        lost[sector * SECTOR_BYTES..][..SECTOR_BYTES].fill(0);
        lost
    };
    for sector in 0..last / SECTOR_BYTES {
        let end = find_end(&lost(sector), LogKind::Journal);
        assert!(end.is_err(), "{sector}: {end:?}");
    }
    for sector in 1..log.len() / SECTOR_BYTES {
        let mut other = log.clone();
        other.copy_within(
            (sector - 1) * SECTOR_BYTES..sector * SECTOR_BYTES,
            sector * SECTOR_BYTES,
        );
        assert!(find_end(&other, LogKind::Journal).is_err(), "{sector}");
    }
}

/// RocksDB may have written several records before a sync.
#[test]
fn in_the_manifest_several_records_may_be_torn() {
    let (log, is_last) = synthetic([700; 12].map(payload));
    let torn = |keep| {
        Ok(LogEnd::Torn {
            keep,
            unsynced: false,
        })
    };
    for (n, pair) in is_last.windows(2).enumerate() {
        let sector = pair[0].next_multiple_of(SECTOR_BYTES);
        let mut lost = log.clone();
        lost[sector..pair[1].min(sector + SECTOR_BYTES)].fill(0);
        let whole_sector = sector + SECTOR_BYTES <= pair[1];
        let end = find_end(&lost, LogKind::Manifest);
        if whole_sector && n + 1 + MANIFEST_RECORDS_MAX >= is_last.len() {
            assert_eq!(end, torn(pair[0]), "{n}");
        } else if n + 1 + MANIFEST_RECORDS_MAX < is_last.len() {
            assert!(end.is_err(), "{n}: {end:?}");
        }
    }
    let mut first = log.clone();
    first[is_last[10]..is_last[10].next_multiple_of(SECTOR_BYTES)].fill(0);
    assert_eq!(find_end(&first, LogKind::Manifest), torn(is_last[10]));
}

/// With `--durability os`, no write waits for a sync: any sectors of the log may be missing.
#[test]
fn unsynced_records_after_the_first_gap_are_dropped() {
    let mut random = seeded();
    let (log, is_last) = real(Durability::Os);
    for _ in 0..200 {
        let from = is_last[random.random_range(1..is_last.len() - 1)];
        let there: Vec<bool> = (0..log.len()).map(|_| random.random()).collect();
        let left = after_a_cut(&log, from, 512, |n| there[n]);
        match find_end(&left, LogKind::Journal) {
            Ok(LogEnd::Torn { keep, unsynced }) => assert!(unsynced && keep >= from),
            Ok(LogEnd::Good) => assert!(left == log),
            Err(damage) => panic!("refused at {}", damage.at),
        }
    }
    let mut changed = log.clone();
    changed[is_last[4] + 20] ^= 1;
    assert!(find_end(&changed, LogKind::Journal).is_err());
}

/// A log that counts the bytes that are read, and panics if a read is larger than a block.
struct Counted<'a> {
    log: Cursor<&'a [u8]>,
    bytes: usize,
    seeks: usize,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        assert!(self.seeks > 0 || buffer.len() <= BLOCK_BYTES);
        let read = self.log.read(buffer)?;
        self.bytes += read;
        Ok(read)
    }
}

impl Seek for Counted<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.seeks += 1;
        self.log.seek(to)
    }
}

/// A log may be larger than the memory of the process.
#[test]
fn a_log_is_read_block_by_block_and_its_torn_record_twice() {
    let (log, is_last) = synthetic([90_000; 50].map(payload));
    let read = |log: &[u8]| {
        let mut counted = Counted {
            log: Cursor::new(log),
            bytes: 0,
            seeks: 0,
        };
        let end = super::find_end(&mut counted, LogKind::Journal).unwrap();
        (end, counted.bytes, counted.seeks)
    };
    assert_eq!(read(&log), (Ok(LogEnd::Good), log.len(), 0));
    let keep = is_last[is_last.len() - 2];
    let mut torn = log.clone();
    let lost = keep.next_multiple_of(SECTOR_BYTES) + SECTOR_BYTES;
    torn[lost..lost + SECTOR_BYTES].fill(0);
    let (end, bytes, seeks) = read(&torn);
    let unsynced = false;
    assert_eq!(end, Ok(LogEnd::Torn { keep, unsynced }));
    assert!(bytes < log.len() + 90_000 + 2 * BLOCK_BYTES && seeks == 1);
}

/// Records follow damage in the middle of a log, possibly gigabytes of them.
#[test]
fn after_damage_no_more_than_a_record_is_read() {
    let (log, is_last) = synthetic([90_000; 50].map(payload));
    let mut damaged = log.clone();
    let at = next_begin(is_last[10]);
    damaged[at + HEADER_BYTES] ^= 1;
    let mut counted = Counted {
        log: Cursor::new(damaged.as_slice()),
        bytes: 0,
        seeks: 0,
    };
    let end = super::find_end_within(&mut counted, LogKind::Journal, 100_000).unwrap();
    assert_eq!(end, Err(Damage { at }));
    assert!(counted.bytes < at + 100_000 + 4 * BLOCK_BYTES);
}

/// An end of a log that is longer than any record is damage, not a torn record, even if sectors are missing.
#[test]
fn a_torn_end_that_is_longer_than_a_record_is_damage() {
    let (mut log, is_last) = synthetic([90_000, 300_000].map(payload));
    let keep = is_last[is_last.len() - 2];
    let lost = keep.next_multiple_of(SECTOR_BYTES) + SECTOR_BYTES;
    log[lost..lost + SECTOR_BYTES].fill(0);
    let end = |record_bytes_max| {
        let log = Cursor::new(log.as_slice());
        super::find_end_within(log, LogKind::Journal, record_bytes_max).unwrap()
    };
    let unsynced = false;
    assert_eq!(end(400_000), Ok(LogEnd::Torn { keep, unsynced }));
    assert!(end(100_000).is_err());
}
