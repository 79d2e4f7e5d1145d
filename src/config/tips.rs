//! Flags that other programs have, and what does it here.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

const LISTEN: &str = "--listen 127.0.0.1:8080 has the address and the port";
const URL: &str = "--url http://127.0.0.1:8080 says where the service is";

/// Of `flowtally serve`.
const SERVE: [(&[&str], &str); 5] = [
    (
        &[
            "--port",
            "-p",
            "--host",
            "--bind",
            "--addr",
            "--address",
            "--http",
        ],
        LISTEN,
    ),
    (
        &["--token", "--token-file", "--auth"],
        "--write-token-file FILE and --read-token-file FILE have the tokens",
    ),
    (
        &["--dir", "--data", "--db", "-d"],
        "--data-dir DIR is where the data is",
    ),
    (
        &["--retention", "--retain", "--ttl", "--keep"],
        "--retain-hours 30d drops what is older",
    ),
    (
        &["--verbose", "-v", "--debug", "--log-level", "--quiet", "-q"],
        "--log debug logs more, and --log error less",
    ),
];

/// Of all other commands.
const OTHERS: [(&[&str], &str); 4] = [
    (
        &[
            "--port",
            "-p",
            "--host",
            "--server",
            "--endpoint",
            "--addr",
            "--address",
        ],
        URL,
    ),
    (
        &["--token", "--auth", "--bearer"],
        "--token-file FILE: a token on the command line can be seen by everybody on the machine",
    ),
    (
        &["--file", "-f", "--input", "-i"],
        "the file is given without a flag",
    ),
    (
        &["--insecure", "-k", "--cacert"],
        "--ca FILE has the authority to trust",
    ),
];

/// `error` with what does here what was meant.
pub(super) fn add(mut error: clap::Error, arguments: &[OsString]) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let serves = arguments.get(1).is_some_and(|name| name == "serve");
    let table: &[_] = if serves { &SERVE } else { &OTHERS };
    let flag = flag.split(['=', ' ']).next().unwrap_or_default();
    let known = table.iter().find(|(flags, _)| flags.contains(&flag));
    if let Some((_, tip)) = known {
        let tip = ContextValue::StyledStrs(vec![StyledStr::from(*tip)]);
        error.remove(ContextKind::SuggestedArg);
        error.insert(ContextKind::Suggested, tip);
    }
    error
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    #[test]
    fn flags_of_other_programs_get_a_tip() {
        for (arguments, word) in [
            (&["serve", "--port", "8080"][..], "--listen 127.0.0.1:8080"),
            (&["serve", "--port=8080"], "--listen 127.0.0.1:8080"),
            (&["serve", "-p", "8080"], "--listen 127.0.0.1:8080"),
            (&["send", "--port", "8080"], "--url http://127.0.0.1:8080"),
            (&["top", "--token", "x"], "--token-file FILE"),
            (&["stats", "--server", "x"], "--url http://127.0.0.1:8080"),
        ] {
            let all = ["flowtally"].iter().chain(arguments).map(Into::into);
            let error = parse(all).unwrap_err().to_string();
            assert!(error.contains("tip: ") && error.contains(word), "{error}");
        }
    }
}
