//! Names of hosts, as in URLs and in `Host`.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

/// A name or an address without a port, as in `Host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostName(Name);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Name {
    Address(IpAddr),
    /// In lower case, without the optional dot at the end.
    Dns(String),
}

impl HostName {
    /// Whether it is an address of this machine that no other can reach, or a name for one.
    pub fn is_loopback(&self) -> bool {
        match &self.0 {
            Name::Address(address) => address.is_loopback(),
            Name::Dns(name) => name == "localhost" || name.ends_with(".localhost"),
        }
    }
}

impl FromStr for HostName {
    type Err = String;

    fn from_str(text: &str) -> Result<HostName, String> {
        let in_brackets = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if let Ok(address) = in_brackets.unwrap_or(text).parse::<Ipv6Addr>() {
            return Ok(HostName(Name::Address(address.to_canonical())));
        }
        let name = text.strip_suffix('.').unwrap_or(text);
        if let Ok(address) = name.parse::<IpAddr>() {
            return Ok(HostName(Name::Address(address)));
        }
        if is_number(name) {
            return Err(
                "it looks like an address, but an IPv4 address has four decimal numbers".into(),
            );
        }
        match is_dns(name) {
            true => Ok(HostName(Name::Dns(name.to_ascii_lowercase()))),
            false => Err("it has to be a name or an address, without a scheme or a port".into()),
        }
    }
}

/// Whether browsers and resolvers take this name for an address, as `127.1`, `0x7f.1` and `2130706433`: its last label
/// is a number. Here, an address has one spelling only.
fn is_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or(last.strip_prefix("0X"));
    match hex {
        Some(digits) => digits.bytes().all(|b| b.is_ascii_hexdigit()),
        None => !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit()),
    }
}

/// Whether this is a DNS name: labels of letters, digits, hyphens and underscores.
fn is_dns(name: &str) -> bool {
    let is_part = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    let is_label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(is_part);
    name.len() <= 253 && name.split('.').all(is_label)
}

impl fmt::Display for HostName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Name::Address(address) => address.fmt(f),
            Name::Dns(name) => f.write_str(name),
        }
    }
}
