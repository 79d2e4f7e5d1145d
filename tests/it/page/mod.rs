//! The page at `/`, in a real browser.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::Instant;

use serde_json::json;

use crate::browser::Browser;
use crate::support::{Client, Daemon, NDJSON, TestFlow};

mod charts;
mod colors;
mod first;
mod looks;
mod names;
mod reference;
mod service;
mod spans;
mod time;
mod tools;

const SAMPLE_DAY: &str = include_str!("../../../data/sample-day.ndjson");

fn sample_day() -> (tempfile::TempDir, Daemon, Browser) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    post(&daemon.client, SAMPLE_DAY);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    (dir, daemon, browser)
}

fn post(client: &Client, ndjson: &str) {
    let response = client.post("/flows", &[NDJSON], ndjson.as_bytes()).unwrap();
    assert_eq!(response.status, 200);
}

/// Everything is loaded: charts, lists and table.
const COMPLETE: &str = "document.querySelector('#hours-chart rect.bar') \
    && document.querySelector('#edges-chart .band') \
    && document.querySelector('#sources button') && document.querySelector('#destinations button') \
    && document.querySelector('#table td') && !document.querySelector('[aria-busy]')";

fn complete(browser: &Browser) {
    browser.until(COMPLETE);
}

/// The whole text of the page.
fn shown(browser: &Browser) -> String {
    [
        "#summary",
        "#filters",
        "#sources",
        "#destinations",
        "#table",
    ]
    .map(|css| browser.text(css))
    .join("\n")
}

fn nothing_to_complain_about(browser: &Browser) {
    assert_eq!(browser.problems(), Vec::<String>::new());
}

/// Sum of both directions of the sample day, where `keep` is true.
fn sum(keep: impl Fn(&serde_json::Value) -> bool) -> u64 {
    let flows = SAMPLE_DAY
        .lines()
        .map(|line| serde_json::from_str(line).unwrap());
    flows
        .filter(|flow| keep(flow))
        .map(|flow| flow["bytes_tx"].as_u64().unwrap() + flow["bytes_rx"].as_u64().unwrap())
        .sum()
}

fn total(browser: &Browser) -> u64 {
    let title = browser.js("return document.getElementById('total-exact').textContent");
    let digits = title
        .as_str()
        .unwrap()
        .replace(|c: char| !c.is_ascii_digit(), "");
    digits.parse().unwrap()
}

/// The position of the bar at `index` in the window.
fn bar(browser: &Browser, index: usize) -> (i64, i64) {
    let place = browser.js(&format!(
        "const bars = document.querySelectorAll('#hours-chart rect.received'); \
         const {{ x, width, bottom }} = bars[{index}].getBoundingClientRect(); \
         return [Math.round(x + width / 2), Math.round(bottom - 2)]"
    ));
    (place[0].as_i64().unwrap(), place[1].as_i64().unwrap())
}

/// Types an hour into a field of the picker.
fn pick(browser: &Browser, field: &str, hour: &str) {
    browser.js(&format!(
        "const field = document.getElementById('{field}'); field.focus(); field.select()"
    ));
    browser.keys(&format!("{hour}{ENTER}"));
}

/// The tip of the bar or band under the pointer.
fn tip(browser: &Browser) -> Vec<String> {
    browser.texts(".tip:not([hidden]) > *")
}

const ENTER: &str = "\u{e007}";
const TAB: &str = "\u{e004}";

