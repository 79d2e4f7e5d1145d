//! Problem documents (RFC 9457): the service writes them, agents and peers read them.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// The `Content-Type` of a problem document.
pub const PROBLEM_MEDIA_TYPE: &str = "application/problem+json";
/// Prefix of the URIs of all types of problems.
pub const PROBLEM_TYPE_PREFIX: &str = "urn:flowtally:problem:";
/// The rest of the type of a query for hours that are only kept in longer spans. Nodes read it from one another.
pub const TOO_COARSE: &str = "too-coarse";

/// A problem document of the service.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ProblemDocument {
    pub r#type: String,
    pub title: Cow<'static, str>,
    /// The status code. Not read: the response has one.
    #[serde(skip_deserializing)]
    pub status: u16,
    pub detail: Cow<'static, str>,
    /// The number of the invalid flow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
    /// The invalid field.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub field: Option<Cow<'static, str>>,
}
