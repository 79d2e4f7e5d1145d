//! One array of flows, of any length.
//!
//! A block of it ends at the last `}` that a comma follows, and is given to the decoder as an array of
//! its own. That comma may be inside a string or a nested value. Then the block does not end where it
//! should, and the decoder refuses it; for JSON is read from the left, and how its beginning is read
//! does not depend on what follows. So a block that is an array holds whole flows of the real one. Only
//! where it is none, the elements are looked for one by one.

use std::io::Read;
use std::ops::ControlFlow;

use serde_json::value::RawValue;

use super::window::{BLOCK_BYTES, Window};
use super::{Block, InputError, Place, Sink, Unit, newlines};
use crate::ingest::decode::Format;

/// Reads an array that begins on `line`.
pub(super) fn read(
    window: Window<impl Read>,
    line: u64,
    sink: &mut dyn Sink,
) -> Result<(), InputError> {
    if window.text().first() != Some(&b'[') {
        let what = "this is not an array of flows, which begins with [";
        return Err(InputError::Malformed(what.into()));
    }
    let mut array = Array {
        window,
        flows: 0,
        line,
    };
    loop {
        array.window.fill()?;
        let step = match array.take_block(sink) {
            ControlFlow::Continue(None) => array.take_elements(sink)?,
            ControlFlow::Continue(Some(step)) => step,
            ControlFlow::Break(()) => return Ok(()),
        };
        match step {
            Step::GoOn => {}
            Step::Ended => return array.check_end(),
            Step::Stopped => return Ok(()),
        }
    }
}

/// An array that is being read. The window begins with its opening bracket; later with one that has
/// replaced the comma after the last flow that was read.
struct Array<R> {
    window: Window<R>,
    /// Flows that were read.
    flows: u64,
    /// The line on which the window begins.
    line: u64,
}

enum Step {
    GoOn,
    /// The closing bracket is consumed.
    Ended,
    Stopped,
}

impl<R: Read> Array<R> {
    /// Hands over as much as there is at once; `None` where the sink does not take it.
    fn take_block(&mut self, sink: &mut dyn Sink) -> ControlFlow<(), Option<Step>> {
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
            Some(0) if self.flows > 0 => return ControlFlow::Continue(None),
            Some(_) if is_last => {
                self.window.consume(comma);
                Step::Ended
            }
            Some(flows) => {
                self.flows += flows;
                self.consume_to_comma(comma);
                Step::GoOn
            }
        };
        ControlFlow::Continue(Some(step))
    }

    /// Hands over the elements that are complete, one by one.
    fn take_elements(&mut self, sink: &mut dyn Sink) -> Result<Step, InputError> {
        let bytes = self.window.text();
        let may_go_on = !self.window.has_ended();
        let (mut at, mut comma) = (1, 0);
        loop {
            at = skip_space(bytes, at);
            if bytes.get(at) == Some(&b']') {
                if self.flows > 0 {
                    return Err(self.malformed(at, 1, "trailing comma"));
                }
                self.window.consume(at + 1);
                return Ok(Step::Ended);
            }
            let mut stream =
                serde_json::Deserializer::from_slice(&bytes[at..]).into_iter::<&RawValue>();
            let element = match stream.next() {
                Some(Ok(element)) => element,
                Some(Err(e)) if !e.is_eof() => {
                    return Err(self.malformed(at, e.line(), &without_place(&e)));
                }
                _ if may_go_on => break,
                _ => return Err(self.malformed(at, 1, "EOF while reading an element")),
            };
            // A number may go on where the window ends.
            let end = skip_space(bytes, at + stream.byte_offset());
            match bytes.get(end) {
                Some(b',' | b']') => {}
                Some(_) => return Err(self.malformed(end, 1, "expected `,` or `]`")),
                None if may_go_on => break,
                None => return Err(self.malformed(end, 1, "EOF where `,` or `]` is due")),
            }
            let unit = Unit {
                place: Place::Flow(self.flows),
                text: element.get(),
                fault: None,
            };
            if sink.flow(unit).is_break() {
                return Ok(Step::Stopped);
            }
            self.flows += 1;
            if bytes[end] == b']' {
                self.window.consume(end + 1);
                return Ok(Step::Ended);
            }
            (at, comma) = (end + 1, end);
        }
        if comma > 0 {
            self.consume_to_comma(comma);
        } else if self.window.is_full() {
            let what = format!("flow {} has more than {BLOCK_BYTES} bytes", self.flows);
            return Err(InputError::Malformed(what));
        }
        Ok(Step::GoOn)
    }

    fn consume_to_comma(&mut self, comma: usize) {
        self.line += newlines(&self.window.text()[..comma]);
        self.window.consume(comma);
        self.window.text_mut()[0] = b'[';
    }

    /// What is wrong with the next flow, on so many lines from `at` on.
    fn malformed(&self, at: usize, lines: usize, what: &str) -> InputError {
        let line = self.line + newlines(&self.window.text()[..at]) + lines as u64 - 1;
        InputError::Malformed(format!("flow {}, on line {line}: {what}", self.flows))
    }

    fn check_end(mut self) -> Result<(), InputError> {
        loop {
            let bytes = self.window.text();
            if skip_space(bytes, 0) < bytes.len() {
                let what = "trailing characters: something comes after the array";
                return Err(InputError::Malformed(what.into()));
            }
            if self.window.has_ended() {
                return Ok(());
            }
            let space = bytes.len();
            self.window.consume(space);
            self.window.fill()?;
        }
    }
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

fn without_place(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let suffix = format!(" at line {} column {}", error.line(), error.column());
    text.strip_suffix(&suffix).unwrap_or(&text).to_owned()
}
