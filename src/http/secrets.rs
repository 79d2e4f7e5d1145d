//! The files of tokens, certificates and keys, and the error for one that cannot be used.

use std::fmt;
use std::path::{Path, PathBuf};

use agent::client::TokenFileError;

/// The paths of all files with secrets.
#[derive(Clone, Debug, Default)]
pub struct AccessFiles {
    /// Tokens for sending flows; without it, sending needs no token.
    pub write_tokens: Option<PathBuf>,
    /// Tokens for reading.
    pub read_tokens: Option<PathBuf>,
    /// Tokens of the other nodes of a cluster.
    pub node_tokens: Option<PathBuf>,
    pub tls: Option<TlsFiles>,
}

/// PEM files for TLS.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate, followed by any intermediate certificates.
    pub cert: PathBuf,
    pub key: PathBuf,
    /// Clients need a certificate that one of these authorities issued.
    pub client_ca: Option<PathBuf>,
}

/// A file of secrets that cannot be used. The text has the path and the cause, but none of the content.
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

impl From<TokenFileError> for AccessError {
    fn from(error: TokenFileError) -> AccessError {
        AccessError {
            path: error.path,
            what: error.cause,
        }
    }
}
