//! What is beside the figures: the sentence, curl commands, pictures, keys, saved views, and the accounts.

use std::collections::BTreeMap;
use std::process::Command;

use super::time::this_hour;
use super::*;
use crate::wait::until_some;

/// `window.copied` is what the page has copied, or null if it may not copy.
fn watch_clipboard(browser: &Browser, is_allowed: bool) {
    browser.js(&format!(
        "window.copied = null; \
         const writeText = async (text) => {{ if (!{is_allowed}) throw new Error('no'); window.copied = text; }}; \
         Object.defineProperty(navigator, 'clipboard', {{ value: {{ writeText }}, configurable: true }})"
    ));
}

fn run(command: &str) -> serde_json::Value {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{command}: {e}: {text}"))
}

#[test]
fn every_card_is_copied_as_a_curl_command() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/?from=18&to=21&dest_app=images&search=e");
    complete(&browser);
    watch_clipboard(&browser, true);
    let cards = browser
        .js("return [...document.querySelectorAll('[data-curl]')].map((e) => e.dataset.curl)");
    let cards: Vec<String> = serde_json::from_value(cards).unwrap();
    assert_eq!(
        cards,
        [
            "total",
            "hours-chart",
            "sources",
            "destinations",
            "edges-chart",
            "table"
        ]
    );
    let is_shown = |flow: &serde_json::Value| {
        (18..21).contains(&flow["hour"].as_u64().unwrap()) && flow["dest_app"] == "images"
    };
    let shown = sum(is_shown);
    assert_eq!(total(&browser), shown);
    for card in cards {
        browser.js("window.copied = null");
        browser.click(&format!("[data-curl={card}]"));
        browser.until("copied !== null");
        let command = browser.js("return copied");
        let command = command.as_str().unwrap();
        assert!(
            command.starts_with(&format!("curl -s 'http://{}/flows?", daemon.address)),
            "{command}"
        );
        let rows = run(command);
        let bytes = |row: &serde_json::Value| {
            row["bytes_tx"].as_u64().unwrap() + row["bytes_rx"].as_u64().unwrap()
        };
        let rows = rows.as_array().unwrap();
        let of_hours = |row: &&serde_json::Value| {
            let hour = row["hour"].as_u64();
            hour.is_none_or(|hour| (18..21).contains(&hour))
        };
        // The bars have the hours around, too; all rows fit on the first page.
        let sum: u64 = rows.iter().filter(of_hours).map(bytes).sum();
        assert_eq!(sum, shown, "{command}");
    }
    // Of all flows, the chart comes from /hours.
    browser.open("/?hour=20");
    complete(&browser);
    watch_clipboard(&browser, true);
    browser.click("[data-curl=hours-chart]");
    browser.until("copied !== null");
    let command = browser.js("return copied");
    assert!(
        command.as_str().unwrap().contains("/hours?from=0&to=24'"),
        "{command}"
    );
    assert_eq!(run(command.as_str().unwrap()).as_array().unwrap().len(), 24);
    // Without a clipboard, the command is shown, selected.
    watch_clipboard(&browser, false);
    browser.click("[data-curl=sources]");
    browser.until("document.querySelector('#sources').closest('.card').querySelector('.command')");
    let selected = browser.js("return getSelection().toString()");
    assert!(
        selected.as_str().unwrap().starts_with("curl -s 'http://"),
        "{selected}"
    );
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn pictures_are_files_that_need_no_stylesheet() {
    let (_dir, daemon, browser) = sample_day();
    daemon
        .client
        .accept(&[TestFlow::new(20, "<b>&\"", "a]]>\u{1}", "v", 1 << 40, 1)]);
    browser.open("/?hour=20");
    complete(&browser);
    for (id, name, words) in [
        ("hours-chart", "hours", "Traffic by hour"),
        ("sources", "sources", "&lt;b&gt;&amp;\""),
        ("destinations", "destinations", "a]]&gt;\\u{1}"),
        ("edges-chart", "edges", "&lt;b&gt;&amp;\""),
    ] {
        browser.click(&format!("[data-svg={id}]"));
        let file = browser.downloaded_as(&format!("flowtally-{name}-20.svg"));
        let text = std::fs::read_to_string(file).unwrap();
        assert!(
            text.starts_with("<svg xmlns=\"http://www.w3.org/2000/svg\""),
            "{text}"
        );
        assert!(text.contains(words), "{id}: {text}");
        for unknown in ["class=", "var(", "<b>", "<style"] {
            assert!(!text.contains(unknown), "{id}: {unknown} in {text}");
        }
        // A browser draws it, with more than one colour.
        let colors = browser.js(&format!(
            "const picture = new Image(); \
             picture.src = 'data:image/svg+xml,' + encodeURIComponent({text:?}); \
             return picture.decode().then(() => {{ \
               const canvas = document.createElement('canvas'); \
               [canvas.width, canvas.height] = [picture.naturalWidth, picture.naturalHeight]; \
               const pen = canvas.getContext('2d'); pen.drawImage(picture, 0, 0); \
               const {{ data }} = pen.getImageData(0, 0, canvas.width, canvas.height); \
               return new Set(new Uint32Array(data.buffer)).size; }})"
        ));
        assert!(colors.as_u64() > Some(4), "{id}: {colors} colours");
    }
    // The matrix is a table.
    browser.open("/?hour=20&pairs=matrix");
    browser.until(
        "document.querySelector('#edges-matrix td') && !document.querySelector('[aria-busy]')",
    );
    let is_hidden = browser.js("return document.querySelector('[data-svg=edges-chart]').hidden");
    assert_eq!(is_hidden, true);
    nothing_to_complain_about(&browser);
    daemon.stop();
}

