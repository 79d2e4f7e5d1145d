//! What is known about exporters: their sequence numbers, clocks and sampling rates.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Instant;

use super::Totals;
use crate::command::eprint_line;
use crate::report::since_epoch;

/// Exporters that are remembered; when there are more, those that were silent for longest are forgotten.
const EXPORTERS_MAX: usize = 10_000;
/// A larger gap is the restart of an exporter.
const GAP_MAX: u32 = 1 << 20;
/// A datagram that is late by more is one after the restart of an exporter.
const LATE_MAX: u32 = 1000;
/// Samplers of one exporter.
pub(super) const SAMPLERS_MAX: usize = 1000;
/// An exporter's clock that differs by more seconds is wrong.
const CLOCK_OFF_MAX_S: u64 = 300;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Protocol {
    V5,
    V9,
    Ipfix,
    Sflow,
}

/// A sequence of datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ExporterId {
    pub(super) address: SocketAddr,
    pub(super) protocol: Protocol,
    /// The engine, source or observation domain of the exporter.
    pub(super) domain: u32,
}

#[derive(Debug)]
pub(super) struct Exporter {
    expected: Option<u32>,
    /// By sampler, and for records that name none.
    rates: HashMap<Option<u64>, u64>,
    /// Of exporters that announce none.
    default_rate: u64,
    has_warned: bool,
    seen_at: Instant,
}

/// The exporters of one socket.
#[derive(Debug)]
pub(super) struct Exporters {
    exporters: HashMap<ExporterId, Exporter>,
    default_rate: u64,
    /// Sampling rates that were announced before this process started.
    kept_rates: HashMap<ExporterId, HashMap<Option<u64>, u64>>,
}

impl Exporters {
    pub(super) fn new(
        default_rate: u64,
        kept_rates: HashMap<ExporterId, HashMap<Option<u64>, u64>>,
    ) -> Exporters {
        Exporters {
            exporters: HashMap::new(),
            default_rate,
            kept_rates,
        }
    }

    pub(super) fn get(&mut self, id: ExporterId) -> &mut Exporter {
        let now = Instant::now();
        if self.exporters.len() >= EXPORTERS_MAX && !self.exporters.contains_key(&id) {
            let mut seen: Vec<_> = self.exporters.values().map(|known| known.seen_at).collect();
            let (_, middle, _) = seen.select_nth_unstable(EXPORTERS_MAX / 2);
            let middle = *middle;
            self.exporters.retain(|_, known| known.seen_at > middle);
        }
        let exporter = self.exporters.entry(id).or_insert_with(|| Exporter {
            expected: None,
            rates: self.kept_rates.remove(&id).unwrap_or_default(),
            default_rate: self.default_rate,
            has_warned: false,
            seen_at: now,
        });
        exporter.seen_at = now;
        exporter
    }
}

impl Exporter {
    /// Counts what is missing before a datagram with this sequence number, which has `units` of what the numbers count.
    /// A datagram that arrives late was counted as missing.
    pub(super) fn follow(&mut self, sequence: u32, units: u32, totals: &Totals) {
        if let Some(expected) = self.expected {
            let gap = sequence.wrapping_sub(expected);
            if gap > 0 && gap <= GAP_MAX {
                totals.lost.add(gap.into());
            } else if gap > 0 && expected.wrapping_sub(sequence) <= LATE_MAX {
                return;
            }
        }
        self.expected = Some(sequence.wrapping_add(units));
    }

    /// The next datagram may have any number.
    pub(super) fn forget_sequence(&mut self) {
        self.expected = None;
    }

    pub(super) fn learn_rate(&mut self, sampler: Option<u64>, rate: u64) {
        if self.rates.len() < SAMPLERS_MAX || self.rates.contains_key(&sampler) {
            self.rates.insert(sampler, rate);
        }
    }

    /// By how much to multiply. `announced` is the rate in the record itself.
    pub(super) fn rate(&self, sampler: Option<u64>, announced: Option<u64>) -> u64 {
        let of_sampler = || self.rates.get(&sampler).copied();
        // A record may name a sampler whose rate was announced for all, and the other way round.
        let only = || match self.rates.len() {
            1 => self.rates.values().next().copied(),
            _ => None,
        };
        announced
            .or_else(of_sampler)
            .or_else(only)
            .unwrap_or(self.default_rate)
    }

