//! How the page looks and feels: colours, paper, fingers and keys.

use super::*;

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
    browser.keys(TAB);
    assert_eq!(
        browser.js("return document.activeElement.className"),
        "skip"
    );
    browser.keys(ENTER);
    assert_eq!(browser.js("return document.activeElement.id"), "rows");
    browser.keys(TAB);
    assert_eq!(browser.js("return document.activeElement.id"), "exact");

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

/// What the variable `name` of the stylesheet is, as red, green and blue.
fn color(browser: &Browser, name: &str) -> [f64; 3] {
    let text = browser.js(&format!(
        "return getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
    ));
    let hex = text.as_str().unwrap().trim_start_matches('#');
    assert_eq!(hex.len(), 6, "--{name} is {text}");
    [0, 2, 4].map(|at| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()))
}

/// The contrast of two colours, as WCAG 2 defines it.
fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
    let luminance = |color: [f64; 3]| {
        let [r, g, b] = color.map(|part| match part / 255.0 {
            part if part <= 0.040_45 => part / 12.92,
            part => ((part + 0.055) / 1.055).powf(2.4),
        });
        0.2126 * r + 0.7152 * g + 0.0722 * b
    };
    let (a, b) = (luminance(a), luminance(b));
    (a.max(b) + 0.05) / (a.min(b) + 0.05)
}

