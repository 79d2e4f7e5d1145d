//! What a terminal shows when the service is ready: where the page is, and how to send flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use crate::config::Serve;
use agent::command::shell_word;

/// In a checkout; elsewhere, users have flows of their own.
const SAMPLE_DAY: &str = "data/sample-day.ndjson";
const SOME_FLOWS: &str = "flows.ndjson";
const NAME: &str = "flowtally";

/// The lines for the service that `arguments` describe, at `address`.
pub(super) fn lines(address: SocketAddr, arguments: &Serve) -> [String; 2] {
    let url = url(address, arguments.tls_cert.is_some());
    let file = match Path::new(SAMPLE_DAY).is_file() {
        true => SAMPLE_DAY,
        false => SOME_FLOWS,
    };
    let send = send(&program(), &url, arguments);
    [
        format!("{NAME}: open {url}/ in a browser; Ctrl-C stops the service"),
        format!("{NAME}: to send flows, run in another terminal: {send} {file}"),
    ]
}

/// The URL for clients on this machine.
fn url(address: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    format!("{scheme}://{}", SocketAddr::new(ip, address.port()))
}

/// The command that sends a file, which follows it, to the service.
fn send(program: &str, url: &str, arguments: &Serve) -> String {
    let mut command = format!("{program} send --url {}", shell_word(url));
    if let Some(tokens) = &arguments.write_token_file {
        // The other terminal may be in another directory.
        let tokens = std::path::absolute(tokens).unwrap_or_else(|_| tokens.clone());
        command += &format!(
            " --token-file {}",
            shell_word(&tokens.display().to_string())
        );
    }
    if arguments.tls_client_ca.is_some() {
        command += " --cert CERTIFICATE --key KEY";
    }
    command
}

/// How a shell finds this program: by its name, or else by its path.
fn program() -> String {
    let Ok(own) = std::env::current_exe().and_then(|path| path.canonicalize()) else {
        return NAME.to_owned();
    };
    let path = std::env::var_os("PATH").unwrap_or_default();
    let first = std::env::split_paths(&path)
        .map(|dir| dir.join(NAME))
        .find(|file| file.is_file());
    match first.and_then(|file| file.canonicalize().ok()) {
        Some(found) if found == own => NAME.to_owned(),
        _ => shell_word(&own.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn serve(arguments: &[&str]) -> Serve {
        Serve::from_arguments_alone(arguments.iter().map(OsString::from).collect()).unwrap()
    }

    #[test]
    fn addresses_are_those_that_a_client_here_can_use() {
        for (address, tls, expected) in [
            ("127.0.0.1:8080", false, "http://127.0.0.1:8080"),
            ("0.0.0.0:80", false, "http://127.0.0.1:80"),
            ("[::]:8443", true, "https://[::1]:8443"),
            ("192.0.2.7:1", false, "http://192.0.2.7:1"),
        ] {
            assert_eq!(url(address.parse().unwrap(), tls), expected);
        }
    }

    #[test]
    fn the_command_has_the_flags_that_the_service_needs() {
        let command = |arguments: &[&str]| send("flowtally", "http://h:1", &serve(arguments));
        assert_eq!(command(&[]), "flowtally send --url http://h:1");
        assert_eq!(
            command(&["--write-token-file", "/etc/my tokens"]),
            "flowtally send --url http://h:1 --token-file '/etc/my tokens'"
        );
        let relative = command(&["--write-token-file", "tokens"]);
        assert!(relative.contains("--token-file /"), "{relative}");
        let certified = command(&["--tls-client-ca", "ca"]);
        assert!(certified.ends_with("--cert CERTIFICATE --key KEY"));
        // Reading needs its token, sending does not.
        assert_eq!(command(&["--read-token-file", "r"]), command(&[]));
    }
}
