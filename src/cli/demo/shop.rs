//! The made-up shop: who calls whom, and how many bytes went over each call at which time.
//!
//! Everything follows from the table, the hour at which the demo starts and the number of its days: two demos of the same
//! hour have the same flows in all hours that are over.

use std::f64::consts::TAU;

use serde::Serialize;

/// The services and their calls; `data/make-sample-day` reads it too.
const TABLE: &str = include_str!("../../../data/shop.txt");
/// Calls of an application that the table does not have: it appears during the demo's days.
const NEW_CALLS: &str = "\
call web assistant 60 900 day
call mobile-api assistant 45 640 day
call assistant search 30 210 day
call assistant catalog 26 340 day
call assistant orders 6 28 day
";
const NEW_APP: &str = "assistant";
const NEW_APP_VPC: &str = "vpc-shop";
/// It scrapes all other services.
const SCRAPER: &str = "prometheus";
/// Megabytes of an hour's scrapes of one service, sent and received.
const SCRAPED: (f64, f64) = (0.4, 9.0);

pub(super) const HOUR_MS: u64 = 3_600_000;
const DAY_HOURS: u32 = 24;
/// The largest deviation of a sum from what the time of day and the weekday explain.
const NOISE: f64 = 0.15;
/// Traffic of a weekday, as a factor: people shop at the weekend. 1970-01-01 was a Thursday.
const FROM_THURSDAY: [f64; 7] = [1.02, 1.1, 1.35, 1.25, 1.0, 0.97, 0.98];
/// The same for what offices use.
const OFFICES_FROM_THURSDAY: [f64; 7] = [1.0, 0.9, 0.25, 0.2, 1.05, 1.08, 1.06];
/// An application that partners' offices use.
const OFFICE_APP: &str = "partner-api";
/// Growth in a day.
const GROWTH: f64 = 0.004;

/// Traffic comes in waves, this many in an hour, each of which is at most this much more or less than the average.
const WAVES: f64 = 40.0;
const WAVE_HEIGHT: f64 = 0.6;

/// Hours for which payments do not work, and what is left of their traffic.
const OUTAGE_HOURS: u32 = 3;
const OUTAGE_PART: f64 = 0.04;
/// In the hour after, customers try again.
const OUTAGE_AFTER: f64 = 1.6;
/// Hours until a new application has all of its traffic.
const RAMP_HOURS: u32 = 24;

/// One flow, as `POST /flows` takes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Flow {
    pub(super) src_app: &'static str,
    pub(super) dest_app: &'static str,
    pub(super) vpc_id: &'static str,
    pub(super) bytes_tx: u64,
    pub(super) bytes_rx: u64,
    /// Since the epoch.
    pub(super) hour: u32,
}

/// Something that happened in the shop before the demo started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Story {
    /// When it began.
    pub(super) hour: u32,
    /// What happened, for people.
    pub(super) what: &'static str,
    /// The filters with which the page shows it.
    pub(super) filters: &'static str,
}

#[derive(Clone, Debug)]
pub(super) struct Shop {
    calls: Vec<Call>,
    /// The first hour that has flows.
    first: u32,
    /// When payments fail, when a deploy doubles a pair's traffic, and when an application appears.
    outage: u32,
    deploy: u32,
    launch: u32,
}

/// A service that calls another one.
#[derive(Clone, Copy, Debug)]
struct Call {
    src: &'static str,
    dest: &'static str,
    vpc: &'static str,
    /// Bytes of an hour at the peak.
    tx: f64,
    rx: f64,
    rhythm: Rhythm,
}

/// How traffic depends on the time of day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rhythm {
    /// Customers: a quiet night, a rise to noon, a peak in the evening.
    Day,
    /// Batch jobs.
    Night,
    /// Much the same at all times.
    Flat,
}

impl Shop {
    /// A shop whose flows begin so many days before the hour `now`.
    pub(super) fn new(now: u32, days: u32) -> Shop {
        let hours = days * DAY_HOURS;
        Shop {
            calls: calls(),
            first: now.saturating_sub(hours),
            outage: now.saturating_sub(hours * 8 / 15),
            deploy: now.saturating_sub(hours * 3 / 10),
            launch: now.saturating_sub(hours * 2 / 15),
        }
    }

    /// The time at which its flows begin, in milliseconds since the epoch.
    pub(super) fn begins_at(&self) -> u64 {
        u64::from(self.first) * HOUR_MS
    }

