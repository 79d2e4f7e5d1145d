//! Chooses the proxy for a request, by the same variables and rules as curl. Requests to this machine
//! never go through a proxy.
//!
//! | URL | first of these variables that is set and not empty |
//! |---|---|
//! | `http://` | `http_proxy`, `HTTP_PROXY`, `all_proxy`, `ALL_PROXY` |
//! | `https://` | `https_proxy`, `HTTPS_PROXY`, `all_proxy`, `ALL_PROXY` |
//!
//! In a CGI program, the request header `Proxy:` becomes `HTTP_PROXY`, so that variable is ignored if
//! `REQUEST_METHOD` is set. `no_proxy` or `NO_PROXY` lists the hosts that are reached directly.

use std::net::IpAddr;

use ipnet::IpNet;
use ureq::ProxyProtocol;
use ureq::http::Uri;
use ureq::http::uri::InvalidUri;

use super::ClientError;
use super::forward::Credentials;

/// A proxy, and the variable that names it.
#[derive(Clone, PartialEq, Eq)]
pub struct Proxy {
    url: String,
    variable: &'static str,
}

impl std::fmt::Debug for Proxy {
    /// Omits the password.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::fmt::Display for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the proxy {} of {}", self.shown(), self.variable)
    }
}

impl Proxy {
    /// The proxy for `url`, if there is one.
    ///
    /// # Errors
    /// If a variable names an unusable proxy, or `url` is not a URL.
    pub fn for_url(url: &str) -> Result<Option<Proxy>, ClientError> {
        let wrong = |e| ClientError::Options(format!("{url:?} is not a URL: {e}"));
        let url = url.parse().map_err(|e: InvalidUri| wrong(e))?;
        Proxy::choose(&url, |name| std::env::var(name).ok())
    }

    fn choose(
        url: &Uri,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Proxy>, ClientError> {
        let set = |name: &'static str| Some((name, variable(name).filter(|v| !v.is_empty())?));
        let is_cgi = variable("REQUEST_METHOD").is_some();
        let own = match url.scheme_str() {
            Some("http") => set("http_proxy").or_else(|| set("HTTP_PROXY").filter(|_| !is_cgi)),
            Some("https") => set("https_proxy").or_else(|| set("HTTPS_PROXY")),
            _ => None,
        };
        let named = own
            .or_else(|| set("all_proxy"))
            .or_else(|| set("ALL_PROXY"));
        let (Some((variable, proxy)), Some(host)) = (named, Host::from_url(url)) else {
            return Ok(None);
        };
        let excluded = set("no_proxy").or_else(|| set("NO_PROXY"));
        if host.is_this_machine() || excluded.is_some_and(|(_, list)| host.is_in(&list)) {
            return Ok(None);
        }
        let chosen = Proxy {
            url: proxy.trim().to_owned(),
            variable,
        };
        match chosen.for_ureq() {
            Err(_) => Err(chosen.unusable("it is not a URL")),
            Ok(proxy) if !has_host_and_port(&proxy) => {
                Err(chosen.unusable("its host or port is invalid"))
            }
            Ok(proxy) => match proxy.protocol() {
                ProxyProtocol::Http | ProxyProtocol::Https => Ok(Some(chosen)),
                _ => Err(chosen.unusable("flowtally does not support SOCKS")),
            },
        }
    }

    /// The proxy's address with its port, and the credentials from its URL.
    pub(super) fn address(&self) -> Result<(Uri, Option<Credentials>), ClientError> {
        let proxy = self
            .for_ureq()
            .map_err(|_| self.unusable("it is not a URL"))?;
        let scheme = match proxy.protocol() {
            ProxyProtocol::Https => "https",
            _ => "http",
        };
        let address = format!("{scheme}://{}:{}", proxy.host(), proxy.port());
        let address = address
            .parse()
            .map_err(|_| self.unusable("it is not a URL"))?;
        Ok((address, Credentials::from_proxy(&proxy)))
    }

    pub(super) fn for_ureq(&self) -> Result<ureq::Proxy, ureq::Error> {
        ureq::Proxy::new(&self.url)
    }

    fn unusable(&self, why: &str) -> ClientError {
        ClientError::Options(format!(
            "{} is {:?}, but must be like http://proxy:3128: {why}; NO_PROXY lists the hosts that \
             are reached without it",
            self.variable,
            self.shown()
        ))
    }

    /// With user name and password, if it has them.
    pub fn url(&self) -> String {
        match self.url.contains("://") {
            true => self.url.clone(),
            false => format!("http://{}", self.url),
        }
    }

    /// Without user name and password.
    fn shown(&self) -> String {
        let url = self.url();
        match (url.split_once("://"), url.rsplit_once('@')) {
            (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
            _ => url,
        }
    }
}

/// Such a URL may have an invalid port.
fn has_host_and_port(proxy: &ureq::Proxy) -> bool {
    let authority = proxy.uri().authority().map_or("", |a| a.as_str());
    let after_user = authority
        .rsplit_once('@')
        .map_or(authority, |(_, rest)| rest);
    let port = after_user.strip_prefix(proxy.host());
    let port = port.map(|port| port.strip_prefix(':').unwrap_or("80"));
    !proxy.host().is_empty() && port.is_some_and(|port| port.parse::<u16>().is_ok())
}

/// The hosts and networks of `NO_PROXY`, to configure another library. Entries with a port are omitted, since
/// the library may not support them.
pub fn no_proxy_entries() -> Vec<String> {
    let set = |name| std::env::var(name).ok().filter(|list| !list.is_empty());
    let list = set("no_proxy")
        .or_else(|| set("NO_PROXY"))
        .unwrap_or_default();
    let whole = entries(&list).filter(|entry| entry.port.is_none());
    whole.map(|entry| entry.host.to_owned()).collect()
}

/// The host of a request.
struct Host {
    /// In lower case.
    name: String,
    ip: Option<IpAddr>,
    port: u16,
}

impl Host {
    fn from_url(url: &Uri) -> Option<Host> {
        let name = url.host()?.trim_start_matches('[').trim_end_matches(']');
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let default = match url.scheme_str() {
            Some("https") => 443,
            _ => 80,
        };
        Some(Host {
            ip: name.parse().ok().map(|ip: IpAddr| ip.to_canonical()),
            name,
            port: url.port_u16().unwrap_or(default),
        })
    }

    fn is_this_machine(&self) -> bool {
        match self.ip {
            Some(ip) => ip.is_loopback() || ip.is_unspecified(),
            // RFC 6761
            None => self.name == "localhost" || self.name.ends_with(".localhost"),
        }
    }

    fn is_in(&self, list: &str) -> bool {
        entries(list).any(|entry| entry.matches(self))
    }
}

/// An entry of `NO_PROXY`.
struct Excluded<'a> {
    host: &'a str,
    port: Option<u16>,
}

/// Entries are separated by commas or blanks.
fn entries(list: &str) -> impl Iterator<Item = Excluded<'_>> {
    let words = list.split(|c: char| c == ',' || c.is_whitespace());
    words.filter(|word| !word.is_empty()).map(Excluded::new)
}

