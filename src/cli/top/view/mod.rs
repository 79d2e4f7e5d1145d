//! Draws the screen, in a terminal of any size.

mod columns;

use std::iter::repeat_n;
use std::time::Instant;

use ratatui::Frame;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline, SparklineBar, Widget, Wrap};

use self::columns::{Column, sort_name};
use super::super::text::{bytes, fit, fit_right, rate, visible, width};
use super::query::{Row, Snapshot, fields};
use super::state::{InputMode, State};
use crate::config::HourChoice;
use agent::units::{hour_name, hour_start};

/// Columns for the text beside the bars of hours.
const LABEL_COLUMNS: u16 = 16;
/// Maximum width of one hour's bar.
const HOUR_COLUMNS_MAX: usize = 3;
/// Lines for an error that does not fit into one.
const TROUBLE_LINES: u16 = 3;
const KEYS: [&str; 2] = [
    "q quit  ? help  ↑ ↓ Enter peers  o browser  s sort  g group  / search  [ ] hour",
    "q quit  ? help  s sort  g group",
];
/// In a view behind another one.
const KEYS_BEHIND: [&str; 2] = [
    "Esc back  ? help  ↑ ↓ Enter peers  o browser  s sort  g group  / search  q quit",
    "Esc back  ? help  q quit",
];
const HELP: [&str; 12] = [
    "↑ ↓ PgUp PgDn Home   select a row",
    "Enter    its peers; of a VPC, its pairs",
    "Esc Backspace        back",
    "o        the same view in a browser",
    "/        search in names; empty: all",
    "← → [ ]  hour before, hour after",
    "l End    latest hour, and stay there",
    "s        sort: bytes, tx, rx, rate",
    "g        group: edge, src, dest, vpc",
    "space    pause, go on",
    "?        this; any key goes back",
    "q        quit, as Esc at the beginning",
];

/// The colours, or none.
#[derive(Clone, Copy, Debug)]
pub(super) struct Palette {
    title: Style,
    dim: Style,
    bar: Style,
    trouble: Style,
    selected: Style,
}

impl Palette {
    /// Without colours if `NO_COLOR` is set (no-color.org).
    pub(super) fn of_environment() -> Palette {
        let plain = Palette::plain();
        match std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            true => plain,
            false => Palette {
                title: plain.title.fg(Color::Cyan),
                bar: plain.bar.fg(Color::Green),
                trouble: plain.trouble.fg(Color::Red),
                ..plain
            },
        }
    }

    fn plain() -> Palette {
        Palette {
            title: Style::new().add_modifier(Modifier::BOLD),
            dim: Style::new().add_modifier(Modifier::DIM),
            bar: Style::new(),
            trouble: Style::new().add_modifier(Modifier::BOLD),
            selected: Style::new().add_modifier(Modifier::REVERSED),
        }
    }
}

/// The height of each part in a terminal of `height`.
struct Heights {
    totals: u16,
    mode: u16,
    chart: u16,
    footer: u16,
}

impl Heights {
    fn from_screen(height: u16) -> Heights {
        Heights {
            totals: u16::from(height >= 5),
            mode: u16::from(height >= 7),
            chart: match height {
                0..10 => 0,
                10..16 => 1,
                _ => 3,
            },
            footer: u16::from(height >= 3),
        }
    }

    /// As much room as possible for the list of keys.
    fn for_help(height: u16) -> Heights {
        Heights {
            totals: 0,
            mode: 0,
            chart: 0,
            ..Heights::from_screen(height)
        }
    }

    /// All lines but the rows, including the title and the column names.
    fn others(&self) -> u16 {
        2 + self.totals + self.mode + self.chart + self.footer
    }
}

/// Number of rows that fit.
pub(super) fn rows_on_screen(height: u16) -> usize {
    height
        .saturating_sub(Heights::from_screen(height).others())
        .into()
}

pub(super) fn draw(frame: &mut Frame, state: &State, palette: Palette, now: Instant) {
    let area = frame.area();
    let heights = match state.mode {
        InputMode::Help => Heights::for_help(area.height),
        _ => Heights::from_screen(area.height),
    };
    let mut canvas = Canvas {
        buffer: frame.buffer_mut(),
        rest: area,
    };
    canvas.line(1, || title(state, palette, area.width.into(), now));
    canvas.line(heights.totals, || totals(state, area.width.into()));
    canvas.line(heights.mode, || mode(state, palette));
    let chart = canvas.take(heights.chart);
    draw_chart(canvas.buffer, chart, state, palette);
    let footer = footer(state, palette, area.width);
    let lines = match footer.width() > area.width.into() {
        true => heights.footer * TROUBLE_LINES,
        false => heights.footer,
    };
    let footer_area = canvas.take_last(lines);
    match (&state.mode, &state.snapshot) {
        (InputMode::Help, _) => {
            for line in HELP {
                canvas.line(1, || Line::raw(line));
            }
        }
        (_, None) => canvas.line(1, || {
            let text = match state.trouble {
                Some(_) => "no response yet; the last line says why",
                None => "waiting for the first answer",
            };
            Line::styled(text, palette.dim)
        }),
        (_, Some(snapshot)) => draw_rows(&mut canvas, state, snapshot, palette),
    }
    if let InputMode::Search(_) = state.mode {
        let end = footer_area.x.saturating_add(footer.width() as u16);
        let end = end.min(footer_area.right().saturating_sub(1));
        frame.set_cursor_position((end, footer_area.y));
    }
    let footer = Paragraph::new(footer).wrap(Wrap { trim: true });
    footer.render(footer_area, frame.buffer_mut());
}

