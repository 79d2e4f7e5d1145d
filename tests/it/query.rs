//! All kinds of queries, compared with a sorted map.

use std::collections::BTreeMap;

use flow::{Counters, Hour};
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Map, Value};

use crate::support::{Client, Daemon, Model, TestFlow, add_to, odd_flow, odd_name, random};
use crate::wait::until_flushed;

const HOURS: [u32; 7] = [0, 1, 2, 23, 480_000, 480_001, Hour::MAX];

const COLUMNS: [&str; 4] = ["hour", "src_app", "dest_app", "vpc_id"];

/// A query, as parameters and as their meaning.
#[derive(Clone, Debug, Default)]
struct TestQuery {
    parameters: Vec<(&'static str, String)>,
    from: u32,
    to: u32,
    /// Names by column.
    filter: [Vec<String>; 4],
    search: String,
    /// `None`: rows without grouping.
    group_by: Option<Vec<&'static str>>,
    sort: Option<(&'static str, bool)>,
    limit: Option<usize>,
}

impl TestQuery {
    fn random(random: &mut StdRng, model: &Model) -> TestQuery {
        let mut asked = TestQuery::default();
        if random.random_bool(0.4) {
            asked.from = HOURS[random.random_range(0..HOURS.len())];
            asked.to = asked.from + 1;
            asked.parameters.push(("hour", asked.from.to_string()));
        } else {
            asked.to = u32::MAX;
            let bound = |random: &mut StdRng| HOURS[random.random_range(0..HOURS.len())];
            let (a, b) = (bound(random), bound(random));
            let kind = random.random_range(0..3);
            if kind != 0 {
                asked.from = a.min(b);
                asked.parameters.push(("from", asked.from.to_string()));
            }
            if kind != 1 {
                asked.to = a.max(b).max(asked.from + 1);
                asked.parameters.push(("to", asked.to.to_string()));
            }
        }
        let keys: Vec<_> = model.keys().collect();
        for (at, column) in COLUMNS.into_iter().enumerate().skip(1) {
            if !random.random_bool(0.25) {
                continue;
            }
            for _ in 0..random.random_range(1..6) {
                let name = match keys.len() {
                    0 => odd_name(random),
                    n => names(keys[random.random_range(0..n)])[at - 1].clone(),
                };
                asked.parameters.push((column, name.clone()));
                asked.filter[at].push(name);
            }
        }
        if random.random_bool(0.2) {
            let name = odd_name(random);
            let letters = name.chars().count();
            let from = random.random_range(0..=letters);
            let some = name.chars().skip(from).take(random.random_range(0..4));
            asked.search = some.collect();
            asked.parameters.push(("search", asked.search.clone()));
        }
        if random.random_bool(0.7) {
            let mut columns: Vec<_> = COLUMNS.into_iter().collect();
            columns.retain(|_| random.random_bool(0.5));
            let mut given = columns.clone();
            given.reverse();
            asked.parameters.push(("group_by", given.join(",")));
            asked.group_by = Some(columns);
        }
        if random.random_bool(0.4) {
            let by = ["bytes", "bytes_tx", "bytes_rx"][random.random_range(0..3)];
            let ascending = random.random_bool(0.5);
            let sign = if ascending { "-" } else { "" };
            asked.parameters.push(("sort", format!("{sign}{by}")));
            asked.sort = Some((by, ascending));
        }
        if random.random_bool(0.5) {
            let limit = random.random_range(1..40);
            asked.parameters.push(("limit", limit.to_string()));
            asked.limit = Some(limit);
        }
        asked
    }

    fn path(&self) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        for (name, value) in &self.parameters {
            query.append_pair(name, value);
        }
        format!("/flows?{}", query.finish())
    }

    /// The expected rows, without pages.
    fn expected(&self, model: &Model) -> Vec<Value> {
        let columns = self.group_by.clone().unwrap_or(COLUMNS.to_vec());
        // The group's key, in key order; a column that is not in it is left empty.
        let mut groups: BTreeMap<(u32, [String; 3]), Counters> = BTreeMap::new();
        for (key, counters) in model {
            let names = names(key);
            let in_hours = (self.from..self.to).contains(&key.0);
            let of =
                |at: usize| self.filter[at].is_empty() || self.filter[at].contains(&names[at - 1]);
            let search = self.search.to_ascii_lowercase();
            let found = names
                .iter()
                .any(|n| n.to_ascii_lowercase().contains(&search));
            if !in_hours || !(1..4).all(of) || !found {
                continue;
            }
            let mut group = (key.0, names);
            if !columns.contains(&"hour") {
                group.0 = 0;
            }
            for (name, column) in group.1.iter_mut().zip(&COLUMNS[1..]) {
                if !columns.contains(column) {
                    name.clear();
                }
            }
            groups.entry(group).or_default().add(*counters);
        }
        let mut rows: Vec<_> = groups.into_iter().collect();
        if let Some((by, ascending)) = self.sort {
            rows.sort_by_key(|(_, counters)| {
                let (tx, rx) = (i128::from(counters.tx), i128::from(counters.rx));
                let value = match by {
                    "bytes_tx" => tx,
                    "bytes_rx" => rx,
                    _ => tx + rx,
                };
                if ascending { value } else { -value }
            });
        }
        let row = |((hour, names), counters): ((u32, [String; 3]), Counters)| {
            let mut row = Map::new();
            for (at, name) in names.into_iter().enumerate() {
                row.insert(COLUMNS[at + 1].into(), name.into());
            }
            row.insert("hour".into(), hour.into());
            row.retain(|column, _| columns.contains(&column.as_str()));
            row.insert("bytes_tx".into(), counters.tx.into());
            row.insert("bytes_rx".into(), counters.rx.into());
            Value::Object(row)
        };
        rows.into_iter().map(row).collect()
    }
}

pub(crate) fn names(key: &(u32, String, String, String)) -> [String; 3] {
    [key.1.clone(), key.2.clone(), key.3.clone()]
}

/// The path of the next page, from the `Link` header.
fn next_page(link: Option<&str>) -> Option<String> {
    let link = link?;
    let target = link.strip_prefix('<').unwrap();
    Some(target.strip_suffix(">; rel=\"next\"").unwrap().to_owned())
}

/// The rows of all pages of `path`; each page except the last has `limit` rows.
fn pages(client: &Client, path: String, limit: usize) -> Vec<Value> {
    let (mut rows, mut next) = (Vec::new(), Some(path));
    while let Some(path) = next {
        let response = client.get(&path, &[]).unwrap();
        assert_eq!(response.status, 200, "{path}: {}", response.json());
        let page = response.json().as_array().unwrap().clone();
        next = next_page(response.header("link"));
        assert!(
            page.len() == limit || (page.len() < limit && next.is_none()),
            "{path}"
        );
        rows.extend(page);
    }
    rows
}

#[test]
fn every_query_returns_the_rows_of_a_sorted_map() {
    let mut random = random("every_query_returns_the_rows_of_a_sorted_map");
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--flush-interval", "1"]);
    let client = &daemon.client;
    let mut model = Model::new();
    let mut flows: Vec<TestFlow> = Vec::new();
    for round in 0..40 {
        // Some rows are new, and some add to rows that may be on disk by now.
        let known = flows.len();
        let mut batch: Vec<_> = (0..30).map(|_| odd_flow(&mut random, &HOURS)).collect();
        for _ in 0..if known > 0 { 10 } else { 0 } {
            batch.push(flows[random.random_range(0..known)].clone());
        }
        client.accept(&batch);
        add_to(&mut model, &batch);
        flows.extend(batch);
        if round % 8 == 3 {
            // A flush, so that rows are on disk only, in memory only, and in both.
            until_flushed(client);
        }
        for _ in 0..25 {
            let asked = TestQuery::random(&mut random, &model);
            let expected = asked.expected(&model);
            let response = match asked.limit {
                Some(limit) => pages(client, asked.path(), limit),
                None => {
                    let response = client.get(&asked.path(), &[]).unwrap();
                    assert_eq!(response.status, 200, "{asked:?}: {}", response.json());
                    assert_eq!(response.header("link"), None);
                    response.json().as_array().unwrap().clone()
                }
            };
            assert!(
                response == expected,
                "{asked:?}\n{} rows, expected {}; first that differ: {:?}",
                response.len(),
                expected.len(),
                response.iter().zip(&expected).find(|(a, b)| a != b)
            );
        }
    }
}

#[test]
fn rows_have_the_selected_columns_in_every_format() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    client.accept(&[
        TestFlow::new(1, "a", "x", "v", 1, 10),
        TestFlow::new(1, "a", "y", "v", 2, 20),
        TestFlow::new(2, "b", "x", "v", 4, 40),
    ]);
    let text = |path: &str, accept: &str| {
        let response = client.get(path, &[("accept", accept)]).unwrap();
        assert_eq!(response.status, 200, "{path}");
        String::from_utf8(response.body).unwrap()
    };
    let path = "/flows?from=1&to=3&group_by=hour,src_app&sort=bytes";
    assert_eq!(
        text(path, "application/json"),
        "[{\"src_app\":\"b\",\"bytes_tx\":4,\"bytes_rx\":40,\"hour\":2},\n\
         {\"src_app\":\"a\",\"bytes_tx\":3,\"bytes_rx\":30,\"hour\":1}]\n"
    );
    assert_eq!(
        text(path, "text/csv"),
        "src_app,bytes_tx,bytes_rx,hour\nb,4,40,2\na,3,30,1\n"
    );
    let path = "/flows?from=1&group_by=";
    assert_eq!(
        text(path, "application/x-ndjson"),
        "{\"bytes_tx\":7,\"bytes_rx\":70}\n"
    );
    assert_eq!(text(path, "text/csv"), "bytes_tx,bytes_rx\n7,70\n");
    assert_eq!(
        text("/flows?hour=9&group_by=", "text/csv"),
        "bytes_tx,bytes_rx\n"
    );
}

