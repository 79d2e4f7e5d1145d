use std::time::Duration;

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::super::query::TopQuery;
use super::super::state::Effect;
use super::*;
use crate::config::{Filters, GroupBy, SortBy};
use agent::client::ClientError;

fn query() -> TopQuery {
    TopQuery {
        hour: HourChoice::Latest,
        group_by: GroupBy::Edge,
        sort: SortBy::Bytes,
        filters: Filters::default(),
        limit: 17,
    }
}

fn snapshot(at: Instant, rows: serde_json::Value) -> Snapshot {
    let hours = (0..24_u64).map(|hour| {
        let bytes = [50, 20, 10, 10, 15, 30, 60, 80, 100, 95, 90, 99][hour as usize % 12];
        json!({"hour": hour, "flows": 115, "bytes_tx": bytes * 1_000_000, "bytes_rx": bytes * 9_000_000})
    });
    Snapshot {
        query: query(),
        hour: Some(23),
        hours: serde_json::from_value(hours.collect()).unwrap(),
        rows: serde_json::from_value(rows).unwrap(),
        bytes_per_s: None,
        at,
    }
}

fn row(src: &str, dest: &str, tx: u64, rx: u64) -> serde_json::Value {
    json!({"src_app": src, "dest_app": dest, "bytes_tx": tx, "bytes_rx": rx, "hour": 23})
}

/// Two snapshots, two seconds apart, seen a second later.
fn state() -> (State, Instant) {
    let start = Instant::now();
    let rows = |more: u64| {
        json!([
            row("web", "images", 1_000_000 + more, 300_000_000 + 20 * more),
            row(
                "注文サービス",
                "データベース",
                90_000_000,
                120_000_000 + more
            ),
            row("evil\u{1b}[2J\u{1b}]0;x\u{7}", "db\r\n", 2_500, 0),
            row(
                "",
                "a-name-that-is-too-long-for-its-column",
                999,
                more / 1000
            ),
        ])
    };
    let url = "http://127.0.0.1:8080".to_owned();
    let mut state = State::new(url, query(), None, Duration::from_secs(2), start);
    for (n, more) in [(0, 0), (2, 3_000_000)] {
        let now = start + Duration::from_secs(n);
        let query = state.next_query(now).unwrap();
        state.receive(&query, Ok(snapshot(now, rows(more))), now);
    }
    (state, start + Duration::from_secs(3))
}

/// The text on a screen of this size, without blanks at the ends of lines.
fn screen(state: &State, width_: u16, height: u16, now: Instant) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width_, height)).unwrap();
    terminal
        .draw(|frame| draw(frame, state, Palette::plain(), now))
        .unwrap();
    let buffer = terminal.backend().buffer();
    let lines = buffer.area.rows().map(|row| {
        let (mut line, mut x) = (String::new(), row.x);
        while x < row.right() {
            let symbol = buffer[(x, row.y)].symbol();
            line.push_str(symbol);
            x += width(symbol).max(1) as u16;
        }
        line.trim_end().to_owned() + "\n"
    });
    lines.collect()
}

fn press(state: &mut State, keys: &[KeyCode], now: Instant) {
    for key in keys {
        let key = KeyEvent::new(*key, KeyModifiers::NONE);
        assert_eq!(state.press(key, now), Effect::Done);
    }
}

#[test]
fn a_usual_terminal() {
    let (state, now) = state();
    let shown = screen(&state, 80, 24, now);
    println!("{shown}");
    assert_eq!(shown, GOLDEN_80X24);
}

#[test]
fn a_small_terminal() {
    let (state, now) = state();
    let shown = screen(&state, 40, 12, now);
    println!("{shown}");
    assert_eq!(shown, GOLDEN_40X12);
}

#[test]
fn a_wide_terminal_has_longer_bars_and_a_narrow_one_keeps_the_bytes() {
    let (state, now) = state();
    let shown = screen(&state, 200, 24, now);
    println!("{shown}");
    let row = shown.lines().find(|line| line.starts_with("web ")).unwrap();
    assert_eq!(row.find("images"), Some(columns::NAME_COLUMNS_MAX + 1));
    let bar = row.matches('█').count();
    assert!(bar > 40 && width(row) == 200, "{row}");

    let shown = screen(&state, 20, 12, now);
    println!("{shown}");
    assert!(shown.contains("\nweb   imag…  364 MB\n"), "{shown}");
}

#[test]
fn a_terminal_of_any_size() {
    let (mut state, now) = state();
    for mode in [
        InputMode::Rows,
        InputMode::Help,
        InputMode::Search("x".repeat(90)),
    ] {
        state.mode = mode;
        for trouble in [None, Some("no response ".repeat(40))] {
            state.trouble = trouble;
            for (columns, lines) in (1..100).flat_map(|w| (1..30).map(move |h| (w, h))) {
                screen(&state, columns, lines, now);
            }
        }
    }
}

#[test]
fn errors_are_shown_until_they_are_over() {
    let (mut state, now) = state();
    let query = state.next_query(now + Duration::from_secs(4)).unwrap();
    let gone = |why: String| ClientError::Unreachable {
        url: "u".into(),
        why,
    };
    state.receive(&query, Err(gone("io: refused \u{1b}[2J".into())), now);
    let shown = screen(&state, 80, 24, now);
    assert!(
        shown.ends_with("\ntrying again: no response: io: refused \\u{1b}[2J\n"),
        "{shown}"
    );
    assert!(
        shown.contains("web "),
        "the last snapshot is still shown: {shown}"
    );
    let later = now + Duration::from_secs(9);
    let query = state.next_query(later).unwrap();
    assert!(screen(&state, 80, 24, later + Duration::from_secs(5)).contains("no response for 5 s"));
    state.receive(&query, Ok(snapshot(later, json!([]))), later);
    let shown = screen(&state, 80, 24, later);
    assert!(
        !shown.contains("trying") && shown.contains("no name matches"),
        "{shown}"
    );
}

