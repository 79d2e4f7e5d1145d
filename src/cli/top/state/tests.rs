use serde_json::{Value, json};

use super::*;
use crate::config::Filters;

const INTERVAL: Duration = Duration::from_secs(2);

fn state(now: Instant) -> State {
    let query = TopQuery {
        hour: HourChoice::Latest,
        group_by: GroupBy::Edge,
        sort: SortBy::Bytes,
        filters: Filters::default(),
        limit: 0,
    };
    let mut state = State::new("http://s".into(), query, None, INTERVAL, now);
    state.fit(3, now);
    state
}

fn snapshot(query: &TopQuery, hour: u64, hours: &[u64], rows: Value, at: Instant) -> Snapshot {
    let hours = hours
        .iter()
        .map(|hour| json!({"hour": hour, "flows": 1, "bytes_tx": 1, "bytes_rx": 1}));
    Snapshot {
        query: query.clone(),
        hour: Some(hour),
        hours: serde_json::from_value(hours.collect()).unwrap(),
        rows: serde_json::from_value(rows).unwrap(),
        bytes_per_s: None,
        at,
    }
}

fn rows(sums: &[(&str, u64)]) -> Value {
    let row = |(name, bytes): &(&str, u64)| json!({"src_app": name, "dest_app": "d", "bytes_tx": bytes, "bytes_rx": 0, "hour": 3});
    sums.iter().map(row).collect()
}

/// Sends the next query, and receives `rows` of hour 3.
fn refresh(state: &mut State, rows: Value, now: Instant) {
    let query = state.next_query(now).unwrap();
    state.receive(&query, Ok(snapshot(&query, 3, &[1, 3], rows, now)), now);
}

fn rates(state: &State) -> Vec<(String, Option<u128>)> {
    let rows = &state.snapshot.as_ref().unwrap().rows;
    let name = |row: &Row| row.names().next().unwrap().to_owned();
    rows.iter()
        .map(|row| (name(row), row.bytes_per_s))
        .collect()
}

fn press(state: &mut State, code: KeyCode, now: Instant) {
    let key = KeyEvent::new(code, KeyModifiers::NONE);
    assert_eq!(state.press(key, now), Effect::Done);
}

#[test]
fn rates_are_differences() {
    let start = Instant::now();
    let mut state = state(start);
    refresh(
        &mut state,
        rows(&[("a", 1000), ("b", 500), ("c", 5)]),
        start,
    );
    assert_eq!(rates(&state)[0], ("a".into(), None));
    // A new row has no rate if the previous snapshot was truncated; a smaller sum means that the hour was deleted.
    let then = start + INTERVAL;
    refresh(
        &mut state,
        rows(&[("a", 3000), ("new", 2000), ("b", 100)]),
        then,
    );
    let expected = [
        ("a".into(), Some(1000)),
        ("new".into(), None),
        ("b".into(), None),
    ];
    assert_eq!(rates(&state), expected);
    // A snapshot right after a key is compared with the one from two seconds ago.
    press(&mut state, KeyCode::Char('s'), then);
    let at = then + Duration::from_millis(20);
    refresh(&mut state, rows(&[("a", 3020)]), at);
    assert_eq!(rates(&state), [("a".into(), Some(1000))]);
    // The previous snapshot had all rows, so a new row started at zero.
    refresh(&mut state, rows(&[("a", 3020), ("z", 2000)]), at + INTERVAL);
    assert_eq!(
        rates(&state),
        [("a".into(), Some(0)), ("z".into(), Some(1000))]
    );
    // The sums of another direction.
    press(&mut state, KeyCode::Char('g'), at + INTERVAL);
    refresh(&mut state, rows(&[("a", 9000)]), at + 2 * INTERVAL);
    assert_eq!(rates(&state), [("a".into(), None)]);
}

