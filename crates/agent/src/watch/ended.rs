//! Connections that have ended since the last report, as a file has them. Each batch is appended by one write:
//!
//! ```text
//! batch   0xe5 | length of the ends u32 | their checksum u64 | ends, encoded by bincode
//! ```
//!
//! Numbers are little-endian, and the checksum is XXH3. Up to version 2 of the files, each end was a line with a JSON
//! object. Such a file is continued by batches.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bincode::config::{self, Configuration};
use bincode::serde::{decode_from_slice, encode_to_vec};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::clock::Span;

/// While no report can be stored, connections that end are noted up to this size. They are counted nevertheless, unless the
/// agent is killed.
const ENDED_BYTES_MAX: u64 = 64 << 20;
/// The first byte of a batch.
const BATCH: u8 = 0xe5;
/// The first byte of a line.
const LINE: u8 = b'{';
const ENCODING: Configuration = config::standard();

/// A connection that has ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Ended {
    pub(super) namespace: u64,
    pub(super) cookie: u64,
    pub(super) src_app: Arc<str>,
    pub(super) dest_app: Arc<str>,
    pub(super) hour: u32,
    /// All bytes of the connection.
    pub(super) bytes_tx: u64,
    pub(super) bytes_rx: u64,
    /// `dest_app` is not known yet: the bytes wait for its name.
    #[serde(default)]
    pub(super) waits: Option<EndedWaits>,
}

/// An end whose destination has no name yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct EndedWaits {
    pub(super) remote: SocketAddr,
    /// When the other end was heard last.
    pub(super) heard: Span,
}

/// The file, open to be appended to.
#[derive(Debug)]
pub(super) struct EndedFile {
    file: File,
    /// Of whole batches.
    bytes: u64,
    /// A part of a batch may follow them: its write has failed.
    is_torn: bool,
}

impl EndedFile {
    pub(super) fn open(path: &Path) -> io::Result<EndedFile> {
        let file = File::options().append(true).create(true).open(path)?;
        Ok(EndedFile {
            bytes: file.metadata()?.len(),
            file,
            is_torn: false,
        })
    }

    /// Appends a batch, unless the file is full.
    pub(super) fn push(&mut self, ended: &[Ended]) -> io::Result<()> {
        if self.bytes >= ENDED_BYTES_MAX {
            return Ok(());
        }
        let mut batch = Vec::new();
        push_batch(&mut batch, ended)?;
        if self.is_torn {
            self.file.set_len(self.bytes)?;
        }
        self.is_torn = true;
        self.file.write_all(&batch)?;
        self.is_torn = false;
        self.bytes += batch.len() as u64;
        Ok(())
    }
}

/// The ends in a file that may not exist. The last batch may be cut, if its write was interrupted; it is removed.
pub(super) fn read(path: &Path) -> io::Result<Vec<Ended>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        bytes => bytes?,
    };
    let (ended, whole) = parse(&bytes);
    if whole < bytes.len() {
        let file = File::options().write(true).open(path)?;
        file.set_len(whole as u64)?;
    }
    Ok(ended)
}

fn push_batch(bytes: &mut Vec<u8>, ended: &[Ended]) -> io::Result<()> {
    let ends = encode_to_vec(ended, ENCODING).map_err(io::Error::other)?;
    let length = u32::try_from(ends.len()).map_err(io::Error::other)?;
    bytes.push(BATCH);
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&xxh3_64(&ends).to_le_bytes());
    bytes.extend_from_slice(&ends);
    Ok(())
}

/// The ends in a file, and how many of its bytes they are: the last write may have been interrupted.
fn parse(file: &[u8]) -> (Vec<Ended>, usize) {
    let mut all = Vec::new();
    let mut rest = file;
    while let Some(first) = rest.first() {
        let after = match *first {
            BATCH => parse_batch(&rest[1..], &mut all),
            LINE => parse_line(rest, &mut all),
            _ => None,
        };
        match after {
            Some(after) => rest = after,
            None => break,
        }
    }
    (all, file.len() - rest.len())
}

/// Returns what follows the batch. `None` if it is not whole.
fn parse_batch<'a>(bytes: &'a [u8], all: &mut Vec<Ended>) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk()?;
    let (checksum, rest) = rest.split_first_chunk()?;
    let (ends, after) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    if xxh3_64(ends) != u64::from_le_bytes(*checksum) {
        return None;
    }
    let (ends, _): (Vec<Ended>, _) = decode_from_slice(ends, ENCODING).ok()?;
    all.extend(ends);
    Some(after)
}

