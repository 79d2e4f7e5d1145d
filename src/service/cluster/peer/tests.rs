use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tokio_util::sync::CancellationToken;

use super::client::PeerRows;
use super::*;
use flow::query::text;
use flow::{Offset, Partition};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff";

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

fn client() -> PeerClient {
    PeerClient::new(PeerTls::default(), None).unwrap()
}

async fn rows(client: &PeerClient, url: &str) -> Result<PeerRows, PeerError> {
    let query = text::parse_flows("hour=1").unwrap();
    let time_max = Duration::from_secs(60);
    let cancel = CancellationToken::new();
    let request = client.rows(url, &[Partition::FIRST], &query, time_max, cancel);
    request.await
}

async fn await_applied(client: &PeerClient, url: &str) -> Result<(), PeerError> {
    let upto = [(Partition::FIRST, Offset::ZERO)];
    client.await_applied(url, &upto).await
}

/// The head of a request.
fn head(stream: &mut impl Read) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
        head.extend_from_slice(&byte);
    }
    String::from_utf8(head).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_node_is_detected() {
    // The system accepts connections, and no process reads from them.
    let (_listener, url) = listen();
    let mut client = client();
    client.probe_interval = Duration::from_millis(100);
    let error = rows(&client, &url).await.unwrap_err();
    assert!(matches!(error, PeerError::Unavailable { .. }), "{error}");
    // The time of the probe, not the 60 s of the query.
    let by_probe = error.to_string().ends_with("no response within 0 s");
    assert!(by_probe, "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_responds_to_probes_is_not_given_up() {
    let (listener, url) = listen();
    let node = thread::spawn(move || {
        let (mut rows, _) = listener.accept().unwrap();
        let request = head(&mut rows);
        assert!(
            request.starts_with("GET /partitions/rows?p=0&"),
            "{request}"
        );
        for _ in 0..3 {
            let (mut probe, _) = listener.accept().unwrap();
            assert!(head(&mut probe).starts_with("GET /healthz HTTP/1.1\r\n"));
            probe
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                .unwrap();
        }
        rows.write_all(OK).unwrap();
    });
    let mut client = client();
    client.probe_interval = Duration::from_millis(200);
    let mut response = rows(&client, &url).await.unwrap();
    let read = tokio::task::spawn_blocking(move || response.rows.advance());
    assert!(!read.await.unwrap().unwrap());
    node.join().unwrap();
}

/// Hours that are only kept in longer spans are a fault of the query, not of the node.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_query_that_is_too_fine_is_refused_with_the_peers_reason() {
    let (listener, url) = listen();
    let node = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _request = head(&mut stream);
        let body =
            r#"{"type":"urn:flowtally:problem:too-coarse","title":"t","detail":"before hour 9"}"#;
        let length = body.len();
        let head = format!("HTTP/1.1 400 Bad Request\r\ncontent-length: {length}\r\n\r\n");
        stream.write_all((head + body).as_bytes()).unwrap();
    });
    let error = rows(&client(), &url).await.unwrap_err();
    assert!(
        matches!(&error, PeerError::TooCoarse(what) if what == "before hour 9"),
        "{error}"
    );
    node.join().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_distinguish_unavailable_from_failing_nodes() {
    for (response, is_unavailable, says) in [
        (
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
            true,
            "503",
        ),
        (
            "HTTP/1.1 401 Unauthorized\r\ncontent-length: 31\r\n\r\n{\"title\":\"t1\",\"detail\":\"more\"}\n",
            false,
            "401 Unauthorized: t1: more",
        ),
        (
            "HTTP/1.1 302 Found\r\nlocation: /\r\ncontent-length: 0\r\n\r\n",
            false,
            "302",
        ),
        (
            "HTTP/1.1 200 OK\r\nflowtally-lag: x\r\ncontent-length: 0\r\n\r\n",
            false,
            "another version",
        ),
        ("", true, "closed"),
    ] {
        let (listener, url) = listen();
        let node = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _request = head(&mut stream);
            stream.write_all(response.as_bytes()).unwrap();
        });
        let error = rows(&client(), &url).await.unwrap_err();
        assert_eq!(
            matches!(error, PeerError::Unavailable { .. }),
            is_unavailable,
            "{error}"
        );
        let error = error.to_string();
        assert!(error.contains(says) && error.starts_with(&url), "{error}");
        node.join().unwrap();
    }
    for url in [
        "",
        "a:1",
        "ftp://a",
        "http://",
        "http://a:0x",
        "http://a:65536",
        "http://a:0",
        "http://a..b:1",
        "http://u:p@a",
    ] {
        assert!(validate_url(url).is_err(), "{url}");
        let error = rows(&client(), url).await.unwrap_err();
        assert!(matches!(error, PeerError::Failed { .. }), "{url}: {error}");
    }
    for url in [
        "http://a",
        "https://a_b.c:65535/",
        "http://[::1]:1",
        "http://a:1/flows",
    ] {
        validate_url(url).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_sends_no_faster_than_its_rows_are_read_and_stops_when_they_are_dropped() {
    let (listener, url) = listen();
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let (ended, has_ended) = mpsc::channel();
    thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let _request = head(&mut stream);
        let _head = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
        // Rows without names or bytes.
        let part = [0; 18 << 10];
        while stream.write_all(&part).is_ok() {
            count.fetch_add(part.len(), Ordering::SeqCst);
        }
        ended.send(()).unwrap();
    });
    let mut response = rows(&client(), &url).await.unwrap();
    let mut stalled_at = usize::MAX;
    while stalled_at != sent.load(Ordering::SeqCst) {
        stalled_at = sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    // As much as fits into the buffers of the system, and little more.
    assert!(stalled_at < 32 << 20, "{stalled_at}");
    let read = tokio::task::spawn_blocking(move || {
        for _ in 0..2 * stalled_at / 18 {
            assert!(response.rows.advance().unwrap());
        }
        response
    });
    let response = read.await.unwrap();
    assert!(sent.load(Ordering::SeqCst) > stalled_at);
    drop(response);
    has_ended.recv_timeout(Duration::from_secs(20)).unwrap();
}

