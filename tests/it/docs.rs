//! The reference at `/docs`: its response, and the examples in it.

use std::process::Command;

use serde_json::Value;

use crate::support::{Daemon, TestFlow};

/// Like the page, it is cached by its tag, compressed, guarded by the policy, and needs no token.
#[test]
fn the_reference_is_a_page_for_everybody() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, "secret\n").unwrap();
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &["--read-token-file", tokens.to_str().unwrap()],
    );
    let client = &daemon.client;
    let plain = [("accept-encoding", "identity")];
    let page = client.get("/docs", &plain).unwrap();
    assert_eq!(page.status, 200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    assert_eq!(page.header("cache-control"), Some("no-cache"));
    assert_eq!(page.header("content-encoding"), None);
    let policy = page.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none';") && !policy.contains("unsafe"));
    let tag = page.header("etag").unwrap();
    let again = client.get("/docs", &[("if-none-match", tag)]).unwrap();
    assert_eq!((again.status, again.body.len()), (304, 0));
    // The client decompresses it.
    let compressed = client.get("/docs", &[("accept-encoding", "gzip")]).unwrap();
    assert_eq!(compressed.status, 200);
    let ruled_out = [("accept-encoding", "*;q=0")];
    assert_eq!(client.get("/docs", &ruled_out).unwrap().status, 406);

    let html = String::from_utf8(page.body).unwrap();
    let (_, rest) = html
        .split_once("<link rel=\"stylesheet\" href=\"assets/")
        .unwrap();
    let styles = rest.split('"').next().unwrap();
    let styles = client.get(&format!("/assets/{styles}"), &plain).unwrap();
    assert_eq!(styles.status, 200);
    assert_eq!(
        styles.header("content-type"),
        Some("text/css; charset=utf-8")
    );
    // The page links to it.
    let index = client.get("/", &plain).unwrap();
    assert!(
        String::from_utf8(index.body)
            .unwrap()
            .contains("href=\"docs\"")
    );
    assert_eq!(client.delete("/docs").unwrap().status, 405);
    assert_eq!(client.get("/docs/", &[]).unwrap().status, 404);
    daemon.stop();
}

/// The operations of the document that have examples: the method, the path, the operation.
fn operations(document: &Value) -> Vec<(&str, &str, &Value)> {
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if operation["x-codeSamples"].is_array() {
                found.push((method.as_str(), path.as_str(), operation));
            }
        }
    }
    // What is deleted was there before.
    found.sort_by_key(|(method, ..)| {
        ["post", "get", "head", "delete"]
            .iter()
            .position(|m| m == method)
    });
    found
}

/// Each example runs as it is written, and gets a 2xx.
#[test]
fn the_examples_run() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(&dir.path().join("db"));
    daemon
        .client
        .accept(&[TestFlow::new(1, "job-1", "web", "vpc-0", 1, 2)]);
    let document = daemon.client.get("/openapi.json", &[]).unwrap().json();
    let work = dir.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let flow = TestFlow::new(2, "a", "b", "vpc-0", 1, 2).json();
    std::fs::write(work.join("body.ndjson"), format!("{flow}\n")).unwrap();
    let (mut backup, mut file) = (String::new(), String::new());
    let mut ran = 0;
    for (method, path, operation) in operations(&document) {
        let body = &operation["requestBody"]["content"]["application/json"]["example"];
        std::fs::write(work.join("body.json"), body.to_string()).unwrap();
        for sample in operation["x-codeSamples"].as_array().unwrap() {
            let source = sample["source"].as_str().unwrap();
            // A time limit, and an error status where curl gets one.
            let line = source
                .replace("curl ", "curl -sS --fail-with-body --max-time 60 ")
                .replace("localhost:8080", &daemon.address.to_string())
                .replace("/backups/ID", &format!("/backups/{backup}"))
                .replace("/FILE", &format!("/{file}"));
            assert!(line.contains(&daemon.address.to_string()), "{source}");
            let output = Command::new("bash")
                .args(["-euo", "pipefail", "-c", &line])
                .current_dir(&work)
                .output()
                .unwrap();
            let printed = String::from_utf8_lossy(&output.stdout).into_owned();
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(
                output.status.success(),
                "{method} {path}: {line}\n{printed}{errors}"
            );
            ran += 1;
            match (method, path) {
                ("post", "/backups") => {
                    let begun: Value = serde_json::from_str(&printed).unwrap();
                    backup = begun["id"].as_str().unwrap().to_owned();
                    file = begun["files"][0]["name"].as_str().unwrap().to_owned();
                }
                ("get", "/flows") => assert!(printed.contains("job-1"), "{line}: {printed}"),
                ("post", "/flows") => assert_eq!(printed, "{\"accepted\":1}\n", "{line}"),
                _ => {}
            }
        }
    }
    assert!(ran >= 15, "{ran}");
    daemon.stop();
}
