//! Maps flags of other programs to the flags for the same purpose here.

use std::ffi::OsString;

use clap::builder::StyledStr;
use clap::error::{ContextKind, ContextValue, ErrorKind};

const LISTEN: &str = "--listen 127.0.0.1:8080 has the address and the port";
const URL: &str = "--url http://127.0.0.1:8080 is the URL of the service";
const DATA: &str = "--data-dir DIR is where the data is";

/// Flags of other programs, and the tip for them.
type Tips = [(&'static [&'static str], &'static str)];

/// For `flowtally serve`.
const SERVE: &Tips = &[
    (
        &[
            "--port",
            "-p",
            "--host",
            "-H",
            "--bind",
            "--bind-address",
            "--bind-addr",
            "-b",
            "--addr",
            "--address",
            "-a",
            "-l",
            "--listen-address",
            "--listen-addr",
            "--listen-port",
            "--http",
            "--http-addr",
            "--http-port",
            "--web.listen-address",
            "--server.port",
        ],
        LISTEN,
    ),
    (
        &["--token", "--token-file", "--auth"],
        "--write-token-file FILE and --read-token-file FILE have the tokens",
    ),
    (
        &[
            "--dir",
            "--data",
            "--datadir",
            "--data-path",
            "--data-directory",
            "--db",
            "--db-path",
            "--path",
            "--storage",
            "--storage-path",
            "--storage.path",
            "--storage.tsdb.path",
            "-d",
            "-D",
        ],
        DATA,
    ),
    (
        &[
            "--retention",
            "--retention-days",
            "--retention-time",
            "--retain",
            "--ttl",
            "--keep",
            "--max-age",
            "--storage.tsdb.retention.time",
        ],
        "--retain-hours 30d deletes older hours",
    ),
    (
        &[
            "--verbose",
            "-v",
            "--debug",
            "--log-level",
            "--log.level",
            "--loglevel",
            "--quiet",
            "-q",
        ],
        "--log debug logs more, and --log error less",
    ),
    (
        &["--config-file", "--config.file", "--conf", "-c", "-f"],
        "--config FILE has settings",
    ),
    (
        &["--daemon", "--daemonize", "--background", "--detach"],
        "it runs in the foreground; a service manager such as systemd runs it in the background",
    ),
];

/// For all other commands.
const OTHERS: &Tips = &[
    (
        &[
            "--port",
            "-p",
            "--host",
            "-H",
            "--bind",
            "--server",
            "--endpoint",
            "--addr",
            "--address",
            "--listen",
            "-u",
        ],
        URL,
    ),
    (
        &["--token", "--auth", "--bearer"],
        "--token-file FILE: all users of the machine can see a token on the command line",
    ),
    (
        &["--file", "-f", "--input", "-i"],
        "the file is given without a flag",
    ),
    (
        &["--insecure", "-k", "--cacert"],
        "--ca FILE has the authority to trust",
    ),
    (
        &["--verbose", "-v", "--debug", "--log-level", "--log"],
        "only flowtally serve has a log: --log debug",
    ),
];

/// For `import`, `export`, `stats` and the other commands that use a directory.
const WITH_DATA: &Tips = &[(
    &[
        "--dir",
        "--data",
        "--datadir",
        "--data-path",
        "--db",
        "--path",
        "-d",
    ],
    DATA,
)];

/// Adds a tip to `error`: the flag that was probably meant.
pub(super) fn add(
    mut error: clap::Error,
    arguments: &[OsString],
    mut command: clap::Command,
) -> clap::Error {
    if error.kind() != ErrorKind::UnknownArgument {
        return error;
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let flag = flag.split(['=', ' ']).next().unwrap_or_default();
    let of = |table: &Tips| {
        let known = table.iter().find(|(flags, _)| flags.contains(&flag));
        known.map(|(_, tip)| (*tip).to_owned())
    };
    command.build();
    let name = arguments.get(1).and_then(|name| name.to_str());
    let subcommand = name.and_then(|name| command.find_subcommand_mut(name));
    let has_data = |command: &clap::Command| {
        let mut flags = command.get_arguments().filter_map(clap::Arg::get_long);
        flags.any(|flag| flag == "data-dir")
    };
    let tip = match &subcommand {
        // As in `flowtally serve 8080`.
        Some(_) if name == Some("serve") => of(SERVE).or_else(|| {
            flag.starts_with(|c: char| c.is_ascii_digit() || c == ':')
                .then(|| LISTEN.into())
        }),
        Some(command) => of(OTHERS).or_else(|| of(WITH_DATA).filter(|_| has_data(command))),
        None => of(SERVE)
            .map(|tip| format!("a command comes first, as in flowtally serve; of that one, {tip}")),
    };
    let Some(tip) = tip else {
        return error;
    };
    error.remove(ContextKind::SuggestedArg);
    let tips = vec![StyledStr::from(tip)];
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(tips));
    // clap's own tip is the flag with the most similar name.
    let usage = match subcommand {
        Some(subcommand) => subcommand.render_usage(),
        None => command.render_usage(),
    };
    error.insert(ContextKind::Usage, ContextValue::StyledStr(usage));
    error
}

#[cfg(test)]
mod tests {
    use crate::config::parse;

    #[test]
    fn flags_of_other_programs_get_a_tip() {
        const LISTEN: &str = "--listen 127.0.0.1:8080";
        const URL: &str = "--url http://127.0.0.1:8080";
        for (arguments, word) in [
            (&["serve", "--port", "8080"][..], LISTEN),
            (&["serve", "--port=8080"], LISTEN),
            (&["serve", "-p", "8080"], LISTEN),
            (&["serve", "-p8080"], LISTEN),
            (&["serve", "8080"], LISTEN),
            (&["serve", ":8080"], LISTEN),
            (&["serve", "127.0.0.1:8080"], LISTEN),
            (&["serve", "--host", "0.0.0.0"], LISTEN),
            (&["serve", "--bind=0.0.0.0"], LISTEN),
            (&["serve", "--web.listen-address=:9090"], LISTEN),
            (&["serve", "--data", "x"], "--data-dir DIR"),
            (&["serve", "--path", "x"], "--data-dir DIR"),
            (&["serve", "--storage.tsdb.path=x"], "--data-dir DIR"),
            (&["serve", "--verbose"], "--log debug"),
            (&["serve", "-vv"], "--log debug"),
            (&["serve", "-c", "x"], "--config FILE"),
            (&["serve", "--daemon"], "foreground"),
            (&["import", "--data", "x", "f"], "--data-dir DIR"),
            (&["stats", "--path", "x"], "--data-dir DIR"),
            (&["send", "-v"], "only flowtally serve has a log"),
            (&["send", "--port", "8080"], URL),
            (&["send", "--bind", "8080"], URL),
            (&["top", "--token", "x"], "--token-file FILE"),
            (&["stats", "--server", "x"], URL),
            (&["--port", "8080"], "a command comes first"),
            (&["-p", "8080"], LISTEN),
        ] {
            let all = ["flowtally"].iter().chain(arguments).map(Into::into);
            let error = parse(all).unwrap_err().to_string();
            assert!(error.contains("tip: ") && error.contains(word), "{error}");
            assert_eq!(error.matches("tip: ").count(), 1, "{error}");
            // The usage shows no other flag.
            let name = arguments[0].starts_with('-');
            let usage = match (name, arguments[0]) {
                (true, _) => "Usage: flowtally <COMMAND>\n".to_owned(),
                (_, name) => format!("Usage: flowtally {name} [OPTIONS]"),
            };
            assert!(error.contains(&usage), "{error}");
        }
    }
}
