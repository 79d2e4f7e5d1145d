//! From a row to the rows behind it, and to the same rows on the page.

use form_urlencoded::Serializer;

use super::query::{Row, TopQuery};
use crate::config::{Filters, GroupBy, SortBy};

impl TopQuery {
    /// The query for what is behind a row of this one: of an application, all pairs that it is in; of a VPC, all pairs in
    /// it. In the pairs of an application, a row leads to the other end, so that one can walk from peer to peer. `None`
    /// if there is nothing else behind the row.
    pub(super) fn behind(&self, row: &Row) -> Option<TopQuery> {
        let filters = match (&row.src_app, &row.dest_app, &row.vpc_id) {
            (None, None, Some(vpc)) => Filters {
                search: String::new(),
                vpc_id: vec![vpc.clone()],
                ..self.filters.clone()
            },
            (Some(app), None, None) | (None, Some(app), None) => self.about(app),
            (Some(src), Some(dest), None) => {
                let is_about_src = self.filters.peer.as_slice() == std::slice::from_ref(src);
                self.about(if is_about_src { dest } else { src })
            }
            _ => return None,
        };
        let behind = TopQuery {
            filters,
            group_by: GroupBy::Edge,
            ..self.clone()
        };
        (!behind.compares_with(self)).then_some(behind)
    }

    /// The filters for everything that an application sends and receives.
    fn about(&self, app: &str) -> Filters {
        Filters {
            peer: vec![app.to_owned()],
            vpc_id: self.filters.vpc_id.clone(),
            ..Filters::default()
        }
    }

    /// The path of the page that shows these rows in its table, of this hour; without one, of the newest.
    pub(super) fn page_path(&self, hour: Option<u64>) -> String {
        let mut query = Serializer::new(String::new());
        if let Some(hour) = hour {
            query.append_pair("hour", &hour.to_string());
        }
        self.add_filters(&mut query);
        let sort = match self.sort {
            SortBy::Tx => Some("bytes_tx"),
            SortBy::Rx => Some("bytes_rx"),
            // The page knows no rates.
            SortBy::Bytes | SortBy::Rate => None,
        };
        query.extend_pairs(sort.map(|sort| ("sort", sort)));
        query.append_pair("group_by", &super::query::fields(self.group_by).join(","));
        format!("/?{}", query.finish())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::config::HourChoice;

    fn query(group_by: GroupBy) -> TopQuery {
        TopQuery {
            hour: HourChoice::Latest,
            group_by,
            sort: SortBy::Bytes,
            filters: Filters::default(),
            limit: 9,
        }
    }

    fn row(names: serde_json::Value) -> Row {
        let mut row = json!({"bytes_tx": 1, "bytes_rx": 2, "hour": 3});
        let fields = names.as_object().unwrap().clone();
        row.as_object_mut().unwrap().extend(fields);
        serde_json::from_value(row).unwrap()
    }

    #[test]
    fn behind_an_application_are_its_peers() {
        for (group_by, names) in [
            (GroupBy::SrcApp, json!({"src_app": "web"})),
            (GroupBy::DestApp, json!({"dest_app": "web"})),
            (GroupBy::Edge, json!({"src_app": "web", "dest_app": "db"})),
        ] {
            let mut from = query(group_by);
            from.filters.search = "w".into();
            from.filters.vpc_id = vec!["v".into()];
            let of_web = from.behind(&row(names)).unwrap();
            assert_eq!(of_web.group_by, GroupBy::Edge);
            let expected = Filters {
                peer: vec!["web".into()],
                vpc_id: vec!["v".into()],
                ..Filters::default()
            };
            assert_eq!(of_web.filters, expected);
            // From peer to peer.
            for (src, dest) in [("web", "db"), ("db", "web")] {
                let names = json!({"src_app": src, "dest_app": dest});
                let next = of_web.behind(&row(names)).unwrap();
                assert_eq!(next.filters.peer, ["db"]);
            }
            let of_itself = json!({"src_app": "web", "dest_app": "web"});
            assert_eq!(of_web.behind(&row(of_itself)), None);
        }
        let in_vpc = query(GroupBy::VpcId).behind(&row(json!({"vpc_id": "v"})));
        let in_vpc = in_vpc.unwrap();
        assert_eq!(
            (in_vpc.group_by, in_vpc.filters.vpc_id),
            (GroupBy::Edge, vec!["v".into()])
        );
    }

    #[test]
    fn the_page_has_the_same_view() {
        let mut query = query(GroupBy::SrcApp);
        assert_eq!(query.page_path(None), "/?group_by=src_app");
        query.sort = SortBy::Rx;
        query.filters.peer = vec!["a&b".into()];
        query.filters.search = "é".into();
        assert_eq!(
            query.page_path(Some(3)),
            "/?hour=3&peer=a%26b&search=%C3%A9&sort=bytes_rx&group_by=src_app"
        );
        query.group_by = GroupBy::Edge;
        assert!(
            query
                .page_path(None)
                .ends_with("group_by=src_app%2Cdest_app")
        );
    }
}
