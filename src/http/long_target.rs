//! Targets that are longer than hyper takes.
//!
//! A question may name 64 values of each kind, of 1,024 bytes, each byte of which may be three in a
//! target: ten times what hyper takes, and what each connection has a buffer for. So of a longer one,
//! hyper gets the beginning, and the rest is kept beside the connection until the request is there.
//!
//! Where a request begins is known where the one before has been answered. One with a long target that
//! does not wait for that is refused by hyper.

use tokio::sync::OwnedSemaphorePermit;

/// Of a target, what hyper gets.
pub(super) const TARGET_START_BYTES_MAX: usize = 8 << 10;
/// Of a target, what is kept: three times 64 names of 1,024 bytes, percent-encoded, and what stands
/// between them.
pub(super) const TAIL_BYTES_MAX: usize = 608 << 10;
/// What is read of one that is longer still, so that its client gets to see why it is refused.
const DISCARDED_BYTES_MAX: usize = 16 << 20;
/// The methods that requests begin with here.
const METHODS: [&[u8]; 5] = [b"GET ", b"HEAD ", b"POST ", b"DELETE ", b"OPTIONS "];

/// What hyper did not get of a target.
#[derive(Debug)]
pub(super) enum TargetTail {
    Kept(KeptTail),
    Dropped(Dropped),
}

#[derive(Debug)]
pub(super) struct KeptTail {
    pub(super) text: String,
    /// Held as long as the request lives, since what is made of the text takes as much.
    _memory: Option<OwnedSemaphorePermit>,
}

/// Reads the beginning of a request, and takes what is too long out of it.
#[derive(Debug, Default)]
pub(super) struct Cutter {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// In the method, of which so much has come.
    #[default]
    Start,
    Method(Vec<u8>),
    Target {
        bytes: usize,
    },
    Tail(Vec<u8>),
    /// So many bytes of the rest are lost.
    Discarding {
        bytes: usize,
        why: Dropped,
    },
    /// Behind the target; or it is no request as we know them.
    Done,
}

/// Why the rest of a target is not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dropped {
    TooLong,
    NoMemory,
}

/// What came of some bytes.
#[derive(Debug)]
pub(super) enum Cut {
    /// The target goes on.
    Incomplete,
    /// It has ended, or there is none; `Some` where some of it was taken out.
    Done(Option<Vec<u8>>),
    /// It has ended, and some of it is lost.
    Dropped(Dropped),
    /// It does not end.
    Unbounded,
}

impl Cutter {
    /// Looks at the next bytes of a connection. Moves those that hyper gets to the front, and returns how
    /// many they are.
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
                    return self.keep_tail(bytes, at, left, Cut::Done(Some(rest)));
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
                    return self.keep_tail(bytes, at, left, Cut::Dropped(why));
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
            State::Done => self.keep_tail(bytes, at, left, Cut::Done(None)),
            _ => (left, Cut::Incomplete),
        }
    }

    /// Bytes of the rest so far.
    pub(super) fn kept_bytes(&self) -> usize {
        match &self.state {
            State::Tail(rest) => rest.len(),
            _ => 0,
        }
    }

    /// Keeps nothing of the rest.
    pub(super) fn discard(&mut self, why: Dropped) {
        self.state = State::Discarding { bytes: 0, why };
    }

    /// What is behind the target goes to hyper as it is.
    fn keep_tail(&self, bytes: &mut [u8], at: usize, left: usize, cut: Cut) -> (usize, Cut) {
        bytes.copy_within(at.., left);
        (left + bytes.len() - at, cut)
    }
}

impl TargetTail {
    pub(super) fn kept(rest: Vec<u8>, memory: Option<OwnedSemaphorePermit>) -> TargetTail {
        // A fragment is no part of what is asked.
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

    /// What hyper gets and what is kept of `request`, which comes in parts of so many bytes.
    fn cut(request: &[u8], part: usize) -> (Vec<u8>, Result<Option<Vec<u8>>, Cut>) {
        let (mut cutter, mut passed) = (Cutter::default(), Vec::new());
        let mut parts = request.chunks(part);
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
    fn the_rest_of_a_long_target_is_taken_out() {
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
    fn what_is_no_long_target_stays_as_it_is() {
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
    fn a_target_has_a_longest() {
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
