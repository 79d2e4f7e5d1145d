//! Bytes that were counted and are not in a report yet, summed by applications and hour.

use std::collections::HashMap;
use std::sync::Arc;

use flow::Counters;

/// Pairs of applications in one report. Beyond it, destinations are summed under one name; and beyond twice of it, sources
/// as well.
const PAIRS_MAX: usize = 50_000;

/// The applications at both ends, and the hour.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Pair {
    src_app: Arc<str>,
    dest_app: Arc<str>,
    hour: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Sums {
    pairs: HashMap<Pair, Counters>,
    /// Bytes whose destination was summed under [`Sums::MANY`].
    pub(crate) many_bytes: u64,
}

impl Sums {
    /// The name of the ends of pairs beyond [`PAIRS_MAX`].
    pub(crate) const MANY: &str = "unknown";

    pub(crate) fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.pairs.clear();
    }

    /// Adds all of `other`.
    pub(crate) fn merge(&mut self, other: &Sums) {
        for (pair, bytes) in &other.pairs {
            self.add(&pair.src_app, &pair.dest_app, pair.hour, *bytes);
        }
        self.many_bytes += other.many_bytes;
    }

    pub(crate) fn len(&self) -> usize {
        self.pairs.len()
    }

    pub(crate) fn add(
        &mut self,
        src_app: &Arc<str>,
        dest_app: &Arc<str>,
        hour: u32,
        bytes: Counters,
    ) {
        let mut pair = Pair {
            src_app: src_app.clone(),
            dest_app: dest_app.clone(),
            hour,
        };
        if self.pairs.len() >= PAIRS_MAX && !self.pairs.contains_key(&pair) {
            pair.dest_app = Sums::MANY.into();
            if self.pairs.len() >= 2 * PAIRS_MAX && !self.pairs.contains_key(&pair) {
                pair.src_app = Sums::MANY.into();
            }
            self.many_bytes += bytes.tx.saturating_add(bytes.rx);
        }
        let sum = self.pairs.entry(pair).or_default();
        sum.tx = sum.tx.saturating_add(bytes.tx);
        sum.rx = sum.rx.saturating_add(bytes.rx);
    }

    /// All of it as a JSON array of flows.
    pub(crate) fn to_json(&self, vpc_id: &str) -> Result<Vec<u8>, serde_json::Error> {
        #[derive(serde::Serialize)]
        struct Flow<'a> {
            src_app: &'a str,
            dest_app: &'a str,
            vpc_id: &'a str,
            bytes_tx: u64,
            bytes_rx: u64,
            hour: u32,
        }
        let flows = self.pairs.iter().map(|(pair, sum)| Flow {
            src_app: &pair.src_app,
            dest_app: &pair.dest_app,
            vpc_id,
            bytes_tx: sum.tx,
            bytes_rx: sum.rx,
            hour: pair.hour,
        });
        serde_json::to_vec(&flows.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_pairs_than_a_report_holds_lose_their_names_and_no_bytes() {
        let mut sums = Sums::default();
        let bytes = Counters { tx: 1, rx: 2 };
        let src: Arc<str> = "a".into();
        for n in 0..PAIRS_MAX + 10 {
            sums.add(&src, &n.to_string().into(), 7, bytes);
        }
        assert_eq!(sums.len(), PAIRS_MAX + 1);
        assert_eq!(sums.many_bytes, 30);
        let flows = sums.to_json("v").unwrap();
        let flows: Vec<serde_json::Value> = serde_json::from_slice(&flows).unwrap();
        let tx: u64 = flows
            .iter()
            .map(|flow| flow["bytes_tx"].as_u64().unwrap())
            .sum();
        assert_eq!(tx, PAIRS_MAX as u64 + 10);
    }
}
