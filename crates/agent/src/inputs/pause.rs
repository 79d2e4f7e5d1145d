//! What the reader of a pipe says to what reads on from it: that nothing has come for a while, and that nothing
//! more is read. Both are errors of reading, so that they pass through everything between the two.

use std::fmt;
use std::io::{self, Read};

use serde_json::value::RawValue;

/// Nothing has come for a while, and something may come later.
#[derive(Debug)]
pub struct Quiet;

/// Nothing more is read, although the input has not ended.
#[derive(Debug, Default)]
pub struct Stopped {
    /// What was read and is not whole, as the beginning of an input that the rest of this one continues.
    pub unfinished: Vec<u8>,
}

impl fmt::Display for Quiet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing comes")
    }
}

impl fmt::Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("stopped")
    }
}

impl std::error::Error for Quiet {}
impl std::error::Error for Stopped {}

impl Quiet {
    pub fn is(error: &io::Error) -> bool {
        error.get_ref().is_some_and(|error| error.is::<Quiet>())
    }
}

impl Stopped {
    /// In an error of reading, if it is there.
    pub fn of(error: &mut io::Error) -> Option<&mut Stopped> {
        error.get_mut()?.downcast_mut()
    }

    /// Has `header` read before what is not whole, which has to have one.
    pub(super) fn put_header(error: &mut io::Error, header: &str) {
        if let Some(stopped) = Stopped::of(error) {
            let rest = std::mem::take(&mut stopped.unfinished);
            stopped.unfinished = [header.as_bytes(), b"\n", &rest].concat();
        }
    }
}

/// An input for those who cannot do anything while it is quiet.
#[derive(Debug)]
pub(super) struct Patient<R> {
    input: R,
    is_patient: bool,
}

impl<R> Patient<R> {
    pub(super) fn new(input: R) -> Patient<R> {
        Patient {
            input,
            is_patient: true,
        }
    }

    /// From now on, somebody can.
    pub(super) fn impatient(self) -> Patient<R> {
        Patient {
            is_patient: false,
            ..self
        }
    }
}

impl<R: Read> Read for Patient<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.input.read(buffer) {
                Err(error) if self.is_patient && Quiet::is(&error) => {}
                read => return read,
            }
        }
    }
}

/// Whether it is an object, with nothing behind it.
pub(super) fn is_object(text: &[u8]) -> bool {
    let text = text.trim_ascii();
    text.starts_with(b"{") && serde_json::from_slice::<&RawValue>(text).is_ok()
}
