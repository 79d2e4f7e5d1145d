//! Certificates from PEM files.

use std::path::Path;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{Error, PemObject};

/// The reason why a file has no certificates.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PemError {
    #[error(transparent)]
    Pem(#[from] Error),
    #[error("there is no PEM certificate in it")]
    NoCertificate,
}

/// The certificates in the file, at least one.
pub(crate) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let certificates = read?;
    if certificates.is_empty() {
        return Err(PemError::NoCertificate);
    }
    Ok(certificates)
}