    /// In the order in which they happened.
    pub(super) fn stories(&self) -> [Story; 3] {
        [
            Story {
                hour: self.outage,
                what: "payments failed for three hours",
                filters: "peer=payments",
            },
            Story {
                hour: self.deploy,
                what: "a deploy doubled the traffic from web to recommendations",
                filters: "src_app=web&dest_app=recommendations",
            },
            Story {
                hour: self.launch,
                what: "a new application appeared: assistant",
                filters: "peer=assistant",
            },
        ]
    }

    /// The flows of the time from `from` to `to`, in milliseconds since the epoch: at most one for each call and hour. The
    /// flows of consecutive times add up to the sums of whole hours exactly, wherever the cuts are.
    pub(super) fn flows(&self, from: u64, to: u64) -> Vec<Flow> {
        let mut flows = Vec::new();
        for hour in from / HOUR_MS..to.div_ceil(HOUR_MS) {
            let start = hour * HOUR_MS;
            let part = |at: u64| at.saturating_sub(start).min(HOUR_MS) as f64 / HOUR_MS as f64;
            let (begin, end) = (part(from), part(to));
            let Ok(hour) = u32::try_from(hour) else { break };
            for (index, call) in self.calls.iter().enumerate() {
                let [bytes_tx, bytes_rx] = self.sums(index, call, hour).map(|sum| {
                    let until = |part| part_of(sum, passed(part, index));
                    until(end).saturating_sub(until(begin))
                });
                if bytes_tx > 0 || bytes_rx > 0 {
                    flows.push(Flow {
                        src_app: call.src,
                        dest_app: call.dest,
                        vpc_id: call.vpc,
                        bytes_tx,
                        bytes_rx,
                        hour,
                    });
                }
            }
        }
        flows
    }

    /// Bytes that the call at `index` sends and receives in a whole hour.
    fn sums(&self, index: usize, call: &Call, hour: u32) -> [u64; 2] {
        let days = f64::from(hour.saturating_sub(self.first)) / f64::from(DAY_HOURS);
        let usual = call.rhythm.share(hour % DAY_HOURS) * call.weekday(hour);
        let share = usual * (1.0 + GROWTH * days) * self.happening(call, hour);
        let mut direction = 0;
        [call.tx, call.rx].map(|peak| {
            direction += 1;
            let seed = u64::from(hour) << 16 | (index as u64) << 1 | (direction - 1);
            (peak * share * (1.0 + NOISE * (2.0 * random(seed) - 1.0))) as u64
        })
    }

    /// The factor by which the stories change the traffic of a call.
    fn happening(&self, call: &Call, hour: u32) -> f64 {
        let is_by = |app: &str| call.src == app || call.dest == app;
        if is_by(NEW_APP) {
            return match hour.checked_sub(self.launch) {
                None => 0.0,
                Some(age) => f64::from((age + 1).min(RAMP_HOURS)) / f64::from(RAMP_HOURS),
            };
        }
        if is_by("payments") && hour >= self.outage {
            match hour - self.outage {
                0..OUTAGE_HOURS => return OUTAGE_PART,
                OUTAGE_HOURS => return OUTAGE_AFTER,
                _ => {}
            }
        }
        let is_deployed = call.src == "web" && call.dest == "recommendations";
        match is_deployed && hour >= self.deploy {
            true => 2.0,
            false => 1.0,
        }
    }
}

impl Call {
    fn weekday(&self, hour: u32) -> f64 {
        let day = (hour / DAY_HOURS % 7) as usize;
        match self.rhythm {
            Rhythm::Day if self.src == OFFICE_APP || self.dest == OFFICE_APP => {
                OFFICES_FROM_THURSDAY[day]
            }
            Rhythm::Day => FROM_THURSDAY[day],
            Rhythm::Night | Rhythm::Flat => 1.0,
        }
    }
}

impl Rhythm {
    /// The share of the peak at an hour of the day.
    fn share(self, hour: u32) -> f64 {
        let at = f64::from(hour);
        let noon = (TAU / 2.0 * (at - 6.0) / 15.0).sin().max(0.0);
        let evening = (-((at - 20.0) / 1.8).powi(2)).exp();
        let day = 0.08 + 0.62 * noon + 0.3 * evening;
        match self {
            Rhythm::Day => day,
            Rhythm::Flat => 0.6 + 0.4 * day,
            Rhythm::Night => match hour {
                1 => 0.6,
                2 => 1.0,
                3 => 0.9,
                4 => 0.35,
                _ => 0.0,
            },
        }
    }
}

