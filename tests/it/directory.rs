//! `POST /directory`, against the real binary: claims and questions, tokens that are bound to addresses, and nodes that
//! share what agents claim.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::support::{Client, Daemon, JSON};

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    now.as_millis().try_into().unwrap()
}

fn claim(app: &str, address: &str, from: u64, to: u64) -> Value {
    json!({"app": app, "address": address, "port": 80, "from": from, "to": to})
}

fn question(address: &str, from: u64, to: u64) -> Value {
    json!({"address": address, "port": 80, "from": from, "to": to})
}

fn post(client: &Client, token: Option<&str>, body: &Value) -> (u16, Value) {
    let authorization = token.map(|token| format!("Bearer {token}"));
    let mut headers = vec![JSON];
    headers.extend(
        authorization
            .as_deref()
            .map(|value| ("authorization", value)),
    );
    let body = serde_json::to_vec(body).unwrap();
    let response = client.post("/directory", &headers, &body).unwrap();
    (response.status, response.json())
}

fn names(client: &Client, questions: &[Value]) -> Value {
    let body = json!({"agent": "asker", "vpc_id": "v", "questions": questions});
    let (status, response) = post(client, None, &body);
    assert_eq!(status, 200, "{response}");
    response["names"].clone()
}

#[test]
fn the_directory_knows_who_had_an_address_and_when() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    let start = now();
    let (web, db) = (
        claim("web", "10.0.0.7", start - 5000, start - 3000),
        claim("db", "10.0.0.7", start - 2000, start - 1000),
    );
    for (agent, claim) in [("a", &web), ("b", &db)] {
        let body =
            json!({"agent": agent, "vpc_id": "v", "confirmed_until": start, "claims": [claim]});
        let (status, response) = post(client, None, &body);
        assert_eq!(status, 200, "{response}");
        let clock = response["now"].as_u64().unwrap();
        assert!((start..=now()).contains(&clock), "{clock}");
    }
    let of = |from, to| names(client, &[question("10.0.0.7", start - from, start - to)]);
    assert_eq!(of(4000, 3500), json!([web]));
    assert_eq!(of(1500, 1200), json!([db]));
    assert_eq!(of(2800, 2200), json!([]));
    // Neither at another port, nor in another VPC.
    let asked = [
        ("v", 80, json!([db])),
        ("v", 81, json!([])),
        ("w", 80, json!([])),
    ];
    for (vpc_id, port, expected) in asked {
        let mut question = question("10.0.0.7", start - 1500, start - 1200);
        question["port"] = port.into();
        let body = json!({"agent": "asker", "vpc_id": vpc_id, "questions": [question]});
        let (status, response) = post(client, None, &body);
        assert_eq!((status, &response["names"]), (200, &expected));
    }
    // An IPv4 address that is written as IPv6 is the same one.
    let mapped = question("::ffff:10.0.0.7", start - 1500, start - 1200);
    assert_eq!(names(client, &[mapped])[0]["app"], "db");
    // Another agent claims it for the same time.
    let body = json!({"agent": "c", "vpc_id": "v", "claims": [claim("evil", "10.0.0.7", start - 2500, start - 500)]});
    post(client, None, &body);
    assert_eq!(of(1500, 1200), json!([]));
    assert_eq!(client.metric("flowtally_directory_conflicts"), 1.0);
    assert!(
        daemon.log().contains("two agents claim the same address"),
        "{}",
        daemon.log()
    );
    // It takes that back.
    post(
        client,
        None,
        &json!({"agent": "c", "vpc_id": "v", "confirmed_until": now()}),
    );
    assert_eq!(of(1500, 1200), json!([db]));
    assert_eq!(client.metric("flowtally_directory_claims"), 2.0);
    daemon.stop();
}

