//! The source of the rows: a running service, or the data directory of a stopped one.

use std::io::{self, BufReader, Read};
use std::ops::ControlFlow;

use arrow_array::RecordBatch;
use arrow_ipc::reader::StreamReader;
use arrow_schema::ArrowError;
use tokio_util::sync::CancellationToken;

use super::Failed;
use super::groups::{Group, Groups};
use crate::config::{DataLocation, Export};
use crate::query::{EncodedRows, Engine, QueryLimits, RowBatches, RowFormat, flow_schema};
use crate::store::Store;
use agent::client::{Client, describe_read_error};
use agent::command::connect;
use flow::query::{HourTotals, HoursQuery};
use flow::{Encoding, HourRange};

/// Bytes of a response that are read at a time.
const READ_BYTES: usize = 128 << 10;

pub(super) enum RowsFrom {
    Service(Client),
    Stopped(Store, Engine),
}

impl RowsFrom {
    pub(super) fn open(arguments: &Export) -> Result<RowsFrom, String> {
        match &arguments.location {
            DataLocation::Service(url) => {
                let client = connect::client(url, &arguments.credentials)?;
                Ok(RowsFrom::Service(client))
            }
            DataLocation::Stopped(dir) => {
                let store = Store::open_read_only(dir).map_err(|e| e.to_string())?;
                Ok(RowsFrom::Stopped(store, Engine::new(QueryLimits::NONE)))
            }
        }
    }

    /// Passes those `hours` that hold flows to `each`, in ascending order.
    pub(super) fn for_each_hour(
        &self,
        hours: HourRange,
        mut each: impl FnMut(HourTotals),
    ) -> Result<(), String> {
        match self {
            RowsFrom::Service(client) => {
                for of in connect::hours(client, hours)? {
                    if let Some(of) = of?.totals() {
                        each(of);
                    }
                }
                Ok(())
            }
            RowsFrom::Stopped(store, engine) => {
                let query = HoursQuery {
                    hours,
                    ..HoursQuery::ALL
                };
                let hours = engine.hours(store, &query, CancellationToken::default());
                let read = hours.and_then(|mut hours| {
                    hours.read(|of| {
                        each(of);
                        ControlFlow::Continue(())
                    })
                });
                read.map(|_ended| ()).map_err(|e| e.to_string())
            }
        }
    }

    /// The hours that hold flows, in groups, so that millions of hours do not need a request each.
    pub(super) fn groups(&self, hours: HourRange) -> Result<Vec<Group>, String> {
        let mut groups = Groups::new(hours);
        self.for_each_hour(hours, |of| groups.add(of))?;
        Ok(groups.finish())
    }

    /// Passes the rows of a group to `each` in a text format, part by part.
    pub(super) fn text(
        &self,
        group: Group,
        format: RowFormat,
        mut each: impl FnMut(&[u8]) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        match self {
            RowsFrom::Service(client) => {
                let response = client.get(&group.target(), format.media_type());
                let response = response.map_err(|e| group.failed(&e))?;
                let mut body = response.into_body().into_reader();
                let mut part = vec![0; READ_BYTES];
                loop {
                    match body
                        .read(&mut part)
                        .map_err(|e| group.failed(&describe_read_error(&e)))?
                    {
                        0 => return Ok(()),
                        length => each(&part[..length])?,
                    }
                }
            }
            RowsFrom::Stopped(store, engine) => {
                let rows = engine.ask(store, &group.query(), CancellationToken::default());
                let rows = rows.map_err(|e| group.failed(&e))?;
                let encoded = EncodedRows::new(rows, format, Encoding::Identity);
                let mut encoded = encoded.map_err(Failed::Output)?;
                while let Some(chunk) = encoded.next_chunk().map_err(|e| group.failed(&e))? {
                    each(&chunk)?;
                }
                Ok(())
            }
        }
    }

    /// Passes the rows of a group to `each` in batches. Their columns are those of [`flow_schema`].
    pub(super) fn batches(
        &self,
        group: Group,
        mut each: impl FnMut(&RecordBatch) -> Result<(), Failed>,
    ) -> Result<(), Failed> {
        match self {
            RowsFrom::Service(client) => {
                let response = client.get(&group.target(), RowFormat::Arrow.media_type());
                let response = response.map_err(|e| group.failed(&e))?;
                read_stream(response.into_body().into_reader(), group, each)
            }
            RowsFrom::Stopped(store, engine) => {
                let rows = engine.ask(store, &group.query(), CancellationToken::default());
                let mut batches = RowBatches::new(rows.map_err(|e| group.failed(&e))?);
                while let Some(batch) = batches.next_batch().map_err(|e| group.failed(&e))? {
                    each(&batch)?;
                }
                Ok(())
            }
        }
    }
}

