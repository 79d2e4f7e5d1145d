//! Explains an unexpected response, and names the flag that helps.

use ureq::http::{HeaderMap, StatusCode};

use flow::{PROBLEM_TYPE_PREFIX, ProblemDocument};

use super::Client;

/// The target of a redirect.
pub(crate) fn redirect_target(headers: &HeaderMap) -> Option<String> {
    let location = headers.get("location")?.as_bytes();
    Some(String::from_utf8_lossy(location).into_owned())
}

impl Client {
    /// Explains why the request for `path` failed, and what to do about it.
    pub(crate) fn why_not(
        &self,
        path: &str,
        status: StatusCode,
        problem: Option<&ProblemDocument>,
        location: Option<&str>,
    ) -> String {
        let why = self.remedy(path, status, problem, location);
        let is_ours = problem.is_some_and(|p| p.r#type.starts_with(PROBLEM_TYPE_PREFIX));
        match &self.proxy {
            Some(proxy) if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED => format!(
                "{why}; {proxy} requires a user name and a password, as in http://USER:PASSWORD@HOST:PORT"
            ),
            _ if !is_ours => self.with_proxy_hint(why),
            _ => why,
        }
    }

    /// Adds to an error that the response may be from the proxy and not from the service.
    pub(crate) fn with_proxy_hint(&self, why: String) -> String {
        match &self.proxy {
            Some(proxy) => format!(
                "{why}; the request went through {proxy}, which may have sent this response"
            ),
            None => why,
        }
    }

    /// The status of a proxy that refused a tunnel to the service, and an explanation.
    pub(crate) fn refused_by_proxy(
        &self,
        path: &str,
        error: &ureq::Error,
    ) -> Option<(StatusCode, String)> {
        let ureq::Error::ConnectProxyFailed(text) = error else {
            return None;
        };
        let code = text.strip_prefix("proxy server responded ")?;
        let status = StatusCode::from_bytes(code.get(..3)?.as_bytes()).ok()?;
        Some((status, self.why_not(path, status, None, None)))
    }

    fn remedy(
        &self,
        path: &str,
        status: StatusCode,
        problem: Option<&ProblemDocument>,
        location: Option<&str>,
    ) -> String {
        let has_title = problem.is_some_and(|problem| !problem.title.is_empty());
        let text = match problem {
            Some(problem) if has_title => {
                format!("{status}: {}: {}", problem.title, problem.detail)
            }
            _ => status.to_string(),
        };
        let kind = problem.and_then(|p| p.r#type.strip_prefix(PROBLEM_TYPE_PREFIX));
        match (status, kind, location) {
            (status, _, Some(to)) if status.is_redirection() => {
                let path = path.split('?').next().unwrap_or_default();
                let to = to.split('?').next().unwrap_or_default();
                let remedy = match to.strip_suffix(path) {
                    Some(base) if base.contains("://") => {
                        format!("if that is the service, give --url {base}")
                    }
                    _ => "give the URL of the service itself with --url".into(),
                };
                format!("{status}: it redirects to {to}; redirects are not followed; {remedy}")
            }
            (StatusCode::UNAUTHORIZED, ..) => match &self.authorization {
                None => format!("{status}: the service needs a token: give --token-file FILE"),
                Some(_) => format!(
                    "{status}: the service does not know the token of --token-file: give another FILE"
                ),
            },
            (StatusCode::FORBIDDEN, Some("token-lacks-right"), _) => {
                format!("{text}: give another --token-file FILE")
            }
            (StatusCode::FORBIDDEN, Some("no-client-certificate"), _) => {
                format!("{text}: give --cert FILE and --key FILE")
            }
            (StatusCode::FORBIDDEN, None, _) if !has_title => match &self.authorization {
                None => {
                    format!("{status}: if a token is missing, give --token-file FILE")
                }
                Some(_) => format!("{status}: the token of --token-file does not permit this"),
            },
            _ => text,
        }
    }
}
