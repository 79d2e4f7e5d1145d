//! `GET /openapi.json`: the description of the API. It is written by hand, and tests compare it with the service.

use super::response;
use warp::reply::Response;

/// OpenAPI 3.1.
pub(super) const DOCUMENT: &str = include_str!("openapi.json");

pub(super) fn document() -> Response {
    response::with_body(response::JSON, DOCUMENT)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::http::paths::PATHS;

    /// Methods that OpenAPI documents usually omit.
    const EVERYWHERE: [&str; 2] = ["head", "options"];

    #[test]
    fn it_describes_all_paths_and_methods() {
        let document: serde_json::Value = serde_json::from_str(DOCUMENT).unwrap();
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
        let known = PATHS.into_iter().chain([
            ("/assets/{version}/{file}", "GET, HEAD, OPTIONS"),
            ("/backups/{id}", "DELETE, OPTIONS"),
            ("/backups/{id}/{file}", "GET, HEAD, OPTIONS"),
        ]);
        let mut listed: BTreeSet<&str> = BTreeSet::new();
        for (path, allow) in known {
            listed.insert(path);
            let allowed: BTreeSet<String> = allow.split(", ").map(str::to_lowercase).collect();
            let described = document["paths"][path].as_object().unwrap();
            for method in described.keys().filter(|k| *k != "parameters") {
                assert!(allowed.contains(method), "{path} {method}");
            }
            for method in allowed.iter().filter(|m| !EVERYWHERE.contains(&m.as_str())) {
                assert!(described.contains_key(method), "{path} {method}");
            }
        }
        let described = document["paths"].as_object().unwrap();
        assert!(described.keys().all(|path| listed.contains(path.as_str())));
    }
}
