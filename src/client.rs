//! How commands talk to a running service: where it is, how it is trusted, and what its errors say.

mod proxy;
mod refusal;

pub use proxy::{Proxy, excluded as not_by_proxy};
pub use refusal::location;

use std::io::{BufRead, BufReader};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;
use std::{fmt, io};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::http::{Response, Uri};
use ureq::tls::{Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, parse_pem};
use ureq::{Body, BodyReader, RequestBuilder};

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
/// What is read at once of an answer that is read element by element.
const ITEMS_BYTES: usize = 64 << 10;
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
    /// Which flow of the batch it is about, from 0.
    pub index: Option<usize>,
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
        let status = answer.status().as_u16();
        let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX);
        let text = body.read_to_string().map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(bytes) => ClientError::Refused {
                url: self.url(path),
                status,
                why: format!(
                    "the answer is larger than {} MiB, which is the most that is read",
                    bytes >> 20
                ),
            },
            e => self.unreachable(path, &e),
        })?;
        serde_json::from_str(&text).map_err(|e| self.not_ours(path, status, &e))
    }

    /// The elements of an array that a GET is answered with, as they come: memory does not grow with their
    /// number.
    pub fn get_items<T>(&self, path: &str) -> Result<Items<T>, ClientError> {
        let answer = self.get(path, "application/json")?;
        Ok(self.items(path, answer))
    }

    /// The elements of the array that is an answer.
    pub fn items<T>(&self, path: &str, answer: Response<Body>) -> Items<T> {
        Items {
            client: self.clone(),
            path: path.to_owned(),
            status: answer.status().as_u16(),
            reader: BufReader::with_capacity(ITEMS_BYTES, answer.into_body().into_reader()),
            state: ItemsState::Begin,
            of: PhantomData,
        }
    }

    fn not_ours(&self, path: &str, status: u16, why: &dyn fmt::Display) -> ClientError {
        ClientError::Refused {
            url: self.url(path),
            status,
            why: format!("something answered that is not flowtally, or another version: {why}"),
        }
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

/// See [`Client::items`].
pub struct Items<T> {
    client: Client,
    path: String,
    status: u16,
    reader: BufReader<BodyReader<'static>>,
    state: ItemsState,
    of: PhantomData<fn() -> T>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ItemsState {
    Begin,
    Inside,
    Ended,
}

impl<T: DeserializeOwned> Items<T> {
    fn read(&mut self) -> Result<Option<T>, serde_json::Error> {
        let expected = match self.state {
            ItemsState::Begin => b'[',
            ItemsState::Inside => b',',
            ItemsState::Ended => return Ok(None),
        };
        let byte = self.next_byte()?;
        let ends = match self.state {
            ItemsState::Begin if byte == expected => self.peek_byte()? == b']',
            ItemsState::Inside => byte == b']',
            _ => false,
        };
        if ends {
            self.state = ItemsState::Ended;
            return Ok(None);
        }
        if byte != expected {
            let why = format!(
                "there is {:?} where an array has {:?}",
                byte as char, expected as char
            );
            return Err(serde::de::Error::custom(why));
        }
        self.state = ItemsState::Inside;
        let mut json = serde_json::Deserializer::from_reader(&mut self.reader);
        T::deserialize(&mut json).map(Some)
    }

    /// The next byte that is no white space, which is taken.
    fn next_byte(&mut self) -> Result<u8, serde_json::Error> {
        let byte = self.peek_byte()?;
        self.reader.consume(1);
        Ok(byte)
    }

    fn peek_byte(&mut self) -> Result<u8, serde_json::Error> {
        loop {
            match self
                .reader
                .fill_buf()
                .map_err(serde_json::Error::io)?
                .first()
            {
                None => return Err(serde_json::Error::io(io::ErrorKind::UnexpectedEof.into())),
                Some(b' ' | b'\n' | b'\r' | b'\t') => self.reader.consume(1),
                Some(byte) => return Ok(*byte),
            }
        }
    }
}

impl<T: DeserializeOwned> Iterator for Items<T> {
    type Item = Result<T, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().map_err(|error| {
            self.state = ItemsState::Ended;
            match error.is_io() || error.is_eof() {
                true => {
                    let why = broke_off(&error.into());
                    self.client.unreachable(&self.path, &why)
                }
                false => self.client.not_ours(&self.path, self.status, &error),
            }
        });
        read.transpose()
    }
}

impl<T> fmt::Debug for Items<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Items")
            .field("path", &self.path)
            .field("state", &self.state)
            .finish_non_exhaustive()
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

    /// Reads `body` as numbers in objects, and says what came and whether it was whole.
    fn items_of(body: &'static str) -> (Vec<u64>, Result<(), String>) {
        #[derive(Deserialize)]
        struct Item {
            n: u64,
        }
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Server {
            url: format!("http://{}", listener.local_addr().unwrap()),
            ..Server::default()
        };
        let answers = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _head = stream.read(&mut [0; 4096]).unwrap();
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).unwrap();
        });
        let mut items = Client::new(&server).unwrap().get_items("/x").unwrap();
        let mut read = Vec::new();
        let ended = items.try_for_each(|item: Result<Item, _>| {
            item.map(|item| read.push(item.n))
                .map_err(|e| e.to_string())
        });
        assert!(items.next().is_none());
        answers.join().unwrap();
        (read, ended)
    }

    #[test]
    fn an_array_is_read_element_by_element() {
        for (body, expected) in [
            ("[]", vec![]),
            (" [ ] ", vec![]),
            ("[{\"n\":1}]\n", vec![1]),
            (
                "[{\"n\":1},\n{\"n\":2 , \"more\": [{}]}\r\n, {\"n\":3}]\n",
                vec![1, 2, 3],
            ),
        ] {
            assert_eq!(items_of(body), (expected, Ok(())), "{body}");
        }
        for (body, expected, why) in [
            ("", vec![], "broke off"),
            ("[", vec![], "broke off"),
            ("[{\"n\":1}", vec![1], "broke off"),
            ("[{\"n\":1},", vec![1], "broke off"),
            ("[{\"n\":1},{\"n\"", vec![1], "broke off"),
            ("{\"n\":1}", vec![], "not flowtally"),
            ("<html>", vec![], "not flowtally"),
            ("[{\"n\":1} {\"n\":2}]", vec![1], "not flowtally"),
            ("[{\"n\":1},]", vec![1], "not flowtally"),
            ("[1]", vec![], "not flowtally"),
        ] {
            let (read, ended) = items_of(body);
            assert_eq!(read, expected, "{body}");
            assert!(ended.is_err_and(|e| e.contains(why)), "{body}");
        }
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