#[test]
fn wrong_parameters_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(dir.path());
    let client = &daemon.client;
    let refused = |query: &str, words: &[&str]| {
        let response = client.get(&format!("/flows?{query}"), &[]).unwrap();
        assert_eq!(response.status, 400, "{query}");
        assert_eq!(response.json()["type"], "urn:flowtally:problem:bad-query");
        let detail = response.json()["detail"].as_str().unwrap().to_owned();
        for word in words {
            assert!(detail.contains(word), "{query}: {detail}");
        }
    };
    refused("sort=bytes", &["hour", "from", "to"]);
    refused("hour=1&from=1", &["hour", "from"]);
    refused("from=5&to=5", &["from is 5", "to is 5"]);
    refused("to=0", &["to is 0"]);
    refused("from=1&to=4294967296", &["to", "4294967295"]);
    refused("from=4294967295", &["from", "4294967294"]);
    refused("hour=1&sort=size", &["size", "bytes_tx", "bytes_rx"]);
    refused("hour=1&sort=", &["sort"]);
    refused("hour=1&sort=bytes&sort=bytes", &["sort", "twice"]);
    refused("hour=1&group_by=app", &["\"app\"", "src_app"]);
    refused("hour=1&group_by=bytes_tx", &["bytes_tx"]);
    refused("hour=1&group_by=hour,hour", &["hour", "twice"]);
    refused("hour=1&group_by=src_app,", &["\"\""]);
    refused("hour=1&limit=0", &["limit", "1", "100000"]);
    refused("hour=1&limit=100001", &["100001"]);
    refused("hour=1&cursor=x", &["limit"]);
    refused("hour=1&limit=1&cursor=x", &["cursor", "Link"]);
    refused("hour=1&src_app=caf%e9", &["src_app", "%e9", "UTF-8"]);
    refused("hour=1&src_app=%zz", &["%zz"]);
    refused("hour=1&src_app=100%", &["100%"]);
    refused("hour=1&order=up", &["order", "sort", "cursor"]);
    let many: String = (0..65).map(|i| format!("&src_app={i}")).collect();
    refused(&format!("hour=1{many}"), &["65", "64"]);
    // A cursor is valid only for its own query, and cannot be forged.
    let flows: Vec<_> = ["a", "b", "c"]
        .map(|src| TestFlow::new(1, src, "x", "v", 1, 1))
        .into();
    client.accept(&flows);
    let response = client.get("/flows?hour=1&limit=2", &[]).unwrap();
    let next = next_page(response.header("link")).unwrap();
    assert_eq!(
        client
            .get(&next, &[])
            .unwrap()
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    let cursor = next.split("cursor=").nth(1).unwrap();
    refused(
        &format!("hour=1&limit=9&sort=bytes&cursor={cursor}"),
        &["cursor"],
    );
    refused(&format!("hour=2&limit=9&cursor={cursor}"), &["cursor"]);
    let shorter = &cursor[..cursor.len() - 2];
    refused(&format!("hour=1&limit=9&cursor={shorter}"), &["cursor"]);
    let other_limit = format!("/flows?limit=9&cursor={cursor}&hour=1");
    assert_eq!(client.get(&other_limit, &[]).unwrap().status, 200);
}
