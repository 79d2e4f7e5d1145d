//! The first minute: a service without flows, the sample day, and the first flows as they come.

use super::time::this_hour;
use super::*;
use crate::wait::until;

fn empty_service(arguments: &[&str]) -> (tempfile::TempDir, Daemon, Browser) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(&dir.path().join("db"), arguments);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/");
    browser.until("!document.getElementById('empty').hidden");
    (dir, daemon, browser)
}

/// The totals of all hours: hours, flows, bytes.
fn stored(daemon: &Daemon) -> (Vec<u64>, u64, u64) {
    let rows = daemon.client.get("/hours", &[]).unwrap().json();
    let rows = rows.as_array().unwrap();
    let number = |row: &serde_json::Value, name: &str| row[name].as_u64().unwrap();
    let sum = |name| rows.iter().map(|row| number(row, name)).sum::<u64>();
    let hours = rows.iter().map(|row| number(row, "hour")).collect();
    (hours, sum("flows"), sum("bytes_tx") + sum("bytes_rx"))
}

#[test]
fn the_sample_day_counts_once_as_yesterdays_flows() {
    let (_dir, daemon, browser) = empty_service(&[]);
    // Two clicks at once, and one in another tab.
    browser.open_beside("/");
    browser.until("!document.getElementById('empty').hidden");
    let yesterday = u64::from(this_hour()) / 24 * 24 - 24;
    browser.js(
        "const button = document.getElementById('empty-sample'); button.click(); button.click()",
    );
    browser.until(
        "document.getElementById('arrivals').textContent === 'The first flows are here: 2,816 so far.'",
    );
    complete(&browser);
    browser.js("document.getElementById('empty-sample').click()");
    until("the second request", || {
        daemon.client.metric("flowtally_batches_replayed_total") > 0.0
    });
    let flows = SAMPLE_DAY.lines().count() as u64;
    let expected = (yesterday..yesterday + 24).collect::<Vec<_>>();
    let (hours, counted, bytes) = stored(&daemon);
    // At midnight, there is another yesterday.
    if u64::from(this_hour()) / 24 * 24 - 24 == yesterday {
        assert_eq!((hours, counted, bytes), (expected, flows, sum(|_| true)));
    }
    // The page opens with a complete hour, as with any flows.
    assert_eq!(browser.text("#banner"), "");
    assert!(!browser.text("#summary").contains("incomplete"));
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn the_first_flows_are_counted_as_they_come() {
    let (_dir, daemon, browser) = empty_service(&[]);
    let now = this_hour();
    let shown = |browser: &Browser| browser.texts("#arrivals:not([hidden])");
    assert_eq!(shown(&browser), Vec::<String>::new());
    for count in 1..=3 {
        daemon
            .client
            .accept(&[TestFlow::new(now, "web", "db", "v", 1, 1)]);
        browser.until(&format!(
            "document.getElementById('arrivals').textContent === 'The first flows are here: {count} so far.'"
        ));
        complete(&browser);
    }
    // Who comes later sees none of this.
    browser.open("/");
    complete(&browser);
    assert_eq!(shown(&browser), Vec::<String>::new());
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn a_refusal_of_the_sample_day_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("writers");
    std::fs::write(&tokens, "w-secret\n").unwrap();
    let (_dir, daemon, browser) = empty_service(&["--write-token-file", tokens.to_str().unwrap()]);
    browser.click("#empty-sample");
    browser
        .until("/right to write/.test(document.getElementById('empty-sample-state').textContent)");
    assert_eq!(
        browser.js("return document.getElementById('empty-sample').disabled"),
        false
    );
    assert_eq!(stored(&daemon).1, 0);
    daemon.stop();
}
