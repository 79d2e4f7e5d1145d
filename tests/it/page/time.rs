//! Hours: the selected ones, their names, and their parameters in the URL.

use std::time::{SystemTime, UNIX_EPOCH};

use super::*;
use crate::wait::until_some;

/// The current hour since the epoch, which does not end soon.
pub(super) fn this_hour() -> u32 {
    until_some("the last minute of an hour is over", || {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        (now % 3_600 < 3_540).then(|| u32::try_from(now / 3_600).unwrap())
    })
}

/// An incomplete hour looks like a drop in traffic, so it is marked, and not shown first.
#[test]
fn the_page_starts_with_a_complete_hour() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let now = this_hour();
    let browser = Browser::start(&format!("http://{}", daemon.address));
    // If it is the only one, it is shown and marked.
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
    assert_eq!(
        tip(&browser).last().unwrap(),
        "Incomplete: this hour has not ended"
    );
    // A bar can contain several hours.
    let many: Vec<_> = (2..500)
        .map(|before| TestFlow::new(now - before, "web", "db", "v", 1, 1))
        .collect();
    daemon.client.accept(&many);
    browser.open("/?from=0");
    complete(&browser);
    assert!(charts::note(&browser).contains("one bar is"));
    browser.js("document.getElementById('hours-chart').focus()");
    browser.keys("\u{e010}"); // End
    let said = tip(&browser);
    // If the hour is the first of its bar, it is alone in it.
    let why = if said[0].contains(" to ") {
        "not all of its hours have ended"
    } else {
        "this hour has not ended"
    };
    assert_eq!(*said.last().unwrap(), format!("Incomplete: {why}"));
    // The same if a sender uses seconds: such an hour is in the far future.
    daemon
        .client
        .accept(&[TestFlow::new(now * 3_600, "wrong", "unit", "v", 9, 9)]);
    browser.open("/");
    complete(&browser);
    assert_eq!(total(&browser), 600);
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// All times are in UTC, in any time zone, and labelled so.
#[test]
fn times_are_in_utc_and_labelled() {
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

    // Hours of a day together with hours since the epoch, and a number that is neither.
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

/// Each invalid part of a URL is reported.
#[test]
fn invalid_parameters_of_the_page_are_named() {
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
        "to=0",
        "src_app=%ff",
        "vpc_id=a%ED%A0%80",
        "%C3=web",
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
        ("src_app=web&src_app=we%C3b", "src_app=we%C3b"),
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
        "/?hour=3&src_app=web&src_app=cdn&dest_app=%EF%BF%BD&dest_app=100%&dest_app=cart&search=a&sort=-bytes&group_by=src_app&exact=on&live=off",
    );
    complete(&browser);
    assert_eq!(
        browser.js("return document.getElementById('banner').hidden"),
        true
    );
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// The button shows whether the page is live or paused.
#[test]
fn live_and_paused_are_distinguishable() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/?live=off");
    complete(&browser);
    assert_eq!(browser.text("#live"), "Paused");
    browser.click("#live");
    browser.until("document.getElementById('live').textContent === 'Live'");
    complete(&browser);
    browser.click("#live");
    browser.until("document.getElementById('live').textContent === 'Paused'");
    // Neither a request nor a response makes it live.
    browser.click("#previous-hour");
    browser.until("location.search === '?hour=22&live=off'");
    complete(&browser);
    assert_eq!(browser.text("#live"), "Paused");
    daemon.stop();
}

