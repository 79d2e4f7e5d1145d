//! The speculative decoder: reads bodies in which every flow has the form of the first (the six fields in one order
//! and spacing, plain strings, small integers) and gives up on all others.
//!
//! It never rejects a body. Tests verify that the other decoder agrees with everything that it accepts. This makes it
//! fast: text between two values is compared as one word, strings are searched eight bytes at a time, and digits are
//! converted eight at a time.

use super::Format;
use crate::batch::{Batch, BatchBuilder};
use crate::{Counters, Field, Hour, NAME_BYTES_MAX};

/// Decodes the whole body, or returns `None` without side effects.
pub(super) fn decode(body: &[u8], format: Format) -> Option<Batch> {
    let mut at = skip_space(body, 0);
    if format == Format::Json {
        at = skip_space(body, expect(body, at, b'[')?);
    }
    let shape = Shape::learn(body, at)?;
    if format == Format::Ndjson && shape.has_newline(body) {
        return None;
    }
    let mut builder = BatchBuilder::with_capacity(super::batch_bytes(body.len()));
    loop {
        at = shape.read(body, at, &mut builder)?;
        match format {
            Format::Json => {
                at = skip_space(body, at);
                match body.get(at)? {
                    b',' => at = skip_space(body, at + 1),
                    b']' => {
                        at = skip_space(body, at + 1);
                        break;
                    }
                    _ => return None,
                }
            }
            Format::Ndjson => {
                let end_of_flow = at;
                at = skip_space(body, at);
                if at == body.len() {
                    break;
                }
                if !body[end_of_flow..at].contains(&b'\n') {
                    return None;
                }
            }
        }
    }
    (at == body.len()).then(|| builder.finish())
}

/// The form of a flow: the text before each value and after the last.
struct Shape {
    members: [(Field, Literal); 6],
    end: Literal,
}

impl Shape {
    /// Learns the form from the flow at `at`.
    fn learn(body: &[u8], mut at: usize) -> Option<Shape> {
        let mut members = [(Field::Hour, Literal::default()); 6];
        let mut seen = 0u8;
        let mut start = at;
        for (i, member) in members.iter_mut().enumerate() {
            at = if i == 0 {
                expect(body, at, b'{')?
            } else {
                expect(body, skip_space(body, at), b',')?
            };
            at = expect(body, skip_space(body, at), b'"')?;
            let name_bytes = body[at..].iter().position(|&b| b == b'"')?;
            let field = Field::from_name(&body[at..at + name_bytes])?;
            seen |= 1 << field as u8;
            at = expect(body, skip_space(body, at + name_bytes + 1), b':')?;
            at = skip_space(body, at);
            if is_name(field) {
                at = expect(body, at, b'"')?;
                *member = (field, Literal::new(body, start, at));
                start = string_end(body, at)?;
                at = start + 1;
            } else {
                *member = (field, Literal::new(body, start, at));
                (_, at) = digits(body, at)?;
                start = at;
            }
        }
        at = expect(body, skip_space(body, at), b'}')?;
        (seen == 0b11_1111).then(|| Shape {
            members,
            end: Literal::new(body, start, at),
        })
    }

    fn has_newline(&self, body: &[u8]) -> bool {
        let literals = self.members.iter().map(|(_, literal)| literal);
        literals
            .chain([&self.end])
            .any(|l| body[l.start..l.start + l.bytes].contains(&b'\n'))
    }

    /// Reads one flow of this form. Returns where it ends.
    #[inline]
    fn read(&self, body: &[u8], mut at: usize, builder: &mut BatchBuilder) -> Option<usize> {
        let mut names: [&[u8]; 3] = [&[]; 3];
        let mut numbers = [0; 3];
        for (field, literal) in &self.members {
            at = literal.skip(body, at)?;
            if is_name(*field) {
                let end = string_end(body, at)?;
                names[*field as usize] = &body[at..end];
                at = end;
            } else {
                (numbers[*field as usize - 3], at) = digits(body, at)?;
            }
        }
        at = self.end.skip(body, at)?;
        let [tx, rx, hour] = numbers;
        builder.push_plain(Hour::new(hour)?, names, Counters { tx, rx });
        Some(at)
    }
}

fn is_name(field: Field) -> bool {
    (field as usize) < 3
}

/// A text that must repeat exactly.
#[derive(Clone, Copy, Default)]
struct Literal {
    /// The first sixteen bytes, and which of their bits count.
    word: u128,
    mask: u128,
    /// Where it was first seen.
    start: usize,
    bytes: usize,
}

impl Literal {
    fn new(body: &[u8], start: usize, end: usize) -> Literal {
        let bytes = end - start;
        let mut word = [0; 16];
        let head = bytes.min(16);
        word[..head].copy_from_slice(&body[start..start + head]);
        Literal {
            word: u128::from_le_bytes(word),
            mask: u128::MAX
                .checked_shr(128 - 8 * head as u32)
                .unwrap_or_default(),
            start,
            bytes,
        }
    }

    /// The end of the text, if it is at `at`.
    #[inline]
    fn skip(&self, body: &[u8], at: usize) -> Option<usize> {
        let end = at + self.bytes;
        if self.bytes <= 16
            && let Some(word) = body[at..].first_chunk::<16>()
        {
            return ((u128::from_le_bytes(*word) ^ self.word) & self.mask == 0).then_some(end);
        }
        let literal = &body[self.start..self.start + self.bytes];
        (body.get(at..end)? == literal).then_some(end)
    }
}

fn expect(body: &[u8], at: usize, byte: u8) -> Option<usize> {
    (*body.get(at)? == byte).then_some(at + 1)
}

