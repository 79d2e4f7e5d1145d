//! The directory of the fleet's addresses: what agents claim and ask, and what the service answers.
//!
//! A claim is about the past: an application had an address and a port from one moment to another. So a name of the
//! directory was right at that time, even if the address has changed hands since. The idea of attributing by
//! heartbeats about the past, and of waiting for them, is that of Netflix's FlowCollector.
//!
//! All times are by the service's clock, in milliseconds since the epoch.

use std::fmt;
use std::marker::PhantomData;
use std::net::{IpAddr, SocketAddr};

use serde::de::{Deserializer, Error, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};

/// The path of the directory.
pub const DIRECTORY_PATH: &str = "/directory";
/// Claims in one request.
pub const CLAIMS_MAX: usize = 20_000;
/// Questions in one request.
pub const QUESTIONS_MAX: usize = 5_000;
/// Bytes of an agent's ID.
pub const AGENT_ID_BYTES_MAX: usize = 64;
/// How long the service keeps a claim after its end, and an agent repeats it: 2 minutes.
pub const CLAIM_KEPT_MS: u64 = 120_000;

/// The body of `POST /directory`: all claims of an agent, which replace its former ones, and questions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryRequest {
    /// Identifies the agent. 1 to [`AGENT_ID_BYTES_MAX`] bytes.
    pub agent: String,
    /// Addresses of different VPCs may be equal.
    #[serde(default)]
    pub vpc_id: String,
    /// The agent's claims are complete up to this time; 0 in an agent's first request, which has none.
    #[serde(default)]
    pub confirmed_until: u64,
    #[serde(default, deserialize_with = "at_most::<_, CLAIMS_MAX, _>")]
    pub claims: Vec<Claim>,
    #[serde(
        default,
        deserialize_with = "at_most::<_, QUESTIONS_MAX, _>",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub questions: Vec<Question>,
}

/// An application had an address and a port for some time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    pub app: String,
    pub address: IpAddr,
    pub port: u16,
    pub from: u64,
    pub to: u64,
}

/// Who had an address and a port for some time?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    pub address: IpAddr,
    pub port: u16,
    pub from: u64,
    pub to: u64,
}

/// The response to a [`DirectoryRequest`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DirectoryResponse {
    /// The service's clock.
    pub now: u64,
    /// No agent of this VPC that is known will claim anything from before this time any more; 0 if that is not known.
    pub complete_until: u64,
    /// Names of the endpoints in the questions, at the times for which exactly one is claimed.
    pub names: Vec<Claim>,
    /// Addresses that the agent's token does not permit it to claim.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<IpAddr>,
    /// Why the claims were not taken, or not by all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub claims_refused: Option<String>,
}

impl Claim {
    /// Its address, as IPv4 if it is mapped, and port.
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address.to_canonical(), self.port)
    }
}

impl Question {
    /// Its address, as IPv4 if it is mapped, and port.
    pub fn endpoint(&self) -> SocketAddr {
        SocketAddr::new(self.address.to_canonical(), self.port)
    }
}

/// Reads a list of at most `MAX` items, so that a body cannot use more memory than that.
fn at_most<'de, T, const MAX: usize, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_seq(AtMost::<T, MAX>(PhantomData))
}

struct AtMost<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for AtMost<T, MAX> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list of at most {MAX} items")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vec<T>, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            if items.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_read_and_bounded() {
        let request: DirectoryRequest = serde_json::from_str(
            r#"{"agent":"a","claims":[{"app":"web","address":"::ffff:10.0.0.7","port":80,"from":1,"to":2,"x":0}]}"#,
        )
        .unwrap();
        assert_eq!(request.claims[0].endpoint(), "10.0.0.7:80".parse().unwrap());
        let question = r#"{"address":"10.0.0.7","port":80,"from":1,"to":2}"#;
        let questions = |count| {
            let list = vec![question; count].join(",");
            serde_json::from_str::<DirectoryRequest>(&format!(
                "{{\"agent\":\"a\",\"questions\":[{list}]}}"
            ))
        };
        assert_eq!(
            questions(QUESTIONS_MAX).unwrap().questions.len(),
            QUESTIONS_MAX
        );
        let error = questions(QUESTIONS_MAX + 1).unwrap_err().to_string();
        assert!(error.contains("at most 5000 items"), "{error}");
    }
}
