//! Colours: contrast in both schemes, also between neighbours, and forced colours.

use super::*;

/// The variable `name` of the stylesheet, as red, green and blue.
fn color(browser: &Browser, name: &str) -> [f64; 3] {
    let text = browser.js(&format!(
        "return getComputedStyle(document.documentElement).getPropertyValue('--{name}').trim()"
    ));
    let hex = text.as_str().unwrap().trim_start_matches('#');
    assert_eq!(hex.len(), 6, "--{name} is {text}");
    [0, 2, 4].map(|at| f64::from(u8::from_str_radix(&hex[at..at + 2], 16).unwrap()))
}

/// `rgb(1, 2, 3)`, as browsers write computed colours.
pub(super) fn rgb(text: &str) -> [f64; 3] {
    let inner = text.strip_prefix("rgb(").and_then(|t| t.strip_suffix(')'));
    let parts = inner.unwrap_or_else(|| panic!("{text} is not opaque"));
    let parts: Vec<f64> = parts.split(", ").map(|p| p.parse().unwrap()).collect();
    [parts[0], parts[1], parts[2]]
}

/// The contrast of two colours, as WCAG 2 defines it.
pub(super) fn contrast(a: [f64; 3], b: [f64; 3]) -> f64 {
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

/// Text has a contrast of 4.5 to its background; controls, bars and bands have 3.
#[test]
fn contrast_is_sufficient_in_both_schemes() {
    let (_dir, daemon, browser) = sample_day();
    let text = [
        ("text", "page raised soft accent-soft wrong-soft"),
        ("quiet", "page raised soft accent-soft"),
        ("accent", "raised page accent-soft soft"),
        ("wrong", "page raised wrong-soft"),
    ];
    let graphics = [
        ("edge", "page raised soft"),
        ("accent", "page raised"),
        ("good", "raised"),
        ("sent", "raised received"),
        ("received", "raised other"),
        ("other", "raised soft"),
        ("share", "raised soft"),
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
        // Elements with these colours are not transparent.
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
    // More contrast if the user prefers it.
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

/// The `property` of the first element of `css`, as red, green and blue.
fn painted(browser: &Browser, css: &str, property: &str) -> [f64; 3] {
    let rgb = browser.js(&format!(
        "return getComputedStyle(document.querySelector({css:?}))[{property:?}].match(/[\\d.]+/g).map(Number)"
    ));
    let rgb: Vec<f64> = serde_json::from_value(rgb).unwrap();
    assert_eq!(rgb.len(), 3, "{css} is not opaque: {rgb:?}");
    [rgb[0], rgb[1], rgb[2]]
}

/// Neighbours in a chart have a contrast of 3, or a gap between them; elements on top have an outline.
#[test]
fn neighbours_in_charts_are_distinguishable() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    charts::year(&daemon.client, charts::JUNE + 8_759);
    let last = charts::JUNE + 8_759;
    daemon.client.accept(&[
        TestFlow::new(last, "web", "db", "v", 1 << 30, 1 << 30),
        TestFlow::new(last - 1, "web", "db", "v", 1 << 30, 1),
        TestFlow::new(last - 2, "web", "db", "v", 1, 1 << 30),
        TestFlow::new(last - 3, "web", "db", "v", 1 << 24, 1 << 24),
        TestFlow::new(last - 4, "web", "db", "v", 1 << 30, 0),
        TestFlow::new(last - 5, "web", "db", "v", 0, 1 << 30),
    ]);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    for scheme in ["light", "dark"] {
        let features = [
            json!({"name": "prefers-color-scheme", "value": scheme}),
            json!({"name": "prefers-reduced-motion", "value": "reduce"}),
        ];
        browser.cdp("Emulation.setEmulatedMedia", json!({"features": features}));
        for width in [1_440, 390] {
            browser.cdp(
                "Emulation.setDeviceMetricsOverride",
                json!({"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600}),
            );
            browser.open("/");
            complete(&browser);
            // Each part of a bar is visible, with a pixel of background around it.
            let parts = browser.js(
                "return [...document.querySelectorAll('#hours-chart rect.bar')].map((rect) => { \
                   const [x, y, width, height] = ['x', 'y', 'width', 'height'].map((name) => rect[name].baseVal.value); \
                   return [x - 0.5, y - 0.5, x + width + 0.5, y + height + 0.5]; })",
            );
            let parts: Vec<[f64; 4]> = serde_json::from_value(parts).unwrap();
            assert!(parts.len() > 80, "{}", parts.len());
            // The bracket below the selected bars touches neither them nor the axis.
            let gap = browser.js(
                "const of = (css, name) => document.querySelector(`#hours-chart ${css}`)[name].baseVal.value; \
                 return of('.bracket', 'y') - of('.axis', 'y1') - 0.5",
            );
            assert!(gap.as_f64() > Some(0.99), "{gap}");
            for (i, a) in parts.iter().enumerate() {
                assert!(a[2] - a[0] > 3.0 && a[3] - a[1] > 0.99, "{a:?}");
                let near = |b: &&[f64; 4]| {
                    let apart = [b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3]];
                    apart.into_iter().fold(f64::MIN, f64::max) < 0.98
                };
                let touched: Vec<_> = parts[i + 1..].iter().filter(near).collect();
                assert_eq!(touched, Vec::<&[f64; 4]>::new(), "{scheme} {width}: {a:?}");
            }
        }
        let fill = |css: &str| painted(&browser, css, "fill");
        let [sent, received] =
            ["sent", "received"].map(|part| fill(&format!("rect.{part}.chosen")));
        let [pale, grey] =
            ["sent", "received"].map(|part| fill(&format!("rect.{part}.other-hour")));
        let outline = painted(&browser, "rect.sent.other-hour", "stroke");
        let raised = color(&browser, "raised");
        let band = painted(&browser, ".band", "stroke");
        let opacity = browser
            .js("return Number(getComputedStyle(document.querySelector('.band')).fillOpacity)");
        let opacity = opacity.as_f64().unwrap();
        for hue in ["0", "1", "2", "3", "4", "5", "6", "7", "none"] {
            let line = color(&browser, &format!("hue-{hue}"));
            let within = [0, 1, 2].map(|i| line[i] * opacity + raised[i] * (1.0 - opacity));
            let found = contrast(line, within);
            assert!(
                found >= 3.0,
                "{scheme}: a band of hue {hue} and its outline: {found:.2}"
            );
        }
        for (what, a, b) in [
            ("sent and background", sent, raised),
            ("received and background", received, raised),
            ("sent and received", sent, received),
            ("sent and sent of other hours", sent, pale),
            ("received and received of other hours", received, grey),
            ("sent and received of other hours", pale, grey),
            ("outline of sent and background", outline, raised),
            ("outline of sent and what is in it", outline, pale),
            ("bracket and background", fill(".bracket"), raised),
            ("all hours and background", fill(".all-hours"), raised),
            (
                "all hours and the rim",
                fill(".all-hours"),
                painted(&browser, ".rim", "stroke"),
            ),
            (
                "frame and rim",
                painted(&browser, ".frame", "stroke"),
                painted(&browser, ".rim", "stroke"),
            ),
            ("band and background", band, raised),
            (
                "share and track",
                painted(&browser, ".share", "backgroundColor"),
                painted(&browser, ".track", "backgroundColor"),
            ),
            (
                "pressed button and its line",
                painted(&browser, "[aria-pressed=true]", "backgroundColor"),
                color(&browser, "accent"),
            ),
        ] {
            let found = contrast(a, b);
            assert!(found >= 3.0, "{scheme}: {what}: {found:.2}");
        }
        let pressed =
            "return getComputedStyle(document.querySelector('[aria-pressed=true]')).boxShadow";
        assert!(
            browser.js(pressed).as_str().unwrap().contains("inset"),
            "it has an outline"
        );
    }
    nothing_to_complain_about(&browser);
    daemon.stop();
}

/// With forced colours, everything that has a meaning is still visible.
#[test]
fn forced_colours_keep_what_colours_mean() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    charts::year(&daemon.client, charts::JUNE + 8_759);
    let browser = Browser::start(&format!("http://{}", daemon.address));
    for scheme in ["light", "dark"] {
        browser.cdp(
            "Emulation.setEmulatedMedia",
            json!({"features": [{"name": "forced-colors", "value": "active"}, {"name": "prefers-reduced-motion", "value": "reduce"}, {"name": "prefers-color-scheme", "value": scheme}]}),
        );
        browser.open("/");
        complete(&browser);
        let found = browser.js(
            "const of = (css, name) => getComputedStyle(document.querySelector(css))[name]; \
             return { canvas: of('body', 'backgroundColor'), grid: of('.grid', 'stroke'), axis: of('.axis', 'stroke'), \
               shape: of('.all-hours', 'fill'), rim: of('.rim', 'stroke'), frame: of('.frame', 'stroke'), other: of('rect.sent:not(.chosen)', 'stroke'), sent: of('.key.sent', 'backgroundColor'), \
               received: of('.key.received', 'backgroundColor'), border: of('.key.sent', 'borderTopStyle'), \
               share: of('.share', 'backgroundColor'), mark: of('.mark i', 'backgroundColor'), \
               pressed: of('#latest', 'backgroundColor'), plain: of('#all', 'backgroundColor'), \
               dash: of('.grid', 'strokeDasharray'), bars: [of('rect.sent.chosen', 'fill'), of('rect.received.chosen', 'fill'), of('rect.sent.chosen', 'stroke')], \
               band: of('.band', 'stroke') }",
        );
        let at = |name: &str| &found[name];
        assert_ne!(at("sent"), at("received"), "{found}");
        assert_eq!(at("border"), "solid", "{found}");
        for name in [
            "received", "share", "mark", "band", "shape", "frame", "other", "grid",
        ] {
            assert_ne!(at(name), at("canvas"), "{name}: {found}");
        }
        // The grid is behind the bars.
        assert_ne!(at("grid"), at("axis"), "{found}");
        assert_ne!(at("dash"), "none", "{found}");
        assert_eq!(at("rim"), at("canvas"), "{found}");
        assert_ne!(at("pressed"), at("plain"), "{found}");
        assert_eq!(at("bars")[0], *at("sent"), "{found}");
        assert_eq!(at("bars")[1], *at("received"), "{found}");
        assert_ne!(at("bars")[2], *at("canvas"), "{found}");
    }
    nothing_to_complain_about(&browser);
    daemon.stop();
}
