//! Splits a batch by partitions of a journal. The names of a flow decide its partition, so that all sums of these
//! names, for all hours, are in one partition.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::codec;
use super::{Batch, BatchLedger, ValidRecord};
use crate::{Partition, PartitionCount};

impl Batch {
    /// Its flows by partition, encoded as batches of at most `bytes_max` bytes. The result is the same for the same
    /// batch; the number of partitions must never change.
    pub fn split(
        &self,
        partitions: PartitionCount,
        bytes_max: usize,
    ) -> BTreeMap<Partition, Vec<Vec<u8>>> {
        let bytes = self.bytes().len();
        // Names are distributed roughly evenly.
        let room = (bytes / partitions.get() as usize * 3 / 2).min(bytes_max);
        let mut open: Vec<Option<SplitBatch>> = partitions.partitions().map(|_| None).collect();
        let mut parts: BTreeMap<Partition, Vec<Vec<u8>>> = BTreeMap::new();
        for record in self.valid().records() {
            let partition = partitions.of_hash(xxh3_64(record.suffix));
            let part = &mut open[partition.get() as usize];
            if let Some(full) = part.take_if(|part| part.bytes_with(&record) > bytes_max) {
                parts.entry(partition).or_default().push(full.finish());
            }
            part.get_or_insert_with(|| SplitBatch::new(room))
                .push(&record);
        }
        for (partition, part) in partitions.partitions().zip(open) {
            if let Some(part) = part {
                parts.entry(partition).or_default().push(part.finish());
            }
        }
        parts
    }
}

/// A batch under construction from records of another batch, which are valid and need no hashes.
pub(super) struct SplitBatch {
    bytes: Vec<u8>,
    flows: u32,
    ledger: BatchLedger,
}

impl SplitBatch {
    pub(super) fn new(room: usize) -> SplitBatch {
        let mut bytes = Vec::with_capacity(room);
        codec::begin_batch(&mut bytes);
        SplitBatch {
            bytes,
            flows: 0,
            ledger: BatchLedger::default(),
        }
    }

    /// Upper bound of the batch's size with one more flow.
    fn bytes_with(&self, record: &ValidRecord<'_>) -> usize {
        let entries = self.ledger.hours() + 1;
        self.bytes.len() + record.stored.len() + entries * codec::BATCH_TOTALS_BYTES
    }

    #[inline]
    pub(super) fn push(&mut self, record: &ValidRecord<'_>) {
        self.ledger.count(record.hour, record.counters);
        self.bytes.extend_from_slice(record.stored);
        self.flows += 1;
    }

    pub(super) fn finish(mut self) -> Vec<u8> {
        codec::end_batch(&mut self.bytes, self.flows, self.ledger.entries());
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::codec::{HOUR_BYTES, Records};
    use super::*;
    use crate::BatchBuilder;
    use crate::{Counters, Hour};

    #[test]
    fn parts_have_all_flows_and_names_have_one_partition() {
        let mut builder = BatchBuilder::with_capacity(0);
        for n in 0..5_000_u32 {
            let (src, dest) = (format!("s\0{}", n % 50), format!("d{}", n % 7));
            let hour = Hour::new(u64::from(n % 100)).unwrap();
            let counters = Counters {
                tx: u64::from(n),
                rx: 1,
            };
            builder.push(hour, [src.as_bytes(), dest.as_bytes(), b"v"], counters);
        }
        let batch = builder.finish();
        let bytes_max = 10_000;
        let twelve = PartitionCount::try_from(12_i32).unwrap();
        let parts = batch.split(twelve, bytes_max);
        let again = batch.split(twelve, bytes_max);
        let sorted = |batches: &mut dyn Iterator<Item = &[u8]>| {
            let mut records = Vec::new();
            for batch in batches {
                let batch = Batch::decode(batch.to_vec()).unwrap();
                for record in Records::new(batch.bytes()).unwrap() {
                    let record = record.unwrap();
                    let sums = (record.counters.tx, record.counters.rx);
                    records.push((record.key.to_vec(), sums));
                }
            }
            records.sort();
            records
        };
        let mut all = parts.values().flatten().map(Vec::as_slice);
        assert_eq!(sorted(&mut all), sorted(&mut [batch.bytes()].into_iter()));
        assert!(parts.values().any(|batches| batches.len() > 1));
        let mut homes = BTreeMap::new();
        for (partition, batches) in &parts {
            for (batch, again) in batches.iter().zip(&again[partition]) {
                assert_eq!(batch, again);
                assert!(batch.len() <= bytes_max);
                for record in Records::new(batch).unwrap() {
                    let names = record.unwrap().key[HOUR_BYTES..].to_vec();
                    assert_eq!(homes.entry(names).or_insert(partition), &partition);
                }
            }
        }
    }
}
