//! Checks the table of `docs/internals/modules.md`, which lists the allowed imports between modules, against the
//! sources. Cargo checks this between packages.

use std::collections::BTreeMap;
use std::path::Path;

/// Module, modules of this package that it may import, external crates that no other module may import.
const TABLE: [(&str, &[&str], &[&str]); 13] = [
    ("telemetry", &[], &["prometheus", "tracing_subscriber"]),
    ("notify", &[], &["sd_notify"]),
    ("pem", &[], &["rustls"]),
    ("store", &["telemetry"], &["rocksdb"]),
    ("backup", &["store"], &["jiff"]),
    ("ingest", &["telemetry"], &[]),
    ("query", &["store"], &[]),
    (
        "service",
        &["backup", "ingest", "pem", "query", "store", "telemetry"],
        &[
            "hyper",
            "hyper_rustls",
            "hyper_util",
            "object_store",
            "rdkafka",
            "ring",
            "rustls",
            "webpki_roots",
        ],
    ),
    (
        "http",
        &["backup", "ingest", "pem", "query", "service", "telemetry"],
        &[
            "askama",
            "hyper",
            "hyper_util",
            "rustls",
            "tokio_rustls",
            "warp",
        ],
    ),
    ("config", &["service", "store"], &["clap", "toml"]),
    (
        "daemon",
        &[
            "http",
            "ingest",
            "notify",
            "query",
            "service",
            "store",
            "telemetry",
        ],
        &[],
    ),
    (
        "cli",
        &[
            "backup",
            "config",
            "daemon",
            "http",
            "query",
            "store",
            "telemetry",
        ],
        &["clap", "indicatif", "ratatui", "rlimit", "signal_hook"],
    ),
    ("main", &["cli", "config"], &[]),
];

/// Source text by top-level module, without comments.
fn sources() -> BTreeMap<String, String> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut paths = vec![src.clone()];
    while let Some(path) = paths.pop() {
        if path.is_dir() {
            paths.extend(std::fs::read_dir(path).unwrap().map(|e| e.unwrap().path()));
            continue;
        }
        let relative = path.strip_prefix(&src).unwrap();
        let module = relative.iter().next().unwrap().to_str().unwrap();
        let code: String = std::fs::read_to_string(&path)
            .unwrap()
            .lines()
            .map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n")
            .collect();
        let module = module.trim_end_matches(".rs").to_owned();
        sources.entry(module).or_default().push_str(&code);
    }
    sources
}

/// The module names that follow `crate::` or, in `main.rs`, `flowtally::`.
fn named(code: &str) -> Vec<String> {
    let word = |rest: &str| -> String {
        rest.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let mut names = Vec::new();
    for root in ["crate::", "flowtally::"] {
        for (_, rest) in code
            .match_indices(root)
            .map(|(i, _)| code.split_at(i + root.len()))
        {
            assert!(
                !rest.starts_with('{'),
                "one `use` line a module, so that this test can read it: {root}{{…"
            );
            names.push(word(rest));
        }
    }
    names
}

#[test]
fn arrows_between_modules_run_one_way() {
    let sources = sources();
    for module in sources.keys().filter(|m| *m != "lib") {
        assert!(
            TABLE.iter().any(|(m, ..)| m == module),
            "{module} is not in the table"
        );
    }
    for (module, may, _) in TABLE {
        for name in named(&sources[module]) {
            assert!(
                name == module || may.contains(&name.as_str()),
                "{module} names {name}, which the table does not allow"
            );
        }
    }
}

#[test]
fn each_external_crate_is_used_by_one_module() {
    let sources = sources();
    for (_, _, crates) in TABLE {
        for outside in crates {
            let homes: Vec<_> = TABLE
                .iter()
                .filter(|(_, _, owned)| owned.contains(outside))
                .map(|(module, ..)| *module)
                .collect();
            for (module, code) in &sources {
                let names = code.match_indices(&format!("{outside}::")).any(|(i, _)| {
                    // Only at the beginning of a path.
                    !code[..i].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
                });
                assert!(
                    !names || homes.contains(&module.as_str()),
                    "{module} names {outside}, whose home is {homes:?}"
                );
            }
        }
    }
}

#[test]
fn the_table_is_the_one_in_the_document() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/internals/modules.md");
    let document = std::fs::read_to_string(path).unwrap();
    for (module, may, _) in TABLE {
        let may = if may.is_empty() {
            "–".to_owned()
        } else {
            let names: Vec<_> = may.iter().map(|m| format!("`{m}`")).collect();
            names.join(", ")
        };
        let line = format!("| `{module}` | {may} |");
        assert!(
            document.contains(&line),
            "docs/internals/modules.md lacks the line: {line}"
        );
    }
}