/// A screen that is filled from the top.
struct Canvas<'a> {
    buffer: &'a mut Buffer,
    rest: Rect,
}

impl Canvas<'_> {
    fn take(&mut self, height: u16) -> Rect {
        let height = height.min(self.rest.height);
        let taken = Rect {
            height,
            ..self.rest
        };
        self.rest.y += height;
        self.rest.height -= height;
        taken
    }

    fn take_last(&mut self, height: u16) -> Rect {
        let height = height.min(self.rest.height);
        self.rest.height -= height;
        Rect {
            y: self.rest.bottom(),
            height,
            ..self.rest
        }
    }

    /// Draws `line`, if `height` is 1 and there is room.
    fn line<'l>(&mut self, height: u16, line: impl FnOnce() -> Line<'l>) {
        let area = self.take(height);
        if area.height > 0 {
            line().render(area, self.buffer);
        }
    }
}

/// The URL, and the age of the snapshot.
fn title(state: &State, palette: Palette, columns: usize, now: Instant) -> Line<'static> {
    let waits = state.asked_at.map_or(0, |at| (now - at).as_secs());
    let age = match &state.snapshot {
        _ if waits > 2 => format!("no response for {waits} s"),
        Some(snapshot) => format!("{} s ago", (now - snapshot.at).as_secs()),
        None => String::new(),
    };
    let age = match state.paused {
        true => format!("paused, {age}"),
        false => age,
    };
    let name = match columns {
        0..60 => "",
        _ => "flowtally top  ",
    };
    let url = visible(&state.url);
    let left = fit(
        &format!("{name}{url}"),
        columns.saturating_sub(width(&age) + 1),
    );
    Line::from(vec![
        Span::styled(left, palette.title),
        Span::raw(" "),
        Span::raw(age),
    ])
}

/// The hour and its totals.
fn totals(state: &State, columns: usize) -> Line<'static> {
    let latest = state.query.hour == HourChoice::Latest;
    let hour = match state.wanted_hour() {
        Some(hour) if latest => format!("hour {} (latest)", hour_name(hour)),
        Some(hour) => format!("hour {}", hour_name(hour)),
        None => "no hour yet".into(),
    };
    let mut text = hour;
    let snapshot = state
        .snapshot
        .as_ref()
        .filter(|snapshot| snapshot.hour == state.wanted_hour());
    if let Some((snapshot, of)) = snapshot.and_then(|snapshot| Some((snapshot, snapshot.totals()?)))
    {
        let parts = [
            format!("tx {}", bytes(of.bytes_tx)),
            format!("rx {}", bytes(of.bytes_rx)),
            rate(snapshot.bytes_per_s),
            format!("{} flows", of.flows),
        ];
        for part in parts {
            if width(&text) + 2 + width(&part) <= columns {
                text = text + "  " + &part;
            }
        }
    }
    Line::raw(text)
}

/// The grouping, the sort order and the filters.
fn mode(state: &State, palette: Palette) -> Line<'static> {
    let query = &state.query;
    let mut text = format!(
        "{} by {}",
        fields(query.group_by).join(" → "),
        sort_name(query.sort)
    );
    let filters = &query.filters;
    if !filters.search.is_empty() {
        text += &format!("  /{}", visible(&filters.search));
    }
    for (name, values) in filters.by_name() {
        for value in values {
            text += &format!("  {name}={}", visible(value));
        }
    }
    Line::styled(text, palette.dim)
}

/// Bars of the hours: the newest on the right, or as far back as needed to show the selected one.
fn draw_chart(buffer: &mut Buffer, area: Rect, state: &State, palette: Palette) {
    let Some(snapshot) = state.snapshot.as_ref().filter(|_| area.height > 0) else {
        return;
    };
    let label_columns = LABEL_COLUMNS.min(area.width / 2);
    let bars = Rect {
        x: area.x + label_columns,
        width: area.width - label_columns,
        ..area
    };
    let wanted = state.wanted_hour();
    let hours = &snapshot.hours;
    let shown = hours.iter().position(|of| Some(of.hour) == wanted);
    let room = usize::from(bars.width);
    let first = hours
        .len()
        .saturating_sub(room)
        .min(shown.unwrap_or(usize::MAX));
    let hours = &hours[first..hours.len().min(first + room)];
    let (Some(from), Some(to)) = (hours.first(), hours.last()) else {
        return;
    };
    let label = chart_label(from.hour, to.hour, area.height);
    let label_area = Rect {
        width: label_columns.saturating_sub(1),
        ..area
    };
    for (line, row) in label.iter().zip(label_area.rows()) {
        Line::styled(fit(line, label_area.width.into()), palette.dim).render(row, buffer);
    }
    // As fractions of the largest, since sums may exceed u64.
    let most = hours.iter().map(|of| of.bytes()).max().unwrap_or(0).max(1);
    let heights = hours.iter().flat_map(|of| {
        let height = (of.bytes() as f64 / most as f64 * 1000.0).ceil() as u64;
        let bar = SparklineBar::from(height).style(match Some(of.hour) == wanted {
            true => palette.title,
            false => palette.bar.patch(palette.dim),
        });
        repeat_n(bar, (room / hours.len()).clamp(1, HOUR_COLUMNS_MAX))
    });
    Sparkline::default()
        .data(heights)
        .max(1000)
        .render(bars, buffer);
}

