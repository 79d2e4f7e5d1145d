//! The encoding of hours between nodes: the JSON of `GET /hours`, parsed hour by hour as it arrives.

use std::error::Error;
use std::fmt::Debug;
use std::io;
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Incoming};

use super::body::PeerBody;
use crate::query::{HourSource, QueryError};
use crate::store::FinestRows;
use agent::client::JsonArray;
use flow::query::{HourRow, HourTotals};

/// Reads hours.
#[derive(Debug)]
pub(super) struct HourReader<B = Incoming> {
    rows: JsonArray<HourRow, PeerBody<B>>,
    finest: FinestRows,
}

impl<B> HourReader<B> {
    pub(super) fn new(body: PeerBody<B>, finest: FinestRows) -> HourReader<B> {
        let rows = JsonArray::new(body);
        HourReader { rows, finest }
    }
}

impl<B> HourSource for HourReader<B>
where
    B: Body<Data = Bytes> + Debug + Send + Sync + Unpin,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    fn next(&mut self) -> Result<Option<HourTotals>, QueryError> {
        let failed = |body: &PeerBody<B>, error: io::Error| body.query_error(error);
        let row = self.rows.next().transpose();
        let row = row.map_err(|error| failed(self.rows.reader(), error.into()))?;
        let Some(row) = row else { return Ok(None) };
        let totals = row.totals().ok_or_else(|| {
            let what = format!("there is no hour {}", row.hour);
            failed(self.rows.reader(), io::Error::other(what))
        })?;
        Ok(Some(totals))
    }

    fn finest_rows(&self) -> FinestRows {
        self.finest
    }

    fn set_deadline(&mut self, deadline: Option<Instant>) {
        self.rows.reader_mut().set_deadline(deadline);
    }
}

#[cfg(test)]
mod tests {
    use super::super::body::tests::body_of;
    use super::*;

    #[test]
    fn hours_are_read_until_one_is_incomplete_or_impossible() {
        const HOUR: &str = r#"{"hour":7,"flows":1,"bytes_tx":2,"bytes_rx":3}"#;
        let none = HOUR.replace('7', "4294967295");
        for (json, hours, says) in [
            ("[]\n".to_owned(), 0, None),
            (format!("[{HOUR},\n{HOUR}\n]\n"), 2, None),
            (format!("[{HOUR},\n{HOUR}"), 2, Some("unexpected end")),
            (format!("[{HOUR},\n{none}]"), 1, Some("no hour 4294967295")),
            ("{}".to_owned(), 0, Some("where an array has '['")),
        ] {
            let (_runtime, body) = body_of(json.as_bytes());
            let mut reader = HourReader::new(body, FinestRows::default());
            let (mut read, mut error) = (0, None);
            loop {
                match reader.next() {
                    Ok(Some(HourTotals { hour, totals, .. })) => {
                        assert_eq!((hour.get(), totals.tx, totals.rx), (7, 2, 3));
                        read += 1;
                    }
                    Ok(None) => break,
                    Err(e) => {
                        error = Some(e.to_string());
                        break;
                    }
                }
            }
            assert_eq!(
                (read, error.is_some()),
                (hours, says.is_some()),
                "{json}: {error:?}"
            );
            if let (Some(says), Some(error)) = (says, error) {
                assert!(
                    error.contains(says) && error.contains("response of b"),
                    "{error}"
                );
            }
        }
    }
}
