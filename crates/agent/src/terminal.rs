//! Escapes untrusted text for display: names in flows, file names, responses of a server. Control characters
//! could make a terminal execute or hide something, so they are escaped before they reach a terminal or a
//! log. All escaping is in this module.

use std::borrow::Cow;
use std::io::{self, Write};

/// Longer lines are escaped in several parts.
const LINE_BYTES_MAX: usize = 64 << 10;

/// Returns `text` with unprintable characters as escapes such as `\u{1b}`: control characters, including line
/// ends, and marks that change the direction of writing.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text
        .bytes()
        .all(|byte| byte == b' ' || byte.is_ascii_graphic())
    {
        return Cow::Borrowed(text);
    }
    // `escape_debug` also escapes these three, which are printable.
    let harmless = ['\\', '"', '\''];
    let mut shown = String::with_capacity(text.len() + 16);
    for part in text.split_inclusive(harmless) {
        let plain = part.trim_end_matches(harmless);
        shown.extend(plain.escape_debug());
        shown.push_str(&part[plain.len()..]);
    }
    Cow::Owned(shown)
}

/// Like [`printable`], but keeps the line ends.
pub fn printable_lines(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(printable).collect();
    lines.join("\n")
}

/// Returns equivalent JSON with escapes instead of unprintable characters.
pub fn printable_json(json: &str) -> Cow<'_, str> {
    let hostile =
        |c: char| !matches!(c, '\\' | '"' | '\'') && c.escape_debug().next() == Some('\\');
    if !json.contains(hostile) {
        return Cow::Borrowed(json);
    }
    let mut shown = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        if hostile(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                shown += &format!("\\u{unit:04x}");
            }
        } else {
            shown.push(c);
        }
    }
    Cow::Owned(shown)
}

/// How to escape a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Text,
    /// Keep colours, that is, `ESC [ … m`: for a log whose fields are escaped already.
    Coloured,
    Json,
}

impl Style {
    pub fn escape(self, line: &str) -> Cow<'_, str> {
        match self {
            // A tab is harmless, and scripts use it.
            Style::Text => match line.contains('\t') {
                true => Cow::Owned(
                    line.split('\t')
                        .map(printable)
                        .collect::<Vec<_>>()
                        .join("\t"),
                ),
                false => printable(line),
            },
            Style::Coloured => Cow::Owned(coloured(line)),
            Style::Json => printable_json(line),
        }
    }
}

/// A writer that escapes its output line by line.
#[derive(Debug)]
pub(crate) struct Lines<W: Write> {
    out: W,
    style: Style,
    /// The current line, without its end.
    line: Vec<u8>,
}

impl<W: Write> Lines<W> {
    pub(crate) fn new(out: W, style: Style) -> Lines<W> {
        Lines {
            out,
            style,
            line: Vec::new(),
        }
    }

    fn write_line(&mut self, end: &str) -> io::Result<()> {
        let line = String::from_utf8_lossy(&self.line);
        let shown = self.style.escape(&line).into_owned() + end;
        self.line.clear();
        self.out.write_all(shown.as_bytes())
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            match part.strip_suffix(b"\n") {
                Some(rest) => {
                    self.line.extend_from_slice(rest);
                    self.write_line("\n")?;
                }
                None => self.line.extend_from_slice(part),
            }
            if self.line.len() > LINE_BYTES_MAX {
                self.write_line("")?;
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        if !self.line.is_empty() {
            self.write_line("")?;
        }
        self.out.flush()
    }
}

fn coloured(line: &str) -> String {
    let mut parts = line.split('\u{1b}');
    let mut shown = printable(parts.next().unwrap_or_default()).into_owned();
    for part in parts {
        let colour = part.strip_prefix('[').and_then(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != ';')?;
            rest[end..].starts_with('m').then_some(end + 2)
        });
        let end = colour.unwrap_or(0);
        let escape = if end > 0 { "\u{1b}" } else { "\\u{1b}" };
        shown = shown + escape + &part[..end] + &printable(&part[end..]);
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: [(&str, &str); 6] = [
        ("\u{1b}[2J\u{7}\r\n\0\t", "\\u{1b}[2J\\u{7}\\r\\n\\0\\t"),
        ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
        (
            "a\u{202e}b\u{2066}\u{200b}",
            "a\\u{202e}b\\u{2066}\\u{200b}",
        ),
        ("\u{2028}\u{feff}\u{e000}", "\\u{2028}\\u{feff}\\u{e000}"),
        ("it's \"x\" C:\\y", "it's \"x\" C:\\y"),
        ("名前 é e\u{301} 🦀", "名前 é e\u{301} 🦀"),
    ];

    #[test]
    fn control_characters_are_escaped() {
        for (text, shown) in HOSTILE {
            assert_eq!(printable(text), shown);
            let line = format!("say {text}");
            assert_eq!(printable(&line), format!("say {shown}"));
        }
        assert_eq!(printable_lines("a\n\u{1b}b\n"), "a\n\\u{1b}b\n");
    }

    #[test]
    fn escaped_json_is_equivalent() {
        for (text, _) in HOSTILE {
            let json = serde_json::to_string(text).unwrap();
            let shown = printable_json(&json);
            assert_eq!(serde_json::from_str::<String>(&shown).unwrap(), text);
            assert!(!shown.contains(|c: char| c.is_control() || c == '\u{202e}'));
        }
        assert_eq!(printable_json("\"\u{e0001}\""), "\"\\udb40\\udc01\"");
    }

    #[test]
    fn lines_are_escaped_however_they_are_split() {
        let text = "a\u{1b}[2J\nb\u{202e}é\n\u{9b}";
        for step in 1..text.len() {
            let mut lines = Lines::new(Vec::new(), Style::Text);
            for part in text.as_bytes().chunks(step) {
                lines.write_all(part).unwrap();
            }
            lines.flush().unwrap();
            let shown = String::from_utf8(lines.out).unwrap();
            assert_eq!(shown, "a\\u{1b}[2J\nb\\u{202e}é\n\\u{9b}");
        }
        let mut lines = Lines::new(Vec::new(), Style::Coloured);
        let coloured = "\u{1b}[32m INFO\u{1b}[0m \u{1b}[2Jx\u{1b}\u{1b}]0;title\u{7}\n";
        lines.write_all(coloured.as_bytes()).unwrap();
        let expected = "\u{1b}[32m INFO\u{1b}[0m \\u{1b}[2Jx\\u{1b}\\u{1b}]0;title\\u{7}\n";
        assert_eq!(String::from_utf8(lines.out).unwrap(), expected);
        let mut tabs = Lines::new(Vec::new(), Style::Text);
        tabs.write_all(b"\ta\x1b\tb\n").unwrap();
        assert_eq!(tabs.out, b"\ta\\u{1b}\tb\n");
        let mut long = Lines::new(Vec::new(), Style::Text);
        long.write_all(&[b'x'; 3 * LINE_BYTES_MAX]).unwrap();
        assert!(long.line.is_empty());
    }
}
