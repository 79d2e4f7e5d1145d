//! Requests that a browser sends for a page of another site are neither counted nor served.

use std::net::SocketAddr;
use std::path::Path;

use serde_json::json;

use crate::browser::Browser;
use crate::support::{Daemon, TestFlow, json_body, raw};

fn body() -> String {
    String::from_utf8(json_body(&[TestFlow::new(1, "web", "db", "vpc-1", 1, 1)])).unwrap()
}

/// The status of a response, and the end of its problem's type.
fn status_and_title(response: &str) -> String {
    let status = response.split(' ').nth(1).unwrap_or("closed");
    let kind = response.split_once("urn:flowtally:problem:");
    let kind = kind.map_or("", |(_, rest)| rest.split('"').next().unwrap());
    format!("{status} {kind}").trim_end().to_owned()
}

fn post(address: SocketAddr, head: &str) -> String {
    let (body, head) = (body(), head.replace('\n', "\r\n"));
    let length = body.len();
    let request = format!(
        "POST /flows HTTP/1.1\r\n{head}connection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    status_and_title(&raw(address, request.as_bytes()))
}

fn get(address: SocketAddr, line: &str, head: &str) -> String {
    let head = head.replace('\n', "\r\n");
    status_and_title(&raw(address, format!("{line}\r\n{head}\r\n").as_bytes()))
}

fn serve(dir: &Path, arguments: &[&str]) -> Daemon {
    Daemon::start_with(dir, arguments)
}

#[test]
fn pages_of_other_sites_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(dir.path(), &[]);
    let (address, own) = (daemon.address, format!("host: {}\n", daemon.address));
    const FOREIGN: &str = "403 foreign-origin";
    for headers in [
        "origin: https://evil.example\n",
        "origin: null\n",
        "origin: http://localhost:3000\n",
        "origin: http://127.0.0.1\n",
        "sec-fetch-site: cross-site\nsec-fetch-mode: no-cors\n",
        "sec-fetch-site: same-site\nsec-fetch-mode: cors\n",
        "origin: https://evil.example\nsec-fetch-site: same-origin\n",
        // A submitted form.
        "sec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: document\n",
    ] {
        let head = format!("{own}{headers}");
        assert_eq!(post(address, &head), FOREIGN, "{headers}");
        let plain = format!("{head}content-type: text/plain\n");
        assert_eq!(post(address, &plain), FOREIGN, "{headers}");
    }
    for path in ["/", "/flows?hour=1", "/hours", "/metrics", "/nowhere"] {
        for method in ["GET", "DELETE", "OPTIONS"] {
            let line = format!("{method} {path} HTTP/1.1");
            let head = format!("{own}origin: https://evil.example\n");
            assert_eq!(get(address, &line, &head), FOREIGN, "{line}");
        }
    }
    // A user follows a link to the service.
    let link = format!(
        "{own}sec-fetch-site: cross-site\nsec-fetch-mode: navigate\nsec-fetch-dest: document\n"
    );
    assert_eq!(get(address, "GET / HTTP/1.1", &link), "200");
    let frame = link.replace("document", "iframe");
    assert_eq!(get(address, "GET / HTTP/1.1", &frame), FOREIGN);
    assert!(daemon.client.hour(1).is_empty(), "something was counted");
    // The service's own page, and clients that are not browsers.
    for headers in [
        "",
        &format!("origin: http://{address}\n"),
        "sec-fetch-site: same-origin\nsec-fetch-mode: cors\n",
        "sec-fetch-site: none\n",
    ] {
        assert_eq!(
            post(address, &format!("{own}{headers}")),
            "200",
            "{headers}"
        );
    }
    daemon.stop();
}

#[test]
fn requests_of_foreign_pages_are_refused_and_those_of_java_clients_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(dir.path(), &[]);
    let foreign = include_bytes!("../data/r02-no-content-type-foreign-origin.http");
    assert_eq!(
        status_and_title(&raw(daemon.address, foreign)),
        "403 foreign-origin"
    );
    assert!(daemon.client.hour(492_985).is_empty());
    let java = include_bytes!("../data/r01-java-h2c-upgrade.http");
    let response = raw(daemon.address, java);
    assert_eq!(response.matches("HTTP/1.1 200 OK").count(), 2, "{response}");
    assert!(response.contains("\"bytes_rx\":2000"), "{response}");
    daemon.stop();
}

#[test]
fn foreign_host_names_are_refused_on_loopback() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(dir.path(), &[]);
    let address = daemon.address;
    let port = address.port();
    const FOREIGN: &str = "421 foreign-host";
    for host in [
        "evil.example".to_owned(),
        format!("evil.example:{port}"),
        format!("127.0.0.1.evil.example:{port}"),
        format!("10.1.2.3:{port}"),
        "localhost.evil.example".into(),
    ] {
        let head = format!("host: {host}\n");
        assert_eq!(post(address, &head), FOREIGN, "{host}");
        let response = raw(
            address,
            format!("GET /hours HTTP/1.1\r\nhost: {host}\r\n\r\n").as_bytes(),
        );
        assert_eq!(status_and_title(&response), FOREIGN, "{host}");
        assert!(response.contains("--allow-host"), "{response}");
        // The name in a target in absolute form takes precedence.
        let line = format!("GET http://{host}/hours HTTP/1.1");
        assert_eq!(get(address, &line, "host: localhost\n"), FOREIGN);
    }
    assert!(daemon.client.hour(1).is_empty(), "something was counted");
    for host in [
        format!("localhost:{port}"),
        "LOCALHOST.".into(),
        "flows.localhost".into(),
        "127.9.9.9:1".into(),
        format!("[::1]:{port}"),
        "[::ffff:127.0.0.1]".into(),
    ] {
        assert_eq!(post(address, &format!("host: {host}\n")), "200", "{host}");
        let line = format!("GET http://{host}/hours HTTP/1.1");
        assert_eq!(get(address, &line, "host: evil.example\n"), "200", "{host}");
    }
    daemon.stop();
}

