//! Requests and their responses.

use std::fmt;
use std::io::{self, Read as _};
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use ureq::http::Response;
use ureq::{Body, RequestBuilder};

use flow::{IdempotencyKey, headers};

use super::{Client, ClientError, RESPONSE_TIME_MAX, redirect_target};

/// For a DELETE, which only frees room: not worth a long wait.
const DELETE_TIME_MAX: Duration = Duration::from_secs(10);
/// The largest response that is read as a whole.
const RESPONSE_BYTES_MAX: u64 = 64 << 20;
/// Bytes of an error response that are read.
const PROBLEM_BYTES_MAX: u64 = 64 << 10;

/// Reads the body of a response as text. `None` if it is longer than `bytes_max` or not UTF-8, so it is not from the
/// service; the status is still valid.
///
/// # Errors
/// If the body is incomplete.
pub(crate) fn read_text(
    response: &mut Response<Body>,
    bytes_max: u64,
) -> io::Result<Option<String>> {
    let mut bytes = Vec::new();
    let mut body = response.body_mut().as_reader().take(bytes_max + 1);
    body.read_to_end(&mut bytes)?;
    let is_whole = bytes.len() as u64 <= bytes_max;
    Ok(String::from_utf8(bytes).ok().filter(|_| is_whole))
}

impl Client {
    /// A POST request, to which the caller adds headers and a body. It fails if it takes longer than a
    /// minute.
    pub(crate) fn to_post(&self, path: &str) -> RequestBuilder<ureq::typestate::WithBody> {
        let request = self.agent.post(self.url(path));
        let request = request
            .config()
            .timeout_global(Some(RESPONSE_TIME_MAX))
            .build();
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

    /// Sends a GET request and returns the response; `accept` is a media type.
    pub fn get(&self, path: &str, accept: &str) -> Result<Response<Body>, ClientError> {
        let request = self.authorized(self.agent.get(self.url(path)));
        self.require_success(path, request.header("accept", accept).call())
    }

    /// Sends a GET request and parses the response as JSON.
    pub fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.get(path, "application/json")?;
        self.json(path, response)
    }

    /// Sends an empty POST request and parses the response as JSON.
    pub fn post_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.require_success(path, self.to_post(path).send_empty())?;
        self.json(path, response)
    }

    /// Sends `body` as JSON, and parses the response as JSON.
    pub(crate) fn post_as_json<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let json = serde_json::to_vec(body).map_err(|e| ClientError::Options(e.to_string()))?;
        let request = self
            .to_post(path)
            .header("content-type", "application/json");
        let response = self.require_success(path, request.send(&json))?;
        self.json(path, response)
    }

    /// Sends `flows` as one batch under `key`, so that they count once however often they are sent.
    pub fn post_flows(
        &self,
        key: &IdempotencyKey,
        flows: &impl Serialize,
    ) -> Result<(), ClientError> {
        const PATH: &str = "/flows";
        let json = serde_json::to_vec(flows).map_err(|e| ClientError::Options(e.to_string()))?;
        let request = self
            .to_post(PATH)
            .header("content-type", "application/json")
            .header(headers::IDEMPOTENCY_KEY, key.as_str());
        let response = self.require_success(PATH, request.send(&json))?;
        self.json::<serde_json::Value>(PATH, response).map(drop)
    }

    pub fn delete(&self, path: &str) -> Result<(), ClientError> {
        let request = self.agent.delete(self.url(path));
        let request = request
            .config()
            .timeout_global(Some(DELETE_TIME_MAX))
            .build();
        self.require_success(path, self.authorized(request).call())
            .map(drop)
    }

    /// Parses a response as JSON.
    ///
    /// # Errors
    /// If the response is not one of flowtally.
    pub(crate) fn json<T: DeserializeOwned>(
        &self,
        path: &str,
        mut response: Response<Body>,
    ) -> Result<T, ClientError> {
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(RESPONSE_BYTES_MAX);
        let text = body.read_to_vec().map_err(|e| match e {
            ureq::Error::BodyExceedsLimit(bytes) => ClientError::Refused {
                url: self.url(path),
                status,
                why: format!("the response is larger than {} MiB, the limit", bytes >> 20),
            },
            e => self.unreachable(path, &e),
        })?;
        serde_json::from_slice(&text).map_err(|e| self.not_flowtally(path, status, &e))
    }

    pub(super) fn not_flowtally(
        &self,
        path: &str,
        status: u16,
        why: &dyn fmt::Display,
    ) -> ClientError {
        ClientError::Refused {
            url: self.url(path),
            status,
            why: self.with_proxy_hint(format!(
                "the server that responded is not flowtally, or another version: {why}"
            )),
        }
    }

    fn require_success(
        &self,
        path: &str,
        response: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, ClientError> {
        let mut response = response.map_err(|e| match self.refused_by_proxy(path, &e) {
            Some((status, why)) => ClientError::Refused {
                url: self.url(path),
                status: status.as_u16(),
                why,
            },
            None => self.unreachable(path, &e),
        })?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let location = redirect_target(response.headers());
        let text = read_text(&mut response, PROBLEM_BYTES_MAX).ok().flatten();
        let problem = text.and_then(|text| serde_json::from_str(&text).ok());
        let why = self.why_not(path, status, problem.as_ref(), location.as_deref());
        let url = self.url(path);
        Err(ClientError::Refused {
            url,
            status: status.as_u16(),
            why,
        })
    }

    /// The error for a connection that failed.
    pub fn unreachable(&self, path: &str, why: &dyn fmt::Display) -> ClientError {
        ClientError::Unreachable {
            url: self.url(path),
            why: self.broken(why),
        }
    }

    /// Explains why a connection failed, and what to check.
    pub(crate) fn broken(&self, why: &dyn fmt::Display) -> String {
        match &self.proxy {
            Some(proxy) => format!(
                "{why}; the request goes through {proxy}; NO_PROXY lists the hosts that are reached directly"
            ),
            None => format!("{why}; is the service running there?"),
        }
    }
}