#[test]
fn the_fastest_come_first() {
    let start = Instant::now();
    let mut state = state(start);
    state.query.sort = SortBy::Rate;
    refresh(
        &mut state,
        rows(&[("a", 1000), ("b", 500), ("c", 5)]),
        start,
    );
    let then = start + INTERVAL;
    refresh(
        &mut state,
        rows(&[("a", 1000), ("b", 600), ("c", 505)]),
        then,
    );
    let expected = [
        ("c".into(), Some(250)),
        ("b".into(), Some(50)),
        ("a".into(), Some(0)),
    ];
    assert_eq!(rates(&state), expected);
}

#[test]
fn keys_select_hours() {
    let now = Instant::now();
    let mut state = state(now);
    press(&mut state, KeyCode::Left, now);
    assert_eq!(state.query.hour, HourChoice::Latest, "none is known yet");
    refresh(&mut state, rows(&[]), now);
    assert_eq!(state.wanted_hour(), Some(3));
    for (key, expected) in [
        (KeyCode::Left, HourChoice::At(1)),
        (KeyCode::Left, HourChoice::At(1)),
        (KeyCode::Right, HourChoice::At(3)),
        (KeyCode::Right, HourChoice::Latest),
        (KeyCode::Left, HourChoice::At(1)),
        (KeyCode::Char('l'), HourChoice::Latest),
    ] {
        press(&mut state, key, now);
        assert_eq!(state.query.hour, expected);
    }
    state.query.hour = HourChoice::At(2);
    press(&mut state, KeyCode::Right, now);
    assert_eq!(state.query.hour, HourChoice::At(3));
}

#[test]
fn it_queries_when_due_and_for_the_current_selection() {
    let start = Instant::now();
    let mut state = state(start);
    let query = state.next_query(start).unwrap();
    assert_eq!(
        state.next_query(start + 9 * INTERVAL),
        None,
        "one at a time"
    );
    // A key while the service takes a second.
    press(&mut state, KeyCode::Char('g'), start);
    let now = start + Duration::from_secs(1);
    state.receive(&query, Ok(snapshot(&query, 3, &[3], rows(&[]), now)), now);
    assert!(state.snapshot.is_none(), "the query has changed");
    let query = state.next_query(now).unwrap();
    assert_eq!(query.group_by, GroupBy::SrcApp);
    let now = start + Duration::from_secs(2);
    state.receive(&query, Ok(snapshot(&query, 3, &[3], rows(&[]), now)), now);
    assert!(state.snapshot.is_some());
    let rested = now + Duration::from_secs(1) * REST_FACTOR;
    assert_eq!(state.next_query(rested - Duration::from_millis(1)), None);
    // While paused, it queries only after the selection has changed.
    press(&mut state, KeyCode::Char(' '), now);
    assert_eq!(state.next_query(rested), None);
    press(&mut state, KeyCode::Char('s'), now);
    assert!(state.next_query(now).is_some());
}

#[test]
fn keys_quit() {
    let now = Instant::now();
    let mut state = state(now);
    for end in [KeyCode::Char('q'), KeyCode::Esc] {
        let key = KeyEvent::new(end, KeyModifiers::NONE);
        assert_eq!(state.press(key, now), Effect::Quit);
    }
    for open in ['/', '?'] {
        press(&mut state, KeyCode::Char(open), now);
        press(&mut state, KeyCode::Esc, now);
        assert_eq!(state.mode, InputMode::Rows);
    }
    press(&mut state, KeyCode::Char('/'), now);
    press(&mut state, KeyCode::Char('q'), now);
    assert_eq!(state.mode, InputMode::Search("q".into()));
    let end = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.press(end, now), Effect::Quit);
}

