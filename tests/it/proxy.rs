//! Proxy variables, with a proxy that records its requests: the same rules as curl's, and never for this machine.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::send::{flows, parts};
use crate::spool::batches;
use crate::spool_refused::{answering, response, set_aside};
use crate::support::{Daemon, Model, add_to, hour_of, ndjson_body};

/// Never resolves, so only a proxy reaches it.
const SERVICE: &str = "http://service.invalid:8080";
const SECURE: &str = "https://service.invalid";

/// A proxy that connects every request to `to`, or refuses it.
struct FakeProxy {
    url: String,
    heads: Arc<Mutex<Vec<String>>>,
}

impl FakeProxy {
    fn start(to: Option<SocketAddr>) -> FakeProxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://user:secret@{}", listener.local_addr().unwrap());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                let seen = seen.clone();
                std::thread::spawn(move || serve(stream, to, &seen));
            }
        });
        FakeProxy { url, heads }
    }

    /// Returns and clears the recorded requests.
    fn seen(&self) -> Vec<String> {
        std::mem::take(&mut *self.heads.lock())
    }
}

fn serve(mut stream: TcpStream, to: Option<SocketAddr>, seen: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap());
    let mut head = String::new();
    while lines.read_line(&mut head).is_ok_and(|n| n > 2) {}
    seen.lock().push(head);
    let first = seen.lock().last().unwrap().clone();
    let absolute = first
        .split(' ')
        .nth(1)
        .is_some_and(|target| target.starts_with("http://"));
    let (Some(to), true) = (to, absolute) else {
        let _may_have_left =
            stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n");
        return;
    };
    // Headers for the proxy are not passed on. Each connection is used once, so that each head is recorded.
    let head = first
        .lines()
        .filter(|line| !line.starts_with("proxy-"))
        .collect::<Vec<_>>();
    let head = format!(
        "{}\r\nconnection: close\r\n\r\n",
        head.join("\r\n").trim_end()
    );
    let mut there = TcpStream::connect(to).unwrap();
    there.write_all(head.as_bytes()).unwrap();
    let mut back = (there.try_clone().unwrap(), stream.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ends = std::io::copy(&mut back.0, &mut back.1);
        let _has_ended = back.1.shutdown(Shutdown::Both);
    });
    let _ends = std::io::copy(&mut lines, &mut there);
    let _has_ended = there.shutdown(Shutdown::Write);
}

fn flowtally(variables: &[(&str, &str)], arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(Daemon::binary())
        .args(arguments)
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _it_may_have_ended = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// Every command that talks to a service, with a token.
fn commands<'a>(url: &'a str, token: &'a str, dir: &'a str) -> Vec<Vec<&'a str>> {
    let url = ["--url", url, "--token-file", token];
    let of = |name: &[&'a str]| [name, &url[..]].concat();
    vec![
        of(&["send", "--retry-for", "0"]),
        of(&["import", "-"]),
        of(&["top", "--once"]),
        of(&["stats"]),
        of(&["export"]),
        of(&["backup", "--to", dir]),
    ]
}

#[test]
fn loopback_bypasses_the_proxy() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "secret-token\n").unwrap();
    let token = token.to_str().unwrap();
    let backups = dir.path().join("backups");
    let proxy = FakeProxy::start(None);
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &["--write-token-file", token, "--read-token-file", token],
    );
    let all = [
        "http_proxy",
        "HTTP_PROXY",
        "https_proxy",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ]
    .map(|name| (name, proxy.url.as_str()));
    let port = daemon.address.port();
    let mut model = Model::new();
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{port}");
        for arguments in commands(&url, token, backups.to_str().unwrap()) {
            let input = ndjson_body(&flows(3));
            let (status, _, error) = parts(&flowtally(&all, &arguments, &input));
            assert_eq!(status, Some(0), "{arguments:?}: {error}");
            assert_eq!(proxy.seen(), [""; 0], "{arguments:?}");
            if ["send", "import"].contains(&arguments[0]) {
                add_to(&mut model, &flows(3));
            }
        }
    }
    let bearer = ("authorization", "Bearer secret-token");
    let rows = daemon
        .client
        .get("/flows?hour=1", &[bearer])
        .unwrap()
        .rows();
    assert_eq!(rows, hour_of(&model, 1));
    daemon.stop();
}

