//! What an answer says that is not the one that was asked for, and which flag helps.

use ureq::http::{HeaderMap, StatusCode};

use super::{Client, Problem};

/// Where an answer sends its client.
pub fn location(headers: &HeaderMap) -> Option<String> {
    let location = headers.get("location")?.as_bytes();
    Some(String::from_utf8_lossy(location).into_owned())
}

impl Client {
    /// Why `path` is not answered with what was asked for, and what to do about it.
    pub fn why_not(
        &self,
        path: &str,
        status: StatusCode,
        problem: Option<&Problem>,
        location: Option<&str>,
    ) -> String {
        let why = self.remedy(path, status, problem, location);
        let is_ours = problem.is_some_and(|p| p.r#type.starts_with("urn:flowtally:"));
        match &self.proxy {
            Some(proxy) if status == StatusCode::PROXY_AUTHENTICATION_REQUIRED => format!(
                "{why}; {proxy} wants a user name and a password, as in http://USER:PASSWORD@HOST:PORT"
            ),
            _ if !is_ours => self.perhaps_of_proxy(why),
            _ => why,
        }
    }

    /// What was answered by the service, or by the proxy on the way to it.
    pub fn perhaps_of_proxy(&self, why: String) -> String {
        match &self.proxy {
            Some(proxy) => format!("{why}; it goes through {proxy}, which may say so itself"),
            None => why,
        }
    }

    /// What a proxy answered that made no tunnel to the service, and what to do about it.
    pub fn refused_by_proxy(
        &self,
        path: &str,
        error: &ureq::Error,
    ) -> Option<(StatusCode, String)> {
        let ureq::Error::ConnectProxyFailed(said) = error else {
            return None;
        };
        let code = said.strip_prefix("proxy server responded ")?;
        let status = StatusCode::from_bytes(code.get(..3)?.as_bytes()).ok()?;
        Some((status, self.why_not(path, status, None, None)))
    }

    fn remedy(
        &self,
        path: &str,
        status: StatusCode,
        problem: Option<&Problem>,
        location: Option<&str>,
    ) -> String {
        let explained = problem.is_some_and(|problem| !problem.title.is_empty());
        let said = match problem {
            Some(problem) if explained => {
                format!("{status}: {}: {}", problem.title, problem.detail)
            }
            _ => status.to_string(),
        };
        let kind = problem.and_then(|p| p.r#type.strip_prefix("urn:flowtally:problem:"));
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
                format!("{status}: it redirects to {to}, which is not followed; {remedy}")
            }
            (StatusCode::UNAUTHORIZED, ..) => match &self.authorization {
                None => format!("{status}: the service needs a token: give --token-file FILE"),
                Some(_) => format!(
                    "{status}: the service does not know the token of --token-file: give another FILE"
                ),
            },
            (StatusCode::FORBIDDEN, Some("token-lacks-right"), _) => {
                format!("{said}: give another --token-file FILE")
            }
            (StatusCode::FORBIDDEN, Some("no-client-certificate"), _) => {
                format!("{said}: give --cert FILE and --key FILE")
            }
            (StatusCode::FORBIDDEN, None, _) if !explained => match &self.authorization {
                None => {
                    format!("{status}: --token-file FILE shows a token, if that is what is missing")
                }
                Some(_) => format!("{status}: the token of --token-file is not for this"),
            },
            _ => said,
        }
    }
}