/// The first byte from `at` on that is not JSON's white space.
#[inline]
fn skip_space(body: &[u8], mut at: usize) -> usize {
    while matches!(body.get(at), Some(b' ' | b'\n' | b'\r' | b'\t')) {
        at += 1;
    }
    at
}

const ONES: u64 = 0x0101_0101_0101_0101;
const HIGHS: u64 = 0x8080_8080_8080_8080;

/// The closing quote of the string that begins at `at`, when the string is plain: no escape, no
/// control character, UTF-8, and not too long.
#[inline]
fn string_end(body: &[u8], at: usize) -> Option<usize> {
    let mut end = at;
    let mut ascii = true;
    while let Some(word) = body[end..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        // High bit of each byte that is a quote, a backslash, a control character or not ASCII (Hacker's Delight, 6-1:
        // exact up to and including the lowest hit, and only that is used).
        let quote = word ^ (ONES * u64::from(b'"'));
        let backslash = word ^ (ONES * u64::from(b'\\'));
        let hits = (quote.wrapping_sub(ONES)
            | backslash.wrapping_sub(ONES)
            | word.wrapping_sub(ONES * 0x20)
            | word)
            & HIGHS;
        if hits == 0 {
            end += 8;
            continue;
        }
        end += hits.trailing_zeros() as usize / 8;
        match body[end] {
            b'"' => return name_end(body, at, end, ascii),
            0x80.. => {
                ascii = false;
                end += 1;
            }
            _ => return None,
        }
    }
    loop {
        match *body.get(end)? {
            b'"' => return name_end(body, at, end, ascii),
            b'\\' | 0..0x20 => return None,
            byte => ascii &= byte < 0x80,
        }
        end += 1;
    }
}

#[inline]
fn name_end(body: &[u8], at: usize, end: usize, ascii: bool) -> Option<usize> {
    let fits = end - at <= NAME_BYTES_MAX;
    (fits && (ascii || std::str::from_utf8(&body[at..end]).is_ok())).then_some(end)
}

/// The integer at `at` and its end: one to nineteen digits (always less than 2^64), no leading zero. The next literal
/// has to follow, so `1.5` and `1e3` fail there.
#[inline]
fn digits(body: &[u8], at: usize) -> Option<(u64, usize)> {
    if let Some(word) = body[at..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        // High nibble 3 and low nibble at most 9, in each byte that is a digit.
        let not_digit = ((word & 0xF0F0_F0F0_F0F0_F0F0) ^ 0x3030_3030_3030_3030)
            | (((word & 0x0F0F_0F0F_0F0F_0F0F) + 0x0606_0606_0606_0606) & 0xF0F0_F0F0_F0F0_F0F0);
        let count = not_digit.trailing_zeros() / 8;
        if (1..8).contains(&count) {
            if word as u8 == b'0' && count > 1 {
                return None;
            }
            // The digits to the top, zeros below; then pairs, fours and eights are added up.
            let word = (word << (64 - 8 * count)) & 0x0F0F_0F0F_0F0F_0F0F;
            let word = (word.wrapping_mul(10) + (word >> 8)) & 0x00FF_00FF_00FF_00FF;
            let word = (word.wrapping_mul(100) + (word >> 16)) & 0x0000_FFFF_0000_FFFF;
            let word = word.wrapping_mul(10_000).wrapping_add(word >> 32) & 0xFFFF_FFFF;
            return Some((word, at + count as usize));
        }
    }
    let (mut value, mut end) = (0u64, at);
    while let Some(digit @ b'0'..=b'9') = body.get(end) {
        if end - at == 19 {
            return None;
        }
        value = value * 10 + u64::from(digit - b'0');
        end += 1;
    }
    let leading_zero = end - at > 1 && body[at] == b'0';
    (end > at && !leading_zero).then_some((value, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers() {
        for text in [
            "0",
            "7",
            "10",
            "99",
            "1234567",
            "12345678",
            "123456789",
            "9999999999999999999",
        ] {
            for tail in ["", "}", ", \"hour\": 1", "                "] {
                let body = format!("{text}{tail}");
                let expected = (text.parse().unwrap(), text.len());
                assert_eq!(digits(body.as_bytes(), 0), Some(expected), "{body}");
            }
        }
        for text in [
            "",
            "-1",
            "01",
            "00",
            "x",
            "10000000000000000000",
            "01234567890",
        ] {
            for tail in ["", "}               "] {
                assert_eq!(digits(format!("{text}{tail}").as_bytes(), 0), None);
            }
        }
        for n in (0..2_000_000u64).step_by(7) {
            let body = format!("{n}, and more");
            assert_eq!(digits(body.as_bytes(), 0), Some((n, n.to_string().len())));
        }
    }

    #[test]
    fn strings_end_at_the_first_quote() {
        for length in 0..40 {
            for special in ["\"", "\\", "\u{1f}", "\0", "\n", "é\"", "\u{7f}\""] {
                let body = format!("{}{special}tail of the body", "a".repeat(length));
                let end = string_end(body.as_bytes(), 0);
                let plain = special.ends_with('"');
                let expected = length + special.len() - 1;
                assert_eq!(end, plain.then_some(expected), "{body:?}");
            }
        }
        assert_eq!(string_end(b"ab\xff\"        ", 0), None);
        assert_eq!(string_end(b"no end", 0), None);
        let long = format!("{}\"", "a".repeat(NAME_BYTES_MAX + 1));
        assert_eq!(string_end(long.as_bytes(), 0), None);
        assert_eq!(string_end(long.as_bytes(), 1), Some(NAME_BYTES_MAX + 1));
    }
}
