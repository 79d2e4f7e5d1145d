//! The reference at `/docs`, in a browser.

use super::*;

/// It is legible in both schemes, fits on a phone, and needs nothing from elsewhere.
#[test]
fn the_reference_is_legible_everywhere() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    let browser = Browser::start(&format!("http://{}", daemon.address));
    let mut backgrounds = BTreeSet::new();
    for scheme in ["light", "dark"] {
        let features = [json!({"name": "prefers-color-scheme", "value": scheme})];
        browser.cdp("Emulation.setEmulatedMedia", json!({"features": features}));
        for width in [1_440, 390, 320] {
            browser.cdp(
                "Emulation.setDeviceMetricsOverride",
                json!({"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}),
            );
            browser.open("/docs");
            browser.js("document.querySelectorAll('details').forEach((e) => { e.open = true; })");
            let found = browser.js(
                "const boxes = (css) => [...document.querySelectorAll(css)].map((e) => [e, e.getBoundingClientRect()]); \
                 return { wide: document.documentElement.scrollWidth, \
                   outside: boxes('main *, nav *').filter(([e, box]) => box.right > innerWidth + 1 && !e.closest('pre')).map(([e]) => e.outerHTML.slice(0, 200)), \
                   small: boxes('nav a, .top a, summary, footer a').filter(([, box]) => innerWidth < 600 ? box.height < 43.5 : box.height < 23.5).map(([e]) => e.outerHTML), \
                   background: getComputedStyle(document.querySelector('.card')).backgroundColor }",
            );
            assert!(found["wide"].as_u64() <= Some(width), "{width}: {found}");
            assert_eq!(
                (&found["outside"], &found["small"]),
                (&json!([]), &json!([])),
                "{width}"
            );
            backgrounds.insert(found["background"].to_string());
        }
        // The colours of text, on what is behind it.
        let pairs = browser.js(
            "const behind = (e) => { \
               for (; e; e = e.parentElement) { \
                 const color = getComputedStyle(e).backgroundColor; \
                 if (!/, 0\\)$/.test(color)) return color; \
               } return 'rgb(255, 255, 255)'; }; \
             return [...document.querySelectorAll('nav a, nav .method, h3 .method, main p, main .quiet, main dd, main code, .label, footer')] \
               .map((e) => JSON.stringify([getComputedStyle(e).color, behind(e)])).filter((pair, at, all) => all.indexOf(pair) === at)",
        );
        let pairs: Vec<String> = serde_json::from_value(pairs).unwrap();
        assert!(pairs.len() > 3, "{pairs:?}");
        for pair in pairs {
            let both: [String; 2] = serde_json::from_str(&pair).unwrap();
            let [text, behind] = both.map(|color| colors::rgb(&color));
            let found = colors::contrast(text, behind);
            assert!(found >= 4.5, "{scheme}: {pair}: {found:.2}");
        }
    }
    assert_eq!(backgrounds.len(), 2, "{backgrounds:?}");
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// From the page to an operation, by links and by keyboard.
#[test]
fn links_lead_to_each_operation() {
    let (_dir, daemon, browser) = sample_day();
    browser.open("/");
    complete(&browser);
    browser.click("footer a[href=docs]");
    browser.until("document.title === 'flowtally API'");
    browser.keys(TAB);
    assert_eq!(
        browser.js("return document.activeElement.className"),
        "skip"
    );
    browser.click("nav a[href='#getFlows']");
    browser.until("location.hash === '#getFlows'");
    let place =
        browser.js("return document.querySelector('#getFlows').getBoundingClientRect().top");
    assert!((-1.0..100.0).contains(&place.as_f64().unwrap()), "{place}");
    browser.click("#postFlows a[href='#schema-Flow']");
    browser.until("document.querySelector('#schema-Flow').matches(':target')");
    browser.click(".top a");
    complete(&browser);
    nothing_to_complain_about(&browser);
    daemon.stop();
}
