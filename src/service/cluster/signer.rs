//! Signs announcements with the nodes' tokens: HMAC-SHA256, so that the tokens are not in them.

use std::fmt;
use std::path::PathBuf;

use parking_lot::RwLock;
use ring::hmac;

use super::kafka::Signer;
use agent::client::{ClientError, read_tokens};

/// The tokens of the nodes' file. The first one signs; a signature under any of them is valid. Without a file, all
/// announcements are valid.
pub(super) struct TokenSigner {
    file: Option<PathBuf>,
    keys: RwLock<Vec<hmac::Key>>,
}

impl TokenSigner {
    /// # Errors
    /// A file that cannot be read, or has no token.
    pub(super) fn new(file: Option<PathBuf>) -> Result<TokenSigner, ClientError> {
        let keys = RwLock::default();
        let signer = TokenSigner { file, keys };
        signer.reload()?;
        Ok(signer)
    }

    /// Reads the file again. After an error, the previous tokens remain in use.
    pub(super) fn reload(&self) -> Result<(), ClientError> {
        if let Some(file) = &self.file {
            let key = |token: &String| hmac::Key::new(hmac::HMAC_SHA256, token.as_bytes());
            let keys = read_tokens(file)?.iter().map(key).collect();
            *self.keys.write() = keys;
        }
        Ok(())
    }
}

impl Signer for TokenSigner {
    fn sign(&self, text: &str) -> Option<String> {
        let tag = hmac::sign(self.keys.read().first()?, text.as_bytes());
        Some(to_hex(tag.as_ref()))
    }

    fn verify(&self, text: &str, signature: Option<&str>) -> bool {
        let keys = self.keys.read();
        let signature = signature.and_then(from_hex).unwrap_or_default();
        let is_of = |key: &hmac::Key| hmac::verify(key, text.as_bytes(), &signature).is_ok();
        keys.is_empty() || keys.iter().any(is_of)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let pairs = text.as_bytes().chunks(2);
    let byte = |pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(byte).collect()
}

/// Tokens must not be logged.
impl fmt::Debug for TokenSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSigner")
            .field("file", &self.file)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_valid_under_any_of_the_tokens() {
        let dir = tempfile::tempdir().unwrap();
        let of = |name: &str, text: &str| {
            let file = dir.path().join(name);
            std::fs::write(&file, text).unwrap();
            TokenSigner::new(Some(file)).unwrap()
        };
        let (old, both) = (of("old", "# nodes\nold\n"), of("both", "new\nold\n"));
        let (stranger, without) = (of("stranger", "guess"), TokenSigner::new(None).unwrap());
        let signature = old.sign("text").unwrap();
        assert_eq!(signature.len(), 64);
        assert!(both.verify("text", Some(&signature)) && without.verify("text", Some(&signature)));
        assert!(!old.verify("text", Some(&both.sign("text").unwrap())));
        assert!(!old.verify("other", Some(&signature)));
        assert!(!stranger.verify("text", Some(&signature)));
        for wrong in [
            None,
            Some(""),
            Some("0"),
            Some("not hexadecimal"),
            Some("é"),
        ] {
            assert!(!old.verify("text", wrong));
        }
        assert!(without.sign("text").is_none() && without.verify("text", None));
        std::fs::write(dir.path().join("old"), "new\nold\n").unwrap();
        old.reload().unwrap();
        assert!(old.verify("text", Some(&both.sign("text").unwrap())));
        assert!(TokenSigner::new(Some(dir.path().join("none"))).is_err());
    }
}
