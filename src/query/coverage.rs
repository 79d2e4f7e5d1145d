//! The partitions of the sums that a response covers, as sent between nodes and to clients in headers.

use flow::Partition;
use flow::headers::{FLOWTALLY_LAG, FLOWTALLY_MISSING};

/// The partitions that a response covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Partitions that no node serves.
    pub missing: Vec<Partition>,
    /// Lag of each other partition behind the journal, in messages.
    pub lag: Vec<(Partition, u64)>,
}

impl Coverage {
    /// Adds that of another response, to a response that has the rows of both.
    pub(super) fn merge_with(&mut self, other: &Coverage) {
        self.missing.extend(&other.missing);
        self.missing.sort_unstable();
        self.missing.dedup();
        self.lag.extend(&other.lag);
        // The largest lag of each partition.
        self.lag
            .sort_unstable_by_key(|(partition, lag)| (*partition, std::cmp::Reverse(*lag)));
        self.lag.dedup_by_key(|(partition, _)| *partition);
        self.lag
            .retain(|(partition, _)| !self.missing.contains(partition));
    }

    /// Names and values of the headers.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, String)> {
        let missing = self.missing.iter().map(Partition::to_string).collect();
        let lag = self.lag.iter().map(|(of, lag)| format!("{of}={lag}"));
        let values: [(_, Vec<String>); 2] =
            [(FLOWTALLY_MISSING, missing), (FLOWTALLY_LAG, lag.collect())];
        (values.into_iter())
            .filter(|(_, values)| !values.is_empty())
            .map(|(name, values)| (name, values.join(",")))
    }

    /// Parses the headers of a response; `None` if they are not as [`Coverage::headers`] writes them.
    pub fn from_headers<'a>(header: impl Fn(&'static str) -> Option<&'a str>) -> Option<Coverage> {
        let items = |name| header(name).into_iter().flat_map(|value| value.split(','));
        let missing = items(FLOWTALLY_MISSING).map(|number| number.parse().ok());
        let lag = items(FLOWTALLY_LAG).map(|pair| {
            let (partition, lag) = pair.split_once('=')?;
            Some((partition.parse().ok()?, lag.parse().ok()?))
        });
        Some(Coverage {
            missing: missing.collect::<Option<_>>()?,
            lag: lag.collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_round_trip() {
        let read = |headers: &[(&'static str, String)]| {
            let headers = headers.to_vec();
            Coverage::from_headers(|name| {
                let found = headers.iter().find(|(n, _)| *n == name)?;
                Some(String::leak(found.1.clone()))
            })
        };
        let partition = |number: u32| Partition::try_from(number).unwrap();
        let coverage = Coverage {
            missing: vec![partition(3), partition(7)],
            lag: vec![(partition(0), 12), (partition(1), 0)],
        };
        let headers: Vec<_> = coverage.headers().collect();
        let values: Vec<_> = headers.iter().map(|(_, value)| value.as_str()).collect();
        assert_eq!(values, ["3,7", "0=12,1=0"]);
        assert_eq!(read(&headers), Some(coverage));
        assert_eq!(Coverage::default().headers().count(), 0);
        assert_eq!(read(&[]), Some(Coverage::default()));
        for wrong in ["", "x", "1,", "-1"] {
            assert_eq!(read(&[(FLOWTALLY_MISSING, wrong.into())]), None);
        }
        for wrong in ["", "1", "1=", "-1=0", "1=-1"] {
            assert_eq!(read(&[(FLOWTALLY_LAG, wrong.into())]), None);
        }
    }
}