#[test]
fn a_token_may_be_bound_to_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("writers");
    std::fs::write(&tokens, "free\nbound 10.0.0.0/24,fd00::/8\n").unwrap();
    let daemon = Daemon::start_with(
        &dir.path().join("db"),
        &["--write-token-file", tokens.to_str().unwrap()],
    );
    let start = now();
    let claims = ["10.0.0.7", "10.0.1.7", "fd00::7", "10.0.1.7"]
        .map(|address| claim("web", address, start - 500, start));
    let body = json!({"agent": "a", "vpc_id": "v", "claims": claims});
    let post = |token, body: &Value| post(&daemon.client, token, body);
    assert_eq!(post(None, &body).0, 401);
    let (status, response) = post(Some("bound"), &body);
    assert_eq!((status, &response["refused"]), (200, &json!(["10.0.1.7"])));
    let questions = ["10.0.0.7", "10.0.1.7", "fd00::7"]
        .map(|address| question(address, start - 400, start - 300));
    let body = json!({"agent": "b", "vpc_id": "v", "questions": questions});
    let (status, response) = post(Some("free"), &body);
    assert_eq!(status, 200);
    let named = response["names"].as_array().unwrap();
    let mut addresses: Vec<&str> = named
        .iter()
        .map(|name| name["address"].as_str().unwrap())
        .collect();
    addresses.sort_unstable();
    assert_eq!(addresses, ["10.0.0.7", "fd00::7"]);
    // Flows are not bound to addresses.
    let headers = [JSON, ("authorization", "Bearer bound")];
    let flows = daemon.client.post("/flows", &headers, b"[]").unwrap();
    assert_eq!(flows.status, 200);
    daemon.stop();
}

#[test]
fn invalid_requests_to_the_directory_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    for (body, what) in [
        (json!({}), "missing field `agent`"),
        (json!({"agent": ""}), "agent: it has 0 bytes"),
        (json!({"agent": "a b"}), "visible ASCII"),
        (json!(["a"]), "this is a list"),
        (
            json!({"agent": "a", "claims": "x".repeat(5000)}),
            "invalid type",
        ),
        (
            json!({"agent": "a", "claims": [{"app": "x", "address": "nowhere", "port": 80, "from": 1, "to": 2}]}),
            "invalid IP address",
        ),
        (
            json!({"agent": "a", "claims": [claim("x", "10.0.0.7", 2, 1)]}),
            "claims[0]: from is 2, after to: 1",
        ),
    ] {
        let (status, response) = post(&daemon.client, None, &body);
        assert_eq!(status, 400);
        assert_eq!(
            response["type"],
            "urn:flowtally:problem:bad-directory-request"
        );
        let detail = response["detail"].as_str().unwrap();
        assert!(detail.contains(what) && detail.len() <= 300, "{detail}");
    }
    let csv = [("content-type", "application/x-ndjson")];
    let response = daemon.client.post("/directory", &csv, b"{}").unwrap();
    assert_eq!(response.status, 415);
    daemon.stop();
}

/// Also a node that started later.
#[cfg(feature = "kafka")]
#[test]
fn all_nodes_know_what_agents_claim() {
    use crate::kafka::BROKER;
    use crate::nodes::{Node, until_answered};
    use crate::wait::until;

    let dir = tempfile::tempdir().unwrap();
    let node = |name| Node::new(&BROKER.addresses, "addresses", name, dir.path());
    let (a, b) = (node("a"), node("b"));
    let first = a.start();
    until_answered(&first.client, "/readyz");
    let start = now();
    let web = claim("web", "10.0.0.7", start - 500, start);
    let body = json!({"agent": "x", "vpc_id": "v", "confirmed_until": start, "claims": [web]});
    let (status, response) = post(&first.client, None, &body);
    assert_eq!(status, 200, "{response}");
    let second = b.start();
    until_answered(&second.client, "/readyz");
    for daemon in [&first, &second] {
        until("the node to know the claim", || {
            names(
                &daemon.client,
                &[question("10.0.0.7", start - 400, start - 300)],
            ) == json!([web])
        });
    }
    first.stop();
    second.stop();
}
