//! Names and numbers in a form that is safe to print in a terminal.

use ratatui::text::Span;

use agent::terminal::printable;

/// Escapes everything in `name` that a terminal would execute or not show: control characters, escape sequences, and
/// marks that change the direction of writing. They become `\u{1b}` and the like, and a backslash is doubled. An empty
/// name becomes `""`, so that it can be seen.
pub(in crate::cli) fn visible(name: &str) -> String {
    match name {
        "" => "\"\"".into(),
        _ => printable(&name.replace('\\', "\\\\")).into_owned(),
    }
}

/// Columns that `text` takes: two for each wide character.
pub(in crate::cli) fn width(text: &str) -> usize {
    Span::raw(text).width()
}

/// Truncates `text` to at most `columns`.
pub(in crate::cli) fn cut(text: &str, columns: usize) -> String {
    let mut fitted = text.to_owned();
    if width(text) > columns {
        let ends = text.char_indices().map(|(at, c)| at + c.len_utf8());
        let end = ends.take_while(|end| width(&text[..*end]) < columns).last();
        fitted.truncate(end.unwrap_or(0));
        fitted.push_str(if columns > 0 { "…" } else { "" });
    }
    fitted
}

/// Truncates or pads `text` to exactly `columns`.
pub(in crate::cli) fn fit(text: &str, columns: usize) -> String {
    let fitted = cut(text, columns);
    let missing = columns.saturating_sub(width(&fitted));
    fitted + &" ".repeat(missing)
}

/// The same, aligned to the right.
pub(in crate::cli) fn fit_right(text: &str, columns: usize) -> String {
    let missing = columns.saturating_sub(width(text));
    fit(&(" ".repeat(missing) + text), columns)
}

/// `n` bytes with three digits and a unit.
pub(in crate::cli) fn bytes(n: u128) -> String {
    const UNITS: [&str; 11] = [
        "B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB", "RB", "QB",
    ];
    if n < 1000 {
        return format!("{n} B");
    }
    let (mut value, mut unit) = (n as f64, 0);
    // A number that would round up to a thousand gets the next unit.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    let decimals = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}

/// Bytes per second; `–` if not known yet.
pub(in crate::cli) fn rate(bytes_per_s: Option<u128>) -> String {
    bytes_per_s.map_or_else(|| "–".into(), |n| bytes(n) + "/s")
}

/// A bar of `columns`, filled up to `part` (0 … 1).
pub(in crate::cli) fn bar(part: f64, columns: usize) -> String {
    const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
    let eighths = (part.clamp(0.0, 1.0) * columns as f64 * 8.0).round() as usize;
    let filled = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
    fit(&filled, columns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_control_sequence_is_left() {
        for (name, shown) in [
            ("web", "web"),
            ("", "\"\""),
            ("it's \"x\"", "it's \"x\""),
            ("\\' \\\"", "\\\\' \\\\\""),
            ("\u{1b}[2J\u{7}\r\n\0\t", "\\u{1b}[2J\\u{7}\\r\\n\\0\\t"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            (
                "a\u{202e}b\u{2066}\u{200b}",
                "a\\u{202e}b\\u{2066}\\u{200b}",
            ),
            ("\u{2028}\u{feff}\u{e000}", "\\u{2028}\\u{feff}\\u{e000}"),
            ("名前 é e\u{301} 🦀", "名前 é e\u{301} 🦀"),
        ] {
            assert_eq!(visible(name), shown, "{name:?}");
        }
    }

    #[test]
    fn text_takes_its_columns_exactly() {
        for (text, columns, fitted) in [
            ("web", 5, "web  "),
            ("web", 3, "web"),
            ("images", 4, "ima…"),
            ("名前空間", 8, "名前空間"),
            ("名前空間", 7, "名前空…"),
            ("名前空間", 6, "名前… "),
            ("é", 1, "é"),
            ("ab", 1, "…"),
            ("ab", 0, ""),
        ] {
            assert_eq!(fit(text, columns), fitted);
            assert_eq!(width(&fit(text, columns)), columns, "{text}");
        }
        assert_eq!(fit_right("名", 4), "  名");
    }

    #[test]
    fn bytes_have_three_digits() {
        for (n, shown) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.00 kB"),
            (9_994, "9.99 kB"),
            (9_996, "10.0 kB"),
            (99_960, "100 kB"),
            (999_499, "999 kB"),
            (999_500, "1.00 MB"),
            (2_832_994_977, "2.83 GB"),
            (u128::from(u64::MAX), "18.4 EB"),
            (u128::from(u64::MAX) * 1_000_000, "18.4 YB"),
            (u128::MAX, "340282367 QB"),
        ] {
            assert_eq!(bytes(n), shown, "{n}");
        }
        assert_eq!(rate(Some(1_500)), "1.50 kB/s");
        assert_eq!(rate(None), "–");
    }

    #[test]
    fn bars_are_filled_by_eighths() {
        assert_eq!(bar(0.0, 3), "   ");
        assert_eq!(bar(0.5, 3), "█▌ ");
        assert_eq!(bar(1.0, 3), "███");
        assert_eq!(bar(f64::NAN, 2), "  ");
        assert_eq!(bar(7.0, 2), "██");
    }
}
