//! The page at `/`, as a person sees it in a browser.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::browser::Browser;
use crate::support::{Client, Daemon, NDJSON, TestFlow};

const SAMPLE_DAY: &str = include_str!("../../data/sample-day.ndjson");

fn sample_day() -> (tempfile::TempDir, Daemon, Browser) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    post(&daemon.client, SAMPLE_DAY);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    (dir, daemon, browser)
}

fn post(client: &Client, ndjson: &str) {
    let answer = client.post("/flows", &[NDJSON], ndjson.as_bytes()).unwrap();
    assert_eq!(answer.status, 200);
}

/// All is there: charts, lists and table, and none of it waits.
const COMPLETE: &str = "document.querySelector('#hours-chart .point') \
    && document.querySelector('#edges-chart .sankey-link') \
    && document.querySelector('#sources button') && document.querySelector('#destinations button') \
    && document.querySelector('#table td') && !document.querySelector('[aria-busy]')";

fn complete(browser: &Browser) {
    browser.until(COMPLETE);
}

/// What the page says, in one text.
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
    let title = browser.js("return document.getElementById('total').title");
    let digits = title
        .as_str()
        .unwrap()
        .replace(|c: char| !c.is_ascii_digit(), "");
    digits.parse().unwrap()
}

/// Where the bar of the hour at `index` stands in the window.
fn bar(browser: &Browser, index: usize) -> (i64, i64) {
    let place = browser.js(&format!(
        "const bars = document.querySelectorAll('#hours-chart .trace.bars:last-child .point path'); \
         const {{ x, width, bottom }} = bars[{index}].getBoundingClientRect(); \
         return [Math.round(x + width / 2), Math.round(bottom - 2)]"
    ));
    (place[0].as_i64().unwrap(), place[1].as_i64().unwrap())
}

#[test]
fn a_day_is_explored_and_the_view_shared() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/");
    complete(&browser);
    assert_eq!(total(&browser), sum(|flow| flow["hour"] == 23));

    // An hour by the keyboard, another by a click, hours by dragging.
    browser.js("document.getElementById('from-hour').focus()");
    browser.keys("20");
    browser.until("location.search === '?from=20&to=24'");
    browser.js("document.getElementById('last-hour').focus()");
    browser.keys("20");
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

    // An application, by a click on it; then sorted otherwise.
    assert!(browser.text("#sources li:first-child .name") == "web");
    browser.click("#sources li:first-child button");
    browser.until("location.search.endsWith('&src_app=web') && document.querySelectorAll('#sources li').length === 1");
    complete(&browser);
    assert_eq!(
        total(&browser),
        sum(|flow| in_evening(flow) && flow["src_app"] == "web")
    );
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

    // The address is all that the other window needs.
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
    // Who removed it by keyboard goes on from there; what is typed is gone with its view.
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
fn the_table_has_pages_and_becomes_a_file() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/?hour=20");
    complete(&browser);
    let first = browser.text("#table tbody");
    browser.click("#next-page");
    browser.until("document.getElementById('page-number').textContent === 'Page 2'");
    let second = browser.text("#table tbody");
    assert_ne!(first, second);
    // Which page it is, is part of the address.
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
    let answer = daemon
        .client
        .get("/flows?hour=20&sort=bytes", &csv)
        .unwrap();
    let file = browser.downloaded();
    assert_eq!(file.file_name().unwrap(), "flowtally-20.csv");
    assert_eq!(std::fs::read(file).unwrap(), answer.body);
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// Names are what anybody sends. In the table, the lists and the charts (Plotly takes some markup) they
/// are text.
#[test]
fn hostile_names_are_text() {
    const UNSEEN: &str = "\0\u{202e}\u{61c}\u{ad}\u{e0041}\u{3164} \n\\u{20}  ";
    const UNSEEN_SHOWN: &str =
        "\\u{0}\\u{202e}\\u{61c}\\u{ad}\\u{e0041}\\u{3164} \\u{a}\\u{5c}u{20} \\u{20}";
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let names = [
        "<script>document.title = 'breach'</script>",
        "<img src=x onerror=\"document.title='breach'\">",
        "<a href=\"javascript:document.title='breach'\">click</a>",
        "<b>bold</b><br>%{label}",
        "&lt;i&gt; &amp; ${x} $\\alpha$",
        "",
        UNSEEN,
        "\"'`,;=&?#/ +%41",
    ];
    let long = "é".repeat(512);
    let flows: Vec<_> = names
        .iter()
        .chain([&long.as_str()])
        .zip(1..)
        .map(|(name, n)| TestFlow::new(7, name, name, name, n * 1_000, 0))
        .collect();
    daemon.client.accept(&flows);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/");
    complete(&browser);
    browser.until("document.querySelectorAll('#table tbody tr').length === 9");
    for place in [
        "#sources .name",
        "#table tbody td:nth-child(2)",
        "#edges-table td:first-child",
    ] {
        let texts = browser.texts(place);
        for name in &names[..5] {
            assert!(
                texts.contains(&(*name).to_owned()) || place == "#sources .name",
                "{place}: {texts:?}"
            );
        }
    }
    let cells = browser.texts("#table tbody td:first-child");
    assert!(cells.contains(&UNSEEN_SHOWN.to_owned()), "{cells:?}");
    let labels = browser.texts("#edges-chart .node-label");
    assert!(
        labels.contains(&"<b>bold</b><br>%{label}".to_owned()),
        "{labels:?}"
    );
    assert!(
        labels.iter().any(|label| label.starts_with("<a href=")),
        "{labels:?}"
    );
    let made = browser
        .js("return document.querySelectorAll('main b, main a, main img, main script').length");
    assert_eq!(made, 0);
    // Each is a filter, and an address; the answer is its row.
    for name in names {
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("dest_app", name)
            .finish();
        browser.open(&format!("/?{query}"));
        browser.until("document.querySelectorAll('#table tbody td button').length === 3");
        complete(&browser);
        let row = browser.text("#table tbody td:nth-child(2)");
        let chip = browser.text("#filters bdi");
        assert_eq!(row, chip);
        browser.js("document.querySelector('#sources button').click()");
        browser.until("document.querySelectorAll('#filters li').length === 3");
    }
    assert_ne!(browser.js("return document.title"), "breach");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn an_empty_service_says_how_to_begin() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/");
    browser.until("!document.getElementById('empty').hidden");
    let command = browser.text("#empty-command");
    assert!(command.contains(&format!("http://{}/flows", daemon.address)));
    // It is a command that works; and its flow appears without a reload.
    let output = std::process::Command::new("sh")
        .args(["-c", &command])
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "{\"accepted\":1}\n"
    );
    complete(&browser);
    assert_eq!(browser.text("#total"), "600 B");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// Nothing that the page shows below an hour is of another one.
