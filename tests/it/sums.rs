//! Bounds of sums that grow during queries, and the check whether a response is within them.

use std::collections::BTreeMap;
use std::ops::Range;

use flow::Counters;
use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::support::{Key, Model, TestFlow, add_to};

/// No response shows more than `ceiling`, and no later one shows less than the floor.
#[derive(Default)]
pub struct Sums {
    /// All flows whose sending has begun.
    pub ceiling: Model,
    /// All flows that were acknowledged as visible.
    acknowledged: Model,
    /// The maximum that a response has shown.
    shown: Model,
}

impl Sums {
    pub fn sends(&mut self, flows: &[TestFlow]) {
        add_to(&mut self.ceiling, flows);
    }

    pub fn sees(&mut self, flows: &[TestFlow]) {
        add_to(&mut self.acknowledged, flows);
    }

    pub fn saw(&mut self, rows: &[(Key, Counters)]) {
        for (key, sums) in rows {
            raise(&mut self.shown, key, *sums);
        }
    }

    pub fn floor(&self) -> Model {
        let mut floor = self.shown.clone();
        for (key, sums) in &self.acknowledged {
            raise(&mut floor, key, *sums);
        }
        floor
    }
}

fn raise(model: &mut Model, key: &Key, to: Counters) {
    let sums = model.entry(key.clone()).or_default();
    sums.tx = sums.tx.max(to.tx);
    sums.rx = sums.rx.max(to.rx);
}

/// A query of hours from 0 to 7 (exclusive).
#[derive(Debug)]
pub struct TestQuery {
    /// `GET /hours` instead of `GET /flows`.
    of_hours: bool,
    hours: Range<u32>,
    src: Option<String>,
    /// Columns to group by, in key order; `None` means rows without grouping.
    columns: Option<Vec<&'static str>>,
    /// Sort by bytes, with this limit; `true` means ascending.
    top: Option<(bool, usize)>,
    pub partial: bool,
}

const COLUMNS: [&str; 4] = ["hour", "src_app", "dest_app", "vpc_id"];

impl TestQuery {
    pub fn any(random: &mut StdRng) -> TestQuery {
        let from = random.random_range(0..6);
        let whole = TestQuery {
            of_hours: false,
            hours: from..random.random_range(from + 1..8),
            src: None,
            columns: None,
            top: None,
            partial: false,
        };
        let some_columns = |random: &mut StdRng| {
            Some((COLUMNS.into_iter().filter(|_| random.random_bool(0.5))).collect())
        };
        match random.random_range(0..8) {
            0 => TestQuery {
                of_hours: true,
                hours: 0..u32::MAX,
                columns: Some(vec!["hour"]),
                ..whole
            },
            1 => TestQuery {
                hours: 5..6,
                ..whole
            },
            2 => TestQuery {
                columns: some_columns(random),
                top: Some((random.random(), random.random_range(1..20))),
                ..whole
            },
            3 => TestQuery {
                top: Some((random.random(), random.random_range(1..20))),
                ..whole
            },
            4 => TestQuery {
                src: Some(format!("step-{}", random.random_range(0..20))),
                ..whole
            },
            5 => TestQuery {
                partial: true,
                ..whole
            },
            _ => TestQuery {
                columns: some_columns(random),
                ..whole
            },
        }
    }

    pub fn path(&self) -> String {
        if self.of_hours {
            return "/hours".into();
        }
        let mut path = format!("/flows?from={}&to={}", self.hours.start, self.hours.end);
        if let Some(src) = &self.src {
            path += &format!("&src_app={src}");
        }
        if let Some(columns) = &self.columns {
            path += &format!("&group_by={}", columns.join(","));
        }
        if let Some((ascending, limit)) = self.top {
            let sign = if ascending { "-" } else { "" };
            path += &format!("&sort={sign}bytes&limit={limit}");
        }
        path + if self.partial { "&partial=true" } else { "" }
    }

    /// Whether a response has complete rows.
    pub fn shows_rows(&self) -> bool {
        self.columns.is_none()
    }

    /// The expected groups for the sums `model`, by their JSON.
    fn groups(&self, model: &Model) -> BTreeMap<String, Counters> {
        let mut groups = BTreeMap::<String, Counters>::new();
        for (key, sums) in model {
            let (hour, src, dest, vpc) = key;
            if !self.hours.contains(hour) || self.src.as_ref().is_some_and(|wanted| wanted != src) {
                continue;
            }
            let names = [("src_app", src), ("dest_app", dest), ("vpc_id", vpc)];
            let mut group: BTreeMap<_, _> = names.map(|(name, text)| (name, json!(text))).into();
            group.insert("hour", json!(hour));
            if let Some(columns) = &self.columns {
                group.retain(|column, _| columns.contains(column));
            }
            let group = serde_json::to_string(&group).unwrap();
            groups.entry(group).or_default().add(*sums);
        }
        groups
    }

