//! Connections that have ended since the last report, as a file has them. Each batch is appended by one write:
//!
//! ```text
//! batch   0xe5 | length of the rest u32 | checksum of the rest u64 | rest
//! rest    number of names u32 | (length u32 | UTF-8)… | ends
//! end     namespace u64 | cookie u64 | hour u32 | bytes_tx u64 | bytes_rx u64 | src_app u32 | destination
//!         destination   0 | dest_app u32
//!                       4 | address 4 bytes  | port u16 | heard from u64 | to u64      its name is not known yet
//!                       6 | address 16 bytes | port u16 | heard from u64 | to u64
//! ```
//!
//! Numbers are little-endian, applications are numbers of names, and the checksum is XXH3. Up to version 2 of the files, each
//! end was a line with a JSON object. Such a file is continued by batches.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use xxhash_rust::xxh3::xxh3_64;

use super::clock::Span;

/// While no report can be stored, connections that end are noted up to this size. They are counted nevertheless, unless the
/// agent is killed.
const ENDED_BYTES_MAX: u64 = 64 << 20;
/// The first byte of a batch.
const BATCH: u8 = 0xe5;
/// The first byte of a line.
const LINE: u8 = b'{';
const NAMED: u8 = 0;
const WAITS_V4: u8 = 4;
const WAITS_V6: u8 = 6;

/// A connection that has ended.
#[derive(Clone, Debug, PartialEq, Deserialize)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
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
        push_batch(&mut batch, ended);
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

/// Appends a batch. Each name is in it once.
fn push_batch(bytes: &mut Vec<u8>, all: &[Ended]) {
    let mut names = Names::default();
    let mut ends = Vec::new();
    for ended in all {
        push_end(&mut ends, ended, &mut names);
    }
    let mut rest = Vec::new();
    push_u32(&mut rest, names.all.len());
    for name in names.all {
        push_u32(&mut rest, name.len());
        rest.extend_from_slice(name.as_bytes());
    }
    rest.extend_from_slice(&ends);
    bytes.push(BATCH);
    push_u32(bytes, rest.len());
    bytes.extend_from_slice(&xxh3_64(&rest).to_le_bytes());
    bytes.extend_from_slice(&rest);
}

fn push_end<'a>(bytes: &mut Vec<u8>, ended: &'a Ended, names: &mut Names<'a>) {
    bytes.extend_from_slice(&ended.namespace.to_le_bytes());
    bytes.extend_from_slice(&ended.cookie.to_le_bytes());
    bytes.extend_from_slice(&ended.hour.to_le_bytes());
    bytes.extend_from_slice(&ended.bytes_tx.to_le_bytes());
    bytes.extend_from_slice(&ended.bytes_rx.to_le_bytes());
    push_u32(bytes, names.number(&ended.src_app));
    let Some(EndedWaits { remote, heard }) = ended.waits else {
        bytes.push(NAMED);
        push_u32(bytes, names.number(&ended.dest_app));
        return;
    };
    match remote.ip() {
        IpAddr::V4(address) => {
            bytes.push(WAITS_V4);
            bytes.extend_from_slice(&address.octets());
        }
        IpAddr::V6(address) => {
            bytes.push(WAITS_V6);
            bytes.extend_from_slice(&address.octets());
        }
    }
    bytes.extend_from_slice(&remote.port().to_le_bytes());
    bytes.extend_from_slice(&heard.from.to_le_bytes());
    bytes.extend_from_slice(&heard.to.to_le_bytes());
}

/// Numbers here are far below 2^32: a batch has at most as many ends as the kernel's buffer has messages.
fn push_u32(bytes: &mut Vec<u8>, number: usize) {
    bytes.extend_from_slice(&(number as u32).to_le_bytes());
}

/// The names of a batch.
#[derive(Debug, Default)]
struct Names<'a> {
    all: Vec<&'a str>,
    numbers: HashMap<&'a str, usize>,
}

impl<'a> Names<'a> {
    fn number(&mut self, name: &'a str) -> usize {
        *self.numbers.entry(name).or_insert_with(|| {
            self.all.push(name);
            self.all.len() - 1
        })
    }
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
    let mut reader = Reader(bytes);
    let length = reader.u32()?;
    let checksum = reader.u64()?;
    let (rest, after) = reader.0.split_at_checked(length as usize)?;
    if xxh3_64(rest) != checksum {
        return None;
    }
    let before = all.len();
    if parse_ends(rest, all).is_none() {
        all.truncate(before);
        return None;
    }
    Some(after)
}

fn parse_ends(bytes: &[u8], all: &mut Vec<Ended>) -> Option<()> {
    let mut reader = Reader(bytes);
    let mut names: Vec<Arc<str>> = Vec::new();
    for _ in 0..reader.u32()? {
        let length = reader.u32()?;
        names.push(str::from_utf8(reader.take(length as usize)?).ok()?.into());
    }
    let name = |number: u32| names.get(number as usize).cloned();
    let nameless: Arc<str> = "".into();
    while !reader.0.is_empty() {
        let mut ended = Ended {
            namespace: reader.u64()?,
            cookie: reader.u64()?,
            hour: reader.u32()?,
            bytes_tx: reader.u64()?,
            bytes_rx: reader.u64()?,
            src_app: name(reader.u32()?)?,
            dest_app: nameless.clone(),
            waits: None,
        };
        let address: IpAddr = match reader.array::<1>()? {
            [NAMED] => {
                ended.dest_app = name(reader.u32()?)?;
                all.push(ended);
                continue;
            }
            [WAITS_V4] => reader.array::<4>()?.into(),
            [WAITS_V6] => reader.array::<16>()?.into(),
            _ => return None,
        };
        ended.waits = Some(EndedWaits {
            remote: SocketAddr::new(address, u16::from_le_bytes(reader.array()?)),
            heard: Span {
                from: reader.u64()?,
                to: reader.u64()?,
            },
        });
        all.push(ended);
    }
    Some(())
}

/// Returns what follows the line. `None` if it is not whole.
fn parse_line<'a>(bytes: &'a [u8], all: &mut Vec<Ended>) -> Option<&'a [u8]> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    // The file is not synced: a power failure may leave something else in it.
    all.extend(serde_json::from_slice::<Ended>(&bytes[..end]).ok());
    Some(&bytes[end + 1..])
}

/// What is left to be read.
#[derive(Debug)]
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn array<const LENGTH: usize>(&mut self) -> Option<[u8; LENGTH]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
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
            push_batch(&mut file, &batch);
        }
        assert_eq!(parse(&file), (batches().concat(), file.len()));
        assert_eq!(parse(&[]), (Vec::new(), 0));
    }

    /// By a crash, at any byte: whole batches remain, and nothing else.
    #[test]
    fn a_write_that_was_interrupted_is_ignored() {
        let (mut file, mut ends) = (Vec::new(), vec![0]);
        for batch in batches() {
            push_batch(&mut file, &batch);
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
        push_batch(&mut file, &batches()[0]);
        let start = file.len();
        push_batch(&mut file, &batches()[1]);
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
        push_batch(&mut file, &batches()[2]);
        let all = [both, batches()[2].clone()].concat();
        assert_eq!(parse(&file), (all, file.len()));
    }
}