/// The hours of the chart, in at most `height` lines of [`LABEL_COLUMNS`] columns.
fn chart_label(from: u64, to: u64, height: u16) -> Vec<String> {
    let title = "bytes by hour".to_owned();
    // Without the year.
    let short = |hour| hour_start(hour).and_then(|start| Some(start.get(5..)?.to_owned()));
    match (short(from), short(to)) {
        (Some(from), Some(to)) if height >= 3 => vec![title, format!("{from} to"), to],
        (Some(from), Some(to)) => {
            let day = |time: &str| time.split(' ').next().unwrap_or_default().to_owned();
            vec![format!("{} … {}", day(&from), day(&to))]
        }
        _ if height >= 2 => vec![title, format!("{from} … {to}")],
        _ => vec![format!("{from} … {to}")],
    }
}

fn draw_rows(canvas: &mut Canvas, state: &State, snapshot: &Snapshot, palette: Palette) {
    let columns = usize::from(canvas.rest.width);
    let query = &snapshot.query;
    let names = fields(query.group_by);
    let (chosen, name_columns) = Column::choose(query.sort, names.len(), columns);
    let header: Vec<String> = names
        .iter()
        .map(|name| fit(name, name_columns))
        .chain(chosen.iter().map(|(column, columns)| {
            let mark = match *column == Column::Sum(query.sort) {
                true => "▼",
                false => "",
            };
            fit_right(&format!("{mark}{}", column.name()), *columns)
        }))
        .collect();
    let reversed = Style::new().add_modifier(Modifier::REVERSED);
    canvas.line(1, || {
        Line::styled(fit(&header.join(" "), columns), reversed)
    });
    if snapshot.rows.is_empty() {
        let why = match (snapshot.hour, snapshot.totals()) {
            (None, _) => "no flows yet",
            (_, None) => "the hour has no flows",
            _ => "no name matches",
        };
        canvas.line(1, || Line::styled(why, palette.dim));
    }
    let all = snapshot.totals().map_or(0, |of| of.bytes()).max(1) as f64;
    let most = snapshot
        .rows
        .iter()
        .map(Row::bytes)
        .max()
        .unwrap_or(0)
        .max(1) as f64;
    let rows = state.rows();
    let height = usize::from(canvas.rest.height);
    let shown = state.selection.visible(rows.len(), height);
    for (index, row) in shown.clone().zip(&rows[shown]) {
        let names: Vec<String> = row
            .names()
            .map(|name| fit(&visible(name), name_columns))
            .collect();
        let mut spans = vec![Span::raw(names.join(" "))];
        for (column, columns) in &chosen {
            let style = match column {
                Column::Bar => palette.bar,
                _ => Style::new(),
            };
            spans.push(Span::raw(" "));
            spans.push(Span::styled(column.cell(row, all, most, *columns), style));
        }
        let line = match state.selection.index() == Some(index) {
            true => Line::from(spans).style(palette.selected),
            false => Line::from(spans),
        };
        canvas.line(1, || line);
    }
}

/// The error, or the keys.
fn footer(state: &State, palette: Palette, columns: u16) -> Line<'static> {
    match (&state.mode, &state.trouble) {
        (InputMode::Search(text), _) => Line::raw(format!("/{}", visible_or_empty(text))),
        (_, Some(why)) => Line::styled(format!("trying again: {}", visible(why)), palette.trouble),
        _ if state.notice.is_some() => {
            let notice = state.notice.as_deref().unwrap_or_default();
            Line::raw(visible(notice))
        }
        _ => {
            let fits = |keys: &&&str| width(keys) <= columns.into();
            let all = match state.has_trail() {
                true => &KEYS_BEHIND,
                false => &KEYS,
            };
            let keys = all.iter().find(fits).copied().unwrap_or_default();
            Line::styled(keys, palette.dim)
        }
    }
}

/// Like [`visible`], but an empty text stays empty.
fn visible_or_empty(text: &str) -> String {
    match text {
        "" => String::new(),
        _ => visible(text),
    }
}

#[cfg(test)]
mod tests;