/// Returns what follows the line. `None` if it is not whole.
fn parse_line<'a>(bytes: &'a [u8], all: &mut Vec<Ended>) -> Option<&'a [u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    // The file is not synced: a power failure may leave something else in it.
    all.extend(serde_json::from_slice::<Ended>(&bytes[..end]).ok());
    Some(&bytes[end + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(cookie: u64, dest_app: &str, remote: Option<&str>) -> Ended {
        Ended {
            namespace: 4_026_531_840,
            cookie,
            src_app: "é".into(),
            dest_app: dest_app.into(),
            hour: 494_000,
            bytes_tx: u64::MAX,
            bytes_rx: 3,
            waits: remote.map(|remote| EndedWaits {
                remote: remote.parse().unwrap(),
                heard: Span { from: 5, to: 7 },
            }),
        }
    }

    fn batches() -> [Vec<Ended>; 3] {
        [
            vec![ended(1, "db", None), ended(2, "web", None)],
            vec![
                ended(3, "", Some("10.0.0.7:80")),
                ended(4, "db", None),
                ended(5, "", Some("[fd00::7]:443")),
            ],
            vec![ended(6, "db", None)],
        ]
    }

    #[test]
    fn what_is_written_is_read() {
        let mut file = Vec::new();
        for batch in batches() {
            push_batch(&mut file, &batch).unwrap();
        }
        assert_eq!(parse(&file), (batches().concat(), file.len()));
        assert_eq!(parse(&[]), (Vec::new(), 0));
    }

    /// By a crash, at any byte: whole batches remain, and nothing else.
    #[test]
    fn a_write_that_was_interrupted_is_ignored() {
        let (mut file, mut ends) = (Vec::new(), vec![0]);
        for batch in batches() {
            push_batch(&mut file, &batch).unwrap();
            ends.push(file.len());
        }
        for length in 0..file.len() {
            let whole = ends.iter().filter(|end| **end <= length).count() - 1;
            let expected = batches()[..whole].concat();
            assert_eq!(parse(&file[..length]), (expected, ends[whole]), "{length}");
        }
    }

    #[test]
    fn what_is_damaged_is_not_counted() {
        let mut file = Vec::new();
        push_batch(&mut file, &batches()[0]).unwrap();
        let start = file.len();
        push_batch(&mut file, &batches()[1]).unwrap();
        for at in start..file.len() {
            let mut damaged = file.clone();
            damaged[at] ^= 0x10;
            let (all, whole) = parse(&damaged);
            assert_eq!((all, whole), (batches()[0].clone(), start), "{at}");
        }
    }

    /// The disk is full, for example.
    #[test]
    fn what_was_not_written_whole_is_removed_before_the_next_batch() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ended-1");
        let [first, second, third] = batches();
        let mut open = EndedFile::open(&path).unwrap();
        open.push(&first).unwrap();
        open.file.write_all(&[BATCH, 1, 2]).unwrap();
        open.is_torn = true;
        open.push(&second).unwrap();
        // By a crash.
        open.file.write_all(&[BATCH, 1, 2]).unwrap();
        assert_eq!(read(&path).unwrap(), [&first[..], &second].concat());
        let mut open = EndedFile::open(&path).unwrap();
        open.push(&third).unwrap();
        assert_eq!(read(&path).unwrap(), batches().concat());
        assert_eq!(read(&dir.path().join("ended-2")).unwrap(), []);
    }

    /// As agents up to version 2 have written it; then one of this version went on.
    #[test]
    fn lines_are_read_and_continued() {
        let lines = "{\"namespace\":4026531840,\"cookie\":1,\"src_app\":\"é\",\"dest_app\":\"db\",\"hour\":494000,\
             \"bytes_tx\":18446744073709551615,\"bytes_rx\":3}\n\
             {damaged\n\
             {\"namespace\":4026531840,\"cookie\":3,\"src_app\":\"é\",\"dest_app\":\"\",\"hour\":494000,\
             \"bytes_tx\":18446744073709551615,\"bytes_rx\":3,\
             \"waits\":{\"remote\":\"10.0.0.7:80\",\"heard\":{\"from\":5,\"to\":7}}}\n";
        let cut = [lines.as_bytes(), b"{\"namespace\":1,\"coo"].concat();
        let both = vec![ended(1, "db", None), ended(3, "", Some("10.0.0.7:80"))];
        assert_eq!(parse(&cut), (both.clone(), lines.len()));
        let mut file = lines.as_bytes().to_vec();
        push_batch(&mut file, &batches()[2]).unwrap();
        let all = [both, batches()[2].clone()].concat();
        assert_eq!(parse(&file), (all, file.len()));
    }
}