#[test]
fn each_scheme_has_its_own_proxy_variable() {
    let proxy = FakeProxy::start(None);
    let stats = |url: &str, variables: &[(&str, &str)]| {
        let output = flowtally(variables, &["stats", "--url", url], b"");
        let (status, _, error) = parts(&output);
        assert_eq!(status, Some(1));
        assert!(!error.contains("secret"), "{error}");
        let seen = proxy.seen();
        let host = url.split_once("://").unwrap().1;
        let port = if host.contains(':') { "" } else { ":443" };
        match seen.is_empty() {
            true => assert!(!error.contains("proxy"), "{error}"),
            false => {
                let first = match url.starts_with("https") {
                    true => format!("CONNECT {host}{port} HTTP/1.1\r\n"),
                    false => format!("GET {url}/hours HTTP/1.1\r\n"),
                };
                let first = first.split("/hours").next().unwrap();
                assert!(seen[0].starts_with(first), "{seen:?}");
                let lines: Vec<_> = seen[0].lines().map(str::to_ascii_lowercase).collect();
                let hosts: Vec<_> = lines.iter().filter(|l| l.starts_with("host:")).collect();
                assert_eq!(hosts, [&format!("host: {host}{port}")], "{seen:?}");
                // user:secret
                let credentials = "proxy-authorization: Basic dXNlcjpzZWNyZXQ=".to_lowercase();
                assert!(lines.contains(&credentials), "{seen:?}");
                let shown = proxy.url.replace("user:secret@", "");
                assert!(error.contains(&format!("the proxy {shown} of ")), "{error}");
            }
        }
        !seen.is_empty()
    };
    let proxy_url = proxy.url.as_str();
    for (variable, http, https) in [
        ("HTTPS_PROXY", false, true),
        ("https_proxy", false, true),
        ("HTTP_PROXY", true, false),
        ("http_proxy", true, false),
        ("ALL_PROXY", true, true),
        ("all_proxy", true, true),
    ] {
        let set = [(variable, proxy_url)];
        assert_eq!(stats(SERVICE, &set), http, "{variable}");
        assert_eq!(stats(SECURE, &set), https, "{variable}");
        for list in [
            "*",
            "invalid",
            ".invalid",
            "a.b, service.invalid",
            "x service.invalid y",
        ] {
            let both = [(variable, proxy_url), ("NO_PROXY", list)];
            assert!(!stats(SERVICE, &both), "{list}");
            assert!(!stats(SECURE, &both), "{list}");
        }
    }
    let cgi = [("HTTP_PROXY", proxy_url), ("REQUEST_METHOD", "GET")];
    assert!(!stats(SERVICE, &cgi));
    // An address in a network for documentation (RFC 5737).
    let set = ("http_proxy", proxy_url);
    assert!(stats("http://192.0.2.1:8080", &[set]));
    assert!(stats(
        "http://192.0.2.1:8080",
        &[set, ("no_proxy", "10.0.0.0/8, 192.0.2.1:81")]
    ));
}

