use super::*;

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
