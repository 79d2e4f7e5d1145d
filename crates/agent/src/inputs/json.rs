//! Arrays of flows of any length; an input may have several, since files may be concatenated.
//!
//! A block of an array ends at the last `}` that is followed by a comma, and is decoded as an array of its own. If that
//! comma is inside a string or a nested value, the block is not valid JSON, and the decoder refuses it: JSON is parsed
//! from the left, so the rest of the input cannot change how the block is parsed. So a block that is a valid array
//! contains complete flows of the real one. Otherwise, the elements are read one by one.
//!
//! An element is checked only when its end has been read, because an incomplete number or escape may look
//! invalid.

use std::io::Read;
use std::ops::ControlFlow;

use serde_json::value::RawValue;

use super::window::{BLOCK_BYTES, Window};
use super::{BYTE_ORDER_MARK, InputError, Location, RawBlock, RawFlow, Sink, Unusable, newlines};
use flow::decode::{Format, lookalikes};

/// Reads arrays; the first one starts on line `line`.
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
            At::AfterElement { flows } => arrays.find_end(flows)?,
            At::Array { flows } => match arrays.pass_block(flows, sink) {
                ControlFlow::Continue(None) => arrays.read_elements(flows, sink)?,
                ControlFlow::Continue(Some(step)) => step,
                ControlFlow::Break(()) => return Ok(()),
            },
        };
        match step {
            Step::Continue => {}
            Step::Ended => return Ok(()),
        }
    }
}

/// Reader of arrays.
struct Arrays<R> {
    window: Window<R>,
    /// Flows that were read, in all arrays.
    flows: u64,
    /// The line of the first byte of the window.
    line: u64,
    at: At,
}

/// The state at the beginning of the window.
#[derive(Clone, Copy)]
enum At {
    /// At an array's opening bracket. After the first flows, that bracket replaces the comma after the last
    /// of them.
    Array { flows: u64 },
    /// After an element: the window has a bracket, and then the comma or closing bracket that follows the element.
    AfterElement { flows: u64 },
    /// After a closing bracket.
    Between,
}

enum Step {
    Continue,
    Ended,
}

impl<R: Read> Arrays<R> {
    /// Passes on all complete elements as one block; `None` if the sink refuses the block. `before` flows of the
    /// array were passed on before.
    fn pass_block(&mut self, before: u64, sink: &mut dyn Sink) -> ControlFlow<(), Option<Step>> {
        let first = Location::Flow(self.flows);
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
        let taken = sink.block(RawBlock {
            text: &bytes[..bytes.len().min(comma + 1)],
            format: Format::Json,
            first,
        })?;
        if let Some(end) = bytes.get_mut(comma) {
            *end = b',';
        }
        let step = match taken {
            None => return ControlFlow::Continue(None),
            // There was a comma, but no element after it.
            Some(0) if before > 0 => return ControlFlow::Continue(None),
            Some(_) if is_last => Step::Ended,
            Some(flows) => {
                self.flows += flows;
                self.at = At::Array {
                    flows: before + flows,
                };
                self.consume_to_comma(comma);
                Step::Continue
            }
        };
        ControlFlow::Continue(Some(step))
    }

    /// Passes on the complete elements one by one, including those of later arrays.
    fn read_elements(
        &mut self,
        mut in_array: u64,
        sink: &mut dyn Sink,
    ) -> Result<Step, InputError> {
        let bytes = self.window.text();
        // The bracket or comma before the next element.
        let mut start = 0;
        loop {
            let at = skip_space(bytes, start + 1);
            let end = if bytes.get(at) == Some(&b']') {
                if in_array > 0 {
                    return Err(self.malformed(at, 1, "trailing comma"));
                }
                at
            } else {
                let Some((element, after)) = self.element(at)? else {
                    break;
                };
                let raw = RawFlow {
                    location: Location::Flow(self.flows),
                    text: element,
                    unusable: lookalikes::recognize_json(element).map(Unusable::Invalid),
                };
                if sink.flow(raw).is_break() {
                    return Ok(Step::Ended);
                }
                self.flows += 1;
                in_array += 1;
                let end = skip_space(bytes, after);
                match bytes.get(end) {
                    Some(b',' | b']') => end,
                    None if !self.window.has_ended() => {
                        self.consume_to_comma(after - 1);
                        self.at = At::AfterElement { flows: in_array };
                        return Ok(Step::Continue);
                    }
                    _ => {
                        self.flows -= 1;
                        return Err(self.no_end(end));
                    }
                }
            };
            if bytes[end] == b',' {
                start = end;
                continue;
            }
            let next = skip_between(bytes, end + 1);
            if bytes.get(next) != Some(&b'[') {
                self.consume(end + 1);
                self.at = At::Between;
                return Ok(Step::Continue);
            }
            (start, in_array) = (next, 0);
        }
        if start > 0 {
            self.consume_to_comma(start);
        } else if self.window.is_full() {
            let what = format!("flow {} has more than {BLOCK_BYTES} bytes", self.flows);
            return Err(InputError::Malformed(what));
        }
        self.at = At::Array { flows: in_array };
        Ok(Step::Continue)
    }