#[test]
fn what_is_not_answered_is_not_shown() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/?hour=20");
    complete(&browser);
    let before = shown(&browser);
    browser.js(
        "const real = fetch; window.refused = /^flows/; window.fetch = (url, options) => refused.test(url) \
           ? Promise.resolve(new Response('{\"title\": \"Busy\", \"detail\": \"later\"}', { status: 503 })) \
           : real(url, options)",
    );
    let is_hidden = |css: &str| {
        browser.js(&format!(
            "return getComputedStyle(document.querySelector({css:?})).visibility"
        )) == "hidden"
    };
    // All of it: that is said once.
    browser.click("#previous-hour");
    browser.until("document.getElementById('banner').textContent === 'Busy: later.'");
    assert!(browser.text("#summary").starts_with("hour 19"));
    for css in ["#sources", "#destinations", "#edges-chart", "#table"] {
        assert!(is_hidden(css), "{css}");
    }
    assert!(browser.texts(".problem").is_empty());
    // One card only: that is said there.
    browser.js("window.refused = /^flows.*limit=25/");
    browser.click("#previous-hour");
    browser.until("document.querySelector('#rows .problem')");
    complete(&browser);
    assert!(is_hidden("#table") && !is_hidden("#sources") && !is_hidden("#edges-chart"));
    assert_eq!(
        browser.js("return document.getElementById('banner').hidden"),
        true
    );
    browser.js("window.refused = /^$/; history.go(-2)");
    browser.until("document.title.startsWith('hour 20')");
    complete(&browser);
    assert_eq!(shown(&browser), before);
    assert!(!is_hidden("#table") && browser.texts(".problem").is_empty());
    // An hour that is none is not taken for another in silence.
    browser.open("/?hour=-1");
    browser.until("document.getElementById('banner').textContent.includes('hour=-1')");
    daemon.stop();
}

#[test]
fn the_service_may_go_and_come_back() {
    let (dir, mut daemon, browser) = sample_day();
    browser.open("/?hour=20");
    complete(&browser);
    let before = shown(&browser);
    let address = daemon.address.to_string();
    daemon.kill();
    browser.js("document.querySelector('#sources button').click()");
    browser.until("!document.getElementById('banner').hidden");
    assert!(browser.text("#banner").contains("does not answer"));
    assert_eq!(browser.text("#live"), "Offline");
    let daemon = Daemon::start_with(&dir.path().join("db"), &["--listen", &address]);
    // By itself, and what was asked for meanwhile is there.
    browser.until("document.getElementById('banner').hidden");
    browser.until("document.querySelectorAll('#sources li').length === 1");
    complete(&browser);
    assert_eq!(
        total(&browser),
        sum(|flow| flow["hour"] == 20 && flow["src_app"] == "web")
    );
    browser.js("history.back()");
    browser.until("document.querySelectorAll('#sources li').length > 1");
    complete(&browser);
    assert_eq!(shown(&browser), before);
    daemon.stop();
}

