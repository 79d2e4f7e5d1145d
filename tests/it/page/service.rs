//! The page with a service that is empty, unavailable, busy, protected by tokens, or large.

use super::*;

#[test]
fn an_empty_service_shows_how_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/");
    browser.until("!document.getElementById('empty').hidden");
    let command = browser.text("#empty-command");
    assert!(command.contains(&format!("http://{}/flows", daemon.address)));
    // The shown command works, and its flow appears without a reload.
    let output = std::process::Command::new("sh")
        .args(["-c", &command])
        .output()
        .unwrap();
    let response = String::from_utf8_lossy(&output.stdout);
    assert_eq!(response.trim_end(), "{\"accepted\":1}");
    complete(&browser);
    assert_eq!(browser.text("#total"), "600 B");
    // So does the other command, in the directory of the binary and the data.
    let sample = browser.text("#empty-send");
    let sample = sample.replace("flowtally", env!("CARGO_BIN_EXE_flowtally"));
    let sent = std::process::Command::new("sh")
        .args(["-c", &sample])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(sent.unwrap().success(), "{sample}");
    browser.until("document.querySelector('#span-exact') && document.querySelectorAll('#hours-table tbody tr').length > 20");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// Everything below a selected hour belongs to that hour.
#[test]
fn a_chart_whose_request_failed_is_not_shown() {
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
    // All requests fail: there is one message.
    browser.click("#previous-hour");
    browser.until("document.getElementById('banner').textContent === 'Busy: later.'");
    assert!(browser.text("#summary").starts_with("hour 19"));
    for css in ["#sources", "#destinations", "#edges-chart", "#table"] {
        assert!(is_hidden(css), "{css}");
    }
    assert!(browser.texts(".problem").is_empty());
    // One request fails: its card has the message.
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
    // An invalid hour is not silently replaced.
    browser.open("/?hour=-1");
    browser.until("document.getElementById('banner').textContent.includes('hour=-1')");
    daemon.stop();
}

#[test]
fn the_page_recovers_with_the_service() {
    let (dir, mut daemon, browser) = sample_day();
    browser.open("/?hour=20");
    complete(&browser);
    let before = shown(&browser);
    let address = daemon.address.to_string();
    daemon.kill();
    browser.js("document.querySelector('#sources button').click()");
    browser.until("!document.getElementById('banner').hidden");
    assert!(browser.text("#banner").contains("does not respond"));
    assert_eq!(browser.text("#live"), "Offline");
    let daemon = Daemon::start_with(&dir.path().join("db"), &["--listen", &address]);
    // The page recovers by itself, and shows what was selected meanwhile.
    browser.until("document.getElementById('banner').hidden");
    browser.until("document.querySelector('#sources-title').textContent === 'Sources of web'");
    complete(&browser);
    let is_of_web =
        |flow: &serde_json::Value| flow["src_app"] == "web" || flow["dest_app"] == "web";
    assert_eq!(
        total(&browser),
        sum(|flow| flow["hour"] == 20 && is_of_web(flow))
    );
    browser.js("history.back()");
    browser.until("document.querySelector('#sources-title').textContent === 'Top sources'");
    complete(&browser);
    assert_eq!(shown(&browser), before);
    daemon.stop();
}

/// Watches the page from now on. `pending` is the number of its requests in progress. `fireTimers()` runs everything that
/// it has scheduled without waiting for the time, and returns the number of requests that result.
const WATCH: &str = "
    const [schedule, clear, send] = [window.setTimeout, window.clearTimeout, window.fetch];
    const scheduled = new Map();
    let requests = 0;
    window.pending = 0;
    window.setTimeout = (act, pause, ...more) => {
        const id = schedule(() => { scheduled.delete(id); act(...more); }, pause);
        // Those of a minute end requests.
        if (pause < 60_000) scheduled.set(id, () => act(...more));
        return id;
    };
    window.clearTimeout = (id) => { scheduled.delete(id); clear(id); };
    window.fetch = (...request) => {
        requests += 1;
        window.pending += 1;
        return send(...request).finally(() => { window.pending -= 1; });
    };
    window.fireTimers = () => {
        const before = requests;
        for (const [id, act] of [...scheduled]) { window.clearTimeout(id); act(); }
        return requests - before;
    };";

