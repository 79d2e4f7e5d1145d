//! `--traffic-metrics`: the largest pairs of applications of the newest complete hour, for Prometheus.

use std::process::Command;

use flow::HourUnit;

use crate::support::{Daemon, TestFlow};
use crate::wait::until;

const PREFIX: &str = "flowtally_traffic_";

/// The lines of `/metrics` about traffic, in order.
fn shown(daemon: &Daemon) -> Vec<String> {
    let response = daemon.client.get("/metrics", &[]).unwrap();
    let text = String::from_utf8(response.body).unwrap();
    let lines = text.lines().filter(|line| line.starts_with(PREFIX));
    lines.map(str::to_owned).collect()
}

fn hour_line(hour: u32) -> String {
    format!("flowtally_traffic_hour {hour}")
}

fn pair_lines(names: [&str; 3], tx: u64, rx: u64) -> [String; 2] {
    let [src, dest, vpc] = names;
    let labels = format!("src_app=\"{src}\",dest_app=\"{dest}\",vpc_id=\"{vpc}\"");
    [("rx", rx), ("tx", tx)].map(|(direction, bytes)| {
        format!("flowtally_traffic_hour_bytes{{{labels},direction=\"{direction}\"}} {bytes}")
    })
}

fn other_lines(tx: u64, rx: u64) -> [String; 2] {
    [("rx", rx), ("tx", tx)].map(|(direction, bytes)| {
        format!("flowtally_traffic_hour_other_bytes{{direction=\"{direction}\"}} {bytes}")
    })
}

/// Waits until exactly these lines are shown.
#[track_caller]
fn until_shown(daemon: &Daemon, hour: u32, pairs: &[[String; 2]], other: [String; 2]) {
    let mut expected = vec![hour_line(hour)];
    expected.extend(pairs.concat());
    expected.extend(other);
    until(format_args!("{expected:#?}"), || shown(daemon) == expected);
}

#[test]
fn metrics_show_the_largest_pairs_of_the_newest_complete_hour() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = ["--traffic-metrics", "2", "--flush-interval", "1"];
    let mut daemon = Daemon::start_with(dir.path(), &arguments);
    // The test may run while an hour ends: so these hours are over all the time, and the newest is not.
    let over = HourUnit::clock_hour() - 3;
    let growing = over + 24;
    let flow = |hour, src, dest, vpc, tx, rx| TestFlow::new(hour, src, dest, vpc, tx, rx);
    daemon.client.accept(&[
        flow(over - 1, "old", "db", "v", 1_000, 1),
        flow(growing, "web", "db", "v", 1_000_000, 1),
        // Their order is that of both directions together; the same pair in two VPCs is two.
        flow(over, "ab", "c", "v", 10, 90),
        flow(over, "a", "bc", "v", 60, 20),
        flow(over, "ab", "c", "w", 3, 4),
        flow(over, "x", "y", "v", 5, 6),
    ]);
    let largest = [
        pair_lines(["a", "bc", "v"], 60, 20),
        pair_lines(["ab", "c", "v"], 10, 90),
    ];
    until_shown(&daemon, over, &largest, other_lines(8, 10));

    // Late flows move a pair into the top; the one that leaves it is among the others.
    let late = [
        flow(over, "x", "y", "v", 500, 0),
        flow(over, "ab", "c", "v", 0, 1),
    ];
    daemon.client.accept(&late);
    let largest = [
        pair_lines(["ab", "c", "v"], 10, 91),
        pair_lines(["x", "y", "v"], 505, 6),
    ];
    until_shown(&daemon, over, &largest, other_lines(63, 24));

    // A newer hour that is over, with fewer pairs than are shown.
    daemon
        .client
        .accept(&[flow(over + 1, "new", "db", "v", 1, 2)]);
    let newest = [pair_lines(["new", "db", "v"], 1, 2)];
    until_shown(&daemon, over + 1, &newest, other_lines(0, 0));

    // After a restart, the same from the disk.
    daemon.kill();
    let daemon = Daemon::start_with(dir.path(), &arguments);
    until_shown(&daemon, over + 1, &newest, other_lines(0, 0));

    // An hour that is deleted is not shown.
    for hour in [over + 1, over, over - 1] {
        let deleted = daemon.client.delete(&format!("/flows?hour={hour}"));
        assert_eq!(deleted.unwrap().status, 200);
    }
    until("no metrics of traffic", || shown(&daemon).is_empty());
    daemon.stop();
}

/// Hours of a day are never over: among them, it is the newest one.
#[test]
fn metrics_show_the_newest_hour_of_a_day() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--traffic-metrics", "500"]);
    let flows = [7, 9].map(|hour| TestFlow::new(hour, "a", "b", "v", u64::from(hour), 1));
    daemon.client.accept(&flows);
    let pairs = [pair_lines(["a", "b", "v"], 9, 1)];
    until_shown(&daemon, 9, &pairs, other_lines(0, 0));
}

/// Each node shows the largest pairs of its own partitions; together, the nodes have all bytes once.
#[cfg(feature = "kafka")]
#[test]
fn nodes_share_the_metrics_of_traffic() {
    use crate::cluster::post;
    use crate::kafka::BROKER;
    use crate::nodes::{Node, until_answered};

    let dir = tempfile::tempdir().unwrap();
    let nodes = ["a", "b"].map(|name| {
        let mut node = Node::new(&BROKER.addresses, "traffic-metrics", name, dir.path());
        node.more = vec!["--traffic-metrics".into(), "3".into()];
        node
    });
    let daemons = nodes.each_ref().map(Node::start);
    for daemon in &daemons {
        until_answered(&daemon.client, "/hours");
    }
    let over = HourUnit::clock_hour() - 3;
    let pairs: Vec<_> = (1..=20).map(|n| (format!("s{n}"), n)).collect();
    let flows: Vec<_> = pairs
        .iter()
        .map(|(name, bytes)| TestFlow::new(over, name, "d", "v", *bytes, 0))
        .collect();
    post(&daemons[0].client, "traffic", &flows);
    let sent = |line: &&String| line.contains("direction=\"tx\"");
    let value = |line: &String| line.rsplit(' ').next()?.parse::<u64>().ok();
    until(
        "the nodes to show all bytes once, and the largest pairs",
        || {
            let lines = daemons.each_ref().map(shown).concat();
            let bytes: u64 = lines.iter().filter(sent).filter_map(value).sum();
            let largest = pairs[17..].iter();
            let mut largest =
                largest.flat_map(|(name, bytes)| pair_lines([name, "d", "v"], *bytes, 0));
            bytes == 210 && largest.all(|line| lines.contains(&line))
        },
    );
    for daemon in &daemons {
        let lines = shown(daemon);
        let pairs = lines.iter().filter(sent);
        let pairs = pairs.filter(|line| line.contains("src_app="));
        assert!(pairs.count() <= 3, "{lines:#?}");
    }
}

#[test]
fn there_are_no_metrics_of_traffic_unless_they_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    daemon
        .client
        .accept(&[TestFlow::new(7, "a", "b", "v", 1, 1)]);
    assert!(shown(&daemon).is_empty());
    for (value, expected) in [("0", "1..=500"), ("501", "1..=500"), ("x", "invalid")] {
        let output = Command::new(Daemon::binary())
            .args(["serve", "--print-config", "--traffic-metrics", value])
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(expected), "{error}");
    }
}
