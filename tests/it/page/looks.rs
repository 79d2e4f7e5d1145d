//! The page in print, on touch screens and by keyboard.

use super::*;

/// All elements are reachable by keyboard, starting with a skip link.
#[test]
fn the_page_works_by_keyboard_and_on_a_phone() {
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
    // Each button has room for its text.
    let cut = browser.js(
        "return [...document.querySelectorAll('.tools button, .head button, .paging button')] \
         .filter((e) => e.scrollWidth > e.clientWidth || e.clientHeight > 50).map((e) => e.textContent)",
    );
    assert_eq!(cut, json!([]));
    // The layout did not shift while the page loaded.
    let jumps = browser.js("const observer = new PerformanceObserver(() => {}); \
         observer.observe({ type: 'layout-shift', buffered: true }); \
         return observer.takeRecords().reduce((sum, { value }) => sum + value, 0)");
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
    browser.until("location.search.includes('peer=')");
    complete(&browser);
    // On the last page, the focus moves to the remaining button.
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
    // Every control has a label.
    let silent = browser.js(
        "return [...document.querySelectorAll('button, input, select')] \
         .filter((e) => !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)",
    );
    assert_eq!(silent, json!([]));
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// All text fits onto A4, and no controls are printed.
#[test]
fn the_page_prints_completely() {
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
    browser.js("dispatchEvent(new Event('beforeprint'))");
    let width =
        browser.js("return document.querySelector('#hours-chart svg').viewBox.baseVal.width");
    assert_eq!(width, 677);
    assert_eq!(
        browser.texts(".other, [aria-busy]"),
        Vec::<String>::new(),
        "it is printed immediately"
    );
    let found = browser.js(
        "const seen = (css) => [...document.querySelectorAll(css)].filter((e) => e.checkVisibility()); \
         return { wide: document.documentElement.scrollWidth, \
           outside: seen('main *').filter((e) => e.getBoundingClientRect().right > 704).map((e) => e.outerHTML), \
           controls: seen('button, input, select, summary').filter((e) => !e.closest('td, th, .talkers')).map((e) => e.outerHTML), \
           bars: seen('#hours-chart rect.received').length, shares: seen('.share').filter((e) => e.offsetWidth > 0).length, \
           exact: getComputedStyle(document.querySelector('.share')).printColorAdjust, \
           labels: seen('.node-label').length, chips: seen('#filters bdi').length, page: getComputedStyle(document.body).backgroundColor, \
           summary: document.getElementById('summary').offsetWidth, sentence: document.getElementById('sentence').checkVisibility() }",
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
    assert_eq!(
        found["page"], "rgb(255, 255, 255)",
        "the dark scheme is not printed"
    );
    assert!(found["summary"].as_u64() > Some(100), "{found}");
    assert_eq!(found["sentence"], true, "{found}");
    // The event is sent when the page has the screen styles again.
    browser.cdp("Emulation.setEmulatedMedia", json!({"media": ""}));
    browser.js("dispatchEvent(new Event('afterprint'))");
    browser.until("document.querySelector('#hours-chart svg').viewBox.baseVal.width < 677");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// A printed table repeats its head on each page, shows the numbers of its rows, and breaks numbers only between groups
/// of three digits.
#[test]
fn a_long_table_is_printed_with_its_head() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let names: Vec<_> = (0..40)
        .map(|n| format!("{n}-{}", "x".repeat(200)))
        .collect();
    let flows: Vec<_> = (names.iter())
        .map(|name| TestFlow::new(7, name, name, name, u64::MAX, u64::MAX - 1))
        .collect();
    daemon.client.accept(&flows);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    for address in ["/", "/?exact=on"] {
        browser.open(address);
        complete(&browser);
        // They are found in the PDF by their colours.
        browser.js(
            "const style = new CSSStyleSheet(); \
             style.replaceSync('#table thead * { color: rgb(1, 2, 3) !important } #table tbody * { color: rgb(4, 5, 6) !important } #row-numbers { color: rgb(7, 8, 9) !important }'); \
             document.adoptedStyleSheets = [style]",
        );
        let paper = browser.cdp(
            "Page.printToPDF",
            json!({"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": true}),
        );
        let data = paper["data"].as_str().unwrap();
        let pages = browser.js(&format!(
            "const pdf = atob({data:?}); \
             const streams = [...pdf.matchAll(/stream\\r?\\n([^]*?)\\r?\\nendstream/g)].map(([, text]) => Uint8Array.from(text, (c) => c.charCodeAt(0))); \
             const read = (bytes) => new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'))).text().catch(() => ''); \
             return Promise.all(streams.map(read)).then((texts) => texts.map((text) => \
               ['.0039 .0078 .0118 rg', '.0157 .0196 .0235 rg', '.0275 .0314 .0353 rg'].map((color) => text.includes(color))))"
        ));
        let pages: Vec<(bool, bool, bool)> = serde_json::from_value(pages).unwrap();
        let rows = pages.iter().filter(|(_, rows, _)| *rows).count();
        let headed = pages
            .iter()
            .filter(|(head, rows, _)| *head && *rows)
            .count();
        assert!(rows >= 2, "{rows} pages");
        assert_eq!(headed, rows, "{address}");
        // Waits for the end, since the browser counts the pages before it prints them.
        let ends = pages.iter().filter(|(.., end)| *end).count();
        assert_eq!(ends, 1, "{address}");
    }
    browser.cdp(
        "Emulation.setDeviceMetricsOverride",
        json!({"width": 703, "height": 1000, "deviceScaleFactor": 1, "mobile": false}),
    );
    browser.cdp("Emulation.setEmulatedMedia", json!({"media": "print"}));
    let found = browser.js(
        "const lines = (e) => { \
           const range = document.createRange(); range.selectNodeContents(e); \
           return [...e.childNodes].filter((node) => node.nodeType === 3).map((node) => { \
             range.selectNodeContents(node); return new Set([...range.getClientRects()].map(({ top }) => Math.round(top))).size; }); }; \
         const numbers = [...document.querySelectorAll('.figures dd.quiet, #table td.number')]; \
         return { broken: numbers.filter((e) => lines(e).some((count) => count > 1)).map((e) => e.textContent), \
           grouped: numbers.filter((e) => /,/.test(e.textContent)).length, \
           cramped: [...document.querySelectorAll('#table td bdi')].filter((e) => e.offsetWidth < 75).length, \
           wide: document.documentElement.scrollWidth, \
           outside: [...document.querySelectorAll('main *')].filter((e) => e.getBoundingClientRect().right > 704).map((e) => e.outerHTML), \
           seen: document.getElementById('row-numbers').checkVisibility() }",
    );
    assert_eq!(
        (&found["broken"], &found["outside"]),
        (&json!([]), &json!([]))
    );
    assert!(found["grouped"].as_u64() > Some(70), "{found}");
    assert_eq!(
        (&found["cramped"], &found["seen"]),
        (&json!(0), &json!(true)),
        "{found}"
    );
    assert!(found["wide"].as_u64() <= Some(703), "{found}");
    assert_eq!(browser.text("#row-numbers"), "Rows 1 to 25; more follow");
    browser.cdp("Emulation.setEmulatedMedia", json!({"media": ""}));
    browser.js("document.getElementById('next-page').click()");
    browser.until("document.getElementById('row-numbers').textContent === 'Rows 26 to 40 of 40'");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// Controls have the size of a finger on a phone, and at least 24 pixels elsewhere.
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
               .map(([e, inner]) => [e.getBoundingClientRect(), inner]) \
               .filter(([box]) => box.height < {least} - 0.5 || box.width < {least} - 0.5) \
               .map(([, e]) => e.outerHTML)"
        ));
        assert_eq!(small, json!([]), "at {width}");
        // Nor are the two hours truncated.
        for hours in ["?hour=20", "?hour=490000", "?hour=4294967294"] {
            browser.open(&format!("/{hours}"));
            browser.until(
                "document.querySelector('#table td') && !document.querySelector('[aria-busy]')",
            );
            let cut = browser.js(
                "return ['from-hour', 'last-hour'].map((id) => document.getElementById(id)) \
                   .map((e) => [e, getComputedStyle(e)]) \
                   .map(([e, style]) => [e.value, style, e.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)]) \
                   .filter(([value, style, room]) => { \
                     const pen = document.createElement('canvas').getContext('2d'); \
                     pen.font = `${style.fontSize} ${style.fontFamily}`; \
                     /* The arrows of a number, and the spaces and the button of a date. */ \
                     return pen.measureText(value).width + (/^\\d+$/.test(value) ? 16 : 30) > room; \
                   }).map(([value, , room]) => [value, room])",
            );
            assert_eq!(cut, json!([]), "{hours} at {width}");
        }
    }
    // Screen readers can distinguish the parts of the page.
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