/// The calls of the table, of the new application, and of the scraper.
fn calls() -> Vec<Call> {
    let mut vpcs = vec![(NEW_APP, NEW_APP_VPC)];
    for line in TABLE.lines() {
        if let Some((vpc, services)) = line.strip_prefix("vpc ").and_then(|l| l.split_once(' ')) {
            vpcs.extend(services.split_whitespace().map(|service| (service, vpc)));
        }
    }
    let vpc_of = |app: &str| {
        let found = vpcs.iter().find(|(service, _)| *service == app);
        found.map_or("", |(_, vpc)| *vpc)
    };
    let called = TABLE.lines().chain(NEW_CALLS.lines());
    let mut calls: Vec<Call> = called.filter_map(|line| call(line, &vpc_of)).collect();
    let scraped = vpcs.iter().filter(|(service, _)| *service != SCRAPER);
    calls.extend(scraped.map(|(service, _)| Call {
        src: SCRAPER,
        dest: service,
        vpc: vpc_of(SCRAPER),
        tx: SCRAPED.0 * 1e6,
        rx: SCRAPED.1 * 1e6,
        rhythm: Rhythm::Flat,
    }));
    calls
}

/// The call that a line of the table has, if it has one.
fn call(line: &'static str, vpc_of: &impl Fn(&str) -> &'static str) -> Option<Call> {
    let mut words = line.strip_prefix("call ")?.split_whitespace();
    let (src, dest) = (words.next()?, words.next()?);
    let mut bytes = || Some(words.next()?.parse::<f64>().ok()? * 1e6);
    let (tx, rx) = (bytes()?, bytes()?);
    let rhythm = match words.next()? {
        "day" => Rhythm::Day,
        "night" => Rhythm::Night,
        "flat" => Rhythm::Flat,
        _ => return None,
    };
    Some(Call {
        src,
        dest,
        vpc: vpc_of(src),
        tx,
        rx,
        rhythm,
    })
}

/// The part of an hour's bytes that has passed when this part of the hour is over: it only grows, in waves, which differ
/// from call to call.
fn passed(part: f64, index: usize) -> f64 {
    if part >= 1.0 {
        return 1.0;
    }
    let begin = index as f64 * 2.4;
    let wave = (TAU * WAVES * part + begin).sin() - begin.sin();
    (part + WAVE_HEIGHT * wave / (TAU * WAVES)).clamp(0.0, 1.0)
}

fn part_of(sum: u64, part: f64) -> u64 {
    match part >= 1.0 {
        true => sum,
        false => (sum as f64 * part) as u64,
    }
}

