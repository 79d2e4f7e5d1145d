//! Nodes know each other's announcements by their tokens, which are not in them: each has an HMAC-SHA256 under one.

use std::fmt;
use std::path::PathBuf;
use std::sync::{PoisonError, RwLock};

use ring::hmac;

use super::peer::client::tokens;
use crate::client::ClientError;
use crate::service::cluster::kafka::Seal;

/// The tokens of the nodes' file: the first one seals, and all of them are known. Without a file, everybody is
/// believed.
pub(super) struct Tokens {
    file: Option<PathBuf>,
    keys: RwLock<Vec<hmac::Key>>,
}

impl Tokens {
    /// # Errors
    /// A file that cannot be read, or that is empty.
    pub(super) fn new(file: Option<PathBuf>) -> Result<Tokens, ClientError> {
        let keys = RwLock::default();
        let tokens = Tokens { file, keys };
        tokens.reload()?;
        Ok(tokens)
    }

    /// Reads the file again. After an error, the tokens stay as they were.
    pub(super) fn reload(&self) -> Result<(), ClientError> {
        if let Some(file) = &self.file {
            let key = |token: &String| hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
            let keys = tokens(file)?.iter().map(key).collect();
            *self.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        }
        Ok(())
    }

    fn keys(&self) -> std::sync::RwLockReadGuard<'_, Vec<hmac::Key>> {
        // They are replaced as a whole.
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seal for Tokens {
    fn seal(&self, text: &str) -> Option<String> {
        let tag = hmac::sign(self.keys().first()?, text.as_bytes());
        Some(hex(tag.as_ref()))
    }

    fn is_sealed(&self, text: &str, seal: Option<&str>) -> bool {
        let keys = self.keys();
        let seal = seal.and_then(unhex).unwrap_or_default();
        let is_of = |key: &hmac::Key| hmac::verify(key, text.as_bytes(), &seal).is_ok();
        keys.is_empty() || keys.iter().any(is_of)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

/// Tokens are not for logs.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("file", &self.file).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_a_token_is_believed() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            Tokens::new(Some(file)).unwrap()
        };
        let (old, both) = (of("old", "# nodes\nold\n"), of("both", "new\nold\n"));
        let (stranger, nobody) = (of("stranger", "guess"), Tokens::new(None).unwrap());
        let seal = old.seal("text").unwrap();
        assert_eq!(seal.len(), 64);
        assert!(both.is_sealed("text", Some(&seal)) && nobody.is_sealed("text", Some(&seal)));
        assert!(!old.is_sealed("text", Some(&both.seal("text").unwrap())));
        assert!(!both.is_sealed("other", Some(&seal)) && !stranger.is_sealed("text", Some(&seal)));
        for wrong in [
            None,
            Some(""),
            Some("0"),
            Some("not hexadecimal"),
            Some("é"),
        ] {
            assert!(!old.is_sealed("text", wrong));
        }
        assert!(nobody.seal("text").is_none() && nobody.is_sealed("text", None));
        std::fs::write(dir.path().join("old"), "new\nold\n").unwrap();
        old.reload().unwrap();
        assert!(old.is_sealed("text", Some(&both.seal("text").unwrap())));
        assert!(Tokens::new(Some(dir.path().join("none"))).is_err());
    }
}
