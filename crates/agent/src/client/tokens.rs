//! Token files: one token per line. Blank lines, and lines that start with `#`, are skipped. A file can have several
//! tokens, the old and the new one of a rotation: a server accepts each of them, a client sends the first.
//!
//! In the file of write tokens, ranges of addresses may follow a token: an agent with this token can claim only those.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use super::ClientError;
use crate::units::address_range;

/// A token file that cannot be used. The text has the path and the cause, but no token.
#[derive(Debug, thiserror::Error)]
#[error("{}: {cause}", path.display())]
pub struct TokenFileError {
    pub path: PathBuf,
    pub cause: String,
}

impl From<TokenFileError> for ClientError {
    fn from(error: TokenFileError) -> ClientError {
        ClientError::Options(error.to_string())
    }
}

/// A token, and the addresses to which it is bound.
#[derive(Clone, PartialEq, Eq)]
pub struct BoundToken {
    pub token: String,
    /// The addresses that its agents can claim in the directory; `None` for all.
    pub ranges: Option<Vec<IpNet>>,
}

/// Without the token.
impl fmt::Debug for BoundToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundToken")
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}

/// Reads all tokens of a file; there is at least one.
///
/// # Errors
/// The file cannot be read, has no token, or has a line with characters other than visible ASCII.
pub fn read_tokens(path: &Path) -> Result<Vec<String>, TokenFileError> {
    read(path, usize::MAX, parse_token)
}

/// Reads all tokens of a file, and the ranges of addresses after each, as in `TOKEN 10.0.0.0/16,fd00::/8`.
///
/// # Errors
/// As for [`read_tokens`]; also if a range is invalid.
pub fn read_bound_tokens(path: &Path) -> Result<Vec<BoundToken>, TokenFileError> {
    read(path, usize::MAX, |line| {
        let (token, ranges) = match line.iter().position(u8::is_ascii_whitespace) {
            Some(at) => line.split_at(at),
            None => (line, &b""[..]),
        };
        let ranges =
            std::str::from_utf8(ranges).map_err(|_| "its ranges are not UTF-8".to_owned())?;
        let ranges = ranges.split(|c: char| c == ',' || c.is_ascii_whitespace());
        let ranges = ranges.filter(|range| !range.is_empty());
        let ranges: Vec<IpNet> = ranges.map(range).collect::<Result<_, _>>()?;
        Ok(BoundToken {
            token: parse_token(token)?,
            ranges: (!ranges.is_empty()).then_some(ranges),
        })
    })
}

/// Reads the first token of a file. Later lines, and ranges of addresses after it, are ignored.
///
/// # Errors
/// As for [`read_tokens`].
pub fn read_first_token(path: &Path) -> Result<String, TokenFileError> {
    let first_word = |line: &[u8]| {
        let mut words = line.split(u8::is_ascii_whitespace);
        parse_token(words.next().unwrap_or_default())
    };
    Ok(read(path, 1, first_word)?.remove(0))
}

fn range(text: &str) -> Result<IpNet, String> {
    // It may be a part of a token, which must not be printed.
    address_range(text).map_err(|_| {
        "after the token, there must be ranges of addresses such as 10.0.0.0/16".into()
    })
}

/// The error does not contain the token.
fn parse_token(line: &[u8]) -> Result<String, String> {
    match line.iter().all(u8::is_ascii_graphic) {
        true => Ok(line.iter().map(|byte| char::from(*byte)).collect()),
        false => Err("it is not a token: it has characters other than visible ASCII".into()),
    }
}

fn read<T>(
    path: &Path,
    count_max: usize,
    parse: impl Fn(&[u8]) -> Result<T, String>,
) -> Result<Vec<T>, TokenFileError> {
    let unusable = |cause: String| TokenFileError {
        path: path.to_owned(),
        cause,
    };
    let text = fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let is_token = |(_, line): &(usize, &[u8])| !line.is_empty() && !line.starts_with(b"#");
    let lines = (1..).zip(lines).filter(is_token).take(count_max);
    let tokens = lines
        .map(|(number, line)| parse(line).map_err(|why| unusable(format!("line {number}: {why}"))));
    let tokens: Vec<T> = tokens.collect::<Result<_, _>>()?;
    match tokens.is_empty() {
        true => Err(unusable(
            "there is no token in it; write one per line".into(),
        )),
        false => Ok(tokens),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_of_tokens() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("tokens");
        fs::write(&path, b"# agents\nalpha\r\n\n  beta \n").unwrap();
        assert_eq!(read_tokens(&path).unwrap(), ["alpha", "beta"]);
        assert_eq!(read_first_token(&path).unwrap(), "alpha");
        for (text, words) in [
            (&b"# none\n\n"[..], "no token"),
            (b"a\nb c\n", "line 2"),
            (b"a\n\xff\n", "line 2"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read_tokens(&path).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(read_first_token(&path).unwrap(), "a");
        fs::write(&path, b"plain\nbound 10.0.0.0/16, fd00::7\n").unwrap();
        let tokens = read_bound_tokens(&path).unwrap();
        assert_eq!((&*tokens[0].token, &tokens[0].ranges), ("plain", &None));
        let ranges = ["10.0.0.0/16", "fd00::7/128"].map(|range| range.parse().unwrap());
        assert_eq!(
            (&*tokens[1].token, &tokens[1].ranges),
            ("bound", &Some(ranges.to_vec()))
        );
        fs::write(&path, b"secret 10.0.0.0/33\n").unwrap();
        let error = read_bound_tokens(&path).err().unwrap().to_string();
        assert!(
            error.contains("line 1") && error.contains("ranges of addresses"),
            "{error}"
        );
        assert!(!error.contains("secret"), "{error}");
        let error = read_tokens(Path::new("/nowhere/tokens"))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/nowhere/tokens: "), "{error}");
    }
}