#[test]
fn updates_come_by_themselves_unless_paused() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/");
    complete(&browser);
    // The newest hour is looked at, so a newer one takes its place.
    daemon
        .client
        .accept(&[TestFlow::new(24, "night", "shift", "vpc-0", 5, 6)]);
    browser.until("document.title.startsWith('hour 24')");
    complete(&browser);
    assert_eq!(total(&browser), 11);

    browser.click("#live");
    browser.until("location.search === '?live=off'");
    complete(&browser);
    daemon
        .client
        .accept(&[TestFlow::new(25, "day", "shift", "vpc-0", 5, 6)]);
    std::thread::sleep(Duration::from_secs(11));
    assert_eq!(total(&browser), 11);
    assert!(browser.text("#updated").starts_with("Updated"));
    browser.click("#live");
    browser.until("document.title.startsWith('hour 25')");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn a_token_is_asked_for_and_kept_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("readers");
    std::fs::write(&tokens, "r-secret\n").unwrap();
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &["--read-token-file", tokens.to_str().unwrap()],
    );
    post(&daemon.client, SAMPLE_DAY);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/?hour=20");
    browser.until("!document.getElementById('token').hidden");
    assert_eq!(
        browser.js("return document.activeElement.id"),
        "token-value"
    );
    browser.keys("日本\u{e007}");
    browser.until("document.getElementById('token-problem').textContent.includes('not a valid')");
    browser.js("document.getElementById('token-value').select()");
    browser.keys("wrong\u{e007}");
    browser.until("document.getElementById('token-problem').textContent.includes('not valid')");
    browser.js("document.getElementById('token-value').select()");
    browser.keys("r-secret\u{e007}");
    complete(&browser);
    assert_eq!(total(&browser), sum(|flow| flow["hour"] == 20));
    browser.click("#download");
    browser.until("document.getElementById('download-state').textContent.startsWith('Downloaded')");
    assert!(browser.downloaded().metadata().unwrap().len() > 1_000);
    let kept = browser.js(
        "return JSON.stringify([localStorage, sessionStorage, document.cookie, history.state, location.href])",
    );
    assert!(!kept.as_str().unwrap().contains("r-secret"), "{kept}");
    browser.open("/?hour=20");
    browser.until("!document.getElementById('token').hidden");
    assert!(!daemon.log().contains("r-secret"));
    daemon.stop();
}

