//! Rejects requests that a browser sends for pages of other sites.
//!
//! A page on any site can make a browser send requests, even to a service on loopback. A POST needs no preflight
//! request; and after DNS rebinding, which points the page's name at this machine, the page can send any request and
//! read the response. The browser sends the site of the page (`Origin`, `Sec-Fetch-Site`) and the name to which it
//! connects (`Host`). Both are checked before anything else. Programs other than browsers send neither `Origin` nor
//! `Sec-Fetch-Site`.

use warp::http::header::{self, HeaderMap, HeaderValue};
use warp::http::{Method, Version};

use flow::HostName;

use super::error::Problem;
use super::request::{Request, Target};

/// The host names that requests may have.
#[derive(Clone, Debug)]
pub struct Hosts(Option<Vec<HostName>>);

impl Hosts {
    /// Allows all names: for a service that requires authentication.
    pub fn any() -> Hosts {
        Hosts(None)
    }

    /// Allows loopback addresses, `localhost` and names below it, this machine's name, and `more`.
    pub fn of_this_machine(more: Vec<HostName>) -> Hosts {
        let mut names = more;
        let machine = rustix::system::uname();
        if let Ok(name) = machine.nodename().to_str() {
            let first_label = name.split('.').next().unwrap_or_default();
            names.extend([name, first_label].iter().filter_map(|n| n.parse().ok()));
        }
        Hosts(Some(names))
    }

    fn allows(&self, host: &HostName) -> bool {
        let Hosts(Some(names)) = self else {
            return true;
        };
        host.is_loopback() || names.contains(host)
    }

    /// # Errors
    /// A `Host` that is absent or malformed, a name that is not the service's, or a page of another site.
    pub(super) fn validate(&self, request: &Request<'_>) -> Result<(), Problem> {
        let host = requested_host(request.headers, &request.context.target)?;
        if let Some(host) = &host
            && !self.allows(&host.name)
        {
            let name = host.name.clone();
            return Err(Problem::ForeignHost { name });
        }
        if let Some(header) = foreign_page(request.method, request.headers, host.as_ref()) {
            return Err(Problem::ForeignOrigin { header });
        }
        Ok(())
    }
}

/// A name and a port, as in `Host` and in `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct HostPort {
    name: HostName,
    port: Option<u16>,
}

impl HostPort {
    fn parse(text: &str) -> Option<HostPort> {
        // The last colon outside of an address's brackets.
        let (name, port) = match text.rsplit_once(':') {
            Some((name, port)) if !port.contains(']') => (name, port),
            _ => (text, ""),
        };
        // Without brackets, an IPv6 address cannot be distinguished from its port.
        if !name.starts_with('[') && name.contains(':') {
            return None;
        }
        let is_port = port.bytes().all(|b| b.is_ascii_digit());
        let port = match port {
            "" => None,
            port if is_port => Some(port.parse().ok().filter(|port| *port > 0)?),
            _ => return None,
        };
        let name = name.parse().ok()?;
        Some(HostPort { name, port })
    }

    fn has_port(&self, default: Option<u16>, other: Option<u16>) -> bool {
        self.port == other || self.port.or(default) == other.or(default)
    }
}

/// The host that a request names; `None` if it names none, as in HTTP/1.0.
fn requested_host(headers: &HeaderMap, target: &Target) -> Result<Option<HostPort>, Problem> {
    let bad = |what: &str| Problem::BadHost { what: what.into() };
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = match (hosts.next(), hosts.next()) {
        (Some(_), Some(_)) => return Err(bad("there is more than one Host header")),
        (None, _) if target.version >= Version::HTTP_11 => {
            return Err(bad("there is no Host header, which HTTP/1.1 requires"));
        }
        (host, _) => host.map(HeaderValue::as_bytes),
    };
    // A target in absolute form overrides the header (RFC 9112, 3.2.2).
    let authority = target.authority.as_ref().map(|a| a.as_str().as_bytes());
    let parse = |text: &[u8]| {
        let host = std::str::from_utf8(text).ok().and_then(HostPort::parse);
        host.ok_or_else(|| {
            let text = String::from_utf8_lossy(text);
            bad(&format!(
                "Host is {text:?}, which is not a name or an address"
            ))
        })
    };
    let host = host.map(parse).transpose()?;
    let authority = authority.map(parse).transpose()?;
    Ok(authority.or(host))
}

