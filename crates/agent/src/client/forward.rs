//! Forwards `http://` requests through a proxy in absolute form (RFC 9112, 3.2.2): `POST http://host/flows
//! HTTP/1.1`. For `https://`, ureq opens a tunnel; it does not support the absolute form.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, DefaultConnector, NextTimeout, Transport,
};
use ureq::{Agent, Error, RequestBuilder};

/// The value of `Proxy-Authorization`.
#[derive(Clone)]
pub(super) struct Credentials(String);

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Credentials")
    }
}

impl Credentials {
    pub(super) fn from_proxy(proxy: &ureq::Proxy) -> Option<Credentials> {
        let (user, password) = (proxy.username(), proxy.password());
        if user.is_none() && password.is_none() {
            return None;
        }
        let (user, password) = (user.unwrap_or_default(), password.unwrap_or_default());
        let encoded = STANDARD.encode(format!("{user}:{password}"));
        Some(Credentials(format!("Basic {encoded}")))
    }

    pub(super) fn add_to<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        request.header("proxy-authorization", &self.0)
    }
}

/// An agent that connects to `proxy` for every request.
pub(super) fn agent(config: Config, proxy: Uri) -> Agent {
    let forward = Forward {
        proxy: proxy.clone(),
        connector: DefaultConnector::default(),
    };
    Agent::with_parts(config, forward, ProxyResolver(proxy))
}

/// Always resolves to the proxy's address, since only the proxy may be able to resolve the service's.
#[derive(Debug)]
struct ProxyResolver(Uri);

impl Resolver for ProxyResolver {
    fn resolve(
        &self,
        _: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        DefaultResolver::default().resolve(&self.0, config, timeout)
    }
}

#[derive(Debug)]
struct Forward {
    proxy: Uri,
    connector: DefaultConnector,
}

impl Connector for Forward {
    type Out = Forwarded;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        _: Option<()>,
    ) -> Result<Option<Forwarded>, Error> {
        let authority = details.uri.authority();
        let prefix = format!("http://{}", authority.map_or("", |a| a.as_str()));
        let details = ConnectionDetails {
            uri: &self.proxy,
            addrs: details.addrs.clone(),
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: details.now,
            timeout: details.timeout,
            current_time: details.current_time.clone(),
            run_connector: details.run_connector.clone(),
            register_shutdown: details.register_shutdown.clone(),
        };
        let connection = self.connector.connect(&details, None)?;
        Ok(connection.map(|connection| Forwarded {
            connection,
            prefix,
            is_head: true,
        }))
    }
}

/// A connection to the proxy that adds scheme and host to each request target.
#[derive(Debug)]
struct Forwarded {
    connection: Box<dyn Transport>,
    prefix: String,
    /// The next output is the start of a request.
    is_head: bool,
}

impl Transport for Forwarded {
    fn buffers(&mut self) -> &mut dyn Buffers {
        self.connection.buffers()
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        if !std::mem::take(&mut self.is_head) {
            return self.connection.transmit_output(amount, timeout);
        }
        let head = &self.connection.buffers().output()[..amount];
        // After the method.
        let at = memchr::memchr(b' ', head).map_or(amount, |at| at + 1);
        let whole = [&head[..at], self.prefix.as_bytes(), &head[at..]].concat();
        let mut rest = &whole[..];
        while !rest.is_empty() {
            let buffer = self.connection.buffers().output();
            let (now, later) = rest.split_at(rest.len().min(buffer.len()));
            buffer[..now.len()].copy_from_slice(now);
            self.connection.transmit_output(now.len(), timeout)?;
            rest = later;
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        // A whole request is sent before its response is read.
        self.is_head = true;
        self.connection.await_input(timeout)
    }

    fn is_open(&mut self) -> bool {
        self.connection.is_open()
    }
}
