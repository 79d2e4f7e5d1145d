//! Tokens, TLS and client certificates, against the real binary.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};

use crate::support::{Client, Daemon, JSON, Response, TestFlow, json_body};
use crate::wait::{until, until_logged};

fn one() -> Vec<TestFlow> {
    vec![TestFlow::new(1, "foo", "bar", "vpc-0", 100, 300)]
}

fn write(path: PathBuf, text: &str) -> String {
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn post(client: &Client, authorization: Option<&str>) -> Response {
    let mut headers = vec![JSON];
    headers.extend(authorization.map(|value| ("authorization", value)));
    client.post("/flows", &headers, &json_body(&one())).unwrap()
}

fn get(client: &Client, authorization: Option<&str>) -> Response {
    let headers: Vec<_> = authorization
        .map(|value| ("authorization", value))
        .into_iter()
        .collect();
    client.get("/flows?hour=1", &headers).unwrap()
}

fn problem(response: &Response) -> String {
    let kind = response.json()["type"].as_str().unwrap().to_owned();
    format!("{} {}", response.status, kind.rsplit(':').next().unwrap())
}

#[test]
fn tokens_guard_writing_and_reading() {
    let dir = tempfile::tempdir().unwrap();
    let writers = write(
        dir.path().join("writers"),
        "# agents\nw-secret-1\nw-secret-2\n",
    );
    let readers = write(dir.path().join("readers"), "r-secret\n");
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &[
            "--write-token-file",
            &writers,
            "--read-token-file",
            &readers,
            "--log",
            "trace",
        ],
    );
    let client = &daemon.client;
    for token in ["w-secret-1", "w-secret-2"] {
        assert_eq!(post(client, Some(&format!("Bearer {token}"))).status, 200);
    }
    assert_eq!(get(client, Some("bearer r-secret")).rows()[0].1.tx, 200);

    for (authorization, expected) in [
        (None, "401 no-token"),
        (Some("Basic dzp3"), "401 no-token"),
        (Some("Bearer w-secret"), "401 wrong-token"),
        (Some("Bearer w-secret-11"), "401 wrong-token"),
        (Some("Bearer # agents"), "401 wrong-token"),
        (Some("Bearer "), "401 no-token"),
        (Some("Bearer r-secret"), "403 token-lacks-right"),
    ] {
        let response = post(client, authorization);
        let got = problem(&response);
        // An HTTP client may trim the value, so that there is an empty token, or none.
        let empty = authorization == Some("Bearer ") && got == "401 wrong-token";
        assert!(got == expected || empty, "{authorization:?}: {got}");
        let challenge = response.header("www-authenticate");
        assert_eq!(challenge.is_some(), response.status == 401, "{challenge:?}");
    }
    assert_eq!(problem(&get(client, None)), "401 no-token");
    assert_eq!(
        problem(&get(client, Some("Bearer w-secret-1"))),
        "403 token-lacks-right"
    );
    for path in ["/healthz", "/readyz"] {
        assert_eq!(client.get(path, &[]).unwrap().status, 200);
    }
    // Refused flows were not counted.
    assert_eq!(get(client, Some("Bearer r-secret")).rows()[0].1.tx, 200);
    for secret in ["secret-1", "secret-2", "r-secret", "w-secret"] {
        assert!(!daemon.log().contains(secret), "{}", daemon.log());
    }
    daemon.stop();
}

#[test]
fn a_hangup_reloads_tokens_and_keeps_connections() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("writers");
    let writers = write(path.clone(), "old\n");
    let daemon = Daemon::start_with(&dir.path().join("db"), &["--write-token-file", &writers]);
    let mut kept = TcpStream::connect(daemon.address).unwrap();
    kept.set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    let mut on_kept = |token: &str| {
        let body = String::from_utf8(json_body(&one())).unwrap();
        let length = body.len();
        write!(
            kept,
            "POST /flows HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             authorization: Bearer {token}\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut response = [0; 4096];
        let n = kept.read(&mut response).unwrap();
        String::from_utf8_lossy(&response[..n])[9..12].to_owned()
    };
    assert_eq!(on_kept("old"), "200");
    assert_eq!(on_kept("new"), "401");
    assert_eq!(
        get(&daemon.client, None).status,
        200,
        "reading is not guarded"
    );

    write(path.clone(), "new\nold\n");
    daemon.signal("HUP");
    until_logged(&daemon, "tokens and certificates reloaded");
    assert_eq!(
        (on_kept("old"), on_kept("new")),
        ("200".into(), "200".into())
    );

    // A file that cannot be used changes nothing, and the log names it.
    write(path.clone(), "\n");
    daemon.signal("HUP");
    until_logged(&daemon, "remain in use");
    assert!(daemon.log().contains("no token in it"), "{}", daemon.log());
    assert_eq!(
        (on_kept("old"), on_kept("new")),
        ("200".into(), "200".into())
    );

    write(path, "new\n");
    daemon.signal("HUP");
    until("the old token to be refused", || on_kept("old") == "401");
    assert_eq!(on_kept("new"), "200");
    daemon.stop();
}

