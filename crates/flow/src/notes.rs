//! Notes: text that a sender stores beside a batch, under the batch's key or under other keys.
//!
//! Senders of files use them to find out how much of a file was counted. The service stores and returns them without
//! interpreting them.

use std::fmt;

use crate::IdempotencyKey;

/// The notes of a batch, stored in the same atomic write.
///
/// They are sent in the header `Receipt-Notes`, as a list separated by commas: `=TEXT` is stored under the batch's
/// own key, `KEY=TEXT` under another key, and with `!KEY` the batch is refused if anything is stored under that key
/// already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Stored under the batch's own key.
    pub own: Option<Note>,
    /// Stored under other keys.
    pub others: Vec<(IdempotencyKey, Note)>,
    /// The batch is refused if there is a receipt or a note under any of these keys.
    pub excluded_by: Vec<IdempotencyKey>,
}

/// 1 to 96 visible ASCII characters without a comma.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note(Box<str>);

impl Note {
    /// Longest note, in characters.
    pub const CHARS_MAX: usize = 96;

    /// `None` if `text` is empty, too long, or has a character that is not allowed.
    pub fn new(text: &str) -> Option<Note> {
        let fits = (1..=Note::CHARS_MAX).contains(&text.len());
        let is_visible = |b: u8| b.is_ascii_graphic() && b != b',';
        (fits && text.bytes().all(is_visible)).then(|| Note(text.into()))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Notes {
    /// Maximum number of notes of a batch.
    pub const COUNT_MAX: usize = 64;
    /// Maximum number of keys that exclude a batch.
    pub const EXCLUDED_BY_MAX: usize = 8;

    /// Parses what [`Notes::to_string`](ToString::to_string) wrote; `None` if it cannot have written it.
    pub fn parse(text: &str) -> Option<Notes> {
        let mut notes = Notes::default();
        for item in text.split(',').map(str::trim) {
            if let Some(key) = item.strip_prefix('!') {
                notes.excluded_by.push(IdempotencyKey::new(key.as_bytes())?);
                continue;
            }
            let (key, note) = item.split_once('=')?;
            let note = Note::new(note)?;
            if key.is_empty() {
                if notes.own.replace(note).is_some() {
                    return None;
                }
            } else {
                notes
                    .others
                    .push((IdempotencyKey::new(key.as_bytes())?, note));
            }
        }
        let fits = notes.others.len() <= Notes::COUNT_MAX
            && notes.excluded_by.len() <= Notes::EXCLUDED_BY_MAX;
        fits.then_some(notes)
    }

    pub fn is_empty(&self) -> bool {
        self.own.is_none() && self.others.is_empty() && self.excluded_by.is_empty()
    }
}

impl fmt::Display for Notes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unless = self
            .excluded_by
            .iter()
            .map(|key| format!("!{}", key.as_str()));
        let own = self.own.iter().map(|note| format!("={}", note.0));
        let others = self.others.iter();
        let others = others.map(|(key, note)| format!("{}={}", key.as_str(), note.0));
        let items: Vec<String> = unless.chain(own).chain(others).collect();
        f.write_str(&items.join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_read_as_they_are_written() {
        for text in [
            "!k,=own,a=1,b=x=y",
            "=own",
            "a=1",
            "!k",
            "!a,!b,=1",
            "a=1,a=2",
        ] {
            assert_eq!(Notes::parse(text).unwrap().to_string(), text);
        }
        let parsed = Notes::parse(" a=1 , =2").unwrap();
        assert_eq!(parsed.to_string(), "=2,a=1");
        let long = format!("a={}", "x".repeat(Note::CHARS_MAX + 1));
        let excluded = ["!a"; Notes::EXCLUDED_BY_MAX + 1].join(",");
        let many = vec!["a=1"; Notes::COUNT_MAX + 1].join(",");
        for text in [
            "", "a", "a=", "=", "!", &excluded, "=1,=2", "a=\u{e9}", "a=x y", "a=1,", &long, &many,
        ] {
            assert_eq!(Notes::parse(text), None, "{text}");
        }
        assert!(Notes::parse(&many[4..]).is_some());
    }
}
