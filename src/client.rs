//! How commands talk to a running service: where it is, how it is trusted, and what its errors say.

mod proxy;
mod refusal;

pub use proxy::{Proxy, excluded as not_by_proxy};
pub use refusal::location;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fmt, io};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Body, RequestBuilder};

const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Longest wait for the head of an answer. A batch waits for memory and disk of the service for less,
/// and then gets a 503.
const ANSWER_MAX: Duration = Duration::from_secs(60);
/// Longest wait for the next bytes of an answer: whoever sends nothing for so long will not go on.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// For a DELETE, which makes room and is not worth a long wait.
const DELETE_MAX: Duration = Duration::from_secs(10);
/// Who has not begun to answer by then is asked whether he is alive, and has as long to say so.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of an answer that is read as a whole.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Of an answer that is not ours: enough to tell.
const PROBLEM_BYTES_MAX: u64 = 64 << 10;

/// Where the service is, and how to talk to it.
#[derive(Clone, Default)]
pub struct Server {
    /// As in `http://flowtally:8080`.
    pub url: String,
    pub token: Option<String>,
    /// PEM file of the authorities to trust instead of the usual ones.
    pub ca: Option<PathBuf>,
    /// PEM files of a client certificate and its key.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// It is another node of this one's cluster: never reached through a proxy.
    pub is_node: bool,
}

impl fmt::Debug for Server {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server")
            .field("url", &self.url)
            .finish_non_exhaustive()
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// An argument, or a file that one names, cannot be used.
    #[error("{0}")]
    Options(String),
    /// Nobody answers, or the answer breaks off.
    #[error("{url}: {why}")]
    Unreachable { url: String, why: String },
    /// It answers something else than what it was asked for.
    #[error("{url}: {why}")]
    Refused {
        url: String,
        /// Of the answer.
        status: u16,
        why: String,
    },
}

/// A problem document of the service (RFC 9457).
#[derive(Debug, Deserialize)]
pub struct Problem {
    pub r#type: String,
    pub title: String,
    pub detail: String,
}

/// An HTTP client of one service, which keeps its connection; a clone shares it.
#[derive(Clone, Debug)]
pub struct Client {
    agent: ureq::Agent,
    base: String,
    authorization: Option<String>,
    proxy: Option<Proxy>,
    is_node: bool,
}

impl Client {
    /// # Errors
    /// [`ClientError::Options`]
    pub fn new(server: &Server) -> Result<Client, ClientError> {
        Client::with_idle_max(server, IDLE_MAX)
    }

    fn with_idle_max(server: &Server, idle_max: Duration) -> Result<Client, ClientError> {
        let base = base_url(&server.url)?;
        let proxy = match server.is_node {
            true => None,
            false => Proxy::of(&base)?,
        };
        let unusable = |e: ureq::Error| ClientError::Options(e.to_string());
        let agent = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(Some(CONNECT_MAX))
            .timeout_recv_response(Some(ANSWER_MAX))
            .timeout_per_read(Some(idle_max))
            .timeout_per_write(Some(idle_max))
            .user_agent(concat!("flowtally/", env!("CARGO_PKG_VERSION")))
            // What is not set here is taken from variables, by other rules than curl's.
            .proxy(
                proxy
                    .as_ref()
                    .map(Proxy::for_ureq)
                    .transpose()
                    .map_err(unusable)?,
            )
            .tls_config(tls(server)?)
            .build();
        Ok(Client {
            agent: agent.into(),
            base,
            authorization: server.token.as_ref().map(|token| format!("Bearer {token}")),
            proxy,
            is_node: server.is_node,
        })
    }