#[test]
fn keys_are_explained_and_typed_text_is_shown() {
    let (mut state, now) = state();
    press(&mut state, &[KeyCode::Char('?')], now);
    let shown = screen(&state, 40, 14, now);
    for line in HELP {
        assert!(shown.contains(line), "{line} in {shown}");
    }
    press(
        &mut state,
        &[KeyCode::Char('x'), KeyCode::Char('/'), KeyCode::Char('名')],
        now,
    );
    assert!(screen(&state, 80, 24, now).ends_with("\n/名\n"));
    press(&mut state, &[KeyCode::Enter], now);
    assert!(screen(&state, 80, 24, now).contains("\nsrc_app → dest_app by bytes  /名\n"));
}

#[test]
fn the_selected_row_is_on_the_screen_and_stands_out() {
    let (mut state, now) = state();
    // A terminal in which two rows fit.
    let (columns, lines) = (80, 7);
    assert_eq!(rows_on_screen(lines), 2);
    state.fit(2, now);
    let reversed = |state: &State| -> Vec<u16> {
        let mut terminal = Terminal::new(TestBackend::new(columns, lines)).unwrap();
        let drawn = terminal.draw(|frame| draw(frame, state, Palette::plain(), now));
        drawn.unwrap();
        let buffer = terminal.backend().buffer();
        let is_reversed = |y: &u16| buffer[(0, *y)].modifier.contains(Modifier::REVERSED);
        (0..lines).filter(is_reversed).collect()
    };
    // The head of the table is too.
    assert_eq!(reversed(&state), [3]);
    press(&mut state, &[KeyCode::Down], now);
    assert_eq!(reversed(&state), [3, 4]);
    press(&mut state, &[KeyCode::Down, KeyCode::Down], now);
    assert_eq!(reversed(&state), [3, 5]);
    let shown = screen(&state, columns, lines, now);
    assert!(
        shown.contains("\nevil") && !shown.contains("\nweb"),
        "{shown}"
    );
    // What was asked for is told until the next key.
    state.notice = Some("there is no desktop; the page is http://s/?x\u{7}".into());
    let shown = screen(&state, columns, lines, now);
    assert!(
        shown.ends_with("\nthere is no desktop; the page is http://s/?x\\u{7}\n"),
        "{shown}"
    );
    press(&mut state, &[KeyCode::Enter], now);
    let shown = screen(&state, columns, lines, now);
    assert!(shown.contains("  peer=evil\\u{1b}"), "{shown}");
    assert!(
        shown.lines().last().unwrap().starts_with("Esc back  "),
        "{shown}"
    );
}

#[test]
fn hours_since_the_epoch_are_dates_below_the_chart() {
    let label = |height| chart_label(498_855, 498_878, height);
    assert_eq!(label(3), ["bytes by hour", "11-28 15:00 to", "11-29 14:00"]);
    assert_eq!(label(1), ["11-28 … 11-29"]);
    assert_eq!(chart_label(0, 23, 3), ["bytes by hour", "0 … 23"]);
    for line in label(3) {
        assert!(line.len() < LABEL_COLUMNS.into(), "{line}");
    }
}

const GOLDEN_80X24: &str = "\
flowtally top  http://127.0.0.1:8080                                     1 s ago
hour 23 (latest)  tx 99.0 MB  rx 891 MB  0 B/s  115 flows
src_app → dest_app by bytes
bytes by hour                 ▃▃██▆▆▅▅▇▇              ▃▃██▆▆▅▅▇▇
0 … 23          ▄▄          ▆▆██████████▄▄          ▆▆██████████
                ██▄▄▂▂▂▂▃▃▇▇██████████████▄▄▂▂▂▂▃▃▇▇████████████
src_app        dest_app        ▼bytes      tx      rx      rate  share
web            images          364 MB 4.00 MB  360 MB 31.5 MB/s 36.8 % ████████
注文サービス   データベース    213 MB 90.0 MB  123 MB 1.50 MB/s 21.5 % ████▋
evil\\u{1b}[2J… db\\r\\n         2.50 kB 2.50 kB     0 B     0 B/s  0.0 %
\"\"             a-name-that-i… 4.00 kB   999 B 3.00 kB 1.50 kB/s  0.0 %












q quit  ? help  ↑ ↓ Enter peers  o browser  s sort  g group  / search  [ ] hour
";

const GOLDEN_40X12: &str = "\
http://127.0.0.1:8080            1 s ago
hour 23 (latest)  tx 99.0 MB  rx 891 MB
src_app → dest_app by bytes
0 … 23          ▄▁  ▁▂▄▆█▇▇▇▄▁  ▁▂▄▆█▇▇▇
src_app    dest_app    ▼bytes      rate
web        images      364 MB 31.5 MB/s
注文サー…  データベ…   213 MB 1.50 MB/s
evil\\u{1b… db\\r\\n     2.50 kB     0 B/s
\"\"         a-name-th… 4.00 kB 1.50 kB/s


q quit  ? help  s sort  g group
";