#[test]
fn a_day_is_explored_and_the_view_shared() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/");
    complete(&browser);
    assert_eq!(total(&browser), sum(|flow| flow["hour"] == 23));

    // An hour by the keyboard, another by a click, hours by dragging.
    pick(&browser, "from-hour", "20");
    browser.until("location.search === '?from=20&to=24'");
    pick(&browser, "last-hour", "20");
    browser.until("location.search === '?hour=20'");
    complete(&browser);
    assert_eq!(total(&browser), sum(|flow| flow["hour"] == 20));
    let (x, y) = bar(&browser, 3);
    browser.drag((x, y), (x, y));
    browser.until("location.search === '?hour=3'");
    complete(&browser);
    browser.drag(bar(&browser, 18), bar(&browser, 20));
    browser.until("location.search === '?from=18&to=21'");
    complete(&browser);
    let in_evening = |flow: &serde_json::Value| (18..21).contains(&flow["hour"].as_u64().unwrap());
    assert_eq!(total(&browser), sum(in_evening));

    // All about an application, by a click on it.
    assert!(browser.text("#sources li:first-child .name") == "web");
    browser.click("#sources li:first-child button");
    browser.until("location.search.endsWith('&peer=web') && document.querySelector('#sources-title').textContent === 'Sources of web'");
    complete(&browser);
    let is_of_web =
        |flow: &serde_json::Value| flow["src_app"] == "web" || flow["dest_app"] == "web";
    assert_eq!(
        total(&browser),
        sum(|flow| in_evening(flow) && is_of_web(flow))
    );
    for (list, other, this) in [
        ("sources", "dest_app", "src_app"),
        ("destinations", "src_app", "dest_app"),
    ] {
        let expected: BTreeSet<String> = SAMPLE_DAY
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
            .filter(|flow| in_evening(flow) && flow[other] == "web")
            .map(|flow| flow[this].as_str().unwrap().to_owned())
            .collect();
        let shown: BTreeSet<String> = browser
            .texts(&format!("#{list} button .name"))
            .into_iter()
            .collect();
        assert!(
            shown == expected || shown.len() == 8 && shown.is_subset(&expected),
            "{list}: {shown:?}"
        );
    }

    // Only what it sends, in another order.
    browser.open("/?from=18&to=21&src_app=web");
    complete(&browser);
    browser.click("#table th:nth-child(4) button");
    browser
        .until("document.querySelector('#table [aria-sort=descending]')?.textContent === 'Sent'");
    let sent = browser.js(
        "return [...document.querySelectorAll('#table tbody td:nth-child(4)')].map((td) => Number(td.title.replace(/\\D/g, '')))",
    );
    let sent: Vec<u64> = serde_json::from_value(sent).unwrap();
    assert!(
        sent.len() > 5 && sent.is_sorted_by(|a, b| a >= b),
        "{sent:?}"
    );

    // Found by a part of its name.
    browser.click("#search");
    browser.keys("CART");
    browser.until("location.search.includes('search=CART')");
    complete(&browser);
    let cells = browser.texts("#table tbody td:nth-child(2)");
    assert!(
        !cells.is_empty() && cells.iter().all(|cell| cell.contains("cart")),
        "{cells:?}"
    );

    // The URL is sufficient for the other window.
    let (address, here) = (browser.search(), shown(&browser));
    browser.open_beside(&format!("/{address}"));
    complete(&browser);
    assert_eq!(shown(&browser), here);
    assert_eq!(
        browser.js("return document.getElementById('search').value"),
        "CART"
    );

    // Without the filter; then back, and forward again.
    browser
        .js("const chip = document.querySelector('#filters button'); chip.focus(); chip.click()");
    browser.until("!location.search.includes('src_app')");
    complete(&browser);
    // After a removal by keyboard, the next filter has the focus; the typed text disappears with its view.
    assert_eq!(browser.js("return document.activeElement.id"), "search");
    browser.keys("Z");
    browser.until("/search=(ZCART|CARTZ)/.test(location.search)");
    browser.js("history.back()");
    browser.until("location.search.includes('src_app=web') && document.querySelectorAll('#filters li').length === 1");
    complete(&browser);
    assert_eq!(shown(&browser), here);
    assert_eq!(
        browser.js("return document.getElementById('search').value"),
        "CART"
    );
    browser.js("history.forward()");
    browser.until("document.querySelectorAll('#filters li').length === 0");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn the_table_has_pages_and_a_download() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/?hour=20");
    complete(&browser);
    let first = browser.text("#table tbody");
    browser.click("#next-page");
    browser.until("document.getElementById('page-number').textContent === 'Page 2'");
    let second = browser.text("#table tbody");
    assert_ne!(first, second);
    // The URL contains the page number.
    let address = browser.search();
    browser.open_beside(&format!("/{address}"));
    complete(&browser);
    assert_eq!(browser.text("#table tbody"), second);
    browser.click("#previous-page");
    browser.until("!location.search.includes('cursor')");
    complete(&browser);
    assert_eq!(browser.text("#table tbody"), first);

    browser.click("#download");
    browser.until("document.getElementById('download-state').textContent.startsWith('Downloaded')");
    let csv = [("accept", "text/csv")];
    let response = daemon
        .client
        .get("/flows?hour=20&sort=bytes", &csv)
        .unwrap();
    let file = browser.downloaded();
    assert_eq!(file.file_name().unwrap(), "flowtally-20.csv");
    let marked = [&b"\xef\xbb\xbf"[..], &response.body].concat();
    assert_eq!(std::fs::read(file).unwrap(), marked);
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// `scripts/screenshots` writes them into docs/images.
#[test]
fn screenshots_are_complete_at_every_size_and_in_both_schemes() {
    let (dir, daemon, browser) = sample_day();
    let images = std::env::var_os("FLOWTALLY_TEST_IMAGES").map(PathBuf::from);
    let images = images.unwrap_or_else(|| dir.path().to_owned());
    let mut backgrounds = BTreeSet::new();
    for (name, scheme, width, height) in [
        ("page-light", "light", 1280, 1400),
        ("page-dark", "dark", 1280, 1400),
        ("page-phone", "light", 390, 844),
    ] {
        browser.cdp(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}),
        );
        let features = [json!({"name": "prefers-color-scheme", "value": scheme})];
        browser.cdp("Emulation.setEmulatedMedia", json!({"features": features}));
        browser.open("/?hour=20");
        complete(&browser);
        let picture = images.join(format!("{name}.png"));
        browser.screenshot(&picture);
        // The header of a PNG has its size.
        let bytes = std::fs::read(&picture).unwrap();
        let side = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        assert_eq!(
            (&bytes[1..4], side(16), side(20)),
            (&b"PNG"[..], width, height)
        );
        let wide = browser.js("return document.documentElement.scrollWidth");
        assert!(
            wide.as_i64().unwrap() <= i64::from(width),
            "{name} scrolls horizontally"
        );
        let background = browser.js("return getComputedStyle(document.body).backgroundColor");
        backgrounds.insert(background.to_string());
    }
    assert_eq!(backgrounds.len(), 2, "light and dark: {backgrounds:?}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}
