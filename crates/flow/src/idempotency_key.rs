//! The idempotency key of a batch.

/// Identifies a batch, so that it counts once however often it is sent: 1 to 255 visible ASCII characters (the
/// `Idempotency-Key` header of the IETF's httpapi draft).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct IdempotencyKey(Box<str>);

impl IdempotencyKey {
    /// Longest key, in characters.
    pub const CHARS_MAX: usize = 255;

    /// Prefix of the keys of imported files, which are kept for longer than others.
    pub const IMPORT_PREFIX: &str = "import_";

    /// Prefix of the keys that the service makes of a batch's flows or of its body, which are kept for a short time.
    pub const CONTENT_PREFIX: &str = "content_";

    /// The key of a batch whose sender cannot make keys. `fingerprint` is that of its flows or of its body.
    pub fn of_content(fingerprint: u128) -> IdempotencyKey {
        let prefix = IdempotencyKey::CONTENT_PREFIX;
        IdempotencyKey(format!("{prefix}{fingerprint:032x}").into())
    }

    /// `None` if `key` is empty, too long, or has a character that is not visible ASCII.
    pub fn new(key: &[u8]) -> Option<IdempotencyKey> {
        let text = std::str::from_utf8(key).ok()?;
        IdempotencyKey::is_valid(key).then(|| IdempotencyKey(text.into()))
    }

    /// Whether [`IdempotencyKey::new`] accepts `key`.
    pub fn is_valid(key: &[u8]) -> bool {
        let fits = (1..=IdempotencyKey::CHARS_MAX).contains(&key.len());
        fits && key.iter().all(u8::is_ascii_graphic)
    }

    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}