/// Asserts that the process exits with status 1 and one line that contains `word`.
fn refuses(dir: &Path, arguments: &[&str], word: &str) {
    let output = Command::new(Daemon::binary())
        .args(["serve", "--data-dir"])
        .arg(dir.join("db"))
        .args(arguments)
        .env("FLOWTALLY_LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains(word) && error.lines().count() == 1,
        "{error}"
    );
    assert!(!dir.join("db").exists());
}

#[test]
fn a_start_without_tokens_is_refused_beyond_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = write(dir.path().join("tokens"), "t\n");
    let listen = ["--listen", "0.0.0.0:0"];
    let with = |more: &[&'static str]| [&listen[..], more].concat();
    refuses(
        dir.path(),
        &with(&[]),
        "--write-token-file and --read-token-file",
    );
    refuses(
        dir.path(),
        &[&listen[..], &["--write-token-file", &tokens]].concat(),
        "read them: give --read-token-file",
    );
    refuses(
        dir.path(),
        &[&listen[..], &["--read-token-file", &tokens]].concat(),
        "send flows: give --write-token-file",
    );
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let empty = write(dir.path().join("empty"), "");
    let pki = Pki::new(dir.path());
    refuses(
        dir.path(),
        &["--write-token-file", "/nowhere/tokens"],
        "/nowhere/tokens: ",
    );
    refuses(dir.path(), &["--read-token-file", &empty], "no token in it");
    refuses(
        dir.path(),
        &["--tls-cert", &empty, "--tls-key", &pki.key],
        "no PEM certificate",
    );
    refuses(
        dir.path(),
        &["--tls-cert", &pki.cert, "--tls-key", &empty],
        "no PEM of the right kind",
    );
    // The key of another certificate.
    let other = Pki::new(&dir.path().join("other"));
    refuses(
        dir.path(),
        &["--tls-cert", &pki.cert, "--tls-key", &other.key],
        "KeyMismatch",
    );
}

/// An authority, a certificate for 127.0.0.1 and one for a client, as files.
pub struct Pki {
    pub ca: String,
    pub cert: String,
    pub key: String,
    pub client: (String, String),
}

impl Pki {
    pub fn new(dir: &Path) -> Pki {
        std::fs::create_dir_all(dir).unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL treats a certificate as self-signed if it has its issuer's name.
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "authority");
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let signed = |name: &str, file: &str| {
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
            let cert = params.signed_by(&key, &ca).unwrap();
            (
                write(dir.join(format!("{file}.crt")), &cert.pem()),
                write(dir.join(format!("{file}.key")), &key.serialize_pem()),
            )
        };
        let (cert, key) = signed("127.0.0.1", "server");
        Pki {
            cert,
            key,
            client: signed("agent", "client"),
            ca: write(dir.join("ca.crt"), &ca.pem()),
        }
    }

    /// A daemon with the server's certificate, which may require the client's.
    pub fn serve(&self, data_dir: &Path, asks: bool) -> Daemon {
        let mut arguments = vec!["--tls-cert", &self.cert, "--tls-key", &self.key];
        if asks {
            arguments.extend(["--tls-client-ca", &self.ca]);
        }
        let daemon = Daemon::launch(data_dir, &arguments);
        until_logged(&daemon, " ready ");
        daemon
    }

    /// A connection that trusts this authority, with a certificate of `client` or none.
    fn connect(
        &self,
        address: SocketAddr,
        client: Option<&Pki>,
    ) -> StreamOwned<ClientConnection, TcpStream> {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(&self.ca).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match client {
            None => config.with_no_client_auth(),
            Some(pki) => {
                let certs = vec![CertificateDer::from_pem_file(&pki.client.0).unwrap()];
                let key = PrivateKeyDer::from_pem_file(&pki.client.1).unwrap();
                config.with_client_auth_cert(certs, key).unwrap()
            }
        };
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let connection = ClientConnection::new(Arc::new(config), name).unwrap();
        let tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        StreamOwned::new(connection, tcp)
    }
}

