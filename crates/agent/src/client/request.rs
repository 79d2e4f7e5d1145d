//! Requests, and the answers to them.

use std::fmt;
use std::io::{self, Read as _};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Body, RequestBuilder};

use super::{ANSWER_MAX, Client, ClientError, location};

/// For a DELETE, which makes room and is not worth a long wait.
const DELETE_MAX: Duration = Duration::from_secs(10);
/// Who has not begun to answer by then is asked whether he is alive, and has as long to say so.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of an answer that is read as a whole.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// Of an answer that is not ours: enough to tell.
const PROBLEM_BYTES_MAX: u64 = 64 << 10;

/// The body of an answer as text; `None` where it is nothing of ours: longer than `bytes_max`, or not UTF-8. Its
/// status holds all the same.
///
/// # Errors
/// It broke off.
pub fn text_of(answer: &mut Response<Body>, bytes_max: u64) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut body = answer.body_mut().as_reader().take(bytes_max + 1);
    body.read_to_end(&mut bytes)?;
    let is_whole = bytes.len() as u64 <= bytes_max;
    Ok(String::from_utf8(bytes).ok().filter(|_| is_whole))
}

impl Client {
    /// A POST, to be given headers and sent: answered within a minute, or an error.
    pub fn to_post(&self, path: &str) -> RequestBuilder<ureq::typestate::WithBody> {
        let request = self.agent.post(self.url(path));
        let request = request.config().timeout_global(Some(ANSWER_MAX)).build();
        self.authorized(request)
    }

    fn authorized<B>(&self, request: RequestBuilder<B>) -> RequestBuilder<B> {
        let request = match &self.authorization {
            Some(authorization) => request.header("authorization", authorization),
            None => request,
        };
        match &self.proxy_credentials {
            Some(credentials) => credentials.add_to(request),
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
        let text = body.read_to_vec().map_err(|e| match e {
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
        serde_json::from_slice(&text).map_err(|e| self.not_ours(path, status, &e))
    }

    pub(super) fn not_ours(&self, path: &str, status: u16, why: &dyn fmt::Display) -> ClientError {
        ClientError::Refused {
            url: self.url(path),
            status,
            why: self.perhaps_of_proxy(format!(
                "something answered that is not flowtally, or another version: {why}"
            )),
        }
    }

    fn answered(
        &self,
        path: &str,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, ClientError> {
        let mut answer = answer.map_err(|e| match self.refused_by_proxy(path, &e) {
            Some((status, why)) => ClientError::Refused {
                url: self.url(path),
                status: status.as_u16(),
                why,
            },
            None => self.unreachable(path, &e),
        })?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status();
        let location = location(answer.headers());
        let text = text_of(&mut answer, PROBLEM_BYTES_MAX).ok().flatten();
        let problem = text.and_then(|text| serde_json::from_str(&text).ok());
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;
    use crate::client::Server;

    #[test]
    fn a_silent_server_is_given_up_on_unless_it_is_alive() {
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
}
