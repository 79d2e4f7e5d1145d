//! Bytes of flows, and what they add up to.

/// Bytes sent and received, of one flow or summed over many.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Bytes from `src_app` to `dest_app`.
    pub tx: u64,
    /// Bytes from `dest_app` to `src_app`.
    pub rx: u64,
}

impl Counters {
    /// Adds `other`; each sum stops at `u64::MAX` and never wraps. Returns whether one was stopped.
    ///
    /// Stopping at the top keeps addition associative and commutative (both ways of bracketing
    /// give `min(sum, MAX)`), so the order in which flows are merged never shows.
    #[inline]
    pub fn add(&mut self, other: Counters) -> bool {
        let (tx, tx_over) = self.tx.overflowing_add(other.tx);
        let (rx, rx_over) = self.rx.overflowing_add(other.rx);
        self.tx = if tx_over { u64::MAX } else { tx };
        self.rx = if rx_over { u64::MAX } else { rx };
        tx_over | rx_over
    }
}

/// What the flows of an hour add up to: an entry of the ledger, which is kept beside the rows and
/// has to agree with them. It stops at no top that could be reached: 2^64 flows of 2^64-1 bytes fit.
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

    /// Takes away what was added before.
    pub fn sub(&mut self, other: Totals) {
        self.flows = self.flows.saturating_sub(other.flows);
        self.tx = self.tx.saturating_sub(other.tx);
        self.rx = self.rx.saturating_sub(other.rx);
    }

    /// Adds one flow.
    #[inline]
    pub fn count(&mut self, flow: Counters) {
        // 2^64 of them do not pass the top.
        self.flows += 1;
        self.tx += u128::from(flow.tx);
        self.rx += u128::from(flow.rx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_stop_at_the_top_and_say_so() {
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
