//! Examples at the end of `--help`.

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

pub(super) const BACKUP: &str = "\
Examples:
  flowtally backup --to backups --keep 14
  flowtally backup --data-dir /var/lib/flowtally --to backups";

pub(super) const RESTORE: &str = "\
Example:
  flowtally restore --from backups --data-dir data/db";

pub(super) const EXPORT: &str = "\
Examples:
  flowtally export --format csv >flows.csv
  flowtally export --from 2026-11-29 --to 2026-11-30
  flowtally export --format parquet --to-dir days
  flowtally export --data-dir /var/lib/flowtally";

pub(super) const QUERY: &str = "\
Examples:
  flowtally query --from 7d --group-by src_app,dest_app
  flowtally query --from 30d --to today --group-by hour --step 24 src_app=web
  flowtally query --from yesterday --to today --group-by src_app --compare previous";

pub(super) const TOP: &str = "\
Examples:
  flowtally top
  flowtally top --once --group-by src_app --sort tx --limit 5
  flowtally top --once --hour 2026-11-29T10 --format json";
