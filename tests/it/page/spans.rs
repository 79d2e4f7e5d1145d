//! Days, months and a year of hours: ranges, comparison, applications over time, and other ways to show the same.

use super::time::this_hour;
use super::*;

/// Bytes that `app` sends in the hour that began `age` hours ago: different in each hour, and more in the newer ones.
fn bytes(app: u64, age: u64) -> u64 {
    1_000_000 * (app + 1) + 1_000 * (100 - age.min(100)) + age % 24
}

/// Two more than a list shows.
const APPS: [&str; 10] = [
    "ads", "api", "auth", "cart", "cdn", "jobs", "mail", "search", "stock", "web",
];

/// The sum of the `hours` before the one that is `age` hours old, that one included, for all applications.
fn bytes_of_all(age: u64, hours: u64) -> u64 {
    let of_hour = |age| {
        (0..APPS.len() as u64)
            .map(|app| bytes(app, age))
            .sum::<u64>()
    };
    (age..age + hours).map(of_hour).sum()
}

/// Three weeks of hours since the epoch; the newest has not ended and has no flows.
fn three_weeks() -> (tempfile::TempDir, Daemon, Browser, u32) {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let now = this_hour();
    let flows: Vec<_> = (1..=21 * 24)
        .flat_map(|age| {
            let all = (0..).zip(APPS);
            all.map(move |(app, name)| (app, name, age))
        })
        .map(|(app, name, age)| {
            TestFlow::new(now - age, name, "db", "v", bytes(app, age.into()), 0)
        })
        .collect();
    daemon.client.accept(&flows);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    (dir, daemon, browser, now)
}

fn with_commas(value: u64) -> String {
    let digits = value.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().collect();
    let groups = groups.iter().map(|g| std::str::from_utf8(g).unwrap());
    groups.collect::<Vec<_>>().join(",")
}

fn percent(after: u64, before: u64) -> String {
    let share = 100.0 * (after as f64 / before as f64 - 1.0);
    let digits = usize::from(share.abs() < 9.95);
    let sign = if share < 0.0 { '\u{2212}' } else { '+' };
    format!("{sign}{:.digits$}%", share.abs())
}