/// The header which shows that the request comes from a page of another site.
fn foreign_page(
    method: &Method,
    headers: &HeaderMap,
    host: Option<&HostPort>,
) -> Option<&'static str> {
    let is = |name: &str, value: &str| headers.get(name).is_some_and(|v| v == value);
    // A user follows a link: the response is shown to the user, and the page with the link cannot read it.
    let is_link = (method == Method::GET || method == Method::HEAD)
        && is("sec-fetch-mode", "navigate")
        && is("sec-fetch-dest", "document");
    let mut sites = headers.get_all("sec-fetch-site").iter();
    if !is_link && sites.any(|site| site != "same-origin" && site != "none") {
        return Some("Sec-Fetch-Site");
    }
    let mut origins = headers.get_all(header::ORIGIN).iter();
    let is_foreign = |origin: &HeaderValue| {
        let origin = origin.to_str().ok().and_then(|o| o.split_once("://"));
        let own = origin.zip(host).and_then(|((scheme, rest), host)| {
            let default = match scheme {
                "http" => Some(80),
                "https" => Some(443),
                _ => return None,
            };
            let origin = HostPort::parse(rest)?;
            let same = origin.name == host.name && origin.has_port(default, host.port);
            same.then_some(())
        });
        own.is_none()
    };
    origins.any(is_foreign).then_some("Origin")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(lines: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    const LONG_LABEL: &str =
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa.localhost";

    #[test]
    fn names_of_this_machine() {
        let machine = rustix::system::uname();
        let machine = machine.nodename().to_str().unwrap();
        let hosts = Hosts::of_this_machine(vec![
            "flows.example.com".parse().unwrap(),
            "fd00::7".parse().unwrap(),
        ]);
        let has = |host: &str| HostPort::parse(host).is_some_and(|host| hosts.allows(&host.name));
        for own in [
            "127.0.0.1:8080",
            "127.0.0.1",
            "127.0.0.1.",
            "127.255.0.9:1",
            "[::1]:8080",
            "[::1]",
            "[0:0:0:0:0:0:0:1]:80",
            "[::ffff:127.0.0.1]:80",
            "localhost",
            "localhost:8080",
            "localhost:",
            "LocalHost.:8080",
            "flows.localhost",
            "my_flows-1.localhost.",
            "localhost:00080",
            "Flows.Example.com:443",
            "flows.example.com.",
            "[fd00::7]:8080",
            machine,
            &machine.to_uppercase(),
        ] {
            assert!(has(own), "{own}");
        }
        for foreign in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:8080",
            "notlocalhost",
            "evil-localhost",
            "0.0.0.0:8080",
            "10.0.0.1:8080",
            "128.0.0.1",
            "[::]:8080",
            "[::2]",
            "[::ffff:10.0.0.1]",
            "flows.example.com.evil",
            "sub.flows.example.com",
        ] {
            assert!(!has(foreign), "{foreign}");
            assert!(HostPort::parse(foreign).is_some(), "{foreign}");
            let any = Hosts::any();
            assert!(any.allows(&HostPort::parse(foreign).unwrap().name));
        }
        for none in [
            "",
            ":8080",
            "localhost:http",
            "localhost:99999",
            "::1",
            "[::1",
            "[::1]x",
            "user@localhost",
            "local host",
            "localhost/",
            "localhost, evil.example",
            "http://localhost",
            "lo\u{e9}calhost",
            ".localhost",
            ".localhost:8080",
            "a..localhost",
            "localhost..",
            ".",
            "..",
            "localhost:0",
            "localhost:65536",
            "localhost:+80",
            "localhost:80:80",
            "127.1",
            "127.0.1:8080",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "127.0.0.256",
            "127.0.0.1.2",
            "0x",
            "127.0.0.1..",
            "local%68ost",
            "%6c.localhost",
            "a@b.localhost",
            "*.localhost",
            "a,b.localhost",
            "[::1].",
            "::1]",
            "[]",
            "[127.0.0.1]",
            "[::1%25lo]",
            "[v1.localhost]",
            "localhost\0",
            "\tlocalhost",
            "a.0x7f",
            LONG_LABEL,
        ] {
            assert_eq!(HostPort::parse(none), None, "{none}");
        }
    }

    #[test]
    fn one_host_in_http_1_1() {
        let absolute = |uri: &str| {
            uri.parse::<warp::http::Uri>()
                .unwrap()
                .into_parts()
                .authority
        };
        let asked = |lines: &[(&'static str, &'static str)], version, authority| {
            let tail = None;
            let target = Target {
                version,
                authority,
                tail,
            };
            let host = requested_host(&headers(lines), &target);
            host.ok().map(|host| host.map(|p| p.name.to_string()))
        };
        let (old, new) = (Version::HTTP_10, Version::HTTP_11);
        let one = &[("host", "localhost:1")][..];
        let two = &[("host", "localhost"), ("host", "localhost")][..];
        assert_eq!(asked(one, new, None), Some(Some("localhost".into())));
        assert_eq!(asked(&[], new, None), None);
        assert_eq!(asked(&[], old, None), Some(None));
        assert_eq!(asked(one, old, None), Some(Some("localhost".into())));
        assert_eq!(asked(two, new, None), None);
        assert_eq!(asked(two, old, None), None);
        let evil = absolute("http://evil.example/flows");
        let name = Some(Some("evil.example".into()));
        assert_eq!(asked(one, new, evil.clone()), name);
        assert_eq!(asked(&[], new, evil), None);
        assert_eq!(asked(one, new, absolute("http://me@localhost/")), None);
    }

    #[test]
    fn pages_of_other_sites() {
        let host = HostPort::parse("127.0.0.1:8080");
        let own = HostPort::parse("flows.example.com");
        type Lines = &'static [(&'static str, &'static str)];
        let of = |method: &Method, lines: Lines, host: &Option<HostPort>| {
            foreign_page(method, &headers(lines), host.as_ref())
        };
        let post = |lines: Lines| of(&Method::POST, lines, &host);
        let get = |lines: Lines| of(&Method::GET, lines, &host);
        assert_eq!(post(&[]), None);
        assert_eq!(post(&[("origin", "http://127.0.0.1:8080")]), None);
        assert_eq!(post(&[("sec-fetch-site", "same-origin")]), None);
        assert_eq!(post(&[("sec-fetch-site", "none")]), None);
        for origin in [
            "https://evil.example",
            "null",
            "",
            "http://127.0.0.1",
            "http://127.0.0.1:3000",
            "http://localhost:8080",
            "file://",
            "chrome-extension://abcdef",
            "http://127.0.0.1:8080/",
        ] {
            let mut lines = HeaderMap::new();
            lines.insert("origin", origin.parse().unwrap());
            let found = foreign_page(&Method::GET, &lines, host.as_ref());
            assert_eq!(found, Some("Origin"), "{origin}");
        }
        assert_eq!(
            post(&[
                ("origin", "http://127.0.0.1:8080"),
                ("origin", "http://evil.example")
            ]),
            Some("Origin")
        );
        for site in [
            "cross-site",
            "same-site",
            "",
            "Same-Origin",
            "something new",
        ] {
            let mut lines = HeaderMap::new();
            lines.insert("sec-fetch-site", site.parse().unwrap());
            let found = foreign_page(&Method::GET, &lines, host.as_ref());
            assert_eq!(found, Some("Sec-Fetch-Site"), "{site}");
        }
        // A link to the service, and requests that resemble one.
        const LINK: Lines = &[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "document"),
        ];
        const FRAME: Lines = &[
            ("sec-fetch-site", "cross-site"),
            ("sec-fetch-mode", "navigate"),
            ("sec-fetch-dest", "iframe"),
        ];
        assert_eq!(get(LINK), None);
        assert_eq!(post(LINK), Some("Sec-Fetch-Site"));
        assert_eq!(get(FRAME), Some("Sec-Fetch-Site"));
        // A port that the scheme implies.
        let https: Lines = &[("origin", "https://Flows.example.com:443")];
        let port: Lines = &[("origin", "https://flows.example.com:8443")];
        assert_eq!(of(&Method::POST, https, &own), None);
        assert_eq!(of(&Method::POST, port, &own), Some("Origin"));
        assert_eq!(of(&Method::POST, https, &None), Some("Origin"));
    }
}
