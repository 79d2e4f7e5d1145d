//! Unusual names and large numbers on the page and in its download.

use super::*;

/// Names are untrusted. In the table, the lists and the charts they are plain text.
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
    // Each works as a filter and in a URL.
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
        browser.until("location.search.startsWith('?peer=')");
    }
    assert_ne!(browser.js("return document.title"), "breach");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// The largest sums are exact, even in browsers without access to the source text of numbers, such as Firefox ESR 115
/// and Safari 17, which lack other features too.
#[test]
fn sums_are_exact_in_older_browsers_too() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let name = "\"bytes_tx\":12345678901234567890, \\";
    daemon.client.accept(&[
        TestFlow::new(7, name, "db", "v", (1 << 53) + 1, 0),
        TestFlow::new(7, "largest", "db", "v", u64::MAX, u64::MAX - 1),
    ]);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.before_each_page(
        "const parse = JSON.parse; \
         JSON.parse = (text, reviver) => parse(text, reviver && function (key, value) { return reviver.call(this, key, value); }); \
         delete AbortSignal.any; delete Element.prototype.ariaBusy; delete Element.prototype.ariaValueText; \
         delete Object.groupBy; delete Promise.withResolvers; delete Promise.try; delete Array.fromAsync; \
         for (const name of ['union', 'difference', 'intersection']) delete Set.prototype[name]",
    );
    browser.open("/?exact=on");
    complete(&browser);
    let exact = browser.js(
        "return JSON.parse('9007199254740993', (key, value, context) => context === undefined)",
    );
    assert_eq!(exact, true, "the browser has features that it should lack");
    let cells = browser.texts("#table td.number").join(" ");
    assert_eq!(
        cells,
        "36,893,488,147,419,103,229 18,446,744,073,709,551,615 18,446,744,073,709,551,614 \
         9,007,199,254,740,993 9,007,199,254,740,993 0"
    );
    assert_eq!(
        browser.text("#sent-exact"),
        "18,455,751,272,964,292,608 bytes"
    );
    let names = browser.texts("#table td:first-child");
    assert!(names.contains(&name.to_owned()), "{names:?}");
    // In the chart, by filter.
    browser.open("/?dest_app=db&src_app=largest");
    complete(&browser);
    assert_eq!(
        browser.text("#hours-table tbody"),
        "hour 718,446,744,073,709,551,61518,446,744,073,709,551,614"
    );
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// Users open the file in a spreadsheet, which would interpret some names as formulas. The API is exact.
#[test]
fn no_cell_of_the_file_is_a_formula() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    // Each with its form in the file.
    let names = [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\u{ff1d}1", "'\u{ff1d}1"),
        ("=\"a\",b", "'=\"a\",b"),
        // After characters that a spreadsheet strips.
        ("\t=1", "\t'=1"),
        ("\r=1", "\r'=1"),
        (" =1", " '=1"),
        ("\u{a0}=1", "\u{a0}'=1"),
        ("\0=1", "\0'=1"),
        ("\u{200b}\u{feff}=1", "\u{200b}\u{feff}'=1"),
        (
            "\u{3164}\u{e0041}\u{2800}-1",
            "\u{3164}\u{e0041}\u{2800}'-1",
        ),
        ("\"=1", "\"'=1"),
        // At separators where a spreadsheet splits cells.
        ("x;=cmd|' /C calc'!A0;y", "x;'=cmd|' /C calc'!A0;y"),
        ("b\t=1+1", "b\t'=1+1"),
        ("b; \"\"=1", "b; \"\"'=1"),
        ("b\n=1", "b\n'=1"),
        ("c,=1", "c,'=1"),
        ("d|@1;+2;;-3", "d|'@1;'+2;;'-3"),
        // No formulas.
        ("a=1", "a=1"),
        ("", ""),
        ("'=1", "'=1"),
        ("\n", "\n"),
        ("é", "é"),
        ("a-b;c+d", "a-b;c+d"),
        ("\u{1f600}=1", "\u{1f600}=1"),
    ];
    let flows: Vec<_> = (names.iter())
        .map(|(name, _)| TestFlow::new(7, name, "db", name, 5, 6))
        .collect();
    daemon.client.accept(&flows);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/");
    complete(&browser);
    browser.click("#download");
    browser.until("document.getElementById('download-state').textContent.startsWith('Downloaded')");
    let file = std::fs::read(browser.downloaded()).unwrap();
    let text = file
        .strip_prefix(b"\xef\xbb\xbf")
        .expect("a byte order mark comes first");
    let mut rows = csv::Reader::from_reader(text);
    let mut cells: Vec<_> = rows
        .records()
        .map(|row| {
            let row = row.unwrap();
            assert_eq!((&row[1], &row[3], &row[4], &row[5]), ("db", "5", "6", "7"));
            assert_eq!(row[0], row[2]);
            row[0].to_owned()
        })
        .collect();
    let mut expected: Vec<_> = names.iter().map(|(_, cell)| (*cell).to_owned()).collect();
    cells.sort();
    expected.sort();
    assert_eq!(cells, expected);
    // For any separator of a spreadsheet, and any characters that it strips.
    let text = std::str::from_utf8(text).unwrap();
    for part in text.split([',', ';', '\t', '|', '\r', '\n']) {
        let is_unseen = |c: char| {
            c == '"'
                || c.is_whitespace()
                || c.is_control()
                || "\u{200b}\u{feff}\u{3164}\u{e0041}\u{2800}".contains(c)
        };
        let seen = part.trim_start_matches(is_unseen);
        assert!(
            !seen.starts_with(['=', '+', '-', '@', '\u{ff1d}']),
            "{part:?}"
        );
    }
    // The text arrives in chunks, cut anywhere.
    let plain =
        "a,b\r\n=1,\"=2\"\r\n\"\"\"=\",\"x\"\"\n=\"\r\n,\"\"\r\n\"\t\",-\r\nx; \u{200b}@\r\n";
    let safe =
        "a,b\r\n'=1,\"'=2\"\r\n\"\"\"'=\",\"x\"\"\n'=\"\r\n,\"\"\r\n\"\t\",'-\r\nx; \u{200b}'@\r\n";
    let cut = browser.modules(&format!(
        "{{ const text = {plain:?}; return [...text].map((_, at) => {{ \
           const guard = it.csv.guard(); return guard(text.slice(0, at)) + guard(text.slice(at)); }}); }}"
    ));
    for (at, parts) in cut.as_array().unwrap().iter().enumerate() {
        assert_eq!(parts, safe, "cut at {at}");
    }
    let response = daemon
        .client
        .get("/flows?hour=7", &[("accept", "text/csv")]);
    let body = String::from_utf8(response.unwrap().body).unwrap();
    assert!(
        body.starts_with("src_app,") && body.contains("\n=1+1,db,=1+1,"),
        "{body}"
    );
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// Names with a common prefix are distinguishable even if truncated, and so are very long ones.
#[test]
fn similar_names_are_distinguishable_on_a_phone() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let long = |middle: &str| format!("{}{middle}{}", "x".repeat(400), "y".repeat(400));
    let names = [
        "catalog-batch-worker-eu-west-1a".to_owned(),
        "catalog-batch-worker-eu-west-1b".to_owned(),
        "catalog-batch-worker-us-west-1b".to_owned(),
        "catalog-batch-worker-us-west-1b-canary".to_owned(),
        "payments.team-a.svc.cluster.local".to_owned(),
        "payments.team-b.svc.cluster.local".to_owned(),
        long("1"),
        long("2"),
    ];
    let flows: Vec<_> = (names.iter().zip(1..))
        .map(|(name, n)| TestFlow::new(7, name, name, name, 1_000 + n, 0))
        .collect();
    daemon.client.accept(&flows);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    for width in [320, 390, 1_440] {
        browser.cdp(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}),
        );
        browser.open("/");
        complete(&browser);
        for (place, count) in [
            ("#sources button .name", 8),
            ("#table td:first-child bdi", 8),
            ("#table td:last-child bdi", 8),
            ("#edges-chart .node-label", 16),
        ] {
            let texts = browser.texts(place);
            let apart: BTreeSet<_> = texts.iter().collect();
            assert_eq!(
                (texts.len(), apart.len()),
                (count, 8),
                "{place} at {width}: {texts:?}"
            );
            let cut = browser.js(&format!(
                "return [...document.querySelectorAll({place:?})].filter((e) => e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0).map((e) => e.textContent)"
            ));
            assert_eq!(cut, json!([]), "{place} at {width}");
        }
        let wide = browser.js("return document.documentElement.scrollWidth");
        assert!(wide.as_i64() <= Some(width), "{wide} at {width}");
        let outside = browser.js(
            "const { left, right } = document.getElementById('edges-chart').getBoundingClientRect(); \
             return [...document.querySelectorAll('.node-label')].filter((e) => { const r = e.getBoundingClientRect(); \
               return r.left < left - 2 || r.right > right + 2; }).map((e) => e.textContent)",
        );
        assert_eq!(outside, json!([]), "at {width}");
    }
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// No name looks like the page's labels for the empty name and for the remaining names.
#[test]
fn no_name_looks_like_a_label_of_the_page() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let special = ["", "(empty)", "all others"];
    let plain: Vec<_> = (0..25).map(|n| format!("app-{n}")).collect();
    let names = special.into_iter().chain(plain.iter().map(String::as_str));
    let flows: Vec<_> = (names.zip((1..=28).rev()))
        .map(|(name, n)| TestFlow::new(7, name, name, name, n * 1_000, 0))
        .collect();
    daemon.client.accept(&flows);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    browser.open("/");
    complete(&browser);
    let shown = ["(empty)", "\\u{28}empty)", "\\u{61}ll others"];
    for (place, rest) in [
        ("#sources .name", true),
        ("#destinations .name", true),
        ("#edges-chart .node-label", true),
        ("#edges-table td:first-child", true),
        ("#table td:first-child", false),
    ] {
        let texts = browser.texts(place);
        let expected = shown.into_iter().chain(rest.then_some("all others"));
        for text in expected {
            // Bands have labels on both sides.
            let count = if place.contains("label") { 2 } else { 1 };
            let found = texts.iter().filter(|found| *found == text).count();
            assert_eq!(found, count, "{text} in {place}: {texts:?}");
        }
    }
    browser.open("/?src_app=&src_app=(empty)&src_app=all+others");
    complete(&browser);
    assert_eq!(browser.texts("#filters bdi"), shown);
    nothing_to_complain_about(&browser);
    daemon.stop();
}
