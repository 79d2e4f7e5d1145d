//! Arrays of flows, of any length, one or several: files may be put one after the other.
//!
//! A block of an array ends at the last `}` that a comma follows, and is given to the decoder as an array
//! of its own. That comma may be inside a string or a nested value. Then the block does not end where it
//! should, and the decoder refuses it; for JSON is read from the left, and how its beginning is read
//! does not depend on what follows. So a block that is an array holds whole flows of the real one. Only
//! where it is none, the elements are looked for one by one.
//!
//! An element is judged when its end has been read, not before: half a number or half an escape looks
//! wrong, and may be right with what comes next.

use std::io::Read;
use std::ops::ControlFlow;

use serde_json::value::RawValue;

use super::window::{BLOCK_BYTES, Window};
use super::{BYTE_ORDER_MARK, Block, Fault, InputError, Place, Sink, Unit, newlines};
use flow::decode::{Format, lookalikes};

/// Reads arrays, the first of which begins on `line`.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    if window.text().first() != Some(&b'[') {
        let what = "this is not an array of flows, which begins with [";
        return Err(InputError::Malformed(what.into()));
    }
    let mut arrays = Arrays {
        window,
        flows: 0,
        line,
        at: At::Array { flows: 0 },
    };
    loop {
        arrays.window.fill()?;
        let step = match arrays.at {
            At::Between => arrays.find_next()?,
            At::Behind { flows } => arrays.find_end(flows)?,
            At::Array { flows } => match arrays.take_block(flows, sink) {
                ControlFlow::Continue(None) => arrays.take_elements(flows, sink)?,
                ControlFlow::Continue(Some(step)) => step,
                ControlFlow::Break(()) => return Ok(()),
            },
        };
        match step {
            Step::GoOn => {}
            Step::Ended => return Ok(()),
        }
    }
}

/// Arrays that are being read.
struct Arrays<R> {
    window: Window<R>,
    /// Flows that were read, of all arrays.
    flows: u64,
    /// The line on which the window begins.
    line: u64,
    at: At,
}

/// Where the window begins.
#[derive(Clone, Copy)]
enum At {
    /// With an array's opening bracket; after some of its flows, with a bracket that has replaced the
    /// comma behind the last of them.
    Array { flows: u64 },
    /// With a bracket in front of what follows an element: a comma or a closing bracket.
    Behind { flows: u64 },
    /// After a closing bracket.
    Between,
}

enum Step {
    GoOn,
    Ended,
}

impl<R: Read> Arrays<R> {
    /// Hands over as much as there is at once; `None` where the sink does not take it. The array has had
    /// so many flows.
    fn take_block(&mut self, before: u64, sink: &mut dyn Sink) -> ControlFlow<(), Option<Step>> {
        let first = Place::Flow(self.flows);
        let is_last = self.window.has_ended();
        let bytes = self.window.text_mut();
        let comma = if is_last {
            bytes.len()
        } else {
            match last_end(bytes) {
                Some(comma) => comma,
                None => return ControlFlow::Continue(None),
            }
        };
        if let Some(end) = bytes.get_mut(comma) {
            *end = b']';
        }
        let taken = sink.block(Block {
            text: &bytes[..bytes.len().min(comma + 1)],
            format: Format::Json,
            first,
        })?;
        if let Some(end) = bytes.get_mut(comma) {
            *end = b',';
        }
        let step = match taken {
            None => return ControlFlow::Continue(None),
            // A comma was there, and nothing behind it.
            Some(0) if before > 0 => return ControlFlow::Continue(None),
            Some(_) if is_last => Step::Ended,
            Some(flows) => {
                self.flows += flows;
                self.at = At::Array {
                    flows: before + flows,
                };
                self.consume_to_comma(comma);
                Step::GoOn
            }
        };
        ControlFlow::Continue(Some(step))
    }

    /// Hands over the elements that are complete, one by one, also of arrays that follow.
    fn take_elements(
        &mut self,
        mut in_array: u64,
        sink: &mut dyn Sink,
    ) -> Result<Step, InputError> {
        let bytes = self.window.text();
        // The bracket or comma in front of the next element.
        let mut begin = 0;
        loop {
            let at = skip_space(bytes, begin + 1);
            let end = if bytes.get(at) == Some(&b']') {
                if in_array > 0 {
                    return Err(self.malformed(at, 1, "trailing comma"));
                }
                at
            } else {
                let Some((element, after)) = self.element(at)? else {
                    break;
                };
                let unit = Unit {
                    place: Place::Flow(self.flows),
                    text: element,
                    fault: lookalikes::of_json(element).map(Fault::Wrong),
                };
                if sink.flow(unit).is_break() {
                    return Ok(Step::Ended);
                }
                self.flows += 1;
                in_array += 1;
                let end = skip_space(bytes, after);
                match bytes.get(end) {
                    Some(b',' | b']') => end,
                    None if !self.window.has_ended() => {
                        self.consume_to_comma(after - 1);
                        self.at = At::Behind { flows: in_array };
                        return Ok(Step::GoOn);
                    }
                    _ => {
                        self.flows -= 1;
                        return Err(self.no_end(end));
                    }
                }
            };
            if bytes[end] == b',' {
                begin = end;
                continue;
            }
            let next = skip_between(bytes, end + 1);
            if bytes.get(next) != Some(&b'[') {
                self.consume(end + 1);
                self.at = At::Between;
                return Ok(Step::GoOn);
            }
            (begin, in_array) = (next, 0);
        }
        if begin > 0 {
            self.consume_to_comma(begin);
        } else if self.window.is_full() {
            let what = format!("flow {} has more than {BLOCK_BYTES} bytes", self.flows);
            return Err(InputError::Malformed(what));
        }
        self.at = At::Array { flows: in_array };
        Ok(Step::GoOn)
    }

