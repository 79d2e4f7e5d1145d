//! Many nodes share one journal: any node answers queries for all of it, as one service would, or returns an error.
//! `cluster_chaos` tests this during failures of nodes, brokers and connections.

use crate::kafka::BROKER;
use crate::nodes::{Node, rows, until_answered};
use crate::support::{Client, Daemon, Model, TestFlow, add_to, json_body, odd_flow, random};
use crate::wait::{until, until_logged};

/// Posts a batch under its key until it is visible: while partitions move, that may need more than one attempt.
pub fn post(client: &Client, key: &str, flows: &[TestFlow]) {
    let headers = [
        ("content-type", "application/json"),
        ("idempotency-key", key),
    ];
    until("a batch to be visible", || {
        let response = client.post("/flows?wait=visible", &headers, &json_body(flows));
        let response = response.unwrap();
        if response.status != 200 {
            assert_eq!(response.status, 503, "{response:?}");
            return false;
        }
        assert_eq!(response.json()["accepted"], flows.len());
        true
    });
}

#[test]
fn one_node_answers_for_all_partitions() {
    let dir = tempfile::tempdir().unwrap();
    let node = Node::new(&BROKER.addresses, "one-node", "a", dir.path());
    let daemon = node.start();
    until_answered(&daemon.client, "/readyz");
    let mut random = random("one_node_answers_for_all_partitions");
    let mut model = Model::new();
    for n in 0..20 {
        let flows: Vec<_> = (0..200)
            .map(|_| odd_flow(&mut random, &[0, 1, 7]))
            .collect();
        let key = format!("{n}{}", "k".repeat(if n % 2 == 0 { 1 } else { 250 }));
        for _twice in 0..2 {
            post(&daemon.client, &key, &flows);
        }
        add_to(&mut model, &flows);
    }
    let response = until_answered(&daemon.client, "/flows?from=0&to=100");
    assert_eq!(response.rows(), rows(&model));
    assert_eq!(
        response.header("flowtally-lag").unwrap().split(',').count(),
        6
    );
    let hours = until_answered(&daemon.client, "/hours").json();
    let flows: u64 = (hours.as_array().unwrap().iter())
        .map(|hour| hour["flows"].as_u64().unwrap())
        .sum();
    assert_eq!(flows, 4_000);

    // Unsupported requests name the alternative.
    assert_eq!(daemon.client.delete("/flows?hour=1").unwrap().status, 501);
    assert_eq!(
        daemon.client.post("/backups", &[], b"").unwrap().status,
        501
    );
    let unknown = daemon.client.post("/flows?wait=never", &[], b"[]").unwrap();
    assert_eq!(unknown.status, 400);

    // A batch that needs several messages.
    let flows: Vec<_> = (0..60_000)
        .map(|n| TestFlow::new(9, &format!("src-{n:060}"), "d", "v", 1, 2))
        .collect();
    post(&daemon.client, "long", &flows);
    add_to(&mut model, &flows);
    let metrics = daemon.client.get("/metrics", &[]).unwrap();
    let metrics = String::from_utf8(metrics.body).unwrap();
    assert!(metrics.contains("flowtally_partitions 6\n"));
    assert!(metrics.contains("flowtally_partition_lag_messages{partition=\"5\"} 0\n"));
    daemon.stop();

    // After a restart, nothing is counted twice, and a directory is not mistaken for another partition's.
    let daemon = node.start();
    until_answered(&daemon.client, "/readyz");
    let response = until_answered(&daemon.client, "/flows?from=0&to=100");
    assert_eq!(response.rows(), rows(&model));
    daemon.stop();
    let mut another = Node::new(&BROKER.addresses, "another-topic", "a", dir.path());
    another.dir = node.dir.clone();
    let daemon = another.start();
    until_logged(&daemon, "not those of partition");
    assert_eq!(daemon.client.get("/readyz", &[]).unwrap().status, 503);
    assert_eq!(daemon.client.get("/flows?hour=1", &[]).unwrap().status, 503);
    let partial = daemon
        .client
        .get("/flows?hour=1&partial=true", &[])
        .unwrap();
    assert_eq!(partial.header("flowtally-missing"), Some("0,1,2,3,4,5"));
    assert_eq!(partial.body, b"[]\n");
    daemon.stop();
}

