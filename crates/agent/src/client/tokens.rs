//! Token files: one token per line. Blank lines, and lines that start with `#`, are skipped. A file can have several
//! tokens, the old and the new one of a rotation: a server accepts each of them, a client sends the first.

use std::fs;
use std::path::{Path, PathBuf};

use super::ClientError;

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

/// Reads all tokens of a file; there is at least one.
///
/// # Errors
/// The file cannot be read, has no token, or has a line with characters other than visible ASCII.
pub fn read_tokens(path: &Path) -> Result<Vec<String>, TokenFileError> {
    read(path, usize::MAX)
}

/// Reads the first token of a file. Later lines are ignored.
///
/// # Errors
/// As for [`read_tokens`].
pub fn read_first_token(path: &Path) -> Result<String, TokenFileError> {
    Ok(read(path, 1)?.remove(0))
}

fn read(path: &Path, count_max: usize) -> Result<Vec<String>, TokenFileError> {
    let unusable = |cause: String| TokenFileError {
        path: path.to_owned(),
        cause,
    };
    let text = fs::read(path).map_err(|e| unusable(e.to_string()))?;
    let lines = text.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let is_token = |(_, line): &(usize, &[u8])| !line.is_empty() && !line.starts_with(b"#");
    let lines = (1..).zip(lines).filter(is_token).take(count_max);
    let tokens = lines.map(
        |(number, line)| match line.iter().all(u8::is_ascii_graphic) {
            true => Ok(line.iter().map(|byte| char::from(*byte)).collect()),
            false => Err(unusable(format!(
                "line {number} is not a token: it has characters other than visible ASCII"
            ))),
        },
    );
    let tokens: Vec<String> = tokens.collect::<Result<_, _>>()?;
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
        let error = read_tokens(Path::new("/nowhere/tokens"))
            .unwrap_err()
            .to_string();
        assert!(error.starts_with("/nowhere/tokens: "), "{error}");
    }
}