/// Passes the batches of a stream of Arrow to `each`, and checks that the stream is complete.
fn read_stream(
    body: impl Read,
    group: Group,
    mut each: impl FnMut(&RecordBatch) -> Result<(), Failed>,
) -> Result<(), Failed> {
    let failed = |error: ArrowError| match error {
        ArrowError::IoError(_, error) => group.failed(&describe_read_error(&error)),
        error => group.failed(&format!("the response is not a stream of Arrow: {error}")),
    };
    let input = BufReader::with_capacity(READ_BYTES, Tail::new(body));
    let mut stream = StreamReader::try_new(input, None).map_err(failed)?;
    if stream.schema().fields() != flow_schema().fields() {
        let why = "the response has other columns; the service is another version of flowtally";
        return Err(group.failed(&why));
    }
    for batch in &mut stream {
        each(&batch.map_err(failed)?)?;
    }
    // A reader takes the end of the bytes for the end of the stream, too.
    let more = io::copy(stream.get_mut(), &mut io::sink());
    let more = more.map_err(|e| group.failed(&describe_read_error(&e)))?;
    match more == 0 && stream.get_ref().get_ref().has_ended() {
        true => Ok(()),
        false => Err(group.failed(&"the response is incomplete: its end is missing")),
    }
}

/// The end of a stream of Arrow.
const STREAM_END: [u8; 8] = [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0];

/// An input that remembers its last bytes.
struct Tail<R> {
    input: R,
    last: [u8; STREAM_END.len()],
}

impl<R> Tail<R> {
    fn new(input: R) -> Tail<R> {
        Tail {
            input,
            last: [0; STREAM_END.len()],
        }
    }

    /// Whether the last bytes that were read are the end of a stream.
    fn has_ended(&self) -> bool {
        self.last == STREAM_END
    }
}

impl<R: Read> Read for Tail<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.input.read(buffer)?;
        let taken = length.min(self.last.len());
        self.last.copy_within(taken.., 0);
        let kept = self.last.len() - taken;
        self.last[kept..].copy_from_slice(&buffer[length - taken..length]);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, StringArray, UInt32Array, UInt64Array};
    use arrow_ipc::writer::StreamWriter;

    use super::*;

    /// A stream of two batches of a row each.
    fn stream() -> Vec<u8> {
        let names = || -> ArrayRef { Arc::new(StringArray::from(vec!["a"])) };
        let sums = || -> ArrayRef { Arc::new(UInt64Array::from(vec![u64::MAX])) };
        let hour: ArrayRef = Arc::new(UInt32Array::from(vec![7]));
        let columns = vec![names(), names(), names(), sums(), sums(), hour];
        let batch = RecordBatch::try_new(flow_schema(), columns).unwrap();
        let mut writer = StreamWriter::try_new(Vec::new(), &flow_schema()).unwrap();
        writer.write(&batch).unwrap();
        writer.write(&batch).unwrap();
        writer.into_inner().unwrap()
    }

    fn rows_of(bytes: &[u8]) -> (usize, Option<String>) {
        let group = Group {
            hours: (0..1).into(),
            step: 1,
        };
        let mut rows = 0;
        let read = read_stream(bytes, group, |batch| {
            rows += batch.num_rows();
            Ok(())
        });
        let why = match read {
            Ok(()) => None,
            Err(Failed::Source(why)) => Some(why),
            Err(Failed::Output(error)) => panic!("{error}"),
        };
        (rows, why)
    }

    /// Readers take a stream that ends between two batches for a complete one.
    #[test]
    fn a_stream_is_complete_or_an_error() {
        let whole = stream();
        assert_eq!(rows_of(&whole), (2, None));
        for length in 0..whole.len() {
            let (rows, why) = rows_of(&whole[..length]);
            assert!(rows <= 2 && why.is_some(), "{length}");
        }
        let two = [&whole[..], &whole].concat();
        assert!(rows_of(&two).1.is_some());
    }
}