    /// Checks `response` against `floor`, the bound from before its request, and `ceiling`, the bound from now.
    pub fn check(
        &self,
        response: &Value,
        is_partial: bool,
        floor: &Model,
        ceiling: &Model,
    ) -> Result<(), String> {
        let (floor, ceiling) = (self.groups(floor), self.groups(ceiling));
        let mut shown = BTreeMap::new();
        let mut last = None;
        for row in response.as_array().ok_or("it is not a list")? {
            let fields = row.as_object().ok_or("a row is not an object")?;
            let mut fields: BTreeMap<_, _> = fields.iter().collect();
            fields.retain(|field, _| *field != "flows");
            let mut number = |name: &str| fields.remove(&name.to_owned()).and_then(|n| n.as_u64());
            let (Some(tx), Some(rx)) = (number("bytes_tx"), number("bytes_rx")) else {
                return Err(format!("{row} lacks a sum"));
            };
            let group = serde_json::to_string(&fields).unwrap();
            let least = floor.get(&group).copied().unwrap_or_default();
            let most = ceiling.get(&group).copied().unwrap_or_default();
            let too_little = (tx < least.tx || rx < least.rx) && !is_partial;
            if too_little || tx > most.tx || rx > most.rx {
                return Err(format!("{row} is not between {least:?} and {most:?}"));
            }
            let by = tx + rx;
            let in_order = last.is_none_or(|last| match self.top {
                Some((true, _)) => last <= by,
                Some((false, _)) => last >= by,
                None => true,
            });
            if !in_order {
                return Err(format!("{row} is out of order"));
            }
            last = Some(by);
            if shown.insert(group, by).is_some() {
                return Err(format!("{row} occurs twice"));
            }
        }
        if is_partial {
            return Ok(());
        }
        // Groups that are not shown sort after the last one, if the limit was reached.
        let last = last.filter(|_| self.top.is_some_and(|(_, limit)| shown.len() == limit));
        for (group, least) in &floor {
            let most = ceiling.get(group).copied().unwrap_or_default();
            let is_behind = match (self.top, last) {
                (Some((true, _)), Some(last)) => most.tx + most.rx >= last,
                (Some((false, _)), Some(last)) => least.tx + least.rx <= last,
                _ => false,
            };
            if !is_behind && !shown.contains_key(group) {
                return Err(format!("{group} is missing, and had {least:?}"));
            }
        }
        Ok(())
    }
}

#[test]
fn the_check_detects_wrong_responses() {
    let key = |src: &str| (5, src.to_owned(), "d".to_owned(), "v".to_owned());
    let counters = |tx| Counters { tx, rx: 0 };
    let floor = Model::from([(key("a"), counters(5)), (key("b"), counters(9))]);
    let ceiling = Model::from([(key("a"), counters(7)), (key("b"), counters(9))]);
    let row = |src: &str, tx: u64| json!({"src_app": src, "bytes_tx": tx, "bytes_rx": 0});
    let by_src = |top| TestQuery {
        of_hours: false,
        hours: 5..6,
        src: None,
        columns: Some(vec!["src_app"]),
        top,
        partial: false,
    };
    let check = |top, rows: &[Value]| {
        let response = Value::Array(rows.to_vec());
        by_src(top).check(&response, false, &floor, &ceiling)
    };
    assert_eq!(check(None, &[row("a", 6), row("b", 9)]), Ok(()));
    assert_eq!(check(Some((false, 1)), &[row("b", 9)]), Ok(()));
    assert_eq!(check(Some((true, 1)), &[row("a", 7)]), Ok(()));
    for (top, wrong) in [
        (None, vec![row("a", 4), row("b", 9)]),
        (None, vec![row("a", 8), row("b", 9)]),
        (None, vec![row("b", 9)]),
        (None, vec![row("a", 6), row("a", 6), row("b", 9)]),
        (None, vec![row("a", 6), row("b", 9), row("c", 1)]),
        (Some((false, 2)), vec![row("a", 6), row("b", 9)]),
        (Some((false, 1)), vec![row("a", 6)]),
        (Some((true, 1)), vec![row("b", 9)]),
        (Some((false, 2)), vec![row("b", 9)]),
    ] {
        assert!(check(top, &wrong).is_err(), "{wrong:?}");
    }
}
