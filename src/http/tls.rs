//! TLS by rustls: versions 1.2 and 1.3, certificates from PEM files.

use std::path::Path;
use std::sync::Arc;

use rustls::crypto;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

use super::secrets::{AccessError, TlsFiles};
use crate::pem::{self, PemError};

pub(super) fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, AccessError> {
    let provider = Arc::new(crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| AccessError::new(&files.cert, e))?;
    let config = match &files.client_ca {
        None => config.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for root in certificates(path)? {
                roots.add(root).map_err(|e| AccessError::new(path, e))?;
            }
            // A client without a certificate completes the handshake, so that it can read `/healthz`;
            // `Access::authorize` rejects its other requests. A client with an invalid certificate fails the handshake.
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .allow_unauthenticated()
                .build()
                .map_err(|e| AccessError::new(path, e))?;
            config.with_client_cert_verifier(verifier)
        }
    };
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(|e| pem_error(&files.key, e))?;
    let mut config = config
        .with_single_cert(certificates(&files.cert)?, key)
        .map_err(|e| AccessError::new(&files.cert, format!("with {}: {e}", files.key.display())))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, AccessError> {
    pem::certificates(path).map_err(|error| match error {
        PemError::Pem(error) => pem_error(path, error),
        PemError::NoCertificate => AccessError::new(path, error),
    })
}

fn pem_error(path: &Path, error: rustls::pki_types::pem::Error) -> AccessError {
    use rustls::pki_types::pem::Error;
    match error {
        Error::Io(error) => AccessError::new(path, error),
        Error::NoItemsFound => AccessError::new(path, "there is no PEM of the right kind in it"),
        error => AccessError::new(path, format!("not PEM: {error}")),
    }
}
