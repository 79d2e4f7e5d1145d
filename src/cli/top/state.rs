//! The state of the view, and the effect of keys.

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::query::{Snapshot, TopQuery};
use crate::config::{GroupBy, HourChoice, SortBy};
use agent::client::ClientError;

/// After a slow snapshot, the next query waits for this many times as long.
const REST_FACTOR: u32 = 4;
/// Longest such wait, so that one slow snapshot does not stop the view.
const REST_MAX: Duration = Duration::from_secs(30);
/// Longest search text, as typed.
const SEARCH_BYTES_MAX: usize = 256;

pub(super) struct State {
    /// As in `http://flowtally:8080`.
    pub(super) url: String,
    /// The current query; its snapshot may be in flight.
    pub(super) query: TopQuery,
    /// The last snapshot.
    pub(super) snapshot: Option<Snapshot>,
    /// The previous snapshot, for rates.
    base: Option<Snapshot>,
    /// The error of the last query.
    pub(super) trouble: Option<String>,
    /// The reason why every query will fail.
    pub(super) hopeless: Option<String>,
    pub(super) paused: bool,
    pub(super) mode: InputMode,
    /// The time of the query that has no snapshot yet.
    pub(super) asked_at: Option<Instant>,
    /// The time of the next query.
    due_at: Instant,
    interval: Duration,
    /// The `--limit` of the command line.
    limit: Option<usize>,
}

/// The meaning of keys.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum InputMode {
    Rows,
    Help,
    /// The user is typing a search text.
    Search(String),
}

impl State {
    pub(super) fn new(
        url: String,
        query: TopQuery,
        limit: Option<usize>,
        interval: Duration,
        now: Instant,
    ) -> State {
        State {
            url,
            query,
            snapshot: None,
            base: None,
            trouble: None,
            hopeless: None,
            paused: false,
            mode: InputMode::Rows,
            asked_at: None,
            due_at: now,
            interval,
            limit,
        }
    }

    /// The query to send now, if it is time; its snapshot goes to [`State::receive`].
    pub(super) fn next_query(&mut self, now: Instant) -> Option<TopQuery> {
        let waits = self.asked_at.is_some() || now < self.due_at;
        // A pause does not apply if something else is to be shown.
        let enough = self.paused && self.shows_what_is_wanted();
        if waits || enough {
            return None;
        }
        self.asked_at = Some(now);
        Some(self.query.clone())
    }

    fn shows_what_is_wanted(&self) -> bool {
        let shown = self.snapshot.as_ref().map(|snapshot| &snapshot.query);
        shown == Some(&self.query)
    }

    /// Receives the snapshot for `query`.
    pub(super) fn receive(
        &mut self,
        query: &TopQuery,
        snapshot: Result<Snapshot, ClientError>,
        now: Instant,
    ) {
        let took = self.asked_at.take().map_or(Duration::ZERO, |at| now - at);
        if *query != self.query {
            // The query has changed meanwhile.
            self.due_at = now;
            return;
        }
        self.due_at = now + self.interval.max((took * REST_FACTOR).min(REST_MAX));
        match snapshot {
            Ok(snapshot) => self.show(snapshot),
            Err(error) => {
                if is_hopeless(&error, self.snapshot.is_some()) {
                    self.hopeless = Some(error.to_string());
                }
                self.trouble = Some(match error {
                    ClientError::Unreachable { why, .. } => format!("no response: {why}"),
                    ClientError::Refused { why, .. } | ClientError::Options(why) => why,
                });
                self.due_at = now + self.interval;
            }
        }
    }

    fn show(&mut self, mut snapshot: Snapshot) {
        // A snapshot right after another one, because of a key, would give rates over too short a time.
        let settled = |shown: &mut Snapshot| snapshot.at - shown.at >= self.interval / 2;
        if let Some(shown) = self.snapshot.take_if(settled) {
            self.base = Some(shown);
        }
        if let Some(base) = &self.base {
            snapshot.compare(base);
        }
        self.snapshot = Some(snapshot);
        self.trouble = None;
    }

    /// Requests as many rows as fit on the screen.
    pub(super) fn fit(&mut self, rows: usize, now: Instant) {
        let rows = self.limit.map_or(rows, |limit| limit.min(rows)).max(1);
        let more = rows > self.query.limit;
        self.query.limit = rows;
        if more {
            self.due_at = now;
        }
    }

