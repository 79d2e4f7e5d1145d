//! Examples at the end of `--help`, and in the section EXAMPLES of the manual pages. The program's tests parse each line.

/// The first line of all examples.
pub const HEADING: &str = "Examples:";

pub(crate) const SEND: &str = "\
Examples:
  flowtally-agent send flows.ndjson
  tail -F flows.ndjson | flowtally-agent send --spool /var/spool/flowtally
  flowtally-agent send --url https://flows.example.com --token-file token flows.csv.gz";

pub(crate) const WATCH: &str = "\
Examples:
  flowtally-agent watch --url https://flows.example.com --token-file token
  flowtally-agent watch --netns all --vpc-id vpc-0 --apps names.csv
  flowtally-agent watch --state-dir state --interval 5m --metrics-file flowtally.prom";

pub(crate) const LISTEN: &str = "\
Examples:
  flowtally-agent listen --url https://flows.example.com --token-file token
  flowtally-agent listen --listen 0.0.0.0:2055 --exporters 10.0.0.0/24 --apps names.csv
  flowtally-agent listen --listen 0.0.0.0:6343 --sampling-rate 1000";

pub const COMPLETIONS: &str = "\
Examples:
  flowtally-agent completions bash >/etc/bash_completion.d/flowtally-agent
  flowtally-agent completions zsh >_flowtally-agent";

pub const MAN: &str = "\
Examples:
  flowtally-agent man | man -l -
  flowtally-agent man --out /usr/local/share/man/man1";
