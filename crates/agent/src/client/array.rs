//! A JSON array of any length whose elements are parsed as they arrive.

use std::fmt;
use std::io::{self, BufRead};
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error as _};
use serde_json::Error;

/// The elements of an array. An error ends the iteration.
pub struct JsonArray<T, R> {
    reader: R,
    state: State,
    elements: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Before,
    Inside,
    Ended,
}

impl<T, R> JsonArray<T, R> {
    pub fn new(reader: R) -> JsonArray<T, R> {
        JsonArray {
            reader,
            state: State::Before,
            elements: PhantomData,
        }
    }

    pub fn reader(&self) -> &R {
        &self.reader
    }

    pub fn reader_mut(&mut self) -> &mut R {
        &mut self.reader
    }
}

impl<T: DeserializeOwned, R: BufRead> JsonArray<T, R> {
    fn read(&mut self) -> Result<Option<T>, Error> {
        let expected = match self.state {
            State::Before => b'[',
            State::Inside => b',',
            State::Ended => return Ok(None),
        };
        let byte = self.peek()?;
        self.reader.consume(1);
        let ends = match self.state {
            State::Before if byte == expected => self.peek()? == b']',
            State::Inside => byte == b']',
            _ => false,
        };
        if ends {
            self.state = State::Ended;
            return Ok(None);
        }
        if byte != expected {
            let (found, expected) = (byte as char, expected as char);
            let what = format!("there is {found:?} where an array has {expected:?}");
            return Err(Error::custom(what));
        }
        self.state = State::Inside;
        let mut json = serde_json::Deserializer::from_reader(&mut self.reader);
        T::deserialize(&mut json).map(Some)
    }

    /// The next byte that is not white space. It is not consumed.
    fn peek(&mut self) -> Result<u8, Error> {
        loop {
            match self.reader.fill_buf().map_err(Error::io)?.first() {
                None => return Err(Error::io(io::ErrorKind::UnexpectedEof.into())),
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.reader.consume(1),
                Some(byte) => return Ok(*byte),
            }
        }
    }
}

impl<T: DeserializeOwned, R: BufRead> Iterator for JsonArray<T, R> {
    type Item = Result<T, Error>;

    fn next(&mut self) -> Option<Result<T, Error>> {
        let element = self.read();
        if element.is_err() {
            self.state = State::Ended;
        }
        element.transpose()
    }
}

impl<T, R> fmt::Debug for JsonArray<T, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("JsonArray").field(&self.state).finish()
    }
}