    /// The address of `path`, which begins with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    /// A POST, to be given headers and sent: answered within a minute, or an error.
    pub fn to_post(&self, path: &str) -> RequestBuilder<ureq::typestate::WithBody> {
        let request = self.agent.post(self.url(path));
        let request = request.config().timeout_global(Some(ANSWER_MAX)).build();
        self.authorized(request)
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        }
    }

    /// The answer to a GET, to be read from; `accept` is a media type.
    pub fn get(&self, path: &str, accept: &str) -> Result<Response<Body>, ClientError> {
        let request = self.authorized(self.agent.get(self.url(path)));
        self.answered(path, request.header("accept", accept).call())
    }

    /// The answer to a GET, as what its JSON says.
    pub fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.get(path, "application/json")?;
        self.json(path, answer)
    }

    /// The answer to a GET, of which no two parts are further apart than `pause_max`.
    pub fn get_within(
        &self,
        path: &str,
        accept: &str,
        pause_max: Duration,
    ) -> Result<Response<Body>, ClientError> {
        let request = self.authorized(self.agent.get(self.url(path)));
        let request = request.header("accept", accept).config();
        let request = request
            .timeout_recv_response(Some(pause_max))
            .timeout_per_read(Some(pause_max));
        self.answered(path, request.build().call())
    }

    /// The same, from who is alive: an answer may be long in the making, but whoever stands still keeps nobody
    /// waiting for so long.
    pub fn get_of_living(
        &self,
        path: &str,
        accept: &'static str,
        pause_max: Duration,
    ) -> Result<Response<Body>, ClientError> {
        self.get_patiently(path, accept, pause_max, PATIENCE)
    }

    fn get_patiently(
        &self,
        path: &str,
        accept: &'static str,
        pause_max: Duration,
        patience: Duration,
    ) -> Result<Response<Body>, ClientError> {
        let (client, asked) = (self.clone(), path.to_owned());
        let (send, answer) = mpsc::channel();
        // It may be left behind, and ends in time by itself.
        let thread = std::thread::Builder::new()
            .name("client".into())
            .spawn(move || {
                let _nobody_may_wait = send.send(client.get_within(&asked, accept, pause_max));
            });
        thread.map_err(|e| self.unreachable(path, &e))?;
        loop {
            match answer.recv_timeout(patience) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) => {
                    drop(self.get_within("/healthz", "*/*", patience)?);
                }
                Err(error) => return Err(self.unreachable(path, &error)),
            }
        }
    }

    /// The answer to an empty POST, as what its JSON says.
    pub fn post_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let answer = self.answered(path, self.to_post(path).send_empty())?;
        self.json(path, answer)
    }

    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        let request = self.agent.delete(self.url(path));
        let request = request.config().timeout_global(Some(DELETE_MAX)).build();
        self.answered(path, self.authorized(request).call())
            .map(drop)
    }

    /// What the JSON of an answer says.
    ///
    /// # Errors
    /// An answer that is not of flowtally.
    pub fn json<T: DeserializeOwned>(
        &self,
        path: &str,
        mut answer: Response<Body>,
    ) -> Result<T, ClientError> {
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = body
            .read_to_string()
            .map_err(|e| self.unreachable(path, &e))?;
        serde_json::from_str(&text).map_err(|e| ClientError::Refused {
            url: self.url(path),
            status: answer.status().as_u16(),
            why: format!("something answered that is not flowtally, or another version: {e}"),
        })
    }

    fn answered(
        &self,
        path: &str,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, ClientError> {
        let mut answer = answer.map_err(|e| self.unreachable(path, &e))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let location = location(answer.headers());
        let body = answer.body_mut().with_config().limit(PROBLEM_BYTES_MAX);
        let text = body.read_to_string().unwrap_or_default();
        let problem = serde_json::from_str(&text).ok();
        let why = self.why_not(path, status, problem.as_ref(), location.as_deref());
        let url = self.url(path);
        Err(ClientError::Refused {
            url,
            status: status.as_u16(),
            why,
        })
    }

    /// The error of an exchange that broke off.
    pub fn unreachable(&self, path: &str, why: &dyn fmt::Display) -> ClientError {
        ClientError::Unreachable {
            url: self.url(path),
            why: self.broken(why),
        }
    }

    /// Why an exchange broke off, and what to look at.
    pub fn broken(&self, why: &dyn fmt::Display) -> String {
        match &self.proxy {
            Some(proxy) => format!(
                "{why}; it goes through {proxy}: NO_PROXY has the hosts that are reached without one"
            ),
            None => format!("{why}; is the service running there?"),
        }
    }
}

