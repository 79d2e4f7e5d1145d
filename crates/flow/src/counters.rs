//! Byte counters of flows, and their totals.

/// Bytes sent and received, of one flow or summed over many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes from `src_app` to `dest_app`.
    pub tx: u64,
    /// Bytes from `dest_app` to `src_app`.
    pub rx: u64,
}

impl Counters {
    /// Adds `other` with saturation at `u64::MAX`. Returns whether a sum saturated.
    ///
    /// Saturation keeps addition associative and commutative (any grouping gives `min(sum, MAX)`), so the result does
    /// not depend on the order in which flows are merged.
    #[inline]
    pub fn add(&mut self, other: Counters) -> bool {
        let (tx, tx_over) = self.tx.overflowing_add(other.tx);
        let (rx, rx_over) = self.rx.overflowing_add(other.rx);
        self.tx = if tx_over { u64::MAX } else { tx };
        self.rx = if rx_over { u64::MAX } else { rx };
        tx_over | rx_over
    }
}

/// The totals of an hour's flows: an entry of the ledger, which is stored beside the rows and must agree with them.
/// It cannot saturate in practice: 2^64 flows of 2^64-1 bytes fit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub flows: u64,
    /// Sum of `bytes_tx`.
    pub tx: u128,
    /// Sum of `bytes_rx`.
    pub rx: u128,
}

impl Totals {
    /// Adds `other`.
    #[inline]
    pub fn add(&mut self, other: Totals) {
        self.flows = self.flows.saturating_add(other.flows);
        self.tx = self.tx.saturating_add(other.tx);
        self.rx = self.rx.saturating_add(other.rx);
    }

    /// Subtracts what was added before.
    pub fn sub(&mut self, other: Totals) {
        self.flows = self.flows.saturating_sub(other.flows);
        self.tx = self.tx.saturating_sub(other.tx);
        self.rx = self.rx.saturating_sub(other.rx);
    }

    /// Adds one flow.
    #[inline]
    pub fn count(&mut self, flow: Counters) {
        // 2^64 flows do not overflow the sums.
        self.flows += 1;
        self.tx += u128::from(flow.tx);
        self.rx += u128::from(flow.rx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_saturate_and_report_it() {
        let mut c = Counters {
            tx: u64::MAX - 1,
            rx: 5,
        };
        assert!(!c.add(Counters { tx: 1, rx: 1 }));
        assert_eq!(
            c,
            Counters {
                tx: u64::MAX,
                rx: 6
            }
        );
        assert!(c.add(Counters { tx: 1, rx: 1 }));
        assert_eq!(
            c,
            Counters {
                tx: u64::MAX,
                rx: 7
            }
        );
    }
}
