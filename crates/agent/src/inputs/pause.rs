//! Two conditions that the reader of a pipe reports to the parser: no input has arrived for a while ([`Idle`]), and
//! reading was stopped ([`Stopped`]). Both are I/O errors, so that they pass through the readers in between.

use std::fmt;
use std::io::{self, Read};

use serde_json::value::RawValue;

/// No input has arrived for a while; more may follow.
#[derive(Debug)]
pub(crate) struct Idle;

/// Reading was stopped before the end of the input.
#[derive(Debug, Default)]
pub(crate) struct Stopped {
    /// The incomplete flow that was read last. Put before the rest of the input, it makes a valid input.
    pub(crate) unfinished: Vec<u8>,
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("no input for a while")
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Idle {}
impl std::error::Error for Stopped {}

impl Idle {
    pub(crate) fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|error| error.is::<Idle>())
    }
}

impl Stopped {
    /// Finds it in an I/O error.
    pub(crate) fn from_error(error: &mut io::Error) -> Option<&mut Stopped> {
        error.get_mut()?.downcast_mut()
    }

    /// Puts `header` before the unfinished text, in formats that need one.
    pub(super) fn prepend_header(error: &mut io::Error, header: &str) {
        if let Some(stopped) = Stopped::from_error(error) {
            let rest = std::mem::take(&mut stopped.unfinished);
            stopped.unfinished = [header.as_bytes(), b"\n", &rest].concat();
        }
    }
}

/// Hides [`Idle`] from readers that cannot handle it.
#[derive(Debug)]
pub(super) struct IdleFilter<R> {
    input: R,
    hides_idle: bool,
}

impl<R> IdleFilter<R> {
    pub(super) fn new(input: R) -> IdleFilter<R> {
        IdleFilter {
            input,
            hides_idle: true,
        }
    }

    /// Passes [`Idle`] on from now on.
    pub(super) fn passing_idle(self) -> IdleFilter<R> {
        IdleFilter {
            hides_idle: false,
            ..self
        }
    }
}

impl<R: Read> Read for IdleFilter<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.read(buffer) {
                Err(error) if self.hides_idle && Idle::is(&error) => {}
                read => return read,
            }
        }
    }
}

/// Whether `text` is one complete JSON object.
pub(super) fn is_object(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    text.starts_with(b"{") && serde_json::from_slice::<&RawValue>(text).is_ok()
}
