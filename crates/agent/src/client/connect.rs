//! The connection: its address, its proxy, its certificates and its limits in time.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::Uri;
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};

use flow::HostName;

use super::{Client, ClientError, IDLE_TIME_MAX, Proxy, RESPONSE_TIME_MAX, Server, forward};

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

impl Client {
    /// # Errors
    /// [`ClientError::Options`]
    pub fn new(server: &Server) -> Result<Client, ClientError> {
        Client::with_idle_max(server, IDLE_TIME_MAX)
    }

    pub(super) fn with_idle_max(
        server: &Server,
        idle_max: Duration,
    ) -> Result<Client, ClientError> {
        let base = base_url(&server.url)?;
        let proxy = Proxy::for_url(&base)?;
        // A proxy forwards unencrypted requests; encrypted ones go through a tunnel.
        let forward = match &proxy {
            Some(proxy) if base.starts_with("http:") => Some(proxy.address()?),
            _ => None,
        };
        let unusable = |e: ureq::Error| ClientError::Options(e.to_string());
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_TIME_MAX))
            .timeout_recv_response(Some(RESPONSE_TIME_MAX))
            .timeout_per_read(Some(idle_max))
            .timeout_per_write(Some(idle_max))
            .user_agent(concat!("flowtally/", env!("CARGO_PKG_VERSION")))
            // Always set: otherwise ureq reads the proxy variables itself, and its rules differ from curl's.
            .proxy(
                proxy
                    .as_ref()
                    .filter(|_| forward.is_none())
                    .map(Proxy::for_ureq)
                    .transpose()
                    .map_err(unusable)?,
            )
            .tls_config(tls(server)?)
            .build();
        let (agent, proxy_credentials) = match forward {
            Some((address, credentials)) => (forward::agent(config, address), credentials),
            None => (config.into(), None),
        };
        Ok(Client {
            agent,
            base,
            authorization: server.token.as_ref().map(|token| format!("Bearer {token}")),
            proxy,
            proxy_credentials,
        })
    }

    /// The URL of `path`, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }
}

/// The service's base URL, without the path of an endpoint.
fn base_url(url: &str) -> Result<String, ClientError> {
    let bad = |why: &dyn fmt::Display| {
        ClientError::Options(format!(
            "--url is {url:?}, but must be like http://127.0.0.1:8080: {why}"
        ))
    };
    let uri: Uri = url.parse().map_err(|e| bad(&e))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(bad(&"it needs http:// or https:// and a host"));
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        let what = "--url has a user name or a password, which flowtally does not support; \
                    give a token with --token-file";
        return Err(ClientError::Options(what.into()));
    }
    if uri.query().is_some() || url.contains('#') {
        return Err(bad(&"it has a query or a fragment"));
    }
    let (host, authority) = (
        uri.host().unwrap_or_default(),
        uri.authority().map_or("", |a| a.as_str()),
    );
    // Resolvers also accept `127.1`, but the rules for proxies and for `Host` would not recognise this machine in it.
    if let Err(why) = host.parse::<HostName>() {
        return Err(bad(&format!("its host is not valid: {why}")));
    }
    // ureq would replace an invalid port by the scheme's default.
    let port = authority
        .strip_prefix(host)
        .and_then(|rest| rest.strip_prefix(':'));
    if port.is_some_and(|port| !port.is_empty() && !matches!(port.parse::<u16>(), Ok(1..))) {
        return Err(bad(&"its port is invalid: the limits are 1 and 65535"));
    }
    let url = url.trim_end_matches('/');
    // A scheme may be in upper case.
    let url = match uri
        .scheme_str()
        .map(|scheme| (scheme, url.split_at_checked(scheme.len())))
    {
        Some((scheme, Some((_, rest)))) => &format!("{scheme}{rest}"),
        _ => url,
    };
    Ok(url.strip_suffix("/flows").unwrap_or(url).to_owned())
}

fn tls(server: &Server) -> Result<TlsConfig, ClientError> {
    let unusable = |path: &Path, why: &dyn fmt::Display| {
        ClientError::Options(format!("{}: {why}", path.display()))
    };
    let read = |path: &Path| std::fs::read(path).map_err(|e| unusable(path, &e));
    let certificates = |path: &Path| -> Result<Vec<Certificate<'static>>, ClientError> {
        let pem = read(path)?;
        let items = parse_pem(&pem).filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(Ok(certificate)),
            Ok(_) => None,
            Err(error) => Some(Err(unusable(path, &error))),
        });
        let certificates = items.collect::<Result<Vec<_>, _>>()?;
        if certificates.is_empty() {
            return Err(unusable(path, &"it contains no certificate in PEM format"));
        }
        Ok(certificates)
    };
    let mut config = TlsConfig::builder();
    if let Some(path) = &server.ca {
        config = config.root_certs(RootCerts::Specific(Arc::new(certificates(path)?)));
    }
    if let Some((certificate, key)) = &server.certificate {
        let private = PrivateKey::from_pem(&read(key)?).map_err(|e| unusable(key, &e))?;
        let chain = certificates(certificate)?;
        config = config.client_cert(Some(ClientCert::new_with_certs(&chain, private)));
    }
    Ok(config.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls() {
        for (given, expected) in [
            ("http://h:1", "http://h:1"),
            ("https://h/", "https://h"),
            ("HTTP://h:65535", "http://h:65535"),
            ("http://h.:/", "http://h.:"),
            ("http://[::1]:1", "http://[::1]:1"),
            ("http://h/flowtally/flows", "http://h/flowtally"),
        ] {
            assert_eq!(base_url(given).unwrap(), expected);
        }
        let error = base_url("http://u:secret@h").unwrap_err().to_string();
        assert!(error.contains("--token-file") && !error.contains("secret"));
        for given in [
            "",
            "h:1",
            "ftp://h",
            "http://",
            "http://h?x=1",
            "http://h#x",
            "/flows",
            "http://h:0",
            "http://h:65536",
            "http://h:99999",
            "http://h:x",
            "http://[::1]:99999",
            "http://[::1",
            "http://.localhost",
            "http://a..b:1",
            "http://a..",
            "http://.",
        ] {
            let error = base_url(given).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:8080"), "{error}");
        }
    }
}