/// Sends one request on a kept connection; returns the status and the whole response.
fn ask(
    stream: &mut (impl Read + Write),
    method: &str,
    path: &str,
    body: &str,
) -> std::io::Result<(u16, String)> {
    let length = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )?;
    let mut response = Vec::new();
    loop {
        let mut part = [0; 4096];
        let n = stream.read(&mut part)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        response.extend_from_slice(&part[..n]);
        let text = String::from_utf8_lossy(&response).to_lowercase();
        let Some((head, rest)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.split("content-length: ").nth(1).unwrap();
        let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
        if rest.len() >= length {
            return Ok((head[9..12].parse().unwrap(), rest.to_owned()));
        }
    }
}

#[test]
fn certificates_are_reloaded_for_new_connections() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(&dir.path().join("first"));
    let daemon = pki.serve(&dir.path().join("db"), false);
    let body = String::from_utf8(json_body(&one())).unwrap();
    let mut kept = pki.connect(daemon.address, None);
    let (status, response) = ask(&mut kept, "POST", "/flows", &body).unwrap();
    assert_eq!((status, response.as_str()), (200, "{\"accepted\":1}\n"));
    assert!(
        ask(&mut kept, "GET", "/flows?hour=1", "")
            .unwrap()
            .1
            .contains("\"bytes_tx\":100")
    );
    // A request without encryption fails.
    let mut plain = TcpStream::connect(daemon.address).unwrap();
    plain
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    assert!(ask(&mut plain, "GET", "/healthz", "").is_err());

    let other = Pki::new(&dir.path().join("second"));
    assert!(
        ask(
            &mut other.connect(daemon.address, None),
            "GET",
            "/healthz",
            ""
        )
        .is_err()
    );
    std::fs::copy(&other.cert, &pki.cert).unwrap();
    std::fs::copy(&other.key, &pki.key).unwrap();
    daemon.signal("HUP");
    until_logged(&daemon, "tokens and certificates reloaded");
    let mut fresh = other.connect(daemon.address, None);
    assert_eq!(ask(&mut fresh, "GET", "/healthz", "").unwrap().0, 200);
    assert_eq!(
        ask(&mut kept, "GET", "/healthz", "").unwrap().0,
        200,
        "the old connection"
    );
    daemon.stop();
}

#[test]
fn client_certificates_guard_all_but_health() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(&dir.path().join("ours"));
    let stranger = Pki::new(&dir.path().join("theirs"));
    let daemon = pki.serve(&dir.path().join("db"), true);
    let body = String::from_utf8(json_body(&one())).unwrap();
    let mut known = pki.connect(daemon.address, Some(&pki));
    assert_eq!(ask(&mut known, "POST", "/flows", &body).unwrap().0, 200);
    assert_eq!(ask(&mut known, "GET", "/flows?hour=1", "").unwrap().0, 200);

    let mut unknown = pki.connect(daemon.address, None);
    for path in ["/healthz", "/readyz"] {
        assert_eq!(ask(&mut unknown, "GET", path, "").unwrap().0, 200);
    }
    for (method, path, body) in [("GET", "/flows?hour=1", ""), ("POST", "/flows", &body)] {
        let (status, response) = ask(&mut unknown, method, path, body).unwrap();
        assert_eq!(status, 403);
        assert!(response.contains("no-client-certificate"), "{response}");
    }
    // A certificate of another authority fails the handshake.
    let mut wrong = pki.connect(daemon.address, Some(&stranger));
    assert!(ask(&mut wrong, "GET", "/healthz", "").is_err());
    daemon.stop();
}

/// Connections that never finish their handshake do not take slots from others.
#[test]
fn a_stalled_tls_handshake_does_not_delay_others() {
    let dir = tempfile::tempdir().unwrap();
    let pki = Pki::new(&dir.path().join("pki"));
    let daemon = pki.serve(&dir.path().join("db"), false);
    let stalled: Vec<_> = (0..50)
        .map(|_| TcpStream::connect(daemon.address).unwrap())
        .collect();
    let mut live = pki.connect(daemon.address, None);
    assert_eq!(ask(&mut live, "GET", "/healthz", "").unwrap().0, 200);
    drop(stalled);
    daemon.stop();
}
