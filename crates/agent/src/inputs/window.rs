//! The part of an input that is in memory.

use std::cell::Cell;
use std::io::{self, Read};
use std::rc::Rc;

use super::pause::{Idle, Stopped};
use super::{BYTE_ORDER_MARK, Location, RejectedFlow};

/// Maximum bytes in memory, and so the limit of a line, record or array element. A valid flow has three names of 1 KiB
/// at most.
pub(super) const BLOCK_BYTES: usize = 1 << 20;
/// The part of a line over the limit that is kept for the error.
const EXCERPT_BYTES: usize = 1000;
/// The size of a read from an input whose flows are wanted immediately.
const READ_BYTES: usize = 16 << 10;

/// How much to read before parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadMode {
    /// Whatever is available.
    AsAvailable,
    /// Fill the window, so that block boundaries depend on the content only.
    FullBlocks,
}

/// An input that remembers its last byte.
#[derive(Debug)]
pub(super) struct Tail<R> {
    input: R,
    last: Rc<Cell<Option<u8>>>,
}

impl<R: Read> Tail<R> {
    /// The second value is the last byte that was read.
    pub(super) fn new(input: R) -> (Tail<R>, Rc<Cell<Option<u8>>>) {
        let last = Rc::new(Cell::new(None));
        let shared = last.clone();
        (Tail { input, last }, shared)
    }
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.input.read(buffer)?;
        if let Some(&last) = buffer[..read].last() {
            self.last.set(Some(last));
        }
        Ok(read)
    }
}

/// The bytes that were read and not consumed yet, and the rest of the input.
#[derive(Debug)]
pub(super) struct Window<R> {
    input: R,
    mode: ReadMode,
    bytes: Vec<u8>,
    /// The bytes before this position are consumed.
    start: usize,
    has_ended: bool,
    /// The error after the last byte that was read.
    error: Option<io::Error>,
    /// The next `fill` reads nothing, so that the bytes in the window are processed first.
    skips_fill: bool,
    /// Ignore the text after the last line end.
    is_growing: bool,
    /// The last read reported [`Idle`], or [`Stopped`].
    is_idle: bool,
}

impl<R: Read> Window<R> {
    pub(super) fn new(input: R, mode: ReadMode) -> Window<R> {
        Window {
            input,
            mode,
            bytes: Vec::new(),
            start: 0,
            has_ended: false,
            error: None,
            skips_fill: false,
            is_growing: false,
            is_idle: false,
        }
    }

    /// Makes the input end at its last line end.
    pub(super) fn omit_unfinished_line(&mut self) {
        self.is_growing = true;
        self.cut_unfinished_line();
    }

    fn cut_unfinished_line(&mut self) {
        if self.is_growing && self.has_ended {
            let whole = self.text().iter().rposition(|&byte| byte == b'\n');
            self.bytes
                .truncate(self.start + whole.map_or(0, |at| at + 1));
        }
    }

    /// If flows are wanted immediately, makes the next [`fill`](Window::fill) read nothing, since a pipe may have no
    /// more data for a long time.
    pub(super) fn skip_next_fill(&mut self) {
        self.skips_fill = self.mode == ReadMode::AsAvailable && !self.text().is_empty();
    }

    pub(super) fn text(&self) -> &[u8] {
        &self.bytes[self.start..]
    }

    pub(super) fn text_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..]
    }

    pub(super) fn consume(&mut self, bytes: usize) {
        self.start += bytes;
    }

    /// Whether the window has all remaining bytes.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended
    }

    /// Whether no input has arrived for a while, so that a flow without its line end should not wait longer.
    pub(super) fn is_idle(&self) -> bool {
        self.is_idle
    }

    /// Whether flows are wanted as soon as they are available.
    pub(super) fn is_live(&self) -> bool {
        self.mode == ReadMode::AsAvailable
    }

    pub(super) fn is_full(&self) -> bool {
        self.text().len() >= BLOCK_BYTES
    }

    /// Skips a byte order mark at the start of the input.
    pub(super) fn skip_mark(&mut self) -> io::Result<()> {
        while self.text().len() < BYTE_ORDER_MARK.len() && !self.has_ended {
            self.fill()?;
        }
        if self.text().starts_with(BYTE_ORDER_MARK) {
            self.consume(BYTE_ORDER_MARK.len());
        }
        Ok(())
    }

    /// Reads more, unless the window is full or the input has ended. If flows are wanted immediately, an error is
    /// reported by the next call, after the bytes before it have been processed.
    pub(super) fn fill(&mut self) -> io::Result<()> {
        if self.has_ended || std::mem::take(&mut self.skips_fill) {
            return Ok(());
        }
        // Only the start of a line or element has to be moved.
        self.bytes.drain(..self.start);
        self.start = 0;
        let room = BLOCK_BYTES.saturating_sub(self.bytes.len());
        if room == 0 {
            return Ok(());
        }
        if let Some(mut error) = self.error.take() {
            if let Some(stopped) = Stopped::from_error(&mut error) {
                stopped.unfinished = self.bytes.clone();
            }
            return Err(error);
        }
        self.is_idle = false;
        self.has_ended = match self.mode {
            ReadMode::AsAvailable => match self.read_once(room.min(READ_BYTES)) {
                Ok(read) => read == 0,
                Err(error) if Idle::is(&error) => {
                    self.is_idle = true;
                    false
                }
                Err(mut error) => {
                    self.is_idle = Stopped::from_error(&mut error).is_some();
                    self.error = Some(error);
                    false
                }
            },
            ReadMode::FullBlocks => {
                let input = Read::by_ref(&mut self.input);
                input.take(room as u64).read_to_end(&mut self.bytes)? < room
            }
        };
        self.cut_unfinished_line();
        Ok(())
    }

    fn read_once(&mut self, most: usize) -> io::Result<usize> {
        let length = self.bytes.len();
        self.bytes.resize(length + most, 0);
        let read = loop {
            match self.input.read(&mut self.bytes[length..]) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        self.bytes.truncate(length + *read.as_ref().unwrap_or(&0));
        read
    }

    /// Skips a line, whose start is in the window, without keeping it in memory. `line` is its number.
    pub(super) fn skip_line(&mut self, line: u64) -> io::Result<RejectedFlow> {
        let begin = &self.text()[..EXCERPT_BYTES.min(self.text().len())];
        let refused = RejectedFlow {
            location: Location::Line(line),
            text: String::from_utf8_lossy(begin).into_owned(),
            why: format!("more than {BLOCK_BYTES} bytes; these are the first {EXCERPT_BYTES}"),
        };
        loop {
            let text = self.text();
            let end = text.iter().position(|&byte| byte == b'\n');
            let passed = end.unwrap_or(text.len());
            self.consume(passed);
            if end.is_some() || self.has_ended {
                return Ok(refused);
            }
            self.fill()?;
        }
    }
}