    /// Handles a key. Returns false if it ends the view.
    pub(super) fn press(&mut self, key: KeyEvent, now: Instant) -> bool {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return key.code != KeyCode::Char('c');
        }
        match &mut self.mode {
            InputMode::Rows => return self.press_in_rows(key.code, now),
            InputMode::Help => self.mode = InputMode::Rows,
            InputMode::Search(text) => match key.code {
                KeyCode::Char(c) if text.len() < SEARCH_BYTES_MAX => text.push(c),
                KeyCode::Backspace => drop(text.pop()),
                KeyCode::Enter => {
                    self.query.filters.search = std::mem::take(text);
                    self.mode = InputMode::Rows;
                    self.due_at = now;
                }
                KeyCode::Esc => self.mode = InputMode::Rows,
                _ => (),
            },
        }
        true
    }

    fn press_in_rows(&mut self, key: KeyCode, now: Instant) -> bool {
        let before = self.query.clone();
        match key {
            KeyCode::Char('q') | KeyCode::Esc => return false,
            KeyCode::Char('s') => {
                self.query.sort = match self.query.sort {
                    SortBy::Bytes => SortBy::Tx,
                    SortBy::Tx => SortBy::Rx,
                    SortBy::Rx => SortBy::Rate,
                    SortBy::Rate => SortBy::Bytes,
                }
            }
            KeyCode::Char('g') => {
                self.query.group_by = match self.query.group_by {
                    GroupBy::Edge => GroupBy::SrcApp,
                    GroupBy::SrcApp => GroupBy::DestApp,
                    GroupBy::DestApp => GroupBy::VpcId,
                    GroupBy::VpcId => GroupBy::Edge,
                }
            }
            KeyCode::Left => self.query.hour = self.earlier(),
            KeyCode::Right => self.query.hour = self.later(),
            KeyCode::Char('l') | KeyCode::End => self.query.hour = HourChoice::Latest,
            KeyCode::Char('/') => {
                self.mode = InputMode::Search(self.query.filters.search.clone());
            }
            KeyCode::Char(' ') => self.paused = !self.paused,
            KeyCode::Char('?' | 'h') => self.mode = InputMode::Help,
            _ => (),
        }
        if self.query != before {
            self.due_at = now;
        }
        true
    }

    /// The number of the selected hour; `None` before the first snapshot.
    pub(super) fn wanted_hour(&self) -> Option<u64> {
        match self.query.hour {
            HourChoice::At(hour) => Some(hour),
            HourChoice::Latest => self.snapshot.as_ref()?.hours.last().map(|of| of.hour),
        }
    }

    /// The hour with flows before the selected one, if there is one.
    fn earlier(&self) -> HourChoice {
        let hours = self
            .snapshot
            .as_ref()
            .map_or(&[][..], |snapshot| &snapshot.hours);
        let wanted = self.wanted_hour();
        let found = hours.iter().rev().find(|of| Some(of.hour) < wanted);
        found.map_or(self.query.hour, |of| HourChoice::At(of.hour))
    }

    /// The hour after it; after the newest hour, `latest`.
    fn later(&self) -> HourChoice {
        let hours = self
            .snapshot
            .as_ref()
            .map_or(&[][..], |snapshot| &snapshot.hours);
        let wanted = self.wanted_hour();
        let found = hours.iter().find(|of| Some(of.hour) > wanted);
        found.map_or(HourChoice::Latest, |of| HourChoice::At(of.hour))
    }
}

/// Whether a retry cannot help: a wrong token, or a URL that has never responded like the service.
fn is_hopeless(error: &ClientError, has_answered: bool) -> bool {
    match error {
        ClientError::Refused { status, .. } => match status {
            401 | 403 => true,
            // Other status codes may be caused by the query.
            200 | 300..=399 | 404 | 405 | 421 => !has_answered,
            _ => false,
        },
        ClientError::Options(_) => true,
        ClientError::Unreachable { .. } => false,
    }
}

#[cfg(test)]
mod tests {
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
        let name = |row: &super::super::query::Row| row.names().next().unwrap().to_owned();
        rows.iter()
            .map(|row| (name(row), row.bytes_per_s))
            .collect()
    }

    fn press(state: &mut State, code: KeyCode, now: Instant) {
        assert!(state.press(KeyEvent::new(code, KeyModifiers::NONE), now));
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
            assert!(!state.press(KeyEvent::new(end, KeyModifiers::NONE), now));
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
        assert!(!state.press(end, now));
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
}
