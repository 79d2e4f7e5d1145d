//! A batch in parts, for a journal of many partitions: a flow's names decide which one it goes to, so that
//! all of its sums, of all hours, are in one place.

use std::collections::BTreeMap;

use xxhash_rust::xxh3::xxh3_64;

use super::codec::{Corrupt, HOUR_BYTES, Records};
use super::{Batch, BatchBuilder};

impl Batch {
    /// Its flows by partition, in batches that take `bytes_max` bytes at most. Of the same batch, it is
    /// always the same ones; how many partitions there are must never change.
    ///
    /// # Errors
    /// Bytes that no batch has: a bug.
    pub fn split(
        &self,
        partitions: u32,
        bytes_max: usize,
    ) -> Result<BTreeMap<u32, Vec<Batch>>, Corrupt> {
        let mut parts: BTreeMap<u32, (Vec<Batch>, BatchBuilder)> = BTreeMap::new();
        for record in Records::new(self.bytes())? {
            let record = record?;
            let hash = xxh3_64(&record.key[HOUR_BYTES..]);
            // Less than `partitions`.
            let partition = (hash % u64::from(partitions.max(1))) as u32;
            let empty = || (Vec::new(), BatchBuilder::with_capacity(0));
            let (full, builder) = parts.entry(partition).or_insert_with(empty);
            if builder.flows() > 0 && builder.bytes_with(record.key) > bytes_max {
                full.push(std::mem::replace(builder, BatchBuilder::with_capacity(0)).finish());
            }
            builder.push_record(record)?;
        }
        let finished = parts.into_iter().map(|(partition, (mut batches, last))| {
            batches.push(last.finish());
            (partition, batches)
        });
        Ok(finished.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{Counters, Hour};

    #[test]
    fn parts_have_all_flows_and_each_names_one_partition() {
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
        let parts = batch.split(12, bytes_max).unwrap();
        let again = batch.split(12, bytes_max).unwrap();
        let sorted = |batches: &mut dyn Iterator<Item = &Batch>| {
            let mut records = Vec::new();
            for batch in batches {
                let batch = Batch::decode(batch.bytes().to_vec()).unwrap();
                for record in Records::new(batch.bytes()).unwrap() {
                    let record = record.unwrap();
                    let sums = (record.counters.tx, record.counters.rx);
                    records.push((record.key.to_vec(), sums));
                }
            }
            records.sort();
            records
        };
        let mut all = parts.values().flatten();
        assert_eq!(sorted(&mut all), sorted(&mut [&batch].into_iter()));
        assert!(parts.values().any(|batches| batches.len() > 1));
        let mut homes = BTreeMap::new();
        for (partition, batches) in &parts {
            for (batch, again) in batches.iter().zip(&again[partition]) {
                assert_eq!(batch.bytes(), again.bytes());
                assert!(batch.bytes().len() <= bytes_max);
                for record in Records::new(batch.bytes()).unwrap() {
                    let names = record.unwrap().key[HOUR_BYTES..].to_vec();
                    assert_eq!(homes.entry(names).or_insert(partition), &partition);
                }
            }
        }
    }
}
