//! Where tokens, certificates and keys are, and what is wrong with such a file.

use std::fmt;
use std::path::{Path, PathBuf};

/// Where the secrets are.
#[derive(Clone, Debug, Default)]
pub struct AccessFiles {
    /// Tokens of those who may send flows; without it, nobody needs one for that.
    pub write_tokens: Option<PathBuf>,
    /// Tokens of those who may ask.
    pub read_tokens: Option<PathBuf>,
    /// Tokens of the other nodes of a cluster.
    pub node_tokens: Option<PathBuf>,
    pub tls: Option<TlsFiles>,
}

/// PEM files for TLS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by those of the authorities in between.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients need a certificate of this authority, or one of these.
    pub client_ca: Option<PathBuf>,
}

/// A file of secrets that cannot be used. Says which and why, and nothing of what is in it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", path.display())]
pub struct AccessError {
    path: PathBuf,
    what: String,
}

impl AccessError {
    pub(super) fn new(path: &Path, what: impl fmt::Display) -> AccessError {
        AccessError {
            path: path.to_owned(),
            what: what.to_string(),
        }
    }
}
