//! Request targets that are longer than hyper accepts.
//!
//! A query may name 64 values of each kind, each of 1,024 bytes, and each byte may take three in a target. That is ten
//! times the limit of hyper, which is also the size of each connection's buffer. So hyper gets only the start of a
//! longer target, and its tail is kept with the connection until the request arrives.
//!
//! A connection knows where a request starts only when the previous request has got its response. If a client pipelines
//! a request with a long target, hyper refuses it.

use tokio::sync::OwnedSemaphorePermit;

/// Longest head of a request, without the tail of its target; also the size of a connection's read buffer.
pub(super) const HEAD_BYTES_MAX: usize = 32 << 10;
/// The start of a target, which is passed to hyper.
pub(super) const TARGET_START_BYTES_MAX: usize = 8 << 10;
/// The longest tail that is kept: three times 64 names of 1,024 bytes, percent-encoded, with their parameter names.
pub(super) const TAIL_BYTES_MAX: usize = 608 << 10;
/// Bytes of an even longer target that are read and discarded, so that its client can read the refusal.
const DISCARDED_BYTES_MAX: usize = 16 << 20;
/// The methods of requests whose targets are examined.
const METHODS: [&[u8]; 5] = [b"GET ", b"HEAD ", b"POST ", b"DELETE ", b"OPTIONS "];

/// The part of a target that was not passed to hyper.
#[derive(Debug)]
pub(super) enum TargetTail {
    Kept(KeptTail),
    Dropped(Dropped),
}

#[derive(Debug)]
pub(super) struct KeptTail {
    pub(super) text: String,
    /// Held for the lifetime of the request, since the parsed query takes as much memory as its text.
    _memory: Option<OwnedSemaphorePermit>,
}

/// Reads the start of a request, and cuts the tail out of a target that is too long.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// Before the method.
    #[default]
    Start,
    Method(Vec<u8>),
    Target {
        bytes: usize,
    },
    Tail(Vec<u8>),
    /// The tail is discarded; `bytes` of it have arrived.
    Discarding {
        bytes: usize,
        why: Dropped,
    },
    /// After the target, or in a request whose method is not one of [`METHODS`].
    Done,
}

/// The reason why the tail of a target was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    TooLong,
    NoMemory,
}

/// The result of examining some bytes.
#[derive(Debug)]
pub(super) enum Cut {
    /// The target has not ended.
    Incomplete,
    /// The target has ended, or there is none. `Some` is its tail, if it was cut.
    Done(Option<Vec<u8>>),
    /// The target has ended, and its tail was discarded.
    Dropped(Dropped),
    /// More was discarded than is allowed, and the target has not ended.
    Unbounded,
}

impl Cutter {
    /// Examines the next bytes of a connection. Moves those that are for hyper to the front, and returns their number.
    pub(super) fn cut(&mut self, bytes: &mut [u8]) -> (usize, Cut) {
        let (mut at, mut left) = (0, 0);
        while at < bytes.len() && !matches!(self.state, State::Done) {
            let byte = bytes[at];
            let ends = matches!(byte, b' ' | b'\r' | b'\n');
            match &mut self.state {
                State::Start if matches!(byte, b'\r' | b'\n') => {}
                State::Start => {
                    self.state = State::Method(Vec::new());
                    continue;
                }
                State::Method(method) => {
                    method.push(byte);
                    if METHODS.contains(&method.as_slice()) {
                        self.state = State::Target { bytes: 0 };
                    } else if !METHODS.iter().any(|known| known.starts_with(method)) {
                        self.state = State::Done;
                    }
                }
                State::Target { .. } if ends => self.state = State::Done,
                State::Target { bytes } if *bytes < TARGET_START_BYTES_MAX => *bytes += 1,
                State::Target { .. } => {
                    self.state = State::Tail(Vec::new());
                    continue;
                }
                State::Tail(rest) if ends => {
                    let rest = std::mem::take(rest);
                    self.state = State::Done;
                    return self.pass_remainder(bytes, at, left, Cut::Done(Some(rest)));
                }
                State::Tail(rest) if rest.len() < TAIL_BYTES_MAX => {
                    rest.push(byte);
                    at += 1;
                    continue;
                }
                State::Tail(_) => {
                    self.discard(Dropped::TooLong);
                    continue;
                }
                State::Discarding { why, .. } if ends => {
                    let why = *why;
                    self.state = State::Done;
                    return self.pass_remainder(bytes, at, left, Cut::Dropped(why));
                }
                State::Discarding { bytes, .. } => {
                    *bytes += 1;
                    if *bytes > DISCARDED_BYTES_MAX {
                        return (left, Cut::Unbounded);
                    }
                    at += 1;
                    continue;
                }
                State::Done => {}
            }
            left += 1;
            at += 1;
        }
        match self.state {
            State::Done => self.pass_remainder(bytes, at, left, Cut::Done(None)),
            _ => (left, Cut::Incomplete),
        }
    }