/// Text has a contrast of 4.5 to what is behind it; controls, bars and bands have 3.
#[test]
fn contrast_is_enough_in_both_schemes() {
    let (_dir, daemon, browser) = sample_day();
    let text = [
        ("text", "page raised soft accent-soft wrong-soft"),
        ("quiet", "page raised soft accent-soft"),
        ("accent", "raised page accent-soft soft"),
        ("wrong", "raised wrong-soft"),
    ];
    let graphics = [
        ("edge", "page raised soft"),
        ("accent", "page raised"),
        ("good", "raised"),
        ("sent", "raised received"),
        ("received", "raised"),
        ("sent-other", "raised"),
        ("received-other", "raised"),
        ("share", "raised"),
    ];
    for scheme in ["light", "dark"] {
        let features = [json!({"name": "prefers-color-scheme", "value": scheme})];
        browser.cdp("Emulation.setEmulatedMedia", json!({"features": features}));
        browser.open("/?hour=20&src_app=web&src_app=cdn");
        complete(&browser);
        let pairs = |list: &[(&'static str, &'static str)]| -> Vec<(&str, &str)> {
            let pairs = list
                .iter()
                .flat_map(|(a, rest)| rest.split(' ').map(move |b| (*a, b)));
            pairs.collect()
        };
        for (list, least) in [(pairs(&text), 4.5), (pairs(&graphics), 3.0)] {
            for (a, b) in list {
                let found = contrast(color(&browser, a), color(&browser, b));
                assert!(found >= least, "{scheme}: {a} on {b}: {found:.2}");
            }
        }
        for hue in ["0", "1", "2", "3", "4", "5", "6", "7", "none"] {
            let found = contrast(
                color(&browser, &format!("hue-{hue}")),
                color(&browser, "raised"),
            );
            assert!(found >= 3.0, "{scheme}: hue {hue}: {found:.2}");
        }
        // What is drawn with these is not paler than they are.
        let pale = browser.js(
            "return [...document.querySelectorAll('#content *, .top *')].filter((e) => \
               getComputedStyle(e).opacity !== '1' && !e.matches(':disabled, .mark i')).map((e) => e.outerHTML)",
        );
        assert_eq!(pale, json!([]), "{scheme}");
        let drawn = browser.js(
            "const fill = (css, of) => getComputedStyle(document.querySelector(css))[of]; \
             return [fill('rect.sent.chosen', 'fill'), fill('.key.sent', 'backgroundColor'), fill('rect.received.chosen', 'fill'), \
               fill('.key.received', 'backgroundColor'), fill('.band', 'stroke'), fill('.node rect', 'fill')]",
        );
        assert_eq!(
            (&drawn[0], &drawn[2], &drawn[4]),
            (&drawn[1], &drawn[3], &drawn[5]),
            "{scheme}"
        );
    }
    // More of it for who asks for more.
    let ink = |browser: &Browser| {
        browser.js("return ['.quiet', 'button:not([aria-pressed])'].map((css, i) => getComputedStyle(document.querySelector(css))[i ? 'borderTopColor' : 'color'])")
    };
    let before = ink(&browser);
    browser.cdp(
        "Emulation.setEmulatedMedia",
        json!({"features": [{"name": "prefers-contrast", "value": "more"}, {"name": "prefers-color-scheme", "value": "dark"}]}),
    );
    let after = ink(&browser);
    assert!(
        before[0] != after[0] && before[1] != after[1],
        "{before} {after}"
    );
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// With colours of the reader's own, what has a meaning is still there.
#[test]
fn forced_colours_keep_what_colours_mean() {
    let (_dir, daemon, browser) = sample_day();
    for scheme in ["light", "dark"] {
        browser.cdp(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "forced-colors", "value": "active"}, {"name": "prefers-color-scheme", "value": scheme}]}),
        );
        browser.open("/");
        complete(&browser);
        let found = browser.js(
            "const of = (css, name) => getComputedStyle(document.querySelector(css))[name]; \
             return { canvas: of('body', 'backgroundColor'), sent: of('.key.sent', 'backgroundColor'), \
               received: of('.key.received', 'backgroundColor'), border: of('.key.sent', 'borderTopStyle'), \
               share: of('.share', 'backgroundColor'), mark: of('.mark i', 'backgroundColor'), \
               pressed: of('#latest', 'backgroundColor'), plain: of('#all', 'backgroundColor'), \
               bars: [of('rect.sent.chosen', 'fill'), of('rect.received.chosen', 'fill'), of('rect.sent.chosen', 'stroke')], \
               band: of('.band', 'stroke') }",
        );
        let at = |name: &str| &found[name];
        assert_ne!(at("sent"), at("received"), "{found}");
        assert_eq!(at("border"), "solid", "{found}");
        for name in ["received", "share", "mark", "band"] {
            assert_ne!(at(name), at("canvas"), "{name}: {found}");
        }
        assert_ne!(at("pressed"), at("plain"), "{found}");
        assert_eq!(at("bars")[0], *at("sent"), "{found}");
        assert_eq!(at("bars")[1], *at("received"), "{found}");
        assert_ne!(at("bars")[2], *at("canvas"), "{found}");
    }
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// All that there is to read fits onto A4, and nothing to press is printed.
#[test]
fn it_prints_whole() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/?hour=20&src_app=web");
    complete(&browser);
    let paper = browser.cdp(
        "Page.printToPDF",
        json!({"paperWidth": 8.27, "paperHeight": 11.69}),
    );
    assert!(paper["data"].as_str().unwrap().len() > 10_000);
    browser.cdp(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": 703, "height": 1000, "deviceScaleFactor": 1, "mobile": false}), // 210 mm - 2 * 12 mm
    );
    browser.cdp(
        "Emulation.setEmulatedMedia",
        json!({"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]}),
    );
    browser.until("document.querySelector('#hours-chart svg').viewBox.baseVal.width < 703");
    assert_eq!(
        browser.texts(".other, [aria-busy]"),
        Vec::<String>::new(),
        "it is printed at once"
    );
    let found = browser.js(
        "const seen = (css) => [...document.querySelectorAll(css)].filter((e) => e.checkVisibility()); \
         return { wide: document.documentElement.scrollWidth, \
           outside: seen('main *').filter((e) => e.getBoundingClientRect().right > 704).map((e) => e.outerHTML), \
           controls: seen('button, input, select, summary').filter((e) => !e.closest('td, th, .talkers')).map((e) => e.outerHTML), \
           bars: seen('#hours-chart rect.received').length, shares: seen('.share').filter((e) => e.offsetWidth > 0).length, \
           exact: getComputedStyle(document.querySelector('.share')).printColorAdjust, \
           labels: seen('.node-label').length, chips: seen('#filters bdi').length, page: getComputedStyle(document.body).backgroundColor, \
           summary: document.getElementById('summary').offsetWidth }",
    );
    assert!(found["wide"].as_u64() <= Some(703), "{found}");
    assert_eq!(
        (&found["outside"], &found["controls"]),
        (&json!([]), &json!([]))
    );
    assert_eq!(found["bars"], 24, "{found}");
    assert!(
        found["shares"].as_u64() > Some(5) && found["labels"].as_u64() > Some(5),
        "{found}"
    );
    assert_eq!(
        (&found["exact"], &found["chips"]),
        (&json!("exact"), &json!(1))
    );
    assert_eq!(found["page"], "rgb(255, 255, 255)", "dark is not for paper");
    assert!(found["summary"].as_u64() > Some(100), "{found}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// What is to be pressed has the size of a finger on a phone, and at least 24 pixels anywhere.
#[test]
fn targets_are_large_enough() {
    let (_dir, daemon, browser) = sample_day();
    for (width, least) in [(320, 44.0), (390, 44.0), (1_440, 24.0)] {
        browser.cdp(
            "Emulation.setDeviceMetricsOverride",
            json!({"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}),
        );
        browser.open("/?hour=20&src_app=web&src_app=cdn");
        complete(&browser);
        browser.js(
            "document.querySelectorAll('details').forEach((details) => { details.open = true; })",
        );
        let small = browser.js(&format!(
            "return [...document.querySelectorAll('button, select, input, summary, footer a, [role=slider]')] \
               .filter((e) => e.checkVisibility()) \
               .map((e) => [e.closest('label.check') ?? e, e]) \
               .filter(([e]) => e.getBoundingClientRect().height < {least} - 0.5 || e.getBoundingClientRect().width < 24) \
               .map(([, e]) => e.outerHTML)"
        ));
        assert_eq!(small, json!([]), "at {width}");
        // Neither is anything of the two hours cut.
        let cut = browser.js("return ['from-hour', 'last-hour'].filter((id) => { const e = document.getElementById(id); return e.scrollWidth > e.clientWidth; })");
        assert_eq!(cut, json!([]));
    }
    // Who listens can tell the parts of the page apart.
    let names = browser.js(
        "return [...document.querySelectorAll('section[aria-labelledby], [role=region], [role=search], nav')] \
           .map((e) => e.getAttribute('aria-label') ?? document.getElementById(e.getAttribute('aria-labelledby')).textContent)",
    );
    let names: Vec<String> = serde_json::from_value(names).unwrap();
    let apart: BTreeSet<_> = names.iter().collect();
    assert_eq!(names.len(), apart.len(), "{names:?}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}