    /// Compares the clock of the exporter, which says that it is `seconds` since 1970. Warns once if it is wrong.
    pub(super) fn clock(&mut self, seconds: u64, from: SocketAddr, totals: &Totals) -> Clock {
        let now = since_epoch().as_secs();
        let is_wrong = now.abs_diff(seconds) > CLOCK_OFF_MAX_S;
        if is_wrong {
            totals.wrong_clock.add(1);
            if !std::mem::replace(&mut self.has_warned, true) {
                let (by, way) = match seconds > now {
                    true => (seconds - now, "ahead"),
                    false => (now - seconds, "behind"),
                };
                eprint_line(&format!(
                    "flowtally: the clock of {} is {by} s {way}; its times are corrected by that",
                    from.ip()
                ));
            }
        }
        Clock {
            theirs: if is_wrong { seconds } else { now },
            ours: now,
        }
    }
}

/// The clock of an exporter, and ours.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    theirs: u64,
    ours: u64,
}

impl Clock {
    /// A time of the exporter's clock by ours, in seconds since 1970.
    pub(super) fn correct(self, seconds: u64) -> u64 {
        seconds
            .saturating_add(self.ours)
            .saturating_sub(self.theirs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter(rates: &[(Option<u64>, u64)]) -> Exporter {
        Exporter {
            expected: None,
            rates: rates.iter().copied().collect(),
            default_rate: 7,
            has_warned: false,
            seen_at: Instant::now(),
        }
    }

    #[test]
    fn gaps_are_counted_and_restarts_are_not() {
        let mut exporter = exporter(&[]);
        let totals = Totals::default();
        for (sequence, units, lost) in [
            (10_000, 10, 0),
            (10_010, 10, 0),
            (10_025, 5, 5),
            // Late: it was counted.
            (10_020, 5, 5),
            (10_030, 1, 5),
            // The exporter has restarted.
            (0, 1, 5),
            (1, 1, 5),
            (u32::MAX, 2, 5),
            (1, 1, 5),
        ] {
            exporter.follow(sequence, units, &totals);
            assert_eq!(totals.lost.get(), lost, "{sequence}");
        }
    }

    #[test]
    fn the_most_specific_rate_counts() {
        let of_samplers = exporter(&[(Some(1), 100), (Some(2), 1000)]);
        assert_eq!(of_samplers.rate(Some(1), Some(5)), 5);
        assert_eq!(of_samplers.rate(Some(1), None), 100);
        assert_eq!(of_samplers.rate(Some(3), None), 7);
        assert_eq!(of_samplers.rate(None, None), 7);
        assert_eq!(exporter(&[(None, 100)]).rate(Some(1), None), 100);
        assert_eq!(exporter(&[(Some(1), 100)]).rate(None, None), 100);
    }

    #[test]
    fn a_wrong_clock_is_corrected() {
        let mut exporter = exporter(&[]);
        let totals = Totals::default();
        let from: SocketAddr = "127.0.0.1:9".parse().unwrap();
        let now = since_epoch().as_secs();
        assert_eq!(
            exporter.clock(now - 10, from, &totals).correct(now - 100),
            now - 100
        );
        assert_eq!(totals.wrong_clock.get(), 0);
        let clock = exporter.clock(now - 10_000, from, &totals);
        assert!(clock.correct(now - 10_100).abs_diff(now - 100) <= 1);
        let clock = exporter.clock(now + 10_000, from, &totals);
        assert!(clock.correct(now + 9_900).abs_diff(now - 100) <= 1);
        assert_eq!(totals.wrong_clock.get(), 2);
    }

    #[test]
    fn exporters_are_bounded() {
        let mut exporters = Exporters::new(1, HashMap::new());
        for domain in 0..25_000 {
            exporters.get(ExporterId {
                address: "127.0.0.1:9".parse().unwrap(),
                protocol: Protocol::V9,
                domain,
            });
        }
        assert!(exporters.exporters.len() <= EXPORTERS_MAX);
    }
}