    /// Length of the tail so far.
    pub(super) fn kept_bytes(&self) -> usize {
        match &self.state {
            State::Tail(rest) => rest.len(),
            _ => 0,
        }
    }

    /// Discards the tail.
    pub(super) fn discard(&mut self, why: Dropped) {
        self.state = State::Discarding { bytes: 0, why };
    }

    /// Passes everything after the target to hyper unchanged.
    fn pass_remainder(&self, bytes: &mut [u8], at: usize, left: usize, cut: Cut) -> (usize, Cut) {
        bytes.copy_within(at.., left);
        (left + bytes.len() - at, cut)
    }
}

impl TargetTail {
    pub(super) fn kept(rest: Vec<u8>, memory: Option<OwnedSemaphorePermit>) -> TargetTail {
        // A fragment is not part of the query.
        let end = rest.iter().position(|byte| *byte == b'#');
        let text = String::from_utf8_lossy(&rest[..end.unwrap_or(rest.len())]);
        TargetTail::Kept(KeptTail {
            text: text.into_owned(),
            _memory: memory,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes of `request` for hyper, and the kept ones. The request arrives in chunks of this many bytes.
    fn cut(request: &[u8], chunk: usize) -> (Vec<u8>, Result<Option<Vec<u8>>, Cut>) {
        let (mut cutter, mut passed) = (Cutter::default(), Vec::new());
        let mut parts = request.chunks(chunk);
        while let Some(bytes) = parts.next() {
            let mut bytes = bytes.to_vec();
            let (left, cut) = cutter.cut(&mut bytes);
            passed.extend_from_slice(&bytes[..left]);
            match cut {
                Cut::Incomplete => {}
                Cut::Done(rest) => {
                    parts.for_each(|part| passed.extend_from_slice(part));
                    return (passed, Ok(rest));
                }
                other => return (passed, Err(other)),
            }
        }
        (passed, Err(Cut::Incomplete))
    }

    #[test]
    fn the_tail_of_a_long_target_is_cut_out() {
        let beginning = "x".repeat(TARGET_START_BYTES_MAX - 1);
        let tail = " HTTP/1.1\r\nhost: localhost\r\n\r\nGET / HTTP/1.1\r\n\r\n";
        for rest in ["", "y", &"y".repeat(70_000)] {
            let request = format!("\r\nGET /{beginning}{rest}{tail}");
            for part in [1, 2, 7, 8191, 8192, 100_000] {
                let (passed, kept) = cut(request.as_bytes(), part);
                let expected = format!("\r\nGET /{beginning}{tail}");
                assert_eq!(String::from_utf8_lossy(&passed), expected, "{part}");
                let kept = kept.unwrap();
                let some = (!rest.is_empty()).then(|| rest.as_bytes().to_vec());
                assert_eq!(kept, some, "{part}");
            }
        }
    }

    #[test]
    fn requests_without_a_long_target_are_unchanged() {
        let long = "x".repeat(100_000);
        for bytes in [
            format!("PUT /{long} HTTP/1.1\r\n\r\n"),
            format!("{{\"a\": \"{long}\"}}"),
            format!("GET / HTTP/1.1\r\nx: {long}\r\n\r\n"),
            format!("GET\r\n{long}"),
        ] {
            for part in [1, 1000, 200_000] {
                let (passed, kept) = cut(bytes.as_bytes(), part);
                assert_eq!((passed == bytes.as_bytes(), kept.unwrap()), (true, None));
            }
        }
    }

    #[test]
    fn the_length_of_a_target_is_limited() {
        let begin = format!("GET /{}", "x".repeat(TARGET_START_BYTES_MAX - 1));
        let longest = format!("{begin}{} HTTP/1.1\r\n", "y".repeat(TAIL_BYTES_MAX));
        let (_, kept) = cut(longest.as_bytes(), 1000);
        assert_eq!(kept.unwrap().unwrap().len(), TAIL_BYTES_MAX);
        let longer = format!("{begin}{} HTTP/1.1\r\n", "y".repeat(TAIL_BYTES_MAX + 1));
        let (passed, kept) = cut(longer.as_bytes(), 1000);
        assert!(
            matches!(kept, Err(Cut::Dropped(Dropped::TooLong))),
            "{kept:?}"
        );
        assert!(passed.starts_with(begin.as_bytes()));
        let mut endless = begin.into_bytes();
        endless.resize(TAIL_BYTES_MAX + DISCARDED_BYTES_MAX + 100_000, b'y');
        assert!(matches!(cut(&endless, 65_536).1, Err(Cut::Unbounded)));
    }
}