    /// Looks for the comma or bracket after an element.
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
                // Only white space so far: consume it, except for one byte.
                self.line += u64::from(end > 1 && bytes[end - 1] == b'\n');
                self.consume_to_comma(end - 1);
            }
            _ => {
                self.flows -= 1;
                return Err(self.no_end(end));
            }
        }
        Ok(Step::Continue)
    }

    /// The error for an element that no comma or bracket follows.
    fn no_end(&self, at: usize) -> InputError {
        match self.window.text().get(at) {
            Some(_) => self.malformed(at, 1, "expected `,` or `]`"),
            None => self.malformed(at, 1, &not_complete("EOF where `,` or `]` is due")),
        }
    }

    /// The element at `at`, and its end; `None` if its end has not been read yet. In an input whose flows are
    /// wanted as soon as they are available, an object ends with its brace; anything else ends with the comma or
    /// bracket after it.
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
                Err(self.malformed(at, e.line(), &not_complete(&without_location(&e))))
            }
            Some(Err(e)) => Err(self.malformed(at, e.line(), &without_location(&e))),
            None => Err(self.malformed(at, 1, &not_complete("EOF while reading an element"))),
        }
    }

    /// Finds the next array after one that has ended.
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
        Ok(Step::Continue)
    }

    fn consume(&mut self, bytes: usize) {
        self.line += newlines(&self.window.text()[..bytes]);
        self.window.consume(bytes);
    }

    fn consume_to_comma(&mut self, comma: usize) {
        self.consume(comma);
        self.window.text_mut()[0] = b'[';
    }

    /// The error for the next flow, which is `lines` lines after `at`.
    fn malformed(&self, at: usize, lines: usize, what: &str) -> InputError {
        let line = self.line + newlines(&self.window.text()[..at]) + lines as u64 - 1;
        InputError::Malformed(format!("flow {}, on line {line}: {what}", self.flows))
    }
}

/// Whether `text`, which starts with an element, contains the end of that element: a comma or a closing
/// bracket that is neither in a string nor in a nested value.
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

/// The first byte from `at` on that is neither white space nor a byte order mark; concatenated files may have
/// both between them.
fn skip_between(bytes: &[u8], at: usize) -> usize {
    let mut at = skip_space(bytes, at);
    while bytes[at..].starts_with(BYTE_ORDER_MARK) {
        at = skip_space(bytes, at + BYTE_ORDER_MARK.len());
    }
    at
}

/// The last comma after a `}`.
fn last_end(bytes: &[u8]) -> Option<usize> {
    let mut end = bytes.len();
    loop {
        end = bytes[..end].iter().rposition(|&byte| byte == b',')?;
        if bytes[..end].trim_ascii_end().ends_with(b"}") {
            return Some(end);
        }
    }
}

/// The first byte from `at` on that is not JSON white space.
fn skip_space(bytes: &[u8], at: usize) -> usize {
    let space = bytes[at..].iter();
    at + space
        .take_while(|byte| matches!(byte, b' ' | b'\n' | b'\r' | b'\t'))
        .count()
}

fn not_complete(what: &str) -> String {
    format!("{what}: the array ends early, so the file is incomplete")
}

fn without_location(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
}
