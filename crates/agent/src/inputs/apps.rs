//! Maps addresses to applications.

use std::collections::HashMap;
use std::fmt;
use std::io::Read;
use std::net::{IpAddr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use super::InputError;
use super::records::CsvRecords;
use super::window::{ReadMode, Window};
use flow::NAME_BYTES_MAX;

const HEADER: &str = "its first line must name the columns address and app";

/// Length of the prefix ::ffff:0:0/96, which contains the IPv4-mapped addresses.
const MAPPED_PREFIX: u8 = 96;

/// Applications by address and port, address, or range; the longest matching prefix wins.
#[derive(Debug, Default)]
pub struct Apps {
    endpoints: HashMap<SocketAddr, App>,
    v4: PrefixMap<Ipv4Net, App>,
    v6: PrefixMap<Ipv6Net, App>,
}

#[derive(Clone, Debug, PartialEq)]
struct App {
    name: String,
    /// The line that it was read from.
    line: u64,
}

impl Apps {
    /// Reads CSV with a header and the columns `address` (as in `10.0.0.7`, `10.0.0.0/16`, `fd00::/8`,
    /// `10.0.0.7:5432`, `[fd00::7]:5432`) and `app`. Other columns are ignored.
    ///
    /// # Errors
    /// The invalid line and the reason. An address with two different applications is an error too, so that
    /// no traffic is attributed to the wrong one.
    pub(crate) fn read(input: impl Read) -> Result<Apps, InputError> {
        let mut window = Window::new(input, ReadMode::AsAvailable);
        window.skip_mark()?;
        let mut records = CsvRecords::new(window, 1);
        let header = records.next_of_good()?;
        let column = |name: &str| {
            let columns = header.fields().enumerate();
            let mut named = columns.filter(|(_, column)| column.trim_ascii() == name.as_bytes());
            match (named.next(), named.next()) {
                (Some((at, _)), None) => Ok(at),
                (None, _) => Err(format!("there is no column {name}; {HEADER}")),
                _ => Err(format!("there are two columns {name}; remove one")),
            }
            .map_err(InputError::Malformed)
        };
        let columns = [column("address")?, column("app")?];
        let mut apps = Apps::default();
        loop {
            let record = records.next_of_good()?;
            if record.len() == 0 {
                return Ok(apps);
            }
            let line = record.line;
            let [address, app] =
                columns.map(|at| record.fields().nth(at).unwrap_or_default().trim_ascii());
            let inserted = match (std::str::from_utf8(address), std::str::from_utf8(app)) {
                (Ok(address), Ok(app)) => apps.insert(address, app, line),
                _ => Err("not UTF-8".into()),
            };
            inserted.map_err(|why| InputError::Malformed(format!("line {line}: {why}")))?;
        }
    }

    fn insert(&mut self, address: &str, name: &str, line: u64) -> Result<(), String> {
        let range = match address.parse::<SocketAddr>() {
            Ok(endpoint) => Range::Endpoint(canonical(endpoint)),
            Err(_) => Range::Net(range(address)?),
        };
        if name.is_empty() || name.len() > NAME_BYTES_MAX {
            return Err(format!(
                "app: the name has {} bytes; the limits are 1 and {NAME_BYTES_MAX}",
                name.len()
            ));
        }
        let app = App {
            name: name.to_owned(),
            line,
        };
        let earlier = match range {
            Range::Endpoint(endpoint) => self.endpoints.insert(endpoint, app.clone()),
            Range::Net(IpNet::V4(range)) => self.v4.insert(range, app.clone()),
            Range::Net(IpNet::V6(range)) => self.v6.insert(range, app.clone()),
        };
        match earlier {
            Some(earlier) if earlier.name != app.name => Err(format!(
                "address: {range} is {:?} here, and {:?} on line {}; remove one",
                app.name, earlier.name, earlier.line
            )),
            _ => Ok(()),
        }
    }

    /// The application that listens there.
    pub(crate) fn of_endpoint(&self, endpoint: SocketAddr) -> Option<&str> {
        match self.endpoints.get(&canonical(endpoint)) {
            Some(app) => Some(&app.name),
            None => self.of(endpoint.ip()),
        }
    }

    /// The application that listens there, if the table has this endpoint, or exactly this address.
    pub(crate) fn of_one(&self, endpoint: SocketAddr) -> Option<&str> {
        if let Some(app) = self.endpoints.get(&canonical(endpoint)) {
            return Some(&app.name);
        }
        let app = match endpoint.ip().to_canonical() {
            IpAddr::V4(address) => self.v4.get(&address.into())?,
            IpAddr::V6(address) => self.v6.get(&address.into())?,
        };
        Some(&app.name)
    }

    /// The application with this address.
    pub(super) fn of(&self, address: IpAddr) -> Option<&str> {
        let app = match address.to_canonical() {
            IpAddr::V4(address) => self.v4.get_lpm(&address.into())?.1,
            IpAddr::V6(address) => self.v6.get_lpm(&address.into())?.1,
        };
        Some(&app.name)
    }
}

/// What a line names.
enum Range {
    Endpoint(SocketAddr),
    Net(IpNet),
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Range::Endpoint(endpoint) => endpoint.fmt(f),
            Range::Net(net) => net.fmt(f),
        }
    }
}

fn canonical(endpoint: SocketAddr) -> SocketAddr {
    SocketAddr::new(endpoint.ip().to_canonical(), endpoint.port())
}