#[test]
fn enter_leads_from_peer_to_peer_and_back() {
    let now = Instant::now();
    let mut state = state(now);
    press(&mut state, KeyCode::Enter, now);
    assert_eq!(state.query.filters, Filters::default(), "no row is there");
    refresh(&mut state, rows(&[("a", 9), ("b", 8), ("c", 7)]), now);
    press(&mut state, KeyCode::Down, now);
    press(&mut state, KeyCode::Down, now);
    press(&mut state, KeyCode::Enter, now);
    assert_eq!(state.query.filters.peer, ["b"]);
    assert_eq!(state.selection.index(), None);
    // The old rows are still there.
    press(&mut state, KeyCode::Enter, now);
    assert_eq!(state.query.filters.peer, ["b"]);
    refresh(&mut state, rows(&[("b", 8)]), now);
    press(&mut state, KeyCode::Enter, now);
    assert_eq!(state.query.filters.peer, ["d"], "the other end of the pair");
    refresh(&mut state, rows(&[("a", 9), ("b", 8)]), now);
    press(&mut state, KeyCode::Left, now);
    press(&mut state, KeyCode::Backspace, now);
    assert_eq!(state.query.filters.peer, ["b"]);
    press(&mut state, KeyCode::Esc, now);
    assert_eq!(state.query.filters, Filters::default());
    assert_eq!(state.query.hour, HourChoice::At(1), "the hour stays");
    // The row that led away is selected again, wherever it is.
    refresh(&mut state, rows(&[("c", 9), ("a", 8), ("b", 7)]), now);
    assert_eq!(state.selection.index(), Some(2));
    let end = KeyEvent::new(KeyCode::Esc, KeyModifiers::NONE);
    assert_eq!(state.press(end, now), Effect::Quit);
}

#[test]
fn the_trail_is_bounded() {
    let now = Instant::now();
    let mut state = state(now);
    for n in 0..2 * TRAIL_MAX {
        let name = n.to_string();
        refresh(&mut state, rows(&[(name.as_str(), 9)]), now);
        press(&mut state, KeyCode::Enter, now);
        assert_eq!(state.query.filters.peer, [name]);
    }
    assert_eq!(state.trail.len(), TRAIL_MAX);
}

#[test]
fn a_row_that_is_selected_stays_selected() {
    let start = Instant::now();
    let mut state = state(start);
    refresh(&mut state, rows(&[("a", 9), ("b", 8), ("c", 7)]), start);
    press(&mut state, KeyCode::Char('j'), start);
    press(&mut state, KeyCode::PageDown, start);
    assert_eq!(state.selection.index(), Some(2));
    // The end of what is there: more is requested.
    state.fit(3, start);
    assert_eq!(state.query.limit, 6);
    let then = start + INTERVAL;
    let more = [("c", 99), ("a", 9), ("b", 8), ("d", 1)];
    refresh(&mut state, rows(&more), then);
    assert_eq!(state.selection.index(), Some(0));
    for (key, index) in [
        (KeyCode::PageDown, 3),
        (KeyCode::Up, 2),
        (KeyCode::PageUp, 0),
        (KeyCode::Down, 1),
        (KeyCode::Home, 0),
    ] {
        press(&mut state, key, then);
        assert_eq!(state.selection.index(), Some(index), "{key:?}");
    }
    press(&mut state, KeyCode::Char('g'), then);
    assert_eq!(state.selection.index(), None);
}

#[test]
fn the_same_view_is_opened_in_a_browser() {
    let now = Instant::now();
    let mut state = state(now);
    let open = KeyEvent::new(KeyCode::Char('o'), KeyModifiers::NONE);
    let group = "group_by=src_app%2Cdest_app";
    let expected = Effect::Open(format!("http://s/?{group}"));
    assert_eq!(state.press(open, now), expected);
    refresh(&mut state, rows(&[("a", 9)]), now);
    press(&mut state, KeyCode::Enter, now);
    let expected = Effect::Open(format!("http://s/?hour=3&peer=a&{group}"));
    assert_eq!(state.press(open, now), expected);
}

#[test]
fn more_room_is_filled_immediately() {
    let now = Instant::now();
    let mut state = state(now);
    refresh(&mut state, rows(&[]), now);
    state.fit(3, now);
    assert_eq!(state.next_query(now), None);
    state.fit(9, now);
    assert_eq!(state.next_query(now).unwrap().limit, 9);
}