/// Variables belong to the process, so the test runs itself in a child process that has them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_proxy_is_used() {
    const NAME: &str = "service::cluster::peer::tests::no_proxy_is_used";
    let Ok(proxy) = std::env::var("http_proxy") else {
        let (listener, url) = listen();
        listener.set_nonblocking(true).unwrap();
        let test = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", NAME])
            .env("http_proxy", &url)
            .env("HTTP_PROXY", &url)
            .env("ALL_PROXY", &url)
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&test.stdout);
        assert!(test.status.success() && out.contains("1 passed"), "{out}");
        let accepted = listener.accept().unwrap_err();
        assert_eq!(accepted.kind(), ErrorKind::WouldBlock);
        return;
    };
    assert!(proxy.starts_with("http://127.0.0.1:"));
    // An address for documentation: no host has it.
    let client = client();
    let request = rows(&client, "http://192.0.2.1:8080");
    let response = tokio::time::timeout(Duration::from_millis(300), request).await;
    assert!(!matches!(response, Ok(Ok(_))));
}

/// An authority, and a certificate of it with its key.
struct Certificates {
    ca: String,
    certificate: String,
    key: String,
}

impl Certificates {
    fn new() -> Certificates {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&key).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".into()]).unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        Certificates {
            ca: ca.pem(),
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    fn write(&self, dir: &Path) -> PeerTls {
        let write = |name: &str, text: &str| {
            let path = dir.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        PeerTls {
            ca: Some(write("ca", &self.ca)),
            certificate: Some((write("cert", &self.certificate), write("key", &self.key))),
        }
    }

    /// A server that requires certificates of the same authority.
    fn server(&self) -> Arc<ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(self.ca.as_bytes()).unwrap())
            .unwrap();
        let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let chain = CertificateDer::from_pem_slice(self.certificate.as_bytes()).unwrap();
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes()).unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(verifier.build().unwrap())
            .with_single_cert(vec![chain], key);
        Arc::new(config.unwrap())
    }
}

