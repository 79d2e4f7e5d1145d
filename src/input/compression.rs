//! gzip and zstd, told by how they begin.

use std::io::{self, BufRead, BufReader, Chain, Cursor, Read};

use flate2::bufread::GzDecoder;

const GZIP: &[u8] = b"\x1F\x8B";
const GARBAGE: &str = "garbage after the end of the gzip stream";
const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";
/// A frame of zstd that has no data, but something that a program such as pzstd keeps there; the first
/// four bits are free.
const ZSTD_SKIPPABLE: &[u8] = b"\x2A\x4D\x18";
/// The largest window of zstd frames that are read: 128 MiB, as `zstd -d` has it.
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// What was read to see how it begins, and the rest.
type Begun<R> = Chain<Cursor<Vec<u8>>, R>;

/// An input as it was before it was compressed, if it was.
pub(super) enum Decompressed<R: Read> {
    Plain(Begun<R>),
    Gzip(Box<Gzip<Begun<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<Begun<R>>>),
}

impl<R: Read> Decompressed<R> {
    pub(super) fn new(mut input: R) -> io::Result<Decompressed<R>> {
        let mut begin = Vec::new();
        Read::by_ref(&mut input)
            .take(ZSTD.len() as u64)
            .read_to_end(&mut begin)?;
        let is_gzip = begin.starts_with(GZIP);
        let is_zstd = begin.starts_with(ZSTD)
            || matches!(begin.split_first(), Some((0x50..=0x5F, ZSTD_SKIPPABLE)));
        let input = Cursor::new(begin).chain(input);
        Ok(if is_gzip {
            Decompressed::Gzip(Box::new(Gzip::new(input)))
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

/// gzip streams, one after the other, as `gzip -d` takes them: with zeros behind them, or between them,
/// as tapes and disks leave them.
pub(super) struct Gzip<R: Read> {
    /// `None` only while one makes room for the next.
    stream: Option<GzDecoder<BufReader<R>>>,
}

impl<R: Read> Gzip<R> {
    fn new(input: R) -> Gzip<R> {
        Gzip {
            stream: Some(GzDecoder::new(BufReader::new(input))),
        }
    }
}

impl<R: Read> Read for Gzip<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(stream) = &mut self.stream {
            let read = stream.read(buffer)?;
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            match past_zeros(stream.get_mut())? {
                None => break,
                Some(first) if first == GZIP[0] => {
                    let rest = self.stream.take().map(GzDecoder::into_inner);
                    self.stream = rest.map(GzDecoder::new);
                }
                Some(_) => return Err(io::Error::other(GARBAGE)),
            }
        }
        Ok(0)
    }
}

/// The next byte that is not zero, which stays there.
fn past_zeros(input: &mut impl BufRead) -> io::Result<Option<u8>> {
    loop {
        let bytes = input.fill_buf()?;
        let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        let (next, at_end) = (bytes.get(zeros).copied(), bytes.is_empty());
        input.consume(zeros);
        if next.is_some() || at_end {
            return Ok(next);
        }
    }
}

/// Says what is wrong with the data; an error of the system's, which is one of reading, is left alone.
fn explained(what: &str, error: io::Error) -> io::Error {
    match error.kind() {
        _ if error.raw_os_error().is_some() => error,
        io::ErrorKind::UnexpectedEof => {
            let why = format!("the {what} data breaks off: the file is not complete");
            io::Error::new(io::ErrorKind::UnexpectedEof, why)
        }
        // There is no other way to tell.
        _ if error.to_string().contains("too much memory") => {
            let why = format!(
                "the {what} data has a window of more than {} MiB; decompress it first: zstd -dc --long=31 \
                 FILE | flowtally import -",
                (1 << ZSTD_WINDOW_LOG_MAX) >> 20
            );
            io::Error::new(io::ErrorKind::InvalidData, why)
        }
        _ => {
            let why = format!("the {what} data is damaged: {error}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        }
    }
}