#[test]
fn a_request_must_have_exactly_one_host() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(dir.path(), &[]);
    let address = daemon.address;
    const BAD: &str = "400 bad-host";
    for head in [
        "",
        "host: localhost\nhost: localhost\n",
        "host: localhost\nhost: evil.example\n",
        "host: localhost, localhost\n",
        "host:\n",
        "host: user@localhost\n",
        "host: localhost/\n",
        "host: http://localhost\n",
        "host: ::1\n",
        "host: localhost:http\n",
    ] {
        assert_eq!(get(address, "GET /hours HTTP/1.1", head), BAD, "{head:?}");
        assert_eq!(post(address, head), BAD, "{head:?}");
    }
    assert!(daemon.client.hour(1).is_empty(), "something was counted");
    // HTTP/1.0 does not require this header; two are invalid there too.
    assert_eq!(get(address, "GET /hours HTTP/1.0", ""), "200");
    assert_eq!(
        get(address, "GET /hours HTTP/1.0", "host: localhost\n"),
        "200"
    );
    let two = "host: localhost\nhost: localhost\n";
    assert_eq!(get(address, "GET /hours HTTP/1.0", two), BAD);
    daemon.stop();
}

#[test]
fn with_tokens_any_host_name_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, "secret\n").unwrap();
    let tokens = tokens.to_str().unwrap();
    let (write, read) = (
        ["--write-token-file", tokens],
        ["--read-token-file", tokens],
    );
    let config = dir.path().join("flowtally.toml");
    std::fs::write(&config, "allow-host = \"flows.example,evil.example\"\n").unwrap();
    let ask = |arguments: &[&str]| {
        let daemon = serve(&dir.path().join("db"), arguments);
        let head = "host: Evil.example.:99\nauthorization: Bearer secret\n";
        let said = get(daemon.address, "GET /hours HTTP/1.1", head);
        daemon.stop();
        said
    };
    const FOREIGN: &str = "421 foreign-host";
    assert_eq!(ask(&[&write[..], &read].concat()), "200");
    assert_eq!(ask(&["--allow-anonymous"]), "200");
    assert_eq!(ask(&["--allow-host", "flows.example, evil.example"]), "200");
    assert_eq!(ask(&["--config", config.to_str().unwrap()]), "200");
    assert_eq!(
        ask(&["--listen", "[::1]:0", "--allow-host", "other.example"]),
        FOREIGN
    );
    // Without tokens, any page could read the data.
    assert_eq!(ask(&write), FOREIGN);
    assert_eq!(ask(&read), FOREIGN);
    for name in ["http://x", "*", "a:80"] {
        let serve = ["serve", "--listen", "127.0.0.1:0", "--allow-host", name];
        let db = dir.path().join("db").to_str().unwrap().to_owned();
        for last in [vec!["--data-dir", &db], vec!["--print-config"]] {
            let wrong = std::process::Command::new(Daemon::binary())
                .args(serve)
                .args(&last)
                .output()
                .unwrap();
            let error = String::from_utf8_lossy(&wrong.stderr);
            assert!(
                !wrong.status.success() && error.contains("--allow-host"),
                "{name} {last:?}: {error}"
            );
        }
    }
}

/// A page of another origin in a real browser tries all kinds of requests.
#[test]
fn a_page_of_another_site_gets_nothing_in_a_browser() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = serve(&dir.path().join("db"), &[]);
    let other = serve(&dir.path().join("other"), &[]);
    let browser = Browser::start(&format!("http://{}", other.address));
    // Acts as another site's page: its policy is disabled, so its scripts may send any request.
    browser.cdp("Page.setBypassCSP", json!({"enabled": true}));
    browser.open("/");
    let target = format!("http://{}", daemon.address);
    let script = |options: &str| {
        let ask = format!(
            "return fetch('{target}/flows', {options}).then(r => r.type + r.status, e => 'failed')"
        );
        browser.js(&ask).as_str().unwrap().to_owned()
    };
    let flows = serde_json::to_string(&body()).unwrap();
    let posted = script(&format!(
        "{{method: 'POST', mode: 'no-cors', body: {flows}}}"
    ));
    // It was sent, but the page cannot read the response.
    assert_eq!(posted, "opaque0");
    assert_eq!(script("{method: 'GET'}"), "failed");
    let refused = daemon.client.get("/metrics", &[]).unwrap();
    let refused = String::from_utf8(refused.body).unwrap();
    let line = "flowtally_rejected_total{reason=\"foreign-origin\"} 2";
    assert!(refused.contains(line), "{refused}");
    assert!(daemon.client.hour(1).is_empty(), "something was counted");
    // A page of the service itself gets its responses.
    browser.open("/");
    let own = "return fetch('/hours').then(r => r.type + r.status)";
    assert_eq!(browser.js(own), "basic200");
    let own =
        format!("return fetch('/flows', {{method: 'POST', body: {flows}}}).then(r => r.status)");
    assert_eq!(browser.js(&own), 415); // a text body has a media type of its own
    daemon.stop();
    other.stop();
}