fn range(text: &str) -> Result<IpNet, String> {
    let range = match text.parse::<IpNet>() {
        Ok(range) => range,
        Err(_) => text.parse::<IpAddr>().map(IpNet::from).map_err(|_| {
            format!("address: {text:?} is neither an address nor a range such as 10.0.0.0/16")
        })?,
    };
    let range = as_ipv4(range);
    // Either a digit or the prefix length is wrong; only the author knows which.
    if range.addr() != range.network() {
        return Err(format!(
            "address: {text} is not the start of a range of this length; {} is",
            range.trunc()
        ));
    }
    Ok(range)
}

/// IPv4-mapped IPv6 addresses are IPv4 addresses.
fn as_ipv4(range: IpNet) -> IpNet {
    let IpNet::V6(v6) = range else {
        return range;
    };
    let mapped = v6.addr().to_ipv4_mapped();
    let length = v6.prefix_len().checked_sub(MAPPED_PREFIX);
    let v4 = mapped
        .zip(length)
        .map(|(address, length)| Ipv4Net::new(address, length));
    match v4 {
        Some(Ok(v4)) => IpNet::V4(v4),
        _ => range,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_wins() {
        let apps = "\u{FEFF}address, app\n0.0.0.0/0,internet\n10.0.0.0/8,internal\n10.1.0.0/16,\"pay,ments\"\n\
                    10.1.2.3,db\n10.1.2.3/32,db\nfd00::/8,v6\nfd00::7,v6-db\n";
        let apps = Apps::read(apps.as_bytes()).unwrap();
        for (address, app) in [
            ("8.8.8.8", Some("internet")),
            ("10.2.0.1", Some("internal")),
            ("10.1.2.4", Some("pay,ments")),
            ("10.1.2.3", Some("db")),
            ("fd00::8", Some("v6")),
            ("fd00::7", Some("v6-db")),
            ("2001:db8::1", None),
            ("::ffff:10.1.2.3", Some("db")),
            ("::ffff:a01:204", Some("pay,ments")),
        ] {
            assert_eq!(apps.of(address.parse().unwrap()), app, "{address}");
        }
    }

    #[test]
    fn a_port_has_a_name_of_its_own() {
        let apps = "address,app\n10.0.0.7,host\n10.0.0.7:5432,db\n[fd00::7]:443,web\n::ffff:10.0.0.8,mapped\n\
                    [::ffff:10.0.0.8]:80,mapped-web\n";
        let apps = Apps::read(apps.as_bytes()).unwrap();
        for (endpoint, app) in [
            ("10.0.0.7:5432", Some("db")),
            ("10.0.0.7:5433", Some("host")),
            ("[::ffff:10.0.0.7]:5432", Some("db")),
            ("[fd00::7]:443", Some("web")),
            ("[fd00::7]:80", None),
            ("10.0.0.8:80", Some("mapped-web")),
        ] {
            assert_eq!(
                apps.of_endpoint(endpoint.parse().unwrap()),
                app,
                "{endpoint}"
            );
        }
        for (endpoint, app) in [
            ("10.0.0.7:5432", Some("db")),
            ("10.0.0.7:1", Some("host")),
            ("10.0.0.9:1", None),
        ] {
            assert_eq!(apps.of_one(endpoint.parse().unwrap()), app, "{endpoint}");
        }
        let twice = "address,app\n10.0.0.7:80,a\n10.0.0.7:80,b\n";
        let error = Apps::read(twice.as_bytes()).unwrap_err().to_string();
        assert!(
            error.starts_with("line 3: address: 10.0.0.7:80 is"),
            "{error}"
        );
    }

    /// Also in the file of applications.
    #[test]
    fn ipv4_written_as_ipv6_is_ipv4() {
        let apps = "address,app\n::ffff:10.0.0.0/104,internal\n::ffff:10.1.2.3,db\n::/0,v6\n\
                    ::FFFF:0A01:0203,db\n";
        let apps = Apps::read(apps.as_bytes()).unwrap();
        for (address, app) in [
            ("10.9.9.9", Some("internal")),
            ("::ffff:10.9.9.9", Some("internal")),
            ("10.1.2.3", Some("db")),
            ("11.0.0.1", None),
            ("::ffff:11.0.0.1", None),
            ("::1", Some("v6")),
        ] {
            assert_eq!(apps.of(address.parse().unwrap()), app, "{address}");
        }
        let twice = "address,app\n10.0.0.7,a\n::ffff:10.0.0.7,b\n";
        let error = Apps::read(twice.as_bytes()).unwrap_err().to_string();
        assert!(
            error.starts_with("line 3: address: 10.0.0.7/32 is"),
            "{error}"
        );
    }

    #[test]
    fn errors_name_the_line() {
        for (text, expected) in [
            ("", "there is no column address"),
            ("address,name\n", "there is no column app"),
            ("app,address,app\n", "there are two columns app"),
            (
                "address,app\n10.0.0.300,a\n",
                "line 2: address: \"10.0.0.300\" is neither",
            ),
            (
                "address,app\n10.0.0.0/33,a\n",
                "line 2: address: \"10.0.0.0/33\" is neither",
            ),
            (
                "address,app\n10.0.0.7/8,a\n",
                "line 2: address: 10.0.0.7/8 is not the start",
            ),
            (
                "address,app\n10.0.0.7\n",
                "line 2: app: the name has 0 bytes",
            ),
            (
                "address,app\r\n10.0.0.0/8,a\r\n\r\n10.0.0.0/8,b\r\n",
                "line 4: address: 10.0.0.0/8 is \"b\" here, and \"a\" on line 2",
            ),
        ] {
            let error = Apps::read(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        let error = Apps::read(&b"address,app\n10.0.0.7,\xff\n"[..]).unwrap_err();
        assert_eq!(error.to_string(), "line 2: not UTF-8");
    }
}