/// Like a usual proxy: requests in absolute form for `http://`, and tunnels to port 443 only.
#[test]
fn requests_through_a_proxy_arrive() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "secret-token\n").unwrap();
    let token = token.to_str().unwrap();
    // The request has a name that is not the proxy's.
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &["--write-token-file", token, "--read-token-file", token],
    );
    let proxy = FakeProxy::start(Some(daemon.address));
    let set = [("http_proxy", proxy.url.as_str())];
    let backups = dir.path().join("backups");
    let mut model = Model::new();
    for arguments in commands(SERVICE, token, backups.to_str().unwrap()) {
        let input = ndjson_body(&flows(3));
        let (status, _, error) = parts(&flowtally(&set, &arguments, &input));
        assert_eq!(status, Some(0), "{arguments:?}: {error}");
        let seen = proxy.seen();
        assert!(!seen.is_empty(), "{arguments:?}");
        for head in seen {
            let target = head.split(' ').nth(1).unwrap();
            assert!(target.starts_with("http://service.invalid:8080/"), "{head}");
            assert!(
                head.to_lowercase()
                    .contains("\r\nhost: service.invalid:8080\r\n"),
                "{head}"
            );
        }
        if ["send", "import"].contains(&arguments[0]) {
            add_to(&mut model, &flows(3));
        }
    }
    let bearer = ("authorization", "Bearer secret-token");
    let rows = daemon.client.get("/flows?hour=1", &[bearer]);
    assert_eq!(rows.unwrap().rows(), hour_of(&model, 1));
    daemon.stop();
}

/// If a proxy refuses a tunnel, the error has its name and status, and no flow is lost.
#[test]
fn a_proxy_that_refuses_a_tunnel_loses_no_flow() {
    for (status, tip) in [
        ("302 Found", ""),
        ("403 Forbidden", ""),
        ("407 Proxy Authentication Required", "USER:PASSWORD"),
        ("413 Payload Too Large", ""),
        ("422 Unprocessable Content", ""),
        ("502 Bad Gateway", ""),
    ] {
        let url = answering(move |_| response(status, "<p>no tunnel</p>"));
        let dir = tempfile::tempdir().unwrap();
        let spool = dir.path().to_str().unwrap();
        let arguments = [
            "send",
            "--url",
            SECURE,
            "--spool",
            spool,
            "--retry-for",
            "0",
        ];
        let output = flowtally(
            &[("https_proxy", &url)],
            &arguments,
            &ndjson_body(&flows(3)),
        );
        let (end, out, error) = parts(&output);
        assert_eq!(end, Some(1), "{status}: {out} {error}");
        assert!(error.contains(&url), "{status}: {error}");
        assert!(error.contains(&status[..3]), "{status}: {error}");
        assert!(error.contains(tip), "{status}: {error}");
        assert_eq!(
            batches(dir.path()).len(),
            1,
            "{status}: it is still in the spool"
        );
        assert!(set_aside(dir.path()).is_empty(), "{status}");
    }
}

/// Resolvers map these to this machine, but neither the rules for proxies nor the check of `Host` would.
#[test]
fn short_forms_of_addresses_are_refused() {
    let proxy = FakeProxy::start(None);
    for host in [
        "127.1",
        "2130706433",
        "0x7f.1",
        "127.0.0.0x1",
        "127.1.",
        "0x7F000001",
    ] {
        let url = format!("http://{host}:9");
        let set = [("http_proxy", proxy.url.as_str())];
        let (status, _, error) = parts(&flowtally(&set, &["stats", "--url", &url], b""));
        assert_eq!(status, Some(1), "{host}");
        assert!(error.contains("four decimal numbers"), "{host}: {error}");
        assert!(proxy.seen().is_empty(), "{host}");
    }
}

#[test]
fn an_invalid_proxy_variable_is_an_error() {
    for (value, word) in [
        ("socks5://u:secret@127.0.0.1:9", "SOCKS"),
        ("ftp://u:secret@127.0.0.1:9", "not a URL"),
        (
            "http://127.0.0.1:9",
            "the proxy http://127.0.0.1:9 of HTTP_PROXY",
        ),
    ] {
        let output = flowtally(&[("HTTP_PROXY", value)], &["stats", "--url", SERVICE], b"");
        let (status, _, error) = parts(&output);
        assert_eq!(status, Some(1));
        assert!(
            error.contains("HTTP_PROXY") && error.contains(word),
            "{error}"
        );
        assert!(!error.contains("secret"), "{error}");
    }
}
