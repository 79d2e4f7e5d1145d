use super::*;
use flow::{Counters, Hour};

#[test]
fn all_metrics_have_a_unique_name_and_a_help_text() {
    let metrics = Metrics::default();
    metrics.ingest().flows.inc_by(3);
    metrics
        .http()
        .requests
        .with_label_values(&["GET", "/flows", "200"])
        .inc();
    raise_to(&metrics.store().journal_syncs, 5);
    raise_to(&metrics.store().journal_syncs, 7);
    let text = metrics.expose(|| metrics.http().ready.set(1)).unwrap();
    for line in [
        "flowtally_flows_accepted_total 3",
        "flowtally_journal_syncs_total 7",
        "flowtally_ready 1",
        "flowtally_http_requests_total{method=\"GET\",path=\"/flows\",status=\"200\"} 1",
    ] {
        assert!(text.contains(&format!("{line}\n")), "{line} in {text}");
    }
}

/// The lines of the metrics of traffic, without comments.
fn lines_of_traffic(metrics: &Metrics) -> Vec<String> {
    let text = metrics.expose(|| {}).unwrap();
    let lines = text
        .lines()
        .filter(|line| line.starts_with("flowtally_traffic_"));
    lines.map(str::to_owned).collect()
}

fn pair(names: [&str; 3], tx: u64, rx: u64) -> TrafficPair {
    let [src_app, dest_app, vpc_id] = names.map(str::to_owned);
    TrafficPair {
        src_app,
        dest_app,
        vpc_id,
        counters: Counters { tx, rx },
    }
}

/// Names are the senders': one of them may end where another begins, be empty, or have what the format has to escape.
#[test]
fn each_pair_of_applications_has_a_series_of_its_own() {
    let metrics = Metrics::default();
    assert!(lines_of_traffic(&metrics).is_empty());
    metrics.traffic().set(Some(TrafficHour {
        hour: Hour::new(498_864).unwrap(),
        pairs: vec![
            pair(["ab", "c", "v"], 1, 2),
            pair(["a", "bc", "v"], 3, 4),
            pair(["", "", ""], 5, 6),
            pair(["a\"b\\", "line\nbreak", "\0é"], u64::MAX, 0),
        ],
        other: Counters { tx: 7, rx: 8 },
    }));
    let lines = lines_of_traffic(&metrics);
    let expected = [
        "flowtally_traffic_hour 498864",
        r#"flowtally_traffic_hour_bytes{src_app="ab",dest_app="c",vpc_id="v",direction="tx"} 1"#,
        r#"flowtally_traffic_hour_bytes{src_app="ab",dest_app="c",vpc_id="v",direction="rx"} 2"#,
        r#"flowtally_traffic_hour_bytes{src_app="a",dest_app="bc",vpc_id="v",direction="tx"} 3"#,
        r#"flowtally_traffic_hour_bytes{src_app="a",dest_app="bc",vpc_id="v",direction="rx"} 4"#,
        r#"flowtally_traffic_hour_bytes{src_app="",dest_app="",vpc_id="",direction="tx"} 5"#,
        r#"flowtally_traffic_hour_bytes{src_app="",dest_app="",vpc_id="",direction="rx"} 6"#,
        concat!(
            r#"flowtally_traffic_hour_bytes{src_app="a\"b\\",dest_app="line\nbreak",vpc_id=""#,
            "\0",
            r#"é",direction="tx"} 18446744073709552000"#
        ),
        concat!(
            r#"flowtally_traffic_hour_bytes{src_app="a\"b\\",dest_app="line\nbreak",vpc_id=""#,
            "\0",
            r#"é",direction="rx"} 0"#
        ),
        r#"flowtally_traffic_hour_other_bytes{direction="tx"} 7"#,
        r#"flowtally_traffic_hour_other_bytes{direction="rx"} 8"#,
    ];
    for line in expected {
        assert!(
            lines.iter().any(|shown| shown == line),
            "{line} in {lines:#?}"
        );
    }
    assert_eq!(lines.len(), expected.len(), "{lines:#?}");
    metrics.traffic().set(None);
    assert!(lines_of_traffic(&metrics).is_empty());
}
