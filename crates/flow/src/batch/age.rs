//! Removes the flows of a batch that are too old to count.

use super::Batch;
use super::split::SplitBatch;
use crate::Hour;

impl Batch {
    /// The batch without its flows before `cutoff`, which [`Batch::too_old`] counts. The receipt is still that of the
    /// whole batch. A batch without such flows is returned unchanged.
    pub fn without_hours_before(mut self, cutoff: Hour) -> Batch {
        if self.ledger().all(|(hour, _)| hour >= cutoff) {
            return self;
        }
        let mut kept = SplitBatch::new(self.bytes.len());
        let mut hashes = Vec::with_capacity(self.hashes.len());
        let valid = self.valid();
        for (record, hash) in valid.records().zip(valid.hashes()) {
            if record.hour >= cutoff {
                kept.push(&record);
                hashes.push(*hash);
            }
        }
        self.too_old += (self.hashes.len() - hashes.len()) as u64;
        (self.bytes, self.hashes) = (kept.finish(), hashes);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BatchBuilder, Counters, IdempotencyKey};

    fn batch(hours: impl Iterator<Item = u32>) -> Batch {
        let mut builder = BatchBuilder::with_capacity(0);
        for (number, hour) in hours.enumerate() {
            let (name, hour) = (format!("s\0{number}"), Hour::new(u64::from(hour)).unwrap());
            let counters = Counters {
                tx: number as u64,
                rx: 300,
            };
            builder.push(hour, [name.as_bytes(), b"d", b"v"], counters);
        }
        builder.finish()
    }

    #[test]
    fn only_flows_before_the_cutoff_are_removed() {
        let hours = || (0..1000_u32).map(|n| n % 10);
        let key = IdempotencyKey::new(b"key").unwrap();
        let whole = batch(hours()).with_key(key);
        let fingerprint = whole.receipt().unwrap().1;
        // In two steps, as when the cutoff moves in between.
        let hour = |hour| Hour::new(hour).unwrap();
        let kept = whole
            .without_hours_before(hour(2))
            .without_hours_before(hour(4));
        assert_eq!((kept.flows(), kept.too_old()), (600, 400));
        assert_eq!(kept.receipt().unwrap().1, fingerprint);
        let decoded = Batch::decode(kept.bytes().to_vec()).unwrap();
        assert_eq!(decoded.hashes(), kept.hashes());
        assert!(
            decoded
                .ledger()
                .all(|(of, totals)| of >= hour(4) && totals.flows == 100)
        );
        let none = kept.without_hours_before(hour(10));
        assert_eq!((none.flows(), none.too_old()), (0, 1000));
        assert!(Batch::decode(none.bytes().to_vec()).is_ok());
    }
}
