//! gzip and zstd, told by how they begin.

use std::io::{self, BufReader, Chain, Cursor, Read};

use flate2::read::MultiGzDecoder;

const GZIP: &[u8] = b"\x1F\x8B";
const ZSTD: &[u8] = b"\x28\xB5\x2F\xFD";

/// What was read to see how it begins, and the rest.
type Begun<R> = Chain<Cursor<Vec<u8>>, R>;

/// An input as it was before it was compressed, if it was.
pub(super) enum Decompressed<R: Read> {
    Plain(Begun<R>),
    Gzip(Box<MultiGzDecoder<Begun<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<Begun<R>>>),
}

impl<R: Read> Decompressed<R> {
    pub(super) fn new(mut input: R) -> io::Result<Decompressed<R>> {
        let mut begin = Vec::new();
        Read::by_ref(&mut input)
            .take(ZSTD.len() as u64)
            .read_to_end(&mut begin)?;
        let (is_gzip, is_zstd) = (begin.starts_with(GZIP), begin.starts_with(ZSTD));
        let input = Cursor::new(begin).chain(input);
        Ok(if is_gzip {
            Decompressed::Gzip(Box::new(MultiGzDecoder::new(input)))
        } else if is_zstd {
            Decompressed::Zstd(zstd::Decoder::new(input)?)
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

/// Says what is wrong with the data; an error of the system's, which is one of reading, is left alone.
fn explained(what: &str, error: io::Error) -> io::Error {
    match error.kind() {
        _ if error.raw_os_error().is_some() => error,
        io::ErrorKind::UnexpectedEof => {
            let why = format!("the {what} data breaks off: the file is not complete");
            io::Error::new(io::ErrorKind::UnexpectedEof, why)
        }
        _ => {
            let why = format!("the {what} data is damaged: {error}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        }
    }
}