/// Responds to each connection with 204 over TLS.
fn serve_tls(listener: TcpListener, config: Arc<ServerConfig>) {
    let respond = move |stream: TcpStream| {
        let connection = ServerConnection::new(config.clone()).unwrap();
        let mut stream = StreamOwned::new(connection, stream);
        if head(&mut stream).starts_with("GET ") {
            // Fails if the client does not trust this server.
            let response = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n");
            let _sent = response.and_then(|()| stream.flush());
        }
    };
    thread::spawn(move || listener.incoming().flatten().for_each(respond));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_given_authority_is_trusted() {
    let (ours, others) = (Certificates::new(), Certificates::new());
    let (listener, url) = listen();
    let url = url.replace("http:", "https:");
    serve_tls(listener, ours.server());
    let dirs = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (ours, others) = (ours.write(dirs[0].path()), others.write(dirs[1].path()));
    let connect = async |tls: PeerTls| {
        let client = PeerClient::new(tls, None).unwrap();
        await_applied(&client, &url).await
    };
    connect(ours.clone()).await.unwrap();
    for (wrong, says) in [
        // By default, those that browsers trust.
        (
            PeerTls {
                ca: None,
                ..ours.clone()
            },
            "invalid peer certificate",
        ),
        (
            PeerTls {
                ca: others.ca.clone(),
                ..ours.clone()
            },
            "invalid peer certificate",
        ),
        (
            PeerTls {
                certificate: None,
                ..ours.clone()
            },
            "certificate",
        ),
        (
            PeerTls {
                certificate: others.certificate,
                ..ours.clone()
            },
            "",
        ),
    ] {
        let error = connect(wrong).await.unwrap_err();
        assert!(matches!(error, PeerError::Unavailable { .. }), "{error}");
        assert!(
            error
                .to_string()
                .to_lowercase()
                .contains(&says.to_lowercase()),
            "{error}"
        );
    }
    // A reload reads the files again.
    let client = PeerClient::new(ours.clone(), None).unwrap();
    std::fs::write(ours.ca.as_ref().unwrap(), "no certificate").unwrap();
    let error = client.reload().unwrap_err().to_string();
    assert!(error.contains("no PEM certificate"), "{error}");
    await_applied(&client, &url).await.unwrap();
    std::fs::write(ours.ca.unwrap(), std::fs::read(others.ca.unwrap()).unwrap()).unwrap();
    client.reload().unwrap();
    await_applied(&client, &url).await.unwrap_err();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_token_is_sent_and_not_printed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("tokens");
    std::fs::write(&file, "# nodes\nfirst\nsecond\n").unwrap();
    let client = PeerClient::new(PeerTls::default(), Some(file)).unwrap();
    assert!(!format!("{client:?}").contains("first"));
    let (listener, url) = listen();
    let node = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let request = head(&mut stream);
        stream
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .unwrap();
        request
    });
    // Clients give URLs with this path too.
    await_applied(&client, &format!("{url}/flows/"))
        .await
        .unwrap();
    let request = node.join().unwrap().to_ascii_lowercase();
    assert!(
        request.starts_with("get /partitions/applied?upto=0:0 http/1.1\r\n"),
        "{request}"
    );
    for line in [
        "authorization: bearer first",
        &format!("host: {}", &url["http://".len()..]),
        concat!("user-agent: flowtally/", env!("CARGO_PKG_VERSION")),
        "accept: */*",
    ] {
        assert!(
            request.contains(&format!("\r\n{line}\r\n")),
            "{line}: {request}"
        );
    }
}
