//! TLS to peers: the trusted authorities, and this node's own certificate.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::pem;
use agent::client::ClientError;

/// PEM files. They are read again on a reload.
#[derive(Clone, Debug, Default)]
pub struct PeerTls {
    /// The only authorities to trust; without it, those of `webpki-roots`.
    pub ca: Option<PathBuf>,
    /// This node's certificate and its key, for peers that require one.
    pub certificate: Option<(PathBuf, PathBuf)>,
}

/// The TLS configuration of a client with these files.
///
/// # Errors
/// If a file cannot be used.
pub(super) fn load(files: &PeerTls) -> Result<ClientConfig, ClientError> {
    let roots = match &files.ca {
        None => RootCertStore {
            roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
        },
        Some(path) => {
            let mut roots = RootCertStore::empty();
            let (added, _ignored) = roots.add_parsable_certificates(certificates(path)?);
            if added == 0 {
                return Err(unusable(path, &"no certificate in it can be an authority"));
            }
            roots
        }
    };
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| ClientError::Options(e.to_string()))?
        .with_root_certificates(roots);
    let Some((certificate, key)) = &files.certificate else {
        return Ok(config.with_no_client_auth());
    };
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| unusable(key, &e))?;
    let config = config.with_client_auth_cert(certificates(certificate)?, private);
    config.map_err(|e| unusable(certificate, &format!("with {}: {e}", key.display())))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    pem::certificates(path).map_err(|e| unusable(path, &e))
}

fn unusable(path: &Path, why: &dyn fmt::Display) -> ClientError {
    ClientError::Options(format!("{}: {why}", path.display()))
}
