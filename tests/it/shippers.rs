//! Requests of the shippers that no test runs, as they make them by the configurations of docs/shippers.md: they are accepted,
//! and count once if they are sent again. `tests/shippers` runs the others.

use crate::support::{Daemon, Model, TestFlow, add_to, hour_of};

/// A line for each record, with its fields as they came.
const FLUENT_BIT: &str = "\
{\"src_app\":\"web\",\"dest_app\":\"db\",\"vpc_id\":\"v\",\"bytes_tx\":10,\"bytes_rx\":20,\"hour\":5}
{\"hour\":5,\"src_app\":\"web\",\"dest_app\":\"cache\",\"vpc_id\":\"v\",\"bytes_tx\":30,\"bytes_rx\":40,\"host\":\"h1\"}
";
/// The fields are sorted, and the last line has no end.
const VECTOR: &str = "\
{\"bytes_rx\":20,\"bytes_tx\":10,\"dest_app\":\"db\",\"hour\":5,\"src_app\":\"web\",\"vpc_id\":\"v\"}
{\"bytes_rx\":40,\"bytes_tx\":30,\"dest_app\":\"cache\",\"hour\":5,\"src_app\":\"web\",\"vpc_id\":\"v\"}";
/// As the template has it. A line end before the first flow does no harm.
const TELEGRAF: &str = "
{\"src_app\":\"web\",\"dest_app\":\"db\",\"vpc_id\":\"v\",\"bytes_tx\":10,\"bytes_rx\":20,\"hour\":5}
{\"src_app\":\"web\",\"dest_app\":\"cache\",\"vpc_id\":\"v\",\"bytes_tx\":30,\"bytes_rx\":40,\"hour\":5}
";

#[test]
fn bodies_of_shippers_count_once() {
    let mut model = Model::new();
    add_to(
        &mut model,
        &[
            TestFlow::new(5, "web", "db", "v", 10, 20),
            TestFlow::new(5, "web", "cache", "v", 30, 40),
        ],
    );
    for (user_agent, media_type, body) in [
        ("Fluent-Bit", "application/x-ndjson", FLUENT_BIT),
        ("Vector/0.50.0", "application/x-ndjson", VECTOR),
        ("Telegraf/1.36.0", "application/x-ndjson", TELEGRAF),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(dir.path());
        let headers = [("user-agent", user_agent), ("content-type", media_type)];
        for replayed in [None, Some("true")] {
            let path = "/flows?dedup=content";
            let response = daemon.client.post(path, &headers, body.as_bytes());
            let response = response.unwrap();
            assert_eq!(response.status, 200, "{user_agent}: {:?}", response.json());
            assert_eq!(response.json()["accepted"], 2);
            assert_eq!(response.header("idempotent-replayed"), replayed);
        }
        assert_eq!(daemon.client.hour(5), hour_of(&model, 5));
        daemon.stop();
    }
}

/// By default, Fluent Bit adds its own media type to a configured one.
#[test]
fn two_media_types_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let media_type = ("content-type", "application/x-ndjson");
    let path = "/flows?dedup=content";
    let response = daemon
        .client
        .post(path, &[media_type; 2], FLUENT_BIT.as_bytes());
    assert_eq!(response.unwrap().status, 415);
    assert_eq!(daemon.client.hour(5), []);
    daemon.stop();
}
