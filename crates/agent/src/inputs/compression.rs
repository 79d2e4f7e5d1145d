//! gzip and zstd, detected by their magic numbers.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use super::pause::{IdleFilter, Stopped};
use flow::gzip::{self, Gzip};

const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";
/// A skippable frame of zstd, in which programs such as pzstd store metadata; the lowest four bits of the
/// magic number vary.
const ZSTD_SKIPPABLE: &[u8] = b"\x2A\x4D\x18";
/// The largest supported window of zstd frames: 128 MiB, as in `zstd -d`.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

const CHECK_BUFFER_BYTES: usize = 64 << 10;

/// Whether `start`, the first bytes of an input, begins a compressed one.
pub(crate) fn begins_compressed(start: &[u8]) -> bool {
    start.starts_with(gzip::MAGIC)
        || start.starts_with(ZSTD)
        || matches!(start.split_first(), Some((0x50..=0x5F, rest)) if rest.starts_with(ZSTD_SKIPPABLE))
}

/// The bytes that were read for detection, followed by the rest.
type Prefixed<R> = Chain<Cursor<Vec<u8>>, IdleFilter<R>>;

/// The input, decompressed if necessary.
pub(super) enum Decompressed<R: Read> {
    Plain(Prefixed<R>),
    Gzip(Box<Gzip<BufReader<Prefixed<R>>>>),
    Zstd(zstd::Decoder<'static, BufReader<Prefixed<R>>>),
}

impl<R: Read> Decompressed<R> {
    pub(super) fn new(input: R) -> io::Result<Decompressed<R>> {
        let mut input = IdleFilter::new(input);
        let mut start = Vec::new();
        let read = Read::by_ref(&mut input)
            .take(ZSTD.len() as u64)
            .read_to_end(&mut start);
        if let Err(mut error) = read {
            if let Some(stopped) = Stopped::from_error(&mut error) {
                stopped.unfinished = start;
            }
            return Err(error);
        }
        let is_gzip = start.starts_with(gzip::MAGIC);
        let is_zstd = start.starts_with(ZSTD)
            || matches!(start.split_first(), Some((0x50..=0x5F, ZSTD_SKIPPABLE)));
        let input = match is_gzip || is_zstd {
            true => input,
            false => input.passing_idle(),
        };
        let input = Cursor::new(start).chain(input);
        Ok(if is_gzip {
            Decompressed::Gzip(Box::new(Gzip::new(BufReader::new(input))))
        } else if is_zstd {
            let mut zstd = zstd::Decoder::new(input)?;
            zstd.window_log_max(ZSTD_WINDOW_LOG_MAX)?;
            Decompressed::Zstd(zstd)
        } else {
            Decompressed::Plain(input)
        })
    }
}

impl<R: Read> Read for Decompressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Decompressed::Plain(input) => input.read(buffer),
            Decompressed::Gzip(input) => input.read(buffer).map_err(|e| explained("gzip", e)),
            Decompressed::Zstd(input) => input.read(buffer).map_err(|e| explained("zstd", e)),
        }
    }
}

/// Decompresses all of `input`, which is compressed.
///
/// # Errors
/// If it is damaged. An early end is not an error: the data before it can be read.
pub(crate) fn find_damage(input: impl Read) -> io::Result<()> {
    let input = BufReader::with_capacity(CHECK_BUFFER_BYTES, input);
    let mut input = BufReader::with_capacity(CHECK_BUFFER_BYTES, Decompressed::new(input)?);
    loop {
        match input.fill_buf() {
            Ok([]) => return Ok(()),
            Ok(bytes) => {
                let read = bytes.len();
                input.consume(read);
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Adds an explanation to errors of the data. System errors are passed on unchanged.
fn explained(what: &str, error: io::Error) -> io::Error {
    match error.kind() {
        _ if error.raw_os_error().is_some() => error,
        io::ErrorKind::UnexpectedEof => {
            let why = format!("the {what} data ends early: the file is incomplete");
            io::Error::new(io::ErrorKind::UnexpectedEof, why)
        }
        // The library offers no other way to detect it.
        _ if error.to_string().contains("too much memory") => {
            let why = format!(
                "the {what} data has a window of more than {} MiB; decompress it first: zstd -dc --long=31 \
                 FILE | flowtally import -",
                (1 << ZSTD_WINDOW_LOG_MAX) >> 20
            );
            io::Error::new(io::ErrorKind::InvalidData, why)
        }
        _ => {
            let why = format!("the {what} data is damaged: {error}; get a good copy of it");
            io::Error::new(io::ErrorKind::InvalidData, why)
        }
    }
}
