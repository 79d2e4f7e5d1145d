//! Flows whose hours are too far ahead are left out by the reader or by the service, while the clock changes.

use super::*;
use flow::Notes;

/// A chunk whose flows have their numbers as hours. Flows of `limit` and later hours are left out.
fn late_chunk(hours: &[u64], limit: u64) -> Chunk {
    let all: Vec<Item> = hours.iter().map(|&hour| Item::Flow(hour)).collect();
    let mut chunk = chunk(&all, false);
    let mut builder = BatchBuilder::with_capacity(0);
    for &tx in hours.iter().filter(|&&hour| hour < limit) {
        let hour = Hour::new(tx).unwrap();
        builder.push(hour, [b"s", b"d", b"v"], Counters { tx, rx: 0 });
    }
    for (record, &hour) in chunk.records.iter_mut().zip(hours) {
        record.is_in_batch = hour < limit;
    }
    let batch = builder.finish();
    chunk.batch = (batch.flows() > 0).then_some(batch);
    chunk.late_from = hours
        .iter()
        .copied()
        .filter(|&h| h >= limit)
        .min()
        .map(|h| h as u32);
    chunk
}

/// The batch that the sender sends to a service that accepts only hours before `limit`.
fn remove_late(batch: &Batch, if_late: &crate::delivery::IfLate, limit: u64) -> Option<Batch> {
    let mut builder = BatchBuilder::with_capacity(0);
    let mut earliest = None;
    for record in codec::Records::new(batch.bytes()).unwrap() {
        let record = record.unwrap();
        let hour = codec::FlowKey::decode(record.key).unwrap().hour;
        if u64::from(hour.get()) < limit {
            builder.push(hour, [b"s", b"d", b"v"], record.counters);
        } else {
            earliest = Some(earliest.map_or(hour.get(), |e: u32| e.min(hour.get())));
        }
    }
    let Some(earliest) = earliest else {
        return Some(batch.clone());
    };
    if builder.flows() == 0 && if_late.is_again {
        return None;
    }
    let notes = Notes::parse(&format!("{}{earliest}", if_late.notes)).unwrap();
    let key = batch.receipt().unwrap().0.clone();
    Some(builder.finish().with_key(key).with_notes(notes))
}

/// Sends a file once. Returns how many of its flows were counted before.
fn send_once(
    random: &mut StdRng,
    service: &Service,
    hours: &[u64],
    limit: u64,
    by_reader: bool,
) -> u64 {
    let identity = Identity::new(None, Path::new("file"));
    let mut frontier = Frontier::new(Some(identity), service.clone());
    let mut rest = hours;
    while !rest.is_empty() {
        let most = rest.len().min([1, 3, 30, 400][random.random_range(0..4)]);
        let (head, tail) = rest.split_at(random.random_range(1..=most));
        rest = tail;
        let read = late_chunk(head, if by_reader { limit } else { u64::MAX });
        let taken = frontier.push(read).unwrap();
        assert_eq!(taken.batches.len(), taken.if_late.len());
        for (batch, if_late) in taken.batches.iter().zip(&taken.if_late) {
            let batch = remove_late(batch, if_late.as_ref().unwrap(), limit);
            let Some(batch) = batch else { continue };
            assert!(service.borrow_mut().commit(&batch).is_ok());
        }
    }
    drop(frontier.finish());
    frontier.known().flows
}

#[test]
fn each_flow_counts_once_when_its_hour_is_accepted() {
    for seed in 0..70 {
        let mut random = StdRng::seed_from_u64(seed);
        let service = Service::default();
        let most = [2, 30, 900][random.random_range(0..3)];
        let mut hours: Vec<u64> = Vec::new();
        let mut counted = std::collections::BTreeSet::new();
        for _ in 0..6 {
            // The file grows; all of its hours are different.
            for _ in 0..random.random_range(0..=most) {
                let hour = random.random_range(1..4_000_000_u64);
                if !hours.contains(&hour) {
                    hours.push(hour);
                }
            }
            let limit = random.random_range(1..4_500_000);
            let by_reader = random.random();
            let known = send_once(&mut random, &service, &hours, limit, by_reader);
            let before = hours.iter().filter(|hour| counted.contains(*hour));
            let read = before.filter(|hour| !by_reader || **hour < limit).count();
            assert_eq!(
                known,
                read as u64,
                "seed {seed} {hours:?} {by_reader} {limit} {counted:?} {:?}",
                service.borrow()
            );
            counted.extend(hours.iter().copied().filter(|&hour| hour < limit));
            let table = service.borrow();
            let expected = counted.iter().map(|&hour| (hour, 1)).collect();
            assert_eq!(table.counted, expected, "seed {seed}");
        }
    }
}
