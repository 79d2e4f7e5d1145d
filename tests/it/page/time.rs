//! Hours: which are looked at, what they are called, and what an address says of them.

use std::time::{SystemTime, UNIX_EPOCH};

use super::*;

/// The hour since the epoch that it is now, and for a while yet.
fn this_hour() -> u32 {
    loop {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        if now % 3_600 < 3_540 {
            return u32::try_from(now / 3_600).unwrap();
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// An hour that is not over looks like a fall: it is marked, and not what one sees first.
#[test]
fn it_begins_with_an_hour_that_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let now = this_hour();
    let browser = Browser::start(&format!("http://{}", daemon.address));
    // The only one: there is nothing better, but it says so.
    daemon
        .client
        .accept(&[TestFlow::new(now, "web", "db", "v", 1, 1)]);
    browser.open("/");
    complete(&browser);
    assert_eq!(total(&browser), 2);
    assert!(browser.text("#summary").ends_with(", incomplete"));
    assert!(browser.text("#span-exact").contains("incomplete"));
    assert!(browser.text("#hours-note").contains("incomplete"));
    daemon.client.accept(&[
        TestFlow::new(now - 1, "web", "db", "v", 500, 100),
        TestFlow::new(now - 2, "web", "db", "v", 7, 0),
    ]);
    browser.open("/");
    complete(&browser);
    assert_eq!(total(&browser), 600);
    assert!(!browser.text("#summary").contains("incomplete"));
    assert_eq!(
        browser.js("return document.querySelectorAll('#hours-chart rect.incomplete').length"),
        2
    );
    browser.hover(bar(&browser, 1));
    assert!(tip(&browser).last().unwrap().starts_with("Incomplete"));
    // Also where somebody sends seconds: such an hour is far from over.
    daemon
        .client
        .accept(&[TestFlow::new(now * 3_600, "wrong", "unit", "v", 9, 9)]);
    browser.open("/");
    complete(&browser);
    assert_eq!(total(&browser), 600);
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// All times are in UTC, wherever the browser is, and say so.
#[test]
fn times_are_in_utc_and_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let noon = 489_996; // 2025-11-24 12:00
    daemon.client.accept(&[
        TestFlow::new(noon, "web", "db", "v", 1, 1),
        TestFlow::new(noon + 13, "web", "db", "v", 1, 1),
    ]);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.cdp(
        "Emulation.setTimezoneOverride",
        json!({"timezoneId": "Asia/Kolkata"}),
    );
    browser.open("/?from=0&group_by=hour");
    complete(&browser);
    assert_eq!(
        browser.js("return document.title"),
        "2025-11-24 12:00 to 2025-11-25 01:00 UTC · flowtally"
    );
    let utc = browser.js("return new Date().toISOString().slice(11, 15)");
    let updated = browser.text("#updated");
    assert!(
        updated.starts_with(&format!("Updated {}", utc.as_str().unwrap())),
        "{updated}"
    );
    assert!(updated.ends_with(" UTC"), "{updated}");
    let value = |id: &str| browser.js(&format!("return document.getElementById('{id}').value"));
    assert_eq!(value("from-hour"), "2025-11-24T12:00");
    assert_eq!(value("last-hour"), "2025-11-25T01:00");
    assert_eq!(
        browser.js("return document.getElementById('zone').checkVisibility()"),
        true
    );
    assert_eq!(browser.text("#table th"), "Hour, UTC");
    browser.click("#download");
    browser.until("document.getElementById('download-state').textContent.startsWith('Downloaded')");
    assert_eq!(
        browser.downloaded().file_name().unwrap(),
        "flowtally-2025-11-24T12Z-2025-11-25T01Z.csv"
    );

    // Hours of a day beside hours since the epoch, and a number that is neither.
    daemon.client.accept(&[
        TestFlow::new(1, "web", "db", "v", 1, 1),
        TestFlow::new(1_800_000_000, "web", "db", "v", 1, 1),
    ]);
    browser.open("/?from=0&to=490010");
    complete(&browser);
    assert!(
        browser
            .text("#summary")
            .starts_with("hour 0 to 2025-11-25 01:00 UTC")
    );
    assert_eq!(value("last-hour"), "2025-11-25T01:00");
    browser.open("/?hour=1800000000");
    complete(&browser);
    assert!(browser.text("#summary").starts_with("hour 1800000000: "));
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// What an address has that is not understood is told, whichever part it is.
#[test]
fn what_is_wrong_in_an_address_is_told() {
    let (_dir, daemon, browser) = sample_day();
    for wrong in [
        "sort=foo",
        "group_by=foo",
        "live=maybe",
        "exact=1",
        "from=abc",
        "to=-1",
        "hour=4294967295",
        "hour=1.5",
        "source=web",
        "sort=",
    ] {
        browser.open(&format!("/?{wrong}"));
        complete(&browser);
        let told = browser.text("#banner");
        assert!(
            told.contains(&format!("left out: {wrong}.")),
            "{wrong}: {told}"
        );
    }
    for (address, wrong) in [
        ("from=5&to=3", "from=5, to=3"),
        ("hour=3&from=2", "from=2"),
        ("hour=3&hour=4", "hour=4"),
        ("sort=bytes&sort=bytes_rx", "sort=bytes_rx"),
    ] {
        browser.open(&format!("/?{address}"));
        complete(&browser);
        let told = browser.text("#banner");
        assert!(
            told.contains(&format!("left out: {wrong}.")),
            "{address}: {told}"
        );
    }
    browser.open(
        "/?hour=3&src_app=web&src_app=cdn&search=a&sort=-bytes&group_by=src_app&exact=on&live=off",
    );
    complete(&browser);
    assert_eq!(
        browser.js("return document.getElementById('banner').hidden"),
        true
    );
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// What the page says when it is paused is that it is paused.
#[test]
fn live_and_paused_are_told_apart() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/?live=off");
    complete(&browser);
    assert_eq!(browser.text("#live"), "Paused");
    browser.click("#live");
    browser.until("document.getElementById('live').textContent === 'Live'");
    complete(&browser);
    browser.click("#live");
    browser.until("document.getElementById('live').textContent === 'Paused'");
    // An answer that comes, or is asked for, does not make it live.
    browser.click("#previous-hour");
    browser.until("location.search === '?hour=22&live=off'");
    complete(&browser);
    assert_eq!(browser.text("#live"), "Paused");
    daemon.stop();
}