/// A number from 0 to 1 that depends on the seed alone (SplitMix64).
fn random(seed: u64) -> f64 {
    let mut bits = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((bits ^ (bits >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// 2026-11-29 15:00, a Sunday.
    const NOW: u32 = 498_879;

    fn shop() -> Shop {
        Shop::new(NOW, 30)
    }

    fn hour_of(shop: &Shop, hour: u32) -> Vec<Flow> {
        let start = u64::from(hour) * HOUR_MS;
        shop.flows(start, start + HOUR_MS)
    }

    /// Bytes of both directions of the flows for which `keep` is true.
    fn bytes(flows: &[Flow], keep: impl Fn(&Flow) -> bool) -> u64 {
        let kept = flows.iter().filter(|flow| keep(flow));
        kept.map(|flow| flow.bytes_tx + flow.bytes_rx).sum()
    }

    #[test]
    fn every_line_of_the_table_is_read() {
        let lines = |kind: &str| TABLE.lines().filter(|l| l.starts_with(kind)).count();
        let calls = calls();
        let scraped = calls.iter().filter(|call| call.src == SCRAPER).count();
        assert_eq!(
            calls.len() - scraped,
            lines("call ") + NEW_CALLS.lines().count()
        );
        assert_eq!(lines("vpc "), 3);
        assert!(scraped > 30, "{scraped}");
        assert!(calls.iter().all(|call| call.vpc.starts_with("vpc-")));
        for line in TABLE.lines() {
            assert!(
                line.is_empty() || ["#", "vpc ", "call "].iter().any(|k| line.starts_with(k)),
                "{line}"
            );
        }
    }

    #[test]
    fn the_same_hour_has_the_same_flows() {
        let hour = hour_of(&shop(), NOW - 100);
        assert_eq!(hour, hour_of(&Shop::new(NOW, 30), NOW - 100));
        assert_ne!(hour, hour_of(&shop(), NOW - 101));
        assert!(hour.len() > 100, "{}", hour.len());
    }

    /// What is sent live adds up to what another demo has from its start.
    #[test]
    fn parts_of_an_hour_add_up_to_it() {
        let shop = shop();
        let start = u64::from(NOW) * HOUR_MS;
        let cuts = [0, 1, 1_999, 4_001, 60_000, 1_800_123, 3_599_999, HOUR_MS];
        let mut sums: BTreeMap<_, (u64, u64)> = BTreeMap::new();
        for part in cuts.windows(2) {
            for flow in shop.flows(start + part[0], start + part[1]) {
                let sum = sums.entry((flow.src_app, flow.dest_app)).or_default();
                *sum = (sum.0 + flow.bytes_tx, sum.1 + flow.bytes_rx);
            }
        }
        let whole = hour_of(&shop, NOW);
        assert_eq!(sums.len(), whole.len());
        for flow in &whole {
            let sum = sums[&(flow.src_app, flow.dest_app)];
            assert_eq!(sum, (flow.bytes_tx, flow.bytes_rx), "{flow:?}");
        }
        // Over the end of an hour, each flow is in its own.
        let both = shop.flows(start - 1_000_000, start + 1_000_000);
        let hours: Vec<u32> = both.iter().map(|flow| flow.hour).collect();
        assert!(hours.contains(&(NOW - 1)) && hours.contains(&NOW));
        assert!(shop.flows(start, start).is_empty());
    }

    #[test]
    fn traffic_has_the_shape_of_a_shops() {
        let shop = shop();
        let all = |hour| bytes(&hour_of(&shop, hour), |_| true);
        // Of the same day, the evening has more than the night.
        let midnight = NOW / 24 * 24 - 7 * 24;
        let of_customers = |hour| bytes(&hour_of(&shop, hour), |flow| flow.src_app == "web");
        assert!(of_customers(midnight + 20) > 4 * of_customers(midnight + 3));
        // Sunday (the day of NOW, a week before) has more than Tuesday.
        assert!(all(midnight + 20) > all(midnight + 2 * 24 + 20));
        let of_offices = |hour| bytes(&hour_of(&shop, hour), |flow| flow.src_app == OFFICE_APP);
        assert!(of_offices(midnight + 14) * 2 < of_offices(midnight + 2 * 24 + 14));
        // Backups run at night.
        let of_backups = |hour| bytes(&hour_of(&shop, hour), |flow| flow.src_app == "backup");
        assert!(of_backups(midnight + 2) > 0 && of_backups(midnight + 12) == 0);
    }

    #[test]
    fn the_stories_are_in_the_flows() {
        for days in [30, 1, 365] {
            let shop = Shop::new(NOW, days);
            let [outage, deploy, launch] = shop.stories();
            assert!(shop.first <= outage.hour && outage.hour < deploy.hour);
            assert!(deploy.hour < launch.hour && launch.hour < NOW, "{days}");
            let of = |hour, app: &str| {
                let is_by = |flow: &Flow| flow.src_app == app || flow.dest_app == app;
                bytes(&hour_of(&shop, hour), is_by)
            };
            // Against the same hour without the story: another demo, in which it happens at another time.
            let other = Shop {
                outage: u32::MAX,
                deploy: u32::MAX,
                ..shop.clone()
            };
            let before = bytes(&hour_of(&other, outage.hour), |flow| {
                flow.src_app == "payments"
            });
            let during = bytes(&hour_of(&shop, outage.hour), |flow| {
                flow.src_app == "payments"
            });
            assert!(during * 20 < before, "{during} {before}");
            let is_pair = |flow: &Flow| flow.src_app == "web" && flow.dest_app == "recommendations";
            let [once, twice] = [&other, &shop].map(|of| bytes(&hour_of(of, deploy.hour), is_pair));
            assert!((2 * once).abs_diff(twice) <= 2, "{once} {twice}");
            assert_eq!(of(launch.hour - 1, NEW_APP), 0);
            assert!(of(launch.hour, NEW_APP) > 0);
        }
    }
}