/// Hours before the first, and after the newest, have no bytes.
#[test]
fn hours_without_flows_have_no_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    daemon.client.accept(&[
        TestFlow::new(5, "web", "db", "v", 300, 30),
        TestFlow::new(9, "web", "db", "v", 7, 0),
    ]);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    for (address, bytes, hours) in [
        ("to=1", 0, "hour 0: "),
        ("to=5", 0, "hours 0 to 4: "),
        ("to=6", 330, "hour 5: "),
        ("to=9", 330, "hours 5 to 8: "),
        ("from=6&to=9", 0, "hours 6 to 8: "),
        ("from=1&to=3", 0, "hours 1 to 2: "),
        ("from=10", 0, "hour 10: "),
        ("from=4294967294", 0, "hour 4294967294: "),
        ("from=9", 7, "hour 9: "),
        ("from=0", 337, "hours 5 to 9: "),
        ("hour=4", 0, "hour 4: "),
    ] {
        for filter in ["", "&src_app=web"] {
            browser.open(&format!("/?{address}{filter}"));
            browser.until(
                "document.querySelector('#table td') && !document.querySelector('[aria-busy]')",
            );
            let said = browser.text("#summary");
            assert_eq!(total(&browser), bytes, "{address}{filter}: {said}");
            let hours = hours.replace(
                ": ",
                if filter.is_empty() {
                    ": "
                } else {
                    ", filtered: "
                },
            );
            assert!(said.starts_with(&hours), "{address}: {said}");
            assert_eq!(browser.texts("#banner:not([hidden])"), Vec::<String>::new());
        }
    }
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// A field with an invalid value shows the reason, even after it has lost the focus and shows the valid value again.
#[test]
fn a_field_shows_why_its_value_is_invalid() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let flows = [2, 3, 4].map(|hour| TestFlow::new(hour, "web", "db", "v", 1, 1));
    daemon.client.accept(&flows);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    let problem = |browser: &Browser| browser.text("#range-problem");
    let type_into = |field: &str, value: &str| {
        browser.js(&format!(
            "const field = document.getElementById('{field}'); field.focus(); field.value = '{value}'; \
             field.dispatchEvent(new Event('input', {{ bubbles: true }}))"
        ));
    };
    browser.open("/?from=2&to=4");
    complete(&browser);
    for (field, value, why) in [
        ("last-hour", "9", "To 9: the newest hour is 4"),
        ("from-hour", "1", "From 1: the first hour is 2"),
        ("from-hour", "2.5", "From 2.5: hours are whole numbers"),
    ] {
        type_into(field, value);
        browser.until("document.getElementById('range-problem').textContent !== ''");
        assert_eq!(problem(&browser), why);
        let state = browser.js(&format!("const {{ ariaInvalid, value }} = document.getElementById('{field}'); return [ariaInvalid, value]"));
        assert_eq!(state, json!(["true", value]));
        browser.js("document.activeElement.blur()");
        assert_eq!(problem(&browser), why);
        let shown = browser
            .js("return ['from-hour', 'last-hour'].map((id) => document.getElementById(id).value)");
        assert_eq!(shown, json!(["2", "3"]));
    }
    // Emptied, and left immediately.
    type_into("last-hour", "");
    browser.js("document.activeElement.blur()");
    assert_eq!(problem(&browser), "To: not an hour");
    // The message disappears with its cause.
    type_into("last-hour", "4");
    assert_eq!(problem(&browser), "");
    browser.until("location.search === '?from=2&to=5'");

    // Dates; if the other end is a plain number, it is no bound.
    let noon = 489_996; // 2025-11-24 12:00
    daemon.client.accept(&[
        TestFlow::new(noon, "web", "db", "v", 1, 1),
        TestFlow::new(noon + 9, "web", "db", "v", 1, 1),
    ]);
    browser.open("/?from=489996");
    complete(&browser);
    for (value, why) in [
        (
            "2025-11-24T19:30",
            "From 2025-11-24 19:30: hours begin at minute 00",
        ),
        (
            "2025-11-24T22:00",
            "From 2025-11-24 22:00: the newest hour is 2025-11-24 21:00",
        ),
    ] {
        type_into("from-hour", value);
        browser.until("document.getElementById('range-problem').textContent !== ''");
        assert_eq!(problem(&browser), why);
        browser.js("document.activeElement.blur()");
        assert_eq!(problem(&browser), why);
    }
    browser.open("/?from=2&to=489997");
    complete(&browser);
    type_into("from-hour", "20");
    browser.until("location.search === '?from=20&to=489997'");
    assert_eq!(problem(&browser), "");
    nothing_to_complain_about(&browser);
    daemon.stop();
}
