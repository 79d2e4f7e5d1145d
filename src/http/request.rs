//! A request, as handlers see it.

use std::sync::Arc;

use warp::http::uri::Authority;
use warp::http::{HeaderMap, Method, Version};

use super::connections::RequestGuard;
use super::error::Problem;
use super::long_target::TargetTail;

/// The part of a request's head that handlers do not need.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) version: Version,
    /// From a target in absolute form, as clients send it to a proxy.
    pub(super) authority: Option<Authority>,
    /// The tail of a target that is longer than hyper accepts.
    pub(super) tail: Option<Arc<TargetTail>>,
}

/// The context of a request from its connection. It is an extension of the request.
#[derive(Clone, Debug)]
pub(super) struct RequestContext {
    /// The client has a certificate that the client CA issued.
    pub(super) certified: bool,
    pub(super) target: Target,
    pub(super) guard: Arc<RequestGuard>,
}

/// A request without its body.
pub(super) struct Request<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) context: &'a RequestContext,
}

impl Request<'_> {
    /// # Errors
    /// The request has a query parameter.
    pub(super) fn reject_parameters(&self) -> Result<(), Problem> {
        match form_urlencoded::parse(self.query.as_bytes()).next() {
            None => Ok(()),
            Some((name, _)) => Err(Problem::BadQuery {
                what: format!(
                    "{} {} takes no query parameter, but has {name:?}",
                    self.method, self.path
                ),
            }),
        }
    }
}