#[test]
fn the_last_days_are_compared_with_the_days_before() {
    let (_dir, daemon, browser, _) = three_weeks();
    browser.open("/");
    complete(&browser);
    browser.click("[data-last='168']");
    browser.until("location.search === '?last=168'");
    complete(&browser);
    let week = bytes_of_all(1, 168);
    assert_eq!(total(&browser), week);
    assert_eq!(browser.text("#span"), "168");

    browser.click("label[for=compare]");
    browser.until("location.search === '?last=168&compare=on'");
    complete(&browser);
    let before = bytes_of_all(169, 168);
    assert_eq!(
        browser.text("#total-exact"),
        format!("{} bytes, {}", with_commas(week), percent(week, before))
    );
    // Each application, and all others, by how much they changed.
    let of = |app: u64, from: u64| (from..from + 168).map(|age| bytes(app, age)).sum::<u64>();
    let mut expected: Vec<_> = (2..10)
        .rev()
        .map(|app| percent(of(app, 1), of(app, 169)))
        .collect();
    expected.push(percent(of(0, 1) + of(1, 1), of(0, 169) + of(1, 169)));
    assert_eq!(browser.texts("#sources .percent"), expected);
    assert_eq!(
        browser.texts("#destinations .percent"),
        [percent(week, before)]
    );
    // The table begins with what grew most.
    assert_eq!(browser.text("#table [aria-sort=descending]"), "Change");
    // The same with a filter, for which the service adds up the hours.
    browser.open("/?last=168&compare=on&src_app=web");
    complete(&browser);
    assert_eq!(
        browser.text("#total-exact"),
        format!(
            "{} bytes, {}",
            with_commas(of(9, 1)),
            percent(of(9, 1), of(9, 169))
        )
    );
    // Three weeks have no three weeks before them.
    browser.click("#all");
    browser.until("!document.getElementById('compare-problem').hidden");
    complete(&browser);
    assert!(!browser.text("#total-exact").contains('%'));
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// The sentence above everything is about the newest day of UTC that is over.
#[test]
fn yesterday_is_told_in_a_sentence() {
    let (_dir, daemon, browser, now) = three_weeks();
    let sentence = |browser: &Browser| browser.text("#sentence");
    browser.open("/");
    complete(&browser);
    browser.until("document.getElementById('sentence').textContent !== ''");
    // The hours of yesterday begin this long ago.
    let age = u64::from(now % 24) + 1;
    let (of_day, of_day_before) = (bytes_of_all(age, 24), bytes_of_all(age + 24, 24));
    let change = 100.0 * (of_day as f64 / of_day_before as f64 - 1.0);
    assert!((0.0..0.5).contains(&change), "{change}");
    let amount = format!("{:.2} GB", of_day as f64 / 1e9);
    assert_eq!(
        sentence(&browser),
        format!("Yesterday {amount}, as much as the day before; most of all web → db.")
    );
    // It is about all flows, whatever the view shows, and follows them.
    let hour = now - now % 24 - 5;
    let backup = TestFlow::new(hour, "backup", "<b>", "v", 3 * of_day, 0);
    daemon.client.accept(&[backup]);
    browser.open("/?last=24&src_app=api");
    let expected = format!(
        "Yesterday {:.2} GB, {:.0}% more than the day before; mostly backup → <b>.",
        4.0 * of_day as f64 / 1e9,
        100.0 * (4.0 * of_day as f64 / of_day_before as f64 - 1.0)
    );
    browser.until("/backup/.test(document.getElementById('sentence').textContent)");
    assert_eq!(sentence(&browser), expected);
    nothing_to_complain_about(&browser);
    daemon.stop();
}

fn select(browser: &Browser, id: &str, value: &str) {
    browser.js(&format!(
        "const field = document.getElementById('{id}'); field.value = '{value}'; \
         field.dispatchEvent(new Event('change'))"
    ));
}

#[test]
fn bars_of_applications_add_up_to_all_flows() {
    let (_dir, daemon, browser, _) = three_weeks();
    browser.open("/?last=24");
    complete(&browser);
    select(&browser, "series", "src_app");
    browser.until("location.search.includes('by=src_app') && document.querySelector('#hours-legend:not([hidden]) li')");
    complete(&browser);
    let legend = browser.texts("#hours-legend li");
    assert_eq!(
        legend,
        [
            "web",
            "stock",
            "search",
            "mail",
            "jobs",
            "cdn",
            "all others"
        ]
    );
    // The tip of the newest complete hour: each application, all others, and the total.
    browser.js("document.getElementById('hours-chart').focus()");
    browser.keys("\u{e010}"); // End
    let lines = tip(&browser);
    for (name, value) in [
        ("web", bytes(9, 1)),
        ("cdn", bytes(4, 1)),
        ("all others", (0..4).map(|app| bytes(app, 1)).sum()),
    ] {
        let digits = with_commas(value);
        assert!(
            lines
                .iter()
                .any(|line| line.contains(name) && line.contains(&digits)),
            "{name} {digits}: {lines:?}"
        );
    }
    // A click on a name makes the page about it.
    browser.click("#hours-legend li:first-child button");
    browser.until(
        "location.search.includes('peer=web') \
         && document.querySelector('#destinations-title').textContent === 'Destinations of web'",
    );
    nothing_to_complain_about(&browser);
    daemon.stop();
}

#[test]
fn pairs_units_and_zones_are_shown_as_chosen() {
    let (_dir, daemon, browser, now) = three_weeks();
    browser.cdp(
        "Emulation.setTimezoneOverride",
        json!({"timezoneId": "Asia/Kolkata"}),
    );
    browser.open("/?last=24");
    complete(&browser);
    // A row for each source, a column for each destination.
    select(&browser, "edges-as", "matrix");
    browser.until("document.querySelector('#edges-matrix tbody td button')");
    assert_eq!(browser.texts("#edges-matrix thead th"), ["db"]);
    let rows = browser.texts("#edges-matrix tbody th");
    assert_eq!(
        rows,
        APPS.map(str::to_owned)
            .into_iter()
            .rev()
            .collect::<Vec<_>>()
    );
    browser.click("#edges-matrix tbody tr:first-child td button");
    browser.until(
        "location.search.includes('src_app=web') && location.search.includes('dest_app=db')",
    );

    // An hour of 3,600 s.
    browser.open("/?last=1&src_app=web");
    browser.until("!document.querySelector('[aria-busy]') && document.querySelector('#table td')");
    select(&browser, "unit", "bits");
    browser.until("document.getElementById('total').textContent.endsWith('bit/s')");
    let shown = browser.text("#total");
    let (number, unit) = shown.split_once(' ').unwrap();
    assert_eq!(unit, "kbit/s");
    let expected = bytes(9, 1) as f64 * 8.0 / 3_600.0 / 1_000.0;
    assert!(
        (number.parse::<f64>().unwrap() / expected - 1.0).abs() < 0.01,
        "{shown} {expected}"
    );

    // Dates in the browser's zone, 5:30 ahead of UTC; the URL keeps the choice.
    select(&browser, "zone-choice", "local");
    browser.until("location.search.includes('zone=local') && document.title.includes('UTC+5:30')");
    let minutes = i64::from(now - 1) * 60 + 330;
    let clock = format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60);
    let title = browser.js("return document.title");
    assert!(title.as_str().unwrap().contains(&clock), "{title} {clock}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}