/// A keyboard alone gets everywhere, beginning with a way past what comes first.
#[test]
fn it_works_by_keyboard_and_on_a_phone() {
    let (_dir, daemon, browser) = sample_day();
    browser.cdp(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true}),
    );
    browser.open("/?hour=20");
    complete(&browser);
    assert_eq!(
        browser.js("return document.documentElement.scrollWidth"),
        390
    );
    // Nothing has jumped while it came.
    browser.js("new PerformanceObserver((list) => { \
           window.jumps = list.getEntries().reduce((sum, { value }) => sum + value, 0); \
         }).observe({ type: 'layout-shift', buffered: true })");
    std::thread::sleep(Duration::from_millis(500));
    let jumps = browser.js("return window.jumps ?? 0");
    assert!(jumps.as_f64().unwrap() < 0.02, "{jumps}");
    const TAB: &str = "\u{e004}";
    const ENTER: &str = "\u{e007}";
    browser.keys(TAB);
    assert_eq!(
        browser.js("return document.activeElement.className"),
        "skip"
    );
    browser.keys(ENTER);
    assert_eq!(browser.js("return document.activeElement.id"), "rows");
    browser.keys(TAB);
    assert_eq!(browser.js("return document.activeElement.id"), "grouping");

    browser.js("document.getElementById('previous-hour').focus()");
    browser.keys(ENTER);
    browser.until("location.search === '?hour=19'");
    complete(&browser);
    browser.js("document.querySelector('#table tbody button').focus()");
    browser.keys(ENTER);
    browser.until("location.search.includes('src_app=')");
    complete(&browser);
    // On the last page, the focus is where one can go on.
    browser.open("/?hour=20");
    complete(&browser);
    for page in 2..10 {
        browser.js("document.getElementById('next-page').focus()");
        browser.keys(ENTER);
        browser.until(&format!(
            "document.getElementById('page-number').textContent === 'Page {page}'"
        ));
        complete(&browser);
        if browser.js("return document.getElementById('next-page').disabled") == true {
            break;
        }
    }
    assert_eq!(
        browser.js("return document.activeElement.id"),
        "previous-page"
    );
    // Everything that can be pressed or chosen says what it is.
    let silent = browser.js(
        "return [...document.querySelectorAll('button, input, select')] \
         .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)",
    );
    assert_eq!(silent, json!([]));
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// The page fetches what it shows and no more, so that an hour of any size is as fast to it.
#[test]
fn an_hour_of_a_million_rows_stays_responsive() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    for part in 0..10 {
        let mut body = Vec::new();
        for n in 0..100_000 {
            let n = part * 100_000 + n;
            let (a, b) = (n / 1_000, n % 1_000);
            writeln!(body, "{{\"src_app\":\"app-{a}\",\"dest_app\":\"app-{b}\",\"vpc_id\":\"v\",\"bytes_tx\":{n},\"bytes_rx\":1,\"hour\":9}}").unwrap();
        }
        let answer = daemon.client.post("/flows", &[NDJSON], &body).unwrap();
        assert_eq!(answer.status, 200);
    }
    let browser = Browser::start(&format!("http://{}", daemon.address));
    let start = Instant::now();
    browser.open("/");
    complete(&browser);
    println!("complete after {:?}", start.elapsed());
    assert_eq!(total(&browser), (0..1_000_000).sum::<u64>() + 1_000_000);
    let start = Instant::now();
    browser.click("#sources button");
    browser.until("document.querySelectorAll('#sources li').length === 1");
    complete(&browser);
    println!("filtered after {:?}", start.elapsed());
    let cost = browser.js(
        "const fetched = performance.getEntriesByType('resource').filter(({ name }) => /flows|hours/.test(name)); \
         return [fetched.reduce((sum, { transferSize }) => sum + transferSize, 0), document.querySelectorAll('*').length]",
    );
    println!("bytes fetched and elements: {cost}");
    assert!(cost[0].as_u64().unwrap() < 100_000, "{cost}");
    assert!(cost[1].as_u64().unwrap() < 2_000, "{cost}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn page_and_assets_are_cached_and_guarded() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let client = &daemon.client;
    let page = client.get("/?any=view", &[]).unwrap();
    assert_eq!(page.status, 200);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"));
    assert!(!policy.contains("unsafe"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert_eq!(page.header("referrer-policy"), Some("no-referrer"));
    assert_eq!(page.header("cache-control"), Some("no-cache"));
    let tag = page.header("etag").unwrap();
    for known in [tag, "*", &format!("\"other\", {tag}")] {
        let again = client.get("/", &[("if-none-match", known)]).unwrap();
        assert_eq!((again.status, again.body.len()), (304, 0), "{known}");
    }
    assert_eq!(
        client
            .get("/", &[("if-none-match", "\"x\"")])
            .unwrap()
            .status,
        200
    );

    // Nothing in it is from elsewhere.
    let html = String::from_utf8(page.body).unwrap();
    assert!(!html.contains("//cdn") && !html.contains("src=\"http") && !html.contains("<style"));
    let script = html
        .split("src=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(script.starts_with("assets/") && script.ends_with("/page.js"));
    for name in ["page.js", "page.css", "plotly.js"] {
        let path = format!("/{}", script.replace("page.js", name));
        let plain = client
            .get(&path, &[("accept-encoding", "identity")])
            .unwrap();
        assert_eq!(
            (plain.status, plain.header("content-encoding")),
            (200, None)
        );
        assert_eq!(
            plain.header("cache-control"),
            Some("public, max-age=31536000, immutable")
        );
        let tag = plain.header("etag").unwrap();
        assert_eq!(
            client.get(&path, &[("if-none-match", tag)]).unwrap().status,
            304
        );
        let head = format!(
            "HEAD {path} HTTP/1.1\r\nhost: localhost\r\naccept-encoding: gzip\r\nconnection: close\r\n\r\n"
        );
        let head = crate::support::raw(daemon.address, head.as_bytes()).to_lowercase();
        assert!(
            head.contains("content-encoding: gzip") && head.ends_with("\r\n\r\n"),
            "{head}"
        );
        let ruled_out = [("accept-encoding", "*;q=0")];
        assert_eq!(client.get(&path, &ruled_out).unwrap().status, 406);
    }
    for path in ["/assets/", "/assets/0/page.js", "/page.js", "/index.html"] {
        assert_eq!(client.get(path, &[]).unwrap().status, 404, "{path}");
    }
    assert_eq!(client.delete("/").unwrap().status, 405);
    daemon.stop();
}

/// As in docs/images, where `scripts/screenshots` has them put.
#[test]
fn pictures_are_whole_at_every_size_and_in_both_schemes() {
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
        // Bands fade in.
        std::thread::sleep(Duration::from_secs(2));
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
            "{name} is to be scrolled sideways"
        );
        let background = browser.js("return getComputedStyle(document.body).backgroundColor");
        backgrounds.insert(background.to_string());
    }
    assert_eq!(backgrounds.len(), 2, "light and dark: {backgrounds:?}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}