/// Why the body of an answer cannot be read on.
pub fn broke_off(error: &io::Error) -> String {
    let of_ureq = error.get_ref().and_then(|e| e.downcast_ref());
    match of_ureq {
        Some(ureq::Error::Timeout(_)) => {
            format!("nothing more has come for {} seconds", IDLE_MAX.as_secs())
        }
        _ => format!("the connection broke off: {error}"),
    }
}

/// The service's address, without a path of ours at its end.
fn base_url(url: &str) -> Result<String, ClientError> {
    let bad = |why: &dyn fmt::Display| {
        ClientError::Options(format!(
            "--url is {url:?}, and has to be one such as http://127.0.0.1:8080: {why}"
        ))
    };
    let uri: Uri = url.parse().map_err(|e| bad(&e))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none_or(str::is_empty) {
        return Err(bad(&"it needs http:// or https:// and a host"));
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        let what = "--url has a user name or a password, which flowtally does not know; \
                    give a token with --token-file";
        return Err(ClientError::Options(what.into()));
    }
    if uri.query().is_some() {
        return Err(bad(&"it has a query"));
    }
    let url = url.trim_end_matches('/');
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
            return Err(unusable(path, &"no certificate in PEM form is in it"));
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
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn an_answer_may_be_slow_but_not_silent() {
        const IDLE_MAX: Duration = Duration::from_millis(400);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Server::default()
        };
        let silent = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _head = stream.read(&mut [0; 4096]).unwrap();
            let head = "HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
            for _ in 0..10 {
                std::thread::sleep(IDLE_MAX / 4);
                stream.write_all(b"x").unwrap();
            }
            stream
        });
        let client = Client::with_idle_max(&server, IDLE_MAX).unwrap();
        let mut body = client.get("/x", "*/*").unwrap().into_body().into_reader();
        let mut read = Vec::new();
        let error = body.read_to_end(&mut read).unwrap_err();
        assert_eq!(read, [b'x'; 10]);
        assert!(broke_off(&error).contains("nothing more"), "{error}");
        drop(silent.join());
    }

    #[test]
    fn who_stands_still_keeps_nobody_waiting() {
        const PATIENCE: Duration = Duration::from_millis(500);
        // The system takes connections, and nobody answers.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Server::default()
        };
        let client = Client::new(&server).unwrap();
        let start = std::time::Instant::now();
        let error = client
            .get_patiently("/x", "*/*", 100 * PATIENCE, PATIENCE)
            .unwrap_err();
        assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
        assert!(start.elapsed() < 20 * PATIENCE);

        // Whoever says that he is alive, is waited for.
        let slow = std::thread::spawn(move || {
            let answers = |stream: &mut std::net::TcpStream| {
                let head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(head.as_bytes()).unwrap();
            };
            let mut asked = Vec::new();
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut head = [0; 4096];
                let read = stream.read(&mut head).unwrap_or(0);
                match head[..read].starts_with(b"GET /healthz") {
                    true => answers(&mut stream),
                    // Those of before have given up.
                    false => asked.push(stream),
                }
                if read > 0 && asked.len() > 1 && head.starts_with(b"GET /healthz") {
                    answers(asked.last_mut().unwrap());
                    return;
                }
            }
        });
        let answer = client
            .get_patiently("/x", "*/*", 100 * PATIENCE, PATIENCE)
            .unwrap();
        assert_eq!(answer.into_body().read_to_string().unwrap(), "ok");
        slow.join().unwrap();
    }

    #[test]
    fn urls() {
        for (given, expected) in [
            ("http://h:1", "http://h:1"),
            ("https://h/", "https://h"),
            ("http://h/flowtally/flows", "http://h/flowtally"),
        ] {
            assert_eq!(base_url(given).unwrap(), expected);
        }
        let error = base_url("http://u:secret@h").unwrap_err().to_string();
        assert!(error.contains("--token-file") && !error.contains("secret"));
        for given in ["", "h:1", "ftp://h", "http://", "http://h?x=1", "/flows"] {
            let error = base_url(given).unwrap_err().to_string();
            assert!(error.contains("http://127.0.0.1:8080"), "{error}");
        }
    }
}