impl Excluded<'_> {
    /// `host`, `host:port`, `address`, `[address]:port`, `network/length`; a host may begin with `.` or `*.`.
    fn new(text: &str) -> Excluded<'_> {
        // IPv6 addresses contain colons too.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') || host.ends_with(']') => {
                match port.parse() {
                    Ok(port) => (host, Some(port)),
                    Err(_) => (text, None),
                }
            }
            _ => (text, None),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let host = match host {
            "*" => host,
            _ => host.strip_prefix('*').unwrap_or(host),
        };
        let host = host.strip_prefix('.').unwrap_or(host);
        Excluded {
            host: host.strip_suffix('.').unwrap_or(host),
            port,
        }
    }

    fn matches(&self, host: &Host) -> bool {
        if self.port.is_some_and(|port| port != host.port) {
            return false;
        }
        if self.host == "*" {
            return true;
        }
        match host.ip {
            Some(ip) => {
                let is_same = |address: IpAddr| address.to_canonical() == ip;
                let net: Option<IpNet> = self.host.parse().ok();
                self.host.parse().is_ok_and(is_same) || net.is_some_and(|net| net.contains(&ip))
            }
            None => {
                let suffix = self.host.to_ascii_lowercase();
                let rest = host.name.strip_suffix(suffix.as_str());
                // A domain matches itself and its subdomains, but not other names with the same ending.
                !suffix.is_empty() && rest.is_some_and(|r| r.is_empty() || r.ends_with('.'))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(url: &str, variables: &[(&str, &str)]) -> Result<Option<&'static str>, String> {
        let of = |name: &str| {
            let found = variables.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        let chosen = Proxy::choose(&url.parse().unwrap(), of);
        chosen
            .map(|proxy| proxy.map(|proxy| proxy.variable))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn each_scheme_has_its_variables() {
        const P: &str = "http://p:1";
        let all = [
            ("http_proxy", P),
            ("HTTP_PROXY", P),
            ("https_proxy", P),
            ("HTTPS_PROXY", P),
            ("all_proxy", P),
            ("ALL_PROXY", P),
        ];
        for (url, expected) in [
            ("http://s:8080", ["http_proxy", "HTTP_PROXY"]),
            ("https://s", ["https_proxy", "HTTPS_PROXY"]),
        ] {
            let names = expected.into_iter().chain(["all_proxy", "ALL_PROXY"]);
            let mut left = all.to_vec();
            for name in names {
                assert_eq!(choose(url, &left), Ok(Some(name)), "{url}");
                // An empty variable counts as not set.
                for (variable, value) in &mut left {
                    if *variable == name {
                        *value = "";
                    }
                }
            }
            assert_eq!(choose(url, &left), Ok(None), "{url}");
        }
        let cgi = ("REQUEST_METHOD", "GET");
        assert_eq!(choose("http://s", &[("HTTP_PROXY", P), cgi]), Ok(None));
        assert_eq!(
            choose("http://s", &[("http_proxy", P), cgi]),
            Ok(Some("http_proxy"))
        );
        assert_eq!(
            choose("https://s", &[("HTTPS_PROXY", P), cgi]),
            Ok(Some("HTTPS_PROXY"))
        );
    }

    #[test]
    fn loopback_bypasses_the_proxy() {
        for host in [
            "127.0.0.1:8080",
            "127.9.9.9",
            "[::1]:8080",
            "[::ffff:127.0.0.1]",
            "0.0.0.0:8080",
            "localhost",
            "LOCALHOST.:1",
            "a.localhost",
        ] {
            for scheme in ["http", "https"] {
                let chosen = choose(&format!("{scheme}://{host}"), &[("ALL_PROXY", "p:1")]);
                assert_eq!(chosen, Ok(None), "{host}");
            }
        }
        for host in ["notlocalhost", "localhost.example", "128.0.0.1", "[::2]"] {
            let chosen = choose(&format!("http://{host}"), &[("ALL_PROXY", "p:1")]);
            assert_eq!(chosen, Ok(Some("ALL_PROXY")), "{host}");
        }
    }

    #[test]
    fn no_proxy_hosts_bypass_the_proxy() {
        for (list, host, direct) in [
            ("*", "svc.example", true),
            ("a, *", "svc.example", true),
            ("svc.example", "svc.example", true),
            ("SVC.Example", "svc.example", true),
            ("example", "svc.example", true),
            (".example", "svc.example", true),
            (".example", "example", true),
            ("*.example", "a.svc.example", true),
            ("example.", "svc.example", true),
            ("example", "svc.example.", true),
            ("ample", "svc.example", false),
            ("svc.example", "example", false),
            ("", "svc.example", false),
            (",. ,", "svc.example", false),
            ("a b svc.example", "svc.example", true),
            ("a,\tsvc.example ,b", "svc.example", true),
            ("svc.example:8080", "svc.example:8080", true),
            ("svc.example:8080", "svc.example", false),
            ("svc.example:80", "svc.example", true),
            ("10.0.0.0/8", "10.1.2.3", true),
            ("10.0.0.0/8", "11.1.2.3", false),
            ("10.1.2.3", "10.1.2.3:8080", true),
            ("10.1.2.3:8080", "10.1.2.3:8080", true),
            ("10.1.2.3:8080", "10.1.2.3:8081", false),
            ("10.1.2", "10.1.2.3", false),
            ("2.3", "10.1.2.3", false),
            ("2001:db8::/32", "[2001:db8::1]:8080", true),
            ("2001:db8::1", "[2001:DB8::1]", true),
            ("[2001:db8::1]", "[2001:db8::1]", true),
            ("[2001:db8::1]:80", "[2001:db8::1]", true),
            ("[2001:db8::1]:81", "[2001:db8::1]", false),
            ("10.0.0.0/8", "[::ffff:10.1.2.3]", true),
        ] {
            let variables = [("http_proxy", "p:1"), ("NO_PROXY", list)];
            let expected = (!direct).then_some("http_proxy");
            let chosen = choose(&format!("http://{host}"), &variables);
            assert_eq!(chosen, Ok(expected), "{list:?} {host}");
        }
        // The lower-case variable takes precedence.
        let both = [("http_proxy", "p:1"), ("no_proxy", "a"), ("NO_PROXY", "b")];
        assert_eq!(choose("http://a", &both), Ok(None));
        assert_eq!(choose("http://b", &both), Ok(Some("http_proxy")));
    }

    #[test]
    fn errors_about_proxies_hide_the_password() {
        for value in [
            "socks5://u:secret@p:1",
            "ftp://u:secret@p",
            "http://u:secret@",
            "u:secret@p:x",
        ] {
            let chosen = choose("http://s", &[("HTTP_PROXY", value)]);
            let error = chosen.expect_err(value);
            assert!(error.starts_with("HTTP_PROXY is "), "{error}");
            assert!(!error.contains("secret"), "{error}");
        }
        let proxy = Proxy {
            url: "u:secret@p:3128".into(),
            variable: "ALL_PROXY",
        };
        assert_eq!(proxy.to_string(), "the proxy http://p:3128 of ALL_PROXY");
    }
}
