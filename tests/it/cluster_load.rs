//! The load on a cluster during failures: queries that are checked, and batches that have to count once.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Mutex, MutexGuard};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::cluster_chaos::{ANSWER_MAX, Brokers};
use crate::nodes::Node;
use crate::sums::{Sums, TestQuery};
use crate::support::{Client, TestFlow, json_body};

/// The state that all threads share.
pub(crate) struct World<'a> {
    pub(crate) nodes: &'a [Node],
    pub(crate) sums: Mutex<Sums>,
    pub(crate) stop: AtomicBool,
    pub(crate) right: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) away: AtomicU64,
    pub(crate) partial: AtomicU64,
    pub(crate) slowest_ms: AtomicU64,
    pub(crate) steps: AtomicU64,
}

/// If a thread fails, all have to end.
pub(crate) struct StopAll<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopAll<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::SeqCst);
        }
    }
}

impl World<'_> {
    pub(crate) fn sums(&self) -> MutexGuard<'_, Sums> {
        self.sums.lock()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Waits, unless the test has failed meanwhile. The assertions do not depend on the time.
    pub(crate) fn pause(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end && !self.has_ended() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Sends one query to one node: the response is a 503, or correct.
    pub(crate) fn ask(&self, node: &Node, client: &Client, random: &mut StdRng) {
        let query = TestQuery::any(random);
        let floor = self.sums().floor();
        let start = Instant::now();
        let response = client.get(&query.path(), &[]);
        let took = start.elapsed();
        let Ok(response) = response else {
            self.away.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.slowest_ms
            .fetch_max(took.as_millis() as u64, Ordering::Relaxed);
        let of = || format!("{} was asked {}", node.name, query.path());
        assert!(took < ANSWER_MAX, "{}: it took {took:?}", of());
        if response.status == 503 {
            assert!(response.header("retry-after").is_some(), "{}", of());
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        assert_eq!(response.status, 200, "{}: {response:?}", of());
        let is_partial = response.header("flowtally-missing").is_some();
        assert!(!is_partial || query.partial, "{}", of());
        let checked = query.check(&response.json(), is_partial, &floor, &self.sums().ceiling);
        if let Err(why) = checked {
            let asked = format!("asked {:?} ago, answered {:?}", start.elapsed(), took);
            panic!("{}: {why}; {asked}", of());
        }
        if query.shows_rows() && !is_partial {
            self.sums().saw(&response.rows());
        }
        let counter = if is_partial {
            &self.partial
        } else {
            &self.right
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Sends queries to one node, one at a time.
    pub(crate) fn check(&self, number: usize, seed: u64) {
        let _stop = StopAll(&self.stop);
        let mut random = StdRng::seed_from_u64(seed);
        let client = self.nodes[number].client();
        while !self.has_ended() {
            self.ask(&self.nodes[number], &client, &mut random);
            self.pause(Duration::from_millis(50));
        }
    }

    /// Posts batches one at a time, each under its key through any node, until it is visible.
    pub(crate) fn post(&self, poster: usize, seed: u64, posting: &AtomicBool) {
        let _stop = StopAll(&self.stop);
        let mut random = StdRng::seed_from_u64(seed);
        let mut batch = 0;
        while posting.load(Ordering::SeqCst) && !self.has_ended() {
            let flow = |_| {
                let (src, dest) = (random.random_range(0..20), random.random_range(0..5));
                let (src, dest) = (format!("step-{src}"), format!("d-{dest}"));
                TestFlow::new(5, &src, &dest, "v", random.random_range(1..9), 1)
            };
            let flows: Vec<_> = (0..10).map(flow).collect();
            let (key, body) = (format!("step-{poster}-{batch}"), json_body(&flows));
            batch += 1;
            let headers = [
                ("content-type", "application/json"),
                ("idempotency-key", &*key),
            ];
            self.sums().sends(&flows);
            while !self.has_ended() {
                let node = &self.nodes[random.random_range(0..self.nodes.len())];
                let response = node.client().post("/flows?wait=visible", &headers, &body);
                match response {
                    Ok(response) if response.status == 200 => {
                        self.sums().sees(&flows);
                        self.steps.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Ok(response) => assert!([501, 503].contains(&response.status), "{response:?}"),
                    Err(_away) => {}
                }
                self.pause(Duration::from_millis(20));
            }
        }
    }

    /// Kills brokers one at a time, each for a while; returns the number of kills.
    pub(crate) fn kill_brokers(&self, brokers: &Brokers, seed: u64, failing: &AtomicBool) -> u64 {
        let _stop = StopAll(&self.stop);
        let mut random = StdRng::seed_from_u64(seed);
        let mut kills = 0;
        let goes_on = || failing.load(Ordering::SeqCst) && !self.has_ended();
        loop {
            let until = Instant::now() + Duration::from_millis(random.random_range(5_000..25_000));
            while Instant::now() < until && goes_on() {
                // Interval between checks whether it continues.
                std::thread::sleep(Duration::from_millis(50));
            }
            if !goes_on() {
                return kills;
            }
            let broker = random.random_range(1..=3);
            log(&format!("broker {broker} is killed"));
            brokers.to("kill", broker);
            kills += 1;
            self.pause(Duration::from_millis(random.random_range(500..8_000)));
            brokers.to("restart", broker);
            log(&format!("broker {broker} is back"));
        }
    }
}

/// Logs an event with its time, in the format of the nodes' logs.
pub(crate) fn log(what: &str) {
    let now = std::time::SystemTime::now();
    let since = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    let day = since.as_secs() % 86_400;
    let (h, m, s) = (day / 3600, day / 60 % 60, day % 60);
    println!("{h:02}:{m:02}:{s:02}.{:03} {what}", since.subsec_millis());
}
