//! Examples at the end of `--help`, and in the section EXAMPLES of the manual pages. A test parses each line.

pub(super) const SERVE: &str = "\
Examples:
  flowtally serve
  flowtally serve --data-dir /var/lib/flowtally --memory-max 2G --retain-hours 90d
  flowtally serve --listen :8080 --write-token-file writers --read-token-file readers
  flowtally serve --config /etc/flowtally/flowtally.toml --print-config

Sizes are in MiB, or have a unit: 512M, 1GiB, 2GB. Durations are in seconds, or have one: 10s, 5m, 30d.";

pub(super) const DEMO: &str = "\
Examples:
  flowtally demo
  flowtally demo --days 90 --port 8081 --no-browser";

pub(super) const SEND: &str = "\
Examples:
  flowtally send flows.ndjson
  tail -F flows.ndjson | flowtally send --spool /var/spool/flowtally
  flowtally send --url https://flows.example.com --token-file token flows.csv.gz";

pub(super) const IMPORT: &str = "\
Examples:
  flowtally import 2026-*.ndjson.zst --rejects wrong.ndjson
  flowtally import --data-dir /var/lib/flowtally flows.csv
  flowtally import --apps apps.csv vpc-flow-logs/*.log.gz
  flowtally import --apps apps.csv vpc-flow-logs/*.parquet";

pub(super) const AGENT: &str = "\
Examples:
  flowtally agent watch --state-dir state
  flowtally agent listen --listen 0.0.0.0:2055 --state-dir state
  flowtally agent send flows.ndjson";

pub(super) const COMPACT: &str = "\
Examples:
  flowtally compact
  flowtally compact --data-dir /var/lib/flowtally";

pub(super) const VERIFY: &str = "\
Examples:
  flowtally verify
  flowtally verify --data-dir backups/2026-11-29T10-00-00Z -o json";

pub(super) const BACKUP: &str = "\
Examples:
  flowtally backup --to backups --keep 14
  flowtally backup --data-dir /var/lib/flowtally --to backups";

pub(super) const RESTORE: &str = "\
Examples:
  flowtally restore --from backups --data-dir data/db
  flowtally restore --from backups/2026-11-29T10-00-00Z --data-dir /var/lib/flowtally";

pub(super) const EXPORT: &str = "\
Examples:
  flowtally export --format csv >flows.csv
  flowtally export --from 2026-11-29 --to 2026-11-30
  flowtally export --format parquet --to-dir days
  flowtally export --data-dir /var/lib/flowtally -o json";

pub(super) const STATS: &str = "\
Examples:
  flowtally stats
  flowtally stats --url https://flows.example.com --token-file token -o csv
  flowtally stats --data-dir /var/lib/flowtally -o json";

pub(super) const QUERY: &str = "\
Examples:
  flowtally query --from 7d --group-by src_app,dest_app
  flowtally query --from 30d --to today --group-by hour --step 24 src_app=web
  flowtally query --from yesterday --to today --group-by src_app --compare previous
  flowtally query --hour now peer=web --group-by src_app,dest_app -o csv";

pub(super) const TOP: &str = "\
Examples:
  flowtally top
  flowtally top --once --group-by src_app --sort tx --limit 5
  flowtally top --peer web
  flowtally top --once --hour 2026-11-29T10 -o json";

pub(super) const COMPLETIONS: &str = "\
Examples:
  flowtally completions bash >/etc/bash_completion.d/flowtally
  flowtally completions zsh >_flowtally";

pub(super) const MAN: &str = "\
Examples:
  flowtally man | man -l -
  flowtally man --out /usr/local/share/man/man1";