    /// What comes behind an element.
    fn find_end(&mut self, flows: u64) -> Result<Step, InputError> {
        let bytes = self.window.text();
        let end = skip_space(bytes, 1);
        match bytes.get(end) {
            Some(b',') => {
                self.consume_to_comma(end);
                self.at = At::Array { flows };
            }
            Some(b']') => {
                self.consume(end + 1);
                self.at = At::Between;
            }
            None if !self.window.has_ended() => {
                // A bracket comes in its place.
                self.line += u64::from(end > 1 && bytes[end - 1] == b'\n');
                self.consume_to_comma(end - 1);
            }
            _ => {
                self.flows -= 1;
                return Err(self.no_end(end));
            }
        }
        Ok(Step::GoOn)
    }

    /// What is wrong where an element has ended.
    fn no_end(&self, at: usize) -> InputError {
        match self.window.text().get(at) {
            Some(_) => self.malformed(at, 1, "expected `,` or `]`"),
            None => self.malformed(at, 1, &not_complete("EOF where `,` or `]` is due")),
        }
    }

    /// The element at `at`, and where it ends; `None` where its end has not been read yet. An object of an input
    /// whose flows are wanted as they come ends with its brace, anything else with what is behind it.
    fn element(&self, at: usize) -> Result<Option<(&str, usize)>, InputError> {
        let bytes = self.window.text();
        let is_open = || !self.window.has_ended() && !has_end(&bytes[at..]);
        let mut stream =
            serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<&RawValue>();
        match stream.next() {
            Some(Ok(element)) => {
                let after = at + stream.byte_offset();
                let end = skip_space(bytes, after);
                match bytes.get(end) {
                    _ if self.window.is_live() && bytes[at] == b'{' => {
                        Ok(Some((element.get(), after)))
                    }
                    Some(b',' | b']') => Ok(Some((element.get(), after))),
                    None if is_open() => Ok(None),
                    _ => Err(self.no_end(end)),
                }
            }
            _ if is_open() => Ok(None),
            Some(Err(e)) if e.is_eof() => {
                Err(self.malformed(at, e.line(), &not_complete(&without_place(&e))))
            }
            Some(Err(e)) => Err(self.malformed(at, e.line(), &without_place(&e))),
            None => Err(self.malformed(at, 1, &not_complete("EOF while reading an element"))),
        }
    }

    /// Looks for the next array, behind one that has ended.
    fn find_next(&mut self) -> Result<Step, InputError> {
        let bytes = self.window.text();
        let next = skip_between(bytes, 0);
        let rest = &bytes[next..];
        if rest.first() == Some(&b'[') {
            self.at = At::Array { flows: 0 };
        } else if self.window.has_ended() && rest.is_empty() {
            return Ok(Step::Ended);
        } else if self.window.has_ended() || !BYTE_ORDER_MARK.starts_with(rest) {
            let what = "trailing characters: what comes after the array is not another array";
            return Err(self.malformed(next, 1, what));
        }
        self.consume(next);
        Ok(Step::GoOn)
    }

    fn consume(&mut self, bytes: usize) {
        self.line += newlines(&self.window.text()[..bytes]);
        self.window.consume(bytes);
    }

    fn consume_to_comma(&mut self, comma: usize) {
        self.consume(comma);
        self.window.text_mut()[0] = b'[';
    }

    /// What is wrong with the next flow, on so many lines from `at` on.
    fn malformed(&self, at: usize, lines: usize, what: &str) -> InputError {
        let line = self.line + newlines(&self.window.text()[..at]) + lines as u64 - 1;
        InputError::Malformed(format!("flow {}, on line {line}: {what}", self.flows))
    }
}

/// Whether the end of the element that `text` begins with is in it: a comma or a closing bracket that is
/// neither in a string nor in a nested value.
fn has_end(text: &[u8]) -> bool {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    text.iter().any(|&byte| {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b',' | b']' | b'}' if depth == 0 => return true,
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth -= 1,
            _ => {}
        }
        false
    })
}

/// The first byte from `at` on that is neither white space nor a byte order mark: both may be between
/// files.
fn skip_between(bytes: &[u8], at: usize) -> usize {
    let mut at = skip_space(bytes, at);
    while bytes[at..].starts_with(BYTE_ORDER_MARK) {
        at = skip_space(bytes, at + BYTE_ORDER_MARK.len());
    }
    at
}

/// The last comma behind a `}`.
fn last_end(bytes: &[u8]) -> Option<usize> {
    let mut end = bytes.len();
    loop {
        end = bytes[..end].iter().rposition(|&byte| byte == b',')?;
        if bytes[..end].trim_ascii_end().ends_with(b"}") {
            return Some(end);
        }
    }
}

/// The first byte from `at` on that is not JSON's white space.
fn skip_space(bytes: &[u8], at: usize) -> usize {
    let space = bytes[at..].iter();
    at + space
        .take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
        .count()
}

fn not_complete(what: &str) -> String {
    format!("{what}: the array breaks off here, so the file is not complete")
}

fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
}
