//! Access control: bearer tokens from files, and client certificates.
//!
//! Every client has a permission for which neither tokens nor client certificates are required. Then the service
//! refuses to start on an address other than loopback, except with `--allow-anonymous`. Tokens are compared in constant
//! time and appear neither in logs nor in `Debug` output.

use parking_lot::RwLock;
use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ipnet::IpNet;
use rustls::ServerConfig;
use subtle::ConstantTimeEq;
use warp::http::HeaderMap;
use warp::http::header;

use super::error::Problem;
use super::request::RequestContext;
use super::secrets::{AccessError, AccessFiles};
use super::tls;
use agent::client::{BoundToken, read_bound_tokens, read_tokens};

/// The kind of request that needs permission.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Permission {
    Write,
    Read,
    /// Requests between the nodes of a cluster.
    Node,
}

/// The secrets in use. A reload replaces all of them in one step; open connections are kept.
#[derive(Debug)]
pub struct Access {
    files: AccessFiles,
    secrets: RwLock<Arc<Secrets>>,
}

#[derive(Debug)]
struct Secrets {
    write: Option<Tokens>,
    read: Option<Tokens>,
    node: Option<Tokens>,
    tls: Option<Arc<ServerConfig>>,
}

impl Access {
    /// Reads the files.
    pub fn load(files: AccessFiles) -> Result<Access, AccessError> {
        let secrets = RwLock::new(Arc::new(Secrets::load(&files)?));
        Ok(Access { files, secrets })
    }

    /// Reads the files again. After an error, the previous secrets remain in use.
    pub fn reload(&self) -> Result<(), AccessError> {
        let fresh = Arc::new(Secrets::load(&self.files)?);
        *self.secrets.write() = fresh;
        Ok(())
    }

    fn secrets(&self) -> Arc<Secrets> {
        self.secrets.read().clone()
    }

    /// The TLS configuration for new connections.
    pub(super) fn tls(&self) -> Option<Arc<ServerConfig>> {
        self.secrets().tls.clone()
    }

    /// Checks that a request with these `headers` has `permission`.
    pub(super) fn authorize(
        &self,
        permission: Permission,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Result<(), Problem> {
        self.token(permission, headers, context).map(drop)
    }

    /// Checks that a request may write, and returns the addresses that its agent can claim; `None` for all.
    pub(super) fn authorize_claims(
        &self,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Result<Option<Ranges>, Problem> {
        self.token(Permission::Write, headers, context)
    }

    /// The addresses to which the request's token is bound.
    fn token(
        &self,
        permission: Permission,
        headers: &HeaderMap,
        context: &RequestContext,
    ) -> Result<Option<Ranges>, Problem> {
        let by_certificate = self
            .files
            .tls
            .as_ref()
            .is_some_and(|tls| tls.client_ca.is_some());
        if by_certificate && !context.certified {
            return Err(Problem::NoClientCertificate);
        }
        let secrets = self.secrets();
        let (mine, other) = match permission {
            Permission::Write => (&secrets.write, &secrets.read),
            Permission::Read => (&secrets.read, &secrets.write),
            Permission::Node => (&secrets.node, &secrets.read),
        };
        let Some(mine) = mine else {
            return Ok(None);
        };
        let token = bearer(headers).ok_or(Problem::NoToken)?;
        if let Some(known) = mine.find(token) {
            Ok(known.ranges.clone().map(Ranges))
        } else if other
            .as_ref()
            .is_some_and(|other| other.find(token).is_some())
        {
            Err(Problem::TokenLacksRight)
        } else {
            Err(Problem::WrongToken)
        }
    }
}

/// Addresses that an agent can claim.
#[derive(Clone, Debug)]
pub(super) struct Ranges(Vec<IpNet>);

impl Ranges {
    pub(super) fn contain(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|range| range.contains(&address))
    }
}

/// The token of an `Authorization: Bearer` header (RFC 6750), if there is exactly one such header.
fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next()?.as_bytes();
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    (scheme.eq_ignore_ascii_case(b"Bearer ") && values.next().is_none()).then(|| token.trim_ascii())
}

impl Secrets {
    fn load(files: &AccessFiles) -> Result<Secrets, AccessError> {
        let tokens = |path: &Option<PathBuf>| path.as_deref().map(Tokens::load).transpose();
        Ok(Secrets {
            write: (files.write_tokens.as_deref())
                .map(Tokens::load_bound)
                .transpose()?,
            read: tokens(&files.read_tokens)?,
            node: tokens(&files.node_tokens)?,
            tls: files.tls.as_ref().map(tls::load).transpose()?,
        })
    }
}

/// The tokens of a file. Any of them is valid, so that a file can have the old and the new one during a rotation.
struct Tokens(Vec<BoundToken>);

impl Tokens {
    fn load(path: &Path) -> Result<Tokens, AccessError> {
        let unbound = |token| BoundToken {
            token,
            ranges: None,
        };
        Ok(Tokens(
            read_tokens(path)?.into_iter().map(unbound).collect(),
        ))
    }

    /// Those whose agents may be bound to ranges of addresses.
    fn load_bound(path: &Path) -> Result<Tokens, AccessError> {
        Ok(Tokens(read_bound_tokens(path)?))
    }

    /// Compares with each token in constant time: the time depends on the tokens' lengths only.
    fn find(&self, token: &[u8]) -> Option<&BoundToken> {
        // All of them, also after the one that is equal.
        self.0.iter().fold(None, |found, known| {
            match bool::from(known.token.as_bytes().ct_eq(token)) {
                true => Some(known),
                false => found,
            }
        })
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use warp::http::HeaderValue;

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        file
    }

    #[test]
    fn token_files() {
        let good = file(b"# agents\nalpha\r\n\n  beta \n");
        let tokens = Tokens::load(good.path()).unwrap();
        for (token, expected) in [
            (&b"alpha"[..], true),
            (b"beta", true),
            (b"", false),
            (b"alph", false),
            (b"alphaa", false),
            (b"# agents", false),
        ] {
            assert_eq!(tokens.find(token).is_some(), expected, "{token:?}");
        }
        assert_eq!(format!("{tokens:?}"), "2 tokens");
    }

    #[test]
    fn bearer_headers() {
        let of = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(header::AUTHORIZATION, HeaderValue::from_static(value));
            }
            bearer(&headers).map(<[u8]>::to_vec)
        };
        assert_eq!(of(&["Bearer abc"]), Some(b"abc".to_vec()));
        assert_eq!(of(&["bearer  abc "]), Some(b"abc".to_vec()));
        for other in [
            &[][..],
            &["Basic abc"],
            &["Bearer"],
            &["Bearer a", "Bearer a"],
        ] {
            assert_eq!(of(other), None, "{other:?}");
        }
    }
}
