//! JSON documents that are larger than the window: they are parsed while they are read.

use std::cell::Cell;
use std::io::{self, Read};

use serde::de::DeserializeSeed;

use super::InputError;
use super::window::Window;

/// Why reading ends.
pub(super) enum DocumentEnd {
    /// The document is complete.
    Complete,
    /// The input has no more of them.
    NoMore,
    /// The sink wants no more.
    Stopped,
}

/// One document after another.
pub(super) struct Documents<R>(Window<R>);

impl<R: Read> Documents<R> {
    pub(super) fn new(window: Window<R>) -> Documents<R> {
        Documents(window)
    }

    /// Reads the next document with `seed`. If an error comes and `is_stopped` is set, the sink wants no more.
    ///
    /// # Errors
    /// If it cannot be read, or is not valid JSON, or `seed` refuses it.
    pub(super) fn next<'de, S>(
        &mut self,
        seed: S,
        is_stopped: &Cell<bool>,
    ) -> Result<DocumentEnd, InputError>
    where
        S: DeserializeSeed<'de, Value = ()>,
    {
        loop {
            let text = self.0.text();
            let blank = text.len() - text.trim_ascii_start().len();
            self.0.consume(blank);
            if !self.0.text().is_empty() {
                break;
            }
            if self.0.has_ended() {
                return Ok(DocumentEnd::NoMore);
            }
            self.0.fill()?;
        }
        let mut json = serde_json::Deserializer::from_reader(&mut *self);
        match seed.deserialize(&mut json) {
            Ok(()) => Ok(DocumentEnd::Complete),
            Err(_) if is_stopped.get() => Ok(DocumentEnd::Stopped),
            Err(error) if error.is_io() => Err(InputError::Io(error.into())),
            Err(error) => Err(InputError::Malformed(format!("not valid JSON: {error}"))),
        }
    }
}

impl<R: Read> Read for Documents<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let text = self.0.text();
            if !text.is_empty() {
                let read = text.len().min(buffer.len());
                buffer[..read].copy_from_slice(&text[..read]);
                self.0.consume(read);
                return Ok(read);
            }
            if self.0.has_ended() {
                return Ok(0);
            }
            self.0.fill()?;
        }
    }
}
