//! Checks the table of `docs/internals/modules.md`, which lists the allowed imports between modules, against the
//! sources. Cargo checks this between packages.

use std::collections::BTreeMap;
use std::path::Path;

struct Module {
    name: &'static str,
    /// Modules of this package that it may import.
    may: &'static [&'static str],
    /// Modules of `agent` that it may import.
    agent: &'static [&'static str],
    /// External crates that no other module may import.
    crates: &'static [&'static str],
}

const TABLE: [Module; 15] = [
    Module {
        name: "telemetry",
        may: &[],
        agent: &["terminal"],
        crates: &["prometheus", "tracing_subscriber"],
    },
    Module {
        name: "notify",
        may: &[],
        agent: &[],
        crates: &["sd_notify"],
    },
    Module {
        name: "pem",
        may: &[],
        agent: &[],
        crates: &["rustls"],
    },
    Module {
        name: "store",
        may: &["telemetry"],
        agent: &["durable"],
        crates: &["rocksdb"],
    },
    Module {
        name: "backup",
        may: &["store"],
        agent: &["client", "durable"],
        crates: &["jiff"],
    },
    Module {
        name: "directory",
        may: &["telemetry"],
        agent: &[],
        crates: &[],
    },
    Module {
        name: "ingest",
        may: &["telemetry"],
        agent: &[],
        crates: &[],
    },
    Module {
        name: "query",
        may: &["store"],
        agent: &[],
        crates: &["arrow_array", "arrow_ipc", "arrow_schema"],
    },
    Module {
        name: "service",
        may: &[
            "backup",
            "directory",
            "ingest",
            "pem",
            "query",
            "store",
            "telemetry",
        ],
        agent: &["client", "durable"],
        crates: &[
            "hyper",
            "hyper_rustls",
            "hyper_util",
            "object_store",
            "rdkafka",
            "ring",
            "rustls",
            "webpki_roots",
        ],
    },
    Module {
        name: "http",
        may: &[
            "backup",
            "directory",
            "ingest",
            "pem",
            "query",
            "service",
            "telemetry",
        ],
        agent: &["client"],
        crates: &[
            "askama",
            "hyper",
            "hyper_util",
            "rustls",
            "tokio_rustls",
            "warp",
        ],
    },
    Module {
        name: "traffic",
        may: &["query", "service", "telemetry"],
        agent: &[],
        crates: &[],
    },
    Module {
        name: "config",
        may: &["service", "store"],
        agent: &["arguments", "terminal", "units"],
        crates: &["clap", "toml"],
    },
    Module {
        name: "daemon",
        may: &[
            "http",
            "ingest",
            "notify",
            "query",
            "service",
            "store",
            "telemetry",
            "traffic",
        ],
        agent: &[],
        crates: &[],
    },
    Module {
        name: "cli",
        may: &[
            "backup",
            "config",
            "daemon",
            "http",
            "query",
            "store",
            "telemetry",
        ],
        agent: &[
            "arguments",
            "client",
            "command",
            "durable",
            "inputs",
            "terminal",
            "units",
        ],
        crates: &[
            "arrow_array",
            "arrow_ipc",
            "arrow_schema",
            "clap",
            "indicatif",
            "parquet",
            "ratatui",
            "rlimit",
            "signal_hook",
        ],
    },
    Module {
        name: "main",
        may: &["cli", "config"],
        agent: &["command"],
        crates: &[],
    },
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

/// The module names that follow each of `roots`, such as `crate::`.
fn named(code: &str, roots: &[&str]) -> Vec<String> {
    let word = |rest: &str| -> String {
        rest.chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect()
    };
    let mut names = Vec::new();
    for root in roots {
        for (at, _) in code.match_indices(root) {
            let (before, rest) = (&code[..at], &code[at + root.len()..]);
            if !starts_path(before) {
                continue;
            }
            assert!(
                !rest.starts_with('{'),
                "one `use` line a module, so that this test can read it: {root}{{…"
            );
            names.push(word(rest));
        }
    }
    names
}

/// Whether a path can start after this text: it is not part of a path.
fn starts_path(before: &str) -> bool {
    !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':')
}

#[test]
fn arrows_between_modules_run_one_way() {
    let sources = sources();
    for name in sources.keys().filter(|name| *name != "lib") {
        assert!(
            TABLE.iter().any(|module| module.name == name),
            "{name} is not in the table"
        );
    }
    for Module {
        name, may, agent, ..
    } in TABLE
    {
        for other in named(&sources[name], &["crate::", "flowtally::"]) {
            assert!(
                other == name || may.contains(&other.as_str()),
                "{name} names {other}, which the table does not allow"
            );
        }
        let of_agent = named(&sources[name], &["agent::"]);
        for other in &of_agent {
            assert!(
                agent.contains(&other.as_str()),
                "{name} names agent::{other}, which the table does not allow"
            );
        }
        for allowed in agent {
            assert!(
                of_agent.iter().any(|other| other == allowed),
                "{name} does not name agent::{allowed}, which the table allows"
            );
        }
    }
}

#[test]
fn each_external_crate_is_used_by_one_module() {
    let sources = sources();
    for outside in TABLE.iter().flat_map(|module| module.crates) {
        let owned = |module: &&Module| module.crates.contains(outside);
        let homes: Vec<_> = TABLE.iter().filter(owned).map(|m| m.name).collect();
        for (module, code) in &sources {
            let names = code
                .match_indices(&format!("{outside}::"))
                .any(|(i, _)| starts_path(&code[..i]));
            assert!(
                !names || homes.contains(&module.as_str()),
                "{module} names {outside}, whose home is {homes:?}"
            );
        }
    }
}

#[test]
fn the_table_is_the_one_in_the_document() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/internals/modules.md");
    let document = std::fs::read_to_string(path).unwrap();
    let list = |names: &[&str]| match names {
        [] => "–".to_owned(),
        names => {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            names.join(", ")
        }
    };
    for Module {
        name, may, agent, ..
    } in TABLE
    {
        let line = format!("| `{name}` | {} | {} |", list(may), list(agent));
        assert!(
            document.contains(&line),
            "docs/internals/modules.md lacks the line: {line}"
        );
    }
}
