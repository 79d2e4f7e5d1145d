//! The charts: their content, and how they are announced.

use super::*;

/// A year of hours since the epoch, the last of them `end`. The hour determines the bytes.
pub(super) fn year(client: &Client, end: u32) {
    let mut body = Vec::new();
    for hour in end - 8_759..=end {
        for (app, bytes) in [("web", hour), ("night-batch", 7)] {
            let flow = json!({"src_app": app, "dest_app": "db", "vpc_id": "v", "bytes_tx": bytes, "bytes_rx": 1, "hour": hour});
            writeln!(body, "{flow}").unwrap();
        }
    }
    post(client, std::str::from_utf8(&body).unwrap());
}

/// 2025-06-01 00:00.
pub(super) const JUNE: u32 = 485_760;

pub(super) fn note(browser: &Browser) -> String {
    browser.text("#hours-note")
}

/// Every bar shows its hour, not only those with a label at the axis.
#[test]
fn a_bar_shows_its_hour_and_all_digits_by_mouse_keys_and_touch() {
    let (_dir, daemon, browser) = sample_day();
    let tx = |hour| {
        let flows = SAMPLE_DAY
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let of_hour = flows.filter(|flow| flow["hour"] == hour);
        of_hour
            .map(|flow| flow["bytes_tx"].as_u64().unwrap())
            .sum::<u64>()
    };
    let digits = |line: &str| -> String {
        let exact = line.split('(').nth(1).unwrap();
        exact.chars().filter(char::is_ascii_digit).collect()
    };
    browser.open("/?hour=20");
    complete(&browser);
    for hour in [0, 7, 13, 23] {
        browser.hover(bar(&browser, hour));
        let said = tip(&browser);
        assert_eq!(said[0], format!("hour {hour}"));
        assert!(said[1].starts_with("Sent"), "{said:?}");
        assert_eq!(digits(&said[1]), tx(hour).to_string());
    }
    // Escape hides the tip of the mouse, although the chart has no focus.
    browser.js("document.activeElement.blur()");
    browser.keys("\u{e00c}");
    assert_eq!(
        browser.js("return document.querySelector('#hours-chart .tip').hidden"),
        json!(true)
    );
    // By keyboard; screen readers get the same text.
    browser.js("document.getElementById('hours-chart').focus()");
    browser.keys("\u{e011}\u{e014}\u{e014}"); // Home, Right, Right
    let said = tip(&browser);
    assert_eq!(
        (said[0].as_str(), digits(&said[1])),
        ("hour 2", tx(2).to_string())
    );
    let heard = browser.js("return document.activeElement.ariaValueText");
    assert_eq!(heard.as_str().unwrap(), said.join(", "));
    browser.keys(ENTER);
    browser.until("location.search === '?hour=2'");
    complete(&browser);
    // A finger slides to a bar, and selects it when it is lifted.
    let (from, to) = (bar(&browser, 4), bar(&browser, 9));
    let touch = |kind: &str, points: serde_json::Value| {
        browser.cdp(
            "Input.dispatchTouchEvent",
            json!({"type": kind, "touchPoints": points}),
        );
    };
    browser.cdp(
        "Emulation.setTouchEmulationEnabled",
        json!({"enabled": true}),
    );
    touch("touchStart", json!([{"x": from.0, "y": from.1}]));
    touch("touchMove", json!([{"x": to.0, "y": to.1}]));
    assert_eq!(tip(&browser)[0], "hour 9");
    touch("touchEnd", json!([]));
    browser.until("location.search === '?hour=9'");
    // The same for bands.
    complete(&browser);
    browser.js("document.getElementById('edges-chart').focus()");
    browser.keys("\u{e011}");
    let said = tip(&browser);
    assert!(
        said[0].contains(" → ") && said[1].contains(" bytes)"),
        "{said:?}"
    );
    browser.keys(ENTER);
    browser.until("/src_app=.*dest_app=/.test(location.search)");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn the_chart_of_hours_honours_filters_and_search() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    daemon.client.accept(&[
        TestFlow::new(3, "web", "db", "v", 1_000, 0),
        TestFlow::new(4, "web", "db", "v", 10, 5),
        TestFlow::new(4, "batch", "db", "v", 7_000, 0),
        TestFlow::new(5, "batch", "db", "v", 20, 0),
    ]);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    let bars = |browser: &Browser| browser.texts("#hours-table tbody tr").join("; ");
    browser.open("/?from=0");
    complete(&browser);
    assert_eq!(bars(&browser), "hour 31,0000; hour 47,0105; hour 5200");
    assert!(note(&browser).starts_with("all applications, "));
    for filter in ["src_app=web", "search=WEB"] {
        browser.open(&format!("/?from=0&{filter}"));
        complete(&browser);
        assert_eq!(
            bars(&browser),
            "hour 31,0000; hour 4105; hour 500",
            "{filter}"
        );
        assert!(
            note(&browser).contains("match the filters"),
            "{}",
            note(&browser)
        );
    }
    // New flows appear in the chart, and only changed hours are requested.
    daemon.client.accept(&[
        TestFlow::new(5, "web", "db", "v", 3, 0),
        TestFlow::new(5, "batch", "db", "v", 3, 0),
    ]);
    browser.js(
        "performance.clearResourceTimings(); document.dispatchEvent(new Event('visibilitychange'))",
    );
    browser.until(
        "document.querySelector('#hours-table tbody tr:last-child').textContent === 'hour 530'",
    );
    let asked = browser.js(
        "return performance.getEntriesByType('resource').map(({ name }) => name).filter((name) => /group_by=hour/.test(name))",
    );
    assert!(
        asked[0].as_str().unwrap().contains("from=5&to=6&"),
        "{asked}"
    );
    assert_eq!(asked.as_array().unwrap().len(), 1, "{asked}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// A whole year is in one chart, and its first hour is one key or click away.
#[test]
fn a_year_fits_into_the_overview_and_its_start_is_reachable() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    year(&daemon.client, JUNE + 8_759);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/?from=0");
    complete(&browser);
    let said = note(&browser);
    assert!(
        said.contains("2025-06-01 00:00 to 2026-05-31 23:00 UTC"),
        "{said}"
    );
    assert!(said.contains("one bar is"), "{said}");
    let sums = browser.js("return [...document.querySelectorAll('#hours-table tbody td:nth-child(2)')].map((td) => Number(td.textContent.replace(/,/g, '')))");
    let sums: Vec<u64> = serde_json::from_value(sums).unwrap();
    let all = (0..8_760).map(|n| u64::from(JUNE) + n + 7).sum::<u64>();
    assert_eq!(sums.iter().sum::<u64>(), all);
    assert!((150..300).contains(&sums.len()), "{}", sums.len());

    // From the newest hour to the first: one key in the overview, one in the chart.
    browser.open("/");
    complete(&browser);
    assert!(note(&browser).contains("to 2026-05-31 23:00 UTC"));
    browser.js("document.getElementById('hours-overview').focus()");
    browser.keys(&format!("\u{e011}{ENTER}"));
    browser
        .until("document.getElementById('hours-note').textContent.includes('2025-06-01 00:00 to')");
    browser.js("document.getElementById('hours-chart').focus()");
    browser.keys(&format!("\u{e011}{ENTER}"));
    browser.until(&format!("location.search === '?hour={JUNE}'"));
    complete(&browser);
    assert!(
        browser
            .text("#summary")
            .starts_with("2025-06-01 00:00 UTC: ")
    );
    // By a click, then by dragging over a month.
    let at = |part: f64| {
        let place = browser.js("const { x, y, width } = document.getElementById('hours-overview').getBoundingClientRect(); return [x, y, width]");
        let [x, y, width] = [0, 1, 2].map(|i| place[i].as_f64().unwrap());
        #[expect(clippy::cast_possible_truncation, reason = "pixels")]
        let point = ((x + part * width) as i64, y as i64 + 20);
        point
    };
    browser.drag(at(0.5), at(0.5));
    browser
        .until("/2025-1[12]-.. ..:00 to/.test(document.getElementById('hours-note').textContent)");
    browser.drag(at(0.2), at(0.3));
    browser.until("/2025-08-1.*to 2025-09-1.*one bar is/.test(document.getElementById('hours-note').textContent)");
    // By a date, typed or picked.
    browser.js("const field = document.getElementById('from-hour'); field.value = '2025-07-01T12:00'; field.dispatchEvent(new Event('change'))");
    browser.until(&format!(
        "location.search === '?hour={}'",
        JUNE + 30 * 24 + 12
    ));
    complete(&browser);
    // Responses in another order than their requests are not mixed up.
    browser.open("/?search=web");
    complete(&browser);
    browser.js(
        "const real = fetch; let count = 0; window.fetch = async (url, options) => { \
           const isFirst = /group_by=hour/.test(url) && (count += 1) === 1; \
           const response = await real(url, { ...options, signal: undefined }); \
           if (isFirst) { \
             await new Promise((done) => setTimeout(done, 1000)); \
             window.isLate = true; \
           } \
           return response; \
         }; \
         document.getElementById('earlier').click(); document.getElementById('earlier').click()",
    );
    browser.until("window.isLate");
    complete(&browser);
    let rows = browser.texts("#hours-table tbody td:nth-child(2)");
    assert!(
        rows.len() > 100 && !rows.contains(&"0".to_owned()),
        "{rows:?}"
    );
    // A phone has fewer bars, each of more hours.
    browser.cdp(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true}),
    );
    browser.open("/?from=0");
    complete(&browser);
    let widths = browser.js("return [...document.querySelectorAll('#hours-chart rect.sent')].map((rect) => rect.getBoundingClientRect().width)");
    let widths: Vec<f64> = serde_json::from_value(widths).unwrap();
    assert!(widths.iter().all(|&width| width > 3.0), "{widths:?}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// Its scripts are small, and leave the main thread of a slow phone free.
#[test]
fn the_page_is_light() {
    let (_dir, daemon, browser) = sample_day();
    browser.cdp(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": true}),
    );
    browser.cdp("Emulation.setCPUThrottlingRate", json!({"rate": 4}));
    // CPU time of the main thread: elapsed time depends on what else the machine does.
    let in_cpu_time = json!({"timeDomain": "threadTicks"});
    browser.cdp("Performance.enable", in_cpu_time);
    browser.open("/?hour=20");
    complete(&browser);
    let bytes = browser.js(
        "return [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')] \
           .reduce((sum, { transferSize }) => sum + transferSize, 0)",
    );
    let metrics = browser.cdp("Performance.getMetrics", json!({}));
    let mut metrics = metrics["metrics"].as_array().unwrap().iter();
    let tasks = metrics.find(|metric| metric["name"] == "TaskDuration");
    let busy = tasks.unwrap()["value"].as_f64().unwrap();
    println!("{bytes} bytes, {busy} s of CPU");
    assert!(bytes.as_u64().unwrap() < 100_000, "{bytes}");
    // It is 0.6 usually, and was more than 7 with a library.
    assert!(busy < 2.0, "{busy}");
    daemon.stop();
}

/// The overview always shows all applications, and is labelled so; the chart has a text if nothing matches.
#[test]
fn charts_show_whether_they_are_filtered_or_empty() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    year(&daemon.client, JUNE + 8_759);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/?src_app=web");
    complete(&browser);
    assert_eq!(
        browser.text("#overview-note"),
        "All hours, of all applications:"
    );
    let heard = browser.js(
        "const { ariaLabel, hidden } = document.getElementById('hours-overview'); \
         return [ariaLabel, hidden, document.getElementById('overview-note').checkVisibility()]",
    );
    assert_eq!(
        heard,
        json!(["Part of all hours, of all applications", false, true])
    );
    let is_empty =
        "document.querySelector('#table td.none') && !document.querySelector('[aria-busy]')";
    let axis = |browser: &Browser| browser.texts("#hours-chart .grid + text");
    assert!(!axis(&browser).is_empty());
    browser.open("/?search=nobody");
    browser.until(is_empty);
    let said = note(&browser);
    assert!(said.starts_with("no flows match, 2026-05-"), "{said}");
    assert!(!said.contains("most"), "{said}");
    assert_eq!(axis(&browser), Vec::<String>::new());
    // Flows without bytes are flows.
    daemon
        .client
        .accept(&[TestFlow::new(JUNE + 8_759, "idle", "db", "v", 0, 0)]);
    browser.open("/?search=idle");
    browser.until(
        "document.querySelector('#table td button') && !document.querySelector('[aria-busy]')",
    );
    let said = note(&browser);
    assert!(
        said.contains("match the filters, 2026-05-") && said.ends_with("; no bytes"),
        "{said}"
    );
    assert_eq!(axis(&browser), Vec::<String>::new());
    nothing_to_complain_about(&browser);
    daemon.stop();
}
