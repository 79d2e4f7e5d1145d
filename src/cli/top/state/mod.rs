//! The state of the view, and the effect of keys.

use std::time::{Duration, Instant};

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::query::{Row, Snapshot, TopQuery};
use super::selection::Selection;
use crate::config::{GroupBy, HourChoice, SortBy};
use agent::client::ClientError;

/// After a slow snapshot, the next query waits for this many times as long.
const REST_FACTOR: u32 = 4;
/// Longest such wait, so that one slow snapshot does not stop the view.
const REST_MAX: Duration = Duration::from_secs(30);
/// Longest search text, as typed.
const SEARCH_BYTES_MAX: usize = 256;
/// Views to go back to; of more, the oldest are forgotten.
const TRAIL_MAX: usize = 32;

pub(super) struct State {
    /// As in `http://flowtally:8080`.
    pub(super) url: String,
    /// The current query; its snapshot may be in flight.
    pub(super) query: TopQuery,
    /// The last snapshot.
    pub(super) snapshot: Option<Snapshot>,
    /// The previous snapshot, for rates.
    base: Option<Snapshot>,
    pub(super) selection: Selection,
    /// The views that led to this one, each with the names of the row that was selected.
    trail: Vec<(TopQuery, Option<Vec<String>>)>,
    /// A message for the user, until the next key.
    pub(super) notice: Option<String>,
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

/// What is left to do after a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Nothing: the state has changed.
    Done,
    /// To end the view.
    Quit,
    /// To open this URL in a browser.
    Open(String),
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
            selection: Selection::default(),
            trail: Vec::new(),
            notice: None,
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
        self.with_rows(Selection::follow);
    }

    /// The rows of the last snapshot that are shown, or that can be scrolled to.
    pub(super) fn rows(&self) -> &[Row] {
        let rows = self.snapshot.as_ref().map_or(&[][..], |shown| &shown.rows);
        &rows[..rows.len().min(self.limit.unwrap_or(usize::MAX))]
    }

    /// Whether there is a view to go back to.
    pub(super) fn has_trail(&self) -> bool {
        !self.trail.is_empty()
    }

    fn with_rows(&mut self, change: impl FnOnce(&mut Selection, &[Row])) {
        let mut selection = std::mem::take(&mut self.selection);
        change(&mut selection, self.rows());
        self.selection = selection;
    }

    /// Requests as many rows as fit on the screen, and more for scrolling.
    pub(super) fn fit(&mut self, rows: usize, now: Instant) {
        let rows = self.selection.fit(rows);
        let rows = self.limit.map_or(rows, |limit| limit.min(rows)).max(1);
        let more = rows > self.query.limit;
        self.query.limit = rows;
        if more {
            self.due_at = now;
        }
    }

    /// Handles a key.
    pub(super) fn press(&mut self, key: KeyEvent, now: Instant) -> Effect {
        self.notice = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Effect::Quit,
                _ => Effect::Done,
            };
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
                    self.selection.expect(None);
                    self.due_at = now;
                }
                KeyCode::Esc => self.mode = InputMode::Rows,
                _ => (),
            },
        }
        Effect::Done
    }

    fn press_in_rows(&mut self, key: KeyCode, now: Instant) -> Effect {
        let before = self.query.clone();
        let page = self.selection.page();
        match key {
            KeyCode::Char('q') => return Effect::Quit,
            KeyCode::Esc if !self.has_trail() => return Effect::Quit,
            KeyCode::Esc | KeyCode::Backspace => self.back(),
            KeyCode::Enter => self.drill(),
            KeyCode::Char('o') => {
                let path = self.query.page_path(self.wanted_hour());
                return Effect::Open(format!("{}{path}", self.url.trim_end_matches('/')));
            }
            KeyCode::Up | KeyCode::Char('k') => self.with_rows(|s, rows| s.move_by(-1, rows)),
            KeyCode::Down | KeyCode::Char('j') => self.with_rows(|s, rows| s.move_by(1, rows)),
            KeyCode::PageUp => self.with_rows(|s, rows| s.move_by(-page, rows)),
            KeyCode::PageDown => self.with_rows(|s, rows| s.move_by(page, rows)),
            KeyCode::Home => self.with_rows(|s, rows| s.select(0, rows)),
            KeyCode::Char('s') => {
                self.query.sort = match self.query.sort {
                    SortBy::Bytes => SortBy::Tx,
                    SortBy::Tx => SortBy::Rx,
                    SortBy::Rx => SortBy::Rate,
                    SortBy::Rate => SortBy::Bytes,
                }
            }
            KeyCode::Char('g') => {
                self.selection.expect(None);
                self.query.group_by = match self.query.group_by {
                    GroupBy::Edge => GroupBy::SrcApp,
                    GroupBy::SrcApp => GroupBy::DestApp,
                    GroupBy::DestApp => GroupBy::VpcId,
                    GroupBy::VpcId => GroupBy::Edge,
                }
            }
            KeyCode::Left | KeyCode::Char('[') => self.query.hour = self.earlier(),
            KeyCode::Right | KeyCode::Char(']') => self.query.hour = self.later(),
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
        Effect::Done
    }

    /// Shows what is behind the selected row, or behind the first one.
    fn drill(&mut self) {
        let Some(shown) = self.snapshot.as_ref().map(|shown| &shown.query) else {
            return;
        };
        // The rows of the next view have not come yet.
        if !shown.compares_with(&self.query) {
            return;
        }
        let row = self.rows().get(self.selection.index().unwrap_or(0));
        let Some(behind) = row.and_then(|row| self.query.behind(row)) else {
            return;
        };
        if self.trail.len() == TRAIL_MAX {
            self.trail.remove(0);
        }
        let selected = self.selection.names().map(<[String]>::to_vec);
        let left = std::mem::replace(&mut self.query, behind);
        self.trail.push((left, selected));
        self.selection.expect(None);
    }

    /// Shows the view before, in the same hour.
    fn back(&mut self) {
        if let Some((query, selected)) = self.trail.pop() {
            self.query = TopQuery {
                hour: self.query.hour,
                ..query
            };
            self.selection.expect(selected);
        }
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
mod tests;