#[test]
fn updates_are_automatic_unless_paused() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/");
    complete(&browser);
    browser.js(WATCH);
    // The newest hour is shown, so a newer one replaces it.
    daemon
        .client
        .accept(&[TestFlow::new(24, "night", "shift", "vpc-0", 5, 6)]);
    browser.until("document.title.startsWith('hour 24')");
    complete(&browser);
    assert_eq!(total(&browser), 11);
    // The next update is scheduled.
    browser.until("fireTimers() > 0");
    complete(&browser);

    browser.click("#live");
    browser.until("location.search === '?live=off' && pending === 0");
    complete(&browser);
    daemon
        .client
        .accept(&[TestFlow::new(25, "day", "shift", "vpc-0", 5, 6)]);
    // No update is scheduled.
    assert_eq!(browser.js("return fireTimers()"), 0);
    assert_eq!(total(&browser), 11);
    assert!(browser.text("#updated").starts_with("Updated"));
    browser.click("#live");
    browser.until("document.title.startsWith('hour 25')");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn a_token_is_requested_and_not_stored() {
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

/// The page fetches only what it shows, so that the size of an hour does not matter.
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
        let response = daemon.client.post("/flows", &[NDJSON], &body).unwrap();
        assert_eq!(response.status, 200);
    }
    let browser = Browser::start(&format!("http://{}", daemon.address));
    let start = Instant::now();
    browser.open("/");
    complete(&browser);
    println!("complete after {:?}", start.elapsed());
    assert_eq!(total(&browser), (0..1_000_000).sum::<u64>() + 1_000_000);
    let start = Instant::now();
    browser.click("#sources button");
    browser.until("location.search.includes('peer=')");
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

    // Nothing is loaded from other hosts.
    let html = String::from_utf8(page.body).unwrap();
    assert!(!html.contains("//cdn") && !html.contains("src=\"http") && !html.contains("<style"));
    let script = html
        .split("<script type=\"module\" src=\"")
        .nth(1)
        .unwrap()
        .split('"')
        .next()
        .unwrap();
    assert!(script.starts_with("assets/") && script.ends_with("/page.js"));
    for name in ["page.js", "page.css"] {
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

/// An open page sends a conditional request, and gets a 304 if nothing has changed.
#[test]
fn an_idle_page_sends_one_conditional_request() {
    let (_dir, daemon, browser) = sample_day();
    // Simulates a service that tags its responses.
    browser.before_each_page(
        "window.asked = []; window.open = 0; const real = fetch; \
         window.fetch = async (url, options) => { \
           const known = options.headers['If-None-Match'] ?? null; \
           window.open += 1; \
           const response = await real(url, { ...options, headers: { ...options.headers, 'If-None-Match': '' } }); \
           const text = await response.text(); \
           window.open -= 1; \
           if (!/^hours/.test(url)) { asked.push([url, known, 200]); return new Response(text, response); } \
           const tag = window.isUntagged ? null : `\"${text.length} ${text.slice(-99).replace(/\\D/g, '')}\"`; \
           const isKnown = tag !== null && tag === known; \
           asked.push([url, known, isKnown ? 304 : 200]); \
           return new Response(isKnown ? null : text, { status: isKnown ? 304 : 200, headers: tag === null ? {} : { ETag: tag } }); \
         }",
    );
    let look = |browser: &Browser, status: u16| {
        browser
            .js("window.asked.length = 0; document.dispatchEvent(new Event('visibilitychange'))");
        browser.until("window.asked.length > 0 && window.open === 0");
        // By then, requests that follow from the response have been sent.
        browser.js("return new Promise((done) => requestIdleCallback(() => setTimeout(done)))");
        browser.until("window.open === 0");
        complete(browser);
        let asked = browser.js("return window.asked");
        assert_eq!(
            (&asked[0][0], &asked[0][2]),
            (&json!("hours?step=720"), &json!(status)),
            "{asked}"
        );
        asked
    };
    browser.open("/?hour=20");
    complete(&browser);
    let before = shown(&browser);
    for _ in 0..2 {
        let asked = look(&browser, 304);
        assert_eq!(asked.as_array().unwrap().len(), 1, "{asked}");
        assert!(asked[0][1].is_string(), "{asked}");
        assert_eq!(shown(&browser), before);
    }
    daemon
        .client
        .accept(&[TestFlow::new(20, "new", "new", "vpc-0", 1 << 40, 6)]);
    let asked = look(&browser, 200);
    assert!(asked.as_array().unwrap().len() > 4, "{asked}");
    browser.until("document.querySelector('#sources .name').textContent === 'new'");
    // It works without a tag too, at a slightly higher cost.
    browser.js("window.isUntagged = true");
    look(&browser, 200);
    let asked = look(&browser, 200);
    assert_eq!(asked[0][1], json!(null));
    assert_eq!(asked.as_array().unwrap().len(), 1, "{asked}");
    daemon.stop();
}
