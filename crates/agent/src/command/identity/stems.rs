//! Records without one of their fields, to find the record that a cut line was a part of.

use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

use super::{Chain, lines};
use flow::codec::{self, Corrupt, FlowKey};
use flow::{Field, IdempotencyKey, Note};

/// A record without one field, inside which its line may have been cut.
#[derive(Clone, Debug)]
pub(crate) struct Stem {
    /// Hash of everything except the field.
    pub(crate) rest: u128,
    pub(crate) field: String,
    pub(crate) is_number: bool,
}

impl Stem {
    /// In formats whose text identifies the record: everything before the last field, and that field.
    pub(crate) fn of_text(before: &str, field: &str) -> Stem {
        Stem {
            rest: xxh3_128(before.as_bytes()),
            field: field.to_owned(),
            is_number: false,
        }
    }
}

/// Whether a field that was cut has the text `cut`. Numbers may be written with zeros before them.
pub(super) fn is_cut_of(cut: &str, whole: &str, is_number: bool) -> bool {
    let is_begin = |cut: &str, whole: &str| cut.len() < whole.len() && whole.starts_with(cut);
    let digits = |text: &str| text.trim_start_matches('0').to_owned();
    is_begin(cut, whole)
        || (is_number && !digits(cut).is_empty() && is_begin(&digits(cut), &digits(whole)))
}

/// The fields of a flow as text, in the order of [`Field::ALL`].
#[derive(Clone, Debug)]
pub(crate) struct FlowFields([String; 6]);

/// The fields before this one are names, and the others are numbers.
const NUMBERS: usize = 3;

impl FlowFields {
    pub(crate) fn new(record: &codec::Record<'_>) -> Result<FlowFields, Corrupt> {
        let key = FlowKey::decode(record.key)?;
        let names = [key.src_app, key.dest_app, key.vpc_id].map(|name| name.into_owned());
        let [src_app, dest_app, vpc_id] = names;
        let (tx, rx) = (
            record.counters.tx.to_string(),
            record.counters.rx.to_string(),
        );
        let hour = key.hour.get().to_string();
        Ok(FlowFields([src_app, dest_app, vpc_id, tx, rx, hour]))
    }

    /// The stem without `field`, which is written as `text`, if that is known.
    pub(crate) fn stem(&self, field: Field, text: Option<&str>) -> Stem {
        let number = index(field);
        let mut rest = format!("{number}");
        for (_, value) in self.0.iter().enumerate().filter(|(at, _)| *at != number) {
            rest += &format!("\0{}\0{value}", value.len());
        }
        let is_number = number >= NUMBERS;
        let is_digits = |text: &&str| is_number && text.bytes().all(|b| b.is_ascii_digit());
        Stem {
            rest: xxh3_128(rest.as_bytes()),
            field: text.filter(is_digits).unwrap_or(&self.0[number]).to_owned(),
            is_number,
        }
    }

    /// Key of the note about this flow in the middle of a batch. The names identify it if its line may be cut
    /// inside a number, and the numbers if it may be cut inside a name.
    pub(crate) fn within_key(&self, before: &Chain, cut_in: Field) -> Option<IdempotencyKey> {
        let fields = match index(cut_in) < NUMBERS {
            true => &self.0[NUMBERS..],
            false => &self.0[..NUMBERS],
        };
        let text = fields
            .iter()
            .map(|field| format!("{}\0{field}\0", field.len()));
        lines::within_key(before, xxh3_128(text.collect::<String>().as_bytes()))
    }

    /// The note with the other fields: numbers, or the lengths and hashes of names.
    pub(crate) fn within_note(&self, cut_in: Field) -> Option<Note> {
        let name = |name: &String| format!("{}.{}", name.len(), xxh3_64(name.as_bytes()) >> 32);
        let (names, numbers) = self.0.split_at(NUMBERS);
        let text = match index(cut_in) < NUMBERS {
            true => format!("n{}", names.iter().map(name).collect::<Vec<_>>().join(".")),
            false => format!("w{}", numbers.join(".")),
        };
        Note::new(&text)
    }

    /// Whether this flow, whose line ends inside `cut_in`, is (or may be) a part of the noted flow.
    pub(crate) fn may_be_cut_of(&self, note: &str, cut_in: Field) -> bool {
        let number = index(cut_in);
        let own = self.within_note(cut_in);
        let Some((kind, own)) = own
            .as_ref()
            .and_then(|own| own.as_str().split_at_checked(1))
        else {
            return false;
        };
        let Some(noted) = note.strip_prefix(kind) else {
            return false;
        };
        let (own, noted): (Vec<_>, Vec<_>) = (own.split('.').collect(), noted.split('.').collect());
        // A name has two numbers: its length and its hash.
        let (begin, end) = match kind {
            "n" => (2 * number, 2 * number + 2),
            _ => (number - NUMBERS, number - NUMBERS + 1),
        };
        if own.len() != noted.len() || own[..begin] != noted[..begin] || own[end..] != noted[end..]
        {
            return false;
        }
        let (own, noted) = (own[begin], noted[begin]);
        match kind {
            "n" => noted
                .parse()
                .is_ok_and(|bytes| self.0[number].len() < bytes),
            _ => {
                let begin = own.trim_start_matches('0');
                own != noted && begin.len() < noted.len() && noted.starts_with(begin)
            }
        }
    }
}

fn index(field: Field) -> usize {
    Field::ALL
        .iter()
        .position(|&other| other == field)
        .unwrap_or_default()
}
