//! The paths of the API, and the methods of each.

use crate::service::PEER_PATH_PREFIX;
use flow::directory::DIRECTORY_PATH;

/// The path that OTLP/HTTP has for metrics.
pub(super) const OTLP_METRICS: &str = "/v1/metrics";

/// All paths, and their methods.
pub(super) const PATHS: [(&str, &str); 12] = [
    ("/", "GET, HEAD, OPTIONS"),
    ("/docs", "GET, HEAD, OPTIONS"),
    ("/flows", "GET, HEAD, POST, DELETE, OPTIONS"),
    ("/hours", "GET, HEAD, OPTIONS"),
    ("/metrics", "GET, HEAD, OPTIONS"),
    ("/openapi.json", "GET, HEAD, OPTIONS"),
    ("/healthz", "GET, HEAD, OPTIONS"),
    ("/readyz", "GET, HEAD, OPTIONS"),
    ("/backups", "POST, OPTIONS"),
    ("/receipts", "POST, OPTIONS"),
    (DIRECTORY_PATH, "POST, OPTIONS"),
    (OTLP_METRICS, "POST, OPTIONS"),
];
/// Methods of `/backups/ID` and of `/backups/ID/FILE`.
pub(super) const ONE_BACKUP: &str = "DELETE, OPTIONS";
pub(super) const BACKUP_FILE: &str = "GET, HEAD, OPTIONS";
/// Methods below [`PEER_PATH_PREFIX`].
pub(super) const PARTITIONS: &str = "GET, HEAD, OPTIONS";
/// Methods of the pages' assets.
pub(super) const ASSET: &str = "GET, HEAD, OPTIONS";

/// The known path that differs from `path` only by slashes at the end.
pub(super) fn path_like(path: &str) -> Option<&'static str> {
    let plain = path.trim_end_matches('/');
    let (known, _) = PATHS.iter().find(|(known, _)| *known == plain)?;
    Some(known)
}

/// The label of a path in metrics. All unknown paths share one, so that clients cannot create labels.
pub(super) fn path_label(path: &str) -> &'static str {
    let known = PATHS.iter().find(|(known, _)| *known == path);
    match known {
        Some((known, _)) => known,
        None if path.starts_with("/backups/") => "/backups",
        None if path.starts_with("/assets/") => "/assets",
        None if path.starts_with(PEER_PATH_PREFIX) => "/partitions",
        None => "other",
    }
}

/// `/backups/ID` and `/backups/ID/FILE`.
pub(super) fn backup_path(path: &str) -> Option<(&str, Option<&str>)> {
    let rest = path.strip_prefix("/backups/")?;
    let (id, file) = match rest.split_once('/') {
        Some((id, file)) => (id, Some(file)),
        None => (rest, None),
    };
    (!id.is_empty()).then_some((id, file))
}