#[test]
fn any_node_responds_as_one_service_would() {
    let dir = tempfile::tempdir().unwrap();
    let tokens = dir.path().join("tokens");
    std::fs::write(&tokens, "between-us\n").unwrap();
    let nodes = ["a", "b", "c"].map(|name| {
        let mut node = Node::new(&BROKER.addresses, "queries", name, dir.path());
        node.more = vec!["--node-token-file".into(), tokens.to_str().unwrap().into()];
        node
    });
    let daemons = nodes.each_ref().map(Node::start);
    let single = Daemon::start(&dir.path().join("single"));
    for daemon in &daemons {
        until_answered(&daemon.client, "/hours");
    }
    let mut random = random("any_node_responds_as_one_service_would");
    for n in 0..9 {
        let flows: Vec<_> = (0..300)
            .map(|_| odd_flow(&mut random, &[3, 4, 9]))
            .collect();
        single.client.accept(&flows);
        post(&daemons[n % 3].client, &format!("key-{n}"), &flows);
    }
    let queries = [
        "hour=3",
        "from=0",
        "from=0&to=100&group_by=src_app",
        "from=0&group_by=vpc_id,hour",
        "from=3&to=5&group_by=dest_app,hour",
        "from=0&group_by=",
        "from=0&sort=bytes&limit=7",
        "hour=4&sort=-bytes_tx&limit=50",
        "from=0&group_by=src_app&sort=bytes_rx&limit=5",
        "from=0&group_by=src_app,vpc_id&limit=11",
        "from=0&src_app=a&src_app=abc&limit=3",
        "from=0&search=SVC&sort=bytes",
        "from=0&dest_app=&vpc_id=%22",
        "hour=77",
        "hour=3&limit=40",
        "from=0&to=48&group_by=hour,src_app&step=24",
        "from=0&group_by=hour&step=4&peer=a",
        "from=0&sort=bytes&limit=3&other=true",
        "from=0&group_by=src_app&sort=bytes_tx&limit=2&other=true",
        "hour=4&group_by=src_app,vpc_id&compare=previous&sort=change",
        "hour=9&group_by=&compare=4",
        "from=0&src_app!=a&dest_app^=s&vpc_id!=&group_by=dest_app",
    ];
    for query in queries {
        let mut path = format!("/flows?{query}");
        for page in 0.. {
            let expected = single.client.get(&path, &[]).unwrap();
            assert_eq!(expected.status, 200, "{path}");
            for daemon in &daemons {
                let response = until_answered(&daemon.client, &path);
                assert!(response.body == expected.body, "{path}: {response:?}");
                for header in ["link", "flowtally-total-bytes-tx"] {
                    assert_eq!(response.header(header), expected.header(header), "{path}");
                }
            }
            let link = expected.header("link").map(str::to_owned);
            match link.filter(|_| page < 4) {
                Some(link) => path = link[1..link.find('>').unwrap()].to_owned(),
                None => break,
            }
        }
    }
    let hours = single.client.get("/hours", &[]).unwrap().body;
    for daemon in &daemons {
        assert_eq!(until_answered(&daemon.client, "/hours").body, hours);
        let path = "/partitions/rows?p=0&from=0";
        assert_eq!(daemon.client.get(path, &[]).unwrap().status, 401);
        let bearer = [("authorization", "Bearer between-us")];
        let responses = (0..6).map(|p| {
            let path = format!("/partitions/hours?p={p}");
            daemon.client.get(&path, &bearer).unwrap().status
        });
        let statuses: Vec<_> = responses.collect();
        assert!(
            statuses.iter().all(|status| [200, 503].contains(status)),
            "{statuses:?}"
        );
        assert!(statuses.contains(&200), "each has some: {statuses:?}");
    }
    let path = "/partitions/rows?p=0&from=0";
    assert_eq!(single.client.get(path, &[]).unwrap().status, 404);
    daemons.into_iter().for_each(Daemon::stop);
}

/// Each partition has its own sums of days, and one that lacks the hours of a query refuses it, whichever node is asked.
#[test]
fn sums_of_days_stay_in_each_partition() {
    let dir = tempfile::tempdir().unwrap();
    let nodes = ["a", "b"].map(|name| {
        let mut node = Node::new(&BROKER.addresses, "days", name, dir.path());
        let more = [
            "--retain-hours=30",
            "--retain-days=all",
            "--hour-ahead-max=none",
        ];
        node.more = more.map(str::to_owned).to_vec();
        node
    });
    let daemons = nodes.each_ref().map(Node::start);
    for daemon in &daemons {
        until_answered(&daemon.client, "/hours");
    }
    // In each hour, each partition has flows.
    let flows: Vec<_> = (0..100_u32)
        .flat_map(|hour| {
            (0..60).map(move |n| TestFlow::new(hour, &format!("s{n}"), "d", "v", 1, 2))
        })
        .collect();
    post(&daemons[0].client, "all", &flows);
    for daemon in &daemons {
        let client = &daemon.client;
        let all = until_answered(client, "/flows?from=0&to=120&group_by=");
        assert_eq!(all.json()[0]["bytes_tx"], 6_000);
        let days = until_answered(client, "/flows?from=0&to=120&group_by=hour&step=24").json();
        assert_eq!(days.as_array().unwrap().len(), 5);
        let hours = until_answered(client, "/hours").json();
        assert_eq!(
            (&hours[68]["finest_step"], &hours[69]["finest_step"]),
            (&24.into(), &serde_json::Value::Null)
        );
        for refused in [
            "hour=5",
            "from=48&to=100&group_by=src_app&step=12",
            "from=1&to=100&group_by=",
        ] {
            let response = client.get(&format!("/flows?{refused}"), &[]).unwrap();
            assert_eq!(response.status, 400, "{refused}: {response:?}");
        }
        let response = client.get("/flows?from=1&to=100&group_by=", &[]).unwrap();
        assert_eq!(response.json()["type"], "urn:flowtally:problem:too-coarse");
    }
    daemons.into_iter().for_each(Daemon::stop);
}