const ESCAPE: &str = "\u{e00c}";

#[test]
fn keys_do_what_is_done_often() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/?hour=20");
    complete(&browser);
    let is_open = |browser: &Browser| browser.js("return document.getElementById('keys').open");
    browser.keys("[");
    browser.until("location.search === '?hour=19'");
    complete(&browser);
    browser.keys("]");
    browser.until("location.search === '?hour=20'");
    complete(&browser);
    browser.keys("/");
    assert_eq!(browser.js("return document.activeElement.id"), "search");
    // What is typed there is text.
    browser.keys("[?/");
    browser.until("new URLSearchParams(location.search).get('search') === '[?/'");
    assert_eq!(browser.search(), "?hour=20&search=%5B%3F%2F");
    assert_eq!(is_open(&browser), false);
    browser.js("document.activeElement.blur()");
    browser.keys("?");
    assert_eq!(is_open(&browser), true);
    // While the sheet is open, the others rest.
    browser.keys("[");
    browser.keys(ESCAPE);
    assert_eq!(is_open(&browser), false);
    assert!(browser.search().starts_with("?hour=20&"));
    // They can be turned off, for good.
    browser.click("#keys-open");
    browser.click("label[for=keys-on]");
    browser.click("#keys-close");
    browser.open("/?hour=20");
    complete(&browser);
    browser.keys("[?");
    assert_eq!(is_open(&browser), false);
    assert_eq!(browser.search(), "?hour=20");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn views_are_saved_in_the_browser() {
    let (_dir, daemon, browser) = sample_day();
    let names = |browser: &Browser| browser.texts("#saved-list .name");
    let save = |browser: &Browser, name: &str| {
        browser.click("#saved-open");
        browser.click("#saved-name");
        browser.keys(&format!("{name}{ENTER}"));
    };
    browser.open("/?hour=20&src_app=web&sort=bytes_rx");
    complete(&browser);
    save(&browser, "<b>evening</b>");
    assert_eq!(names(&browser), ["<b>evening</b>"]);
    browser.click("#saved-close");
    // Another view, in another tab; the address of the first one comes back.
    browser.open_beside("/?hour=3");
    complete(&browser);
    save(&browser, "a night");
    assert_eq!(names(&browser), ["<b>evening</b>", "a night"]);
    browser.click("#saved-list li:first-child .name");
    browser.until("location.search === '?hour=20&src_app=web&sort=bytes_rx'");
    complete(&browser);
    // The same name replaces.
    browser.open("/?hour=4");
    complete(&browser);
    save(&browser, "a night");
    browser.click("#saved-list li:nth-child(2) .name");
    browser.until("location.search === '?hour=4'");
    complete(&browser);
    browser.click("#saved-open");
    browser.click("#saved-list li:first-child button:last-child");
    assert_eq!(names(&browser), ["a night"]);
    browser.click("#saved-close");
    // A name is needed, and there is a bound.
    save(&browser, "");
    assert_eq!(browser.text("#saved-state"), "Give it a name.");
    browser.click("#saved-close");
    let key = "'flowtally views /'";
    browser.js(&format!(
        "const views = Array.from({{ length: 60 }}, (_, i) => ({{ name: `view ${{i}}`, address: '?hour=1' }})); \
         localStorage.setItem({key}, JSON.stringify(views))"
    ));
    save(&browser, "one more");
    assert_eq!(names(&browser).len(), 50);
    assert!(browser.text("#saved-state").contains("50 views are saved"));
    browser.click("#saved-close");
    // What others have written there is no view.
    for junk in [
        "nonsense",
        "{}",
        "[1, null, {\"name\": 1}, {\"name\": \"x\"}]",
        "null",
    ] {
        browser.js(&format!("localStorage.setItem({key}, {junk:?})"));
        browser.click("#saved-open");
        assert_eq!(browser.text("#saved-list"), "None yet", "{junk}");
        browser.click("#saved-close");
    }
    // An address from there is read like any other.
    browser.js(&format!(
        "localStorage.setItem({key}, '[{{\"name\": \"odd\", \"address\": \"?hour=x&src_app=web\"}}]')"
    ));
    browser.click("#saved-open");
    browser.click("#saved-list .name");
    browser.until("location.search === '?src_app=web'");
    complete(&browser);
    assert!(browser.text("#banner").contains("left out: hour=x."));
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// Hours without dates, and a service whose first day is not over.
#[test]
fn the_sentence_is_about_what_there_is() {
    let (_dir, daemon, browser) = sample_day();
    let mut pairs: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in SAMPLE_DAY.lines() {
        let flow: serde_json::Value = serde_json::from_str(line).unwrap();
        let name = |field: &str| flow[field].as_str().unwrap().to_owned();
        let number = |field: &str| flow[field].as_u64().unwrap();
        let bytes = pairs
            .entry((name("src_app"), name("dest_app")))
            .or_default();
        *bytes += number("bytes_tx") + number("bytes_rx");
    }
    let ((src, dest), _) = pairs.iter().max_by_key(|(_, bytes)| **bytes).unwrap();
    browser.open("/?hour=20");
    complete(&browser);
    browser.until("document.getElementById('sentence').textContent !== ''");
    let all = (sum(|_| true) as f64 / 1e9).round();
    assert!((100.0..999.0).contains(&all), "{all}");
    assert_eq!(
        browser.text("#sentence"),
        format!("24 hours: {all} GB; most of all {src} → {dest}.")
    );
    daemon.stop();

    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let browser = Browser::start(&format!("http://{}", daemon.address));
    let now = this_hour();
    daemon
        .client
        .accept(&[TestFlow::new(now, "web", "db", "v", 500, 100)]);
    browser.open("/");
    complete(&browser);
    browser.until("document.getElementById('sentence').textContent !== ''");
    assert_eq!(
        browser.text("#sentence"),
        "Today 600 B so far; mostly web → db."
    );
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn the_accounts_balance() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(&dir.path().join("db"), &["--flush-interval", "1"]);
    daemon
        .client
        .accept(&[TestFlow::new(3, "web", "db", "v", 500, 100)]);
    until_some("a comparison", || {
        let response = daemon.client.get("/hours", &[]).unwrap();
        let difference = response.header("flowtally-ledger-difference");
        difference.map(str::to_owned)
    });
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/");
    complete(&browser);
    assert_eq!(browser.text("#accounts-state"), "Accounts balance ✓");
    browser.click("#accounts-state");
    let meaning = browser.js("return document.querySelector('#accounts p').checkVisibility()");
    assert_eq!(meaning, true);
    assert!(browser.text("#accounts p").contains("The two agree."));
    // A fault, as a response would tell it.
    browser.before_each_page(
        "const real = window.fetch; window.fetch = async (...request) => { \
           const response = await real(...request); \
           const headers = new Headers(response.headers); \
           headers.set('Flowtally-Ledger-Difference', '-3'); \
           const text = await response.text(); \
           return new Response(response.status === 304 ? null : text, { status: response.status, headers }); \
         }",
    );
    browser.open("/");
    complete(&browser);
    assert_eq!(
        browser.text("#accounts-state"),
        "Accounts differ by 3 flows"
    );
    assert!(browser.text("#accounts p").contains("run flowtally verify"));
    nothing_to_complain_about(&browser);
    daemon.stop();
}
