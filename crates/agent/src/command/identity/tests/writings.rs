//! The same flows in different formats, column orders and quotes.

use super::*;

/// The flows of these lines in another format: without their texts.
fn without_lines(mut chunks: VecDeque<Chunk>) -> VecDeque<Chunk> {
    for chunk in &mut chunks {
        for record in &mut chunk.records {
            record.line = None;
        }
        chunk.text = "".into();
        (chunk.ends_within_a_line, chunk.may_be_cut) = (false, false);
    }
    chunks
}

/// Two commands look up what was counted before either of them sends its batches. The batches do not end at the same
/// flows.
#[test]
fn commands_on_other_writings_of_the_same_flows_exclude_each_other() {
    let text = |lines: u64| -> String { (0..lines).map(|n| format!("s{n},{n}\n")).collect() };
    for (of_csv, of_ndjson) in [(40, 30), (30, 40), (33, 32), (40, 1), (1, 40), (40, 40)] {
        for csv_is_first in [true, false] {
            let service = Service::default();
            let chunk = |lines: u64| {
                let mut random = StdRng::seed_from_u64(1);
                let mut chunks = cut_lines::lines(&mut random, &text(lines), Some(Field::BytesTx));
                while chunks.len() > 1 {
                    chunks = cut_lines::lines(&mut random, &text(lines), Some(Field::BytesTx));
                }
                chunks
            };
            let batches = |mut chunks: VecDeque<Chunk>| {
                let identity = Identity::new(None, Path::new("file"));
                let mut frontier = Frontier::new(Some(identity), service.clone());
                let new_flows = frontier.push(chunks.pop_front().unwrap()).unwrap();
                new_flows.batches
            };
            let csv = batches(chunk(of_csv));
            let ndjson = batches(without_lines(chunk(of_ndjson)));
            let (first, second, counted) = match csv_is_first {
                true => (csv, ndjson, of_csv),
                false => (ndjson, csv, of_ndjson),
            };
            let mut table = service.borrow_mut();
            assert!(first.iter().all(|batch| table.commit(batch).is_ok()));
            let is_refused = second.iter().any(|batch| table.commit(batch).is_err());
            assert_eq!(is_refused, of_csv != of_ndjson, "{of_csv} {of_ndjson}");
            assert_eq!(table.counted.values().sum::<u32>() as u64, counted);
        }
    }
}

const FLOWS: u64 = 40;

/// How the flows of a file are written.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Writing {
    /// CSV with this column last.
    Csv(Field),
    /// Or an array.
    Ndjson,
}

/// The first flows of a file, of which the last one is cut inside its last field.
fn written(writing: Writing, count: u64, is_cut: bool) -> Chunk {
    let mut builder = BatchBuilder::with_capacity(0);
    let (mut text, mut lines) = (String::new(), Vec::new());
    for number in 0..count {
        let is_last_cut = is_cut && number + 1 == count;
        let src_app = format!("service-{number}");
        let (tx, rx, hour) = (
            (12_345 + number).to_string(),
            "678".to_owned(),
            "90".to_owned(),
        );
        let mut fields = [src_app, "d".into(), "v".into(), tx, rx, hour];
        if let (Writing::Csv(column), true) = (writing, is_last_cut) {
            let at = Field::ALL
                .iter()
                .position(|&field| field == column)
                .unwrap();
            fields[at].pop();
        }
        let [src_app, dest_app, vpc_id, tx, rx, hour] = &fields;
        let counters = Counters {
            tx: tx.parse().unwrap(),
            rx: rx.parse().unwrap(),
        };
        let hour = Hour::new(hour.parse().unwrap()).unwrap();
        let names = [src_app, dest_app, vpc_id].map(|name| name.as_bytes());
        builder.push(hour, names, counters);
        lines.push(match writing {
            Writing::Ndjson => None,
            Writing::Csv(column) => {
                let at = Field::ALL
                    .iter()
                    .position(|&field| field == column)
                    .unwrap();
                let start = text.len() as u32;
                text += "other,columns,";
                let last_field = text.len() as u32;
                text += &fields[at];
                Some(Line {
                    start,
                    last_field,
                    end: text.len() as u32,
                    last_column: Some(column),
                })
            }
        });
    }
    let batch = builder.finish();
    let mut records = RecordHashes::of_flows(&batch, (1..).map(Location::Line));
    for (record, line) in records.iter_mut().zip(lines) {
        record.line = line;
    }
    chunk_of_lines(batch, records, &text, is_cut)
}

/// Sends a file; returns the number of flows that were refused, or the error.
fn send(service: &Service, chunk: Chunk) -> Result<usize, FrontierError> {
    let identity = Identity::new(None, Path::new("file"));
    let mut frontier = Frontier::new(Some(identity), service.clone());
    let new_flows = frontier.push(chunk)?;
    for batch in &new_flows.batches {
        assert!(service.borrow_mut().commit(batch).is_ok());
        assert!(batch.notes().unwrap().others.len() <= flow::Notes::COUNT_MAX);
    }
    frontier.finish().map(|()| new_flows.refused.len())
}

fn totals(service: &Service) -> (u64, u64) {
    let table = service.borrow();
    (table.sums.values().sum(), table.sum_rx)
}

fn expected(flows: u64) -> (u64, u64) {
    ((0..flows).map(|n| 12_345 + n).sum(), 678 * flows)
}

const WRITINGS: [Writing; 5] = [
    Writing::Csv(Field::BytesTx),
    Writing::Csv(Field::BytesRx),
    Writing::Csv(Field::Hour),
    Writing::Csv(Field::VpcId),
    Writing::Ndjson,
];

/// A CSV file is cut inside its last field. Then it is complete, in any writing.
#[test]
fn a_cut_file_counts_the_rest_in_any_writing() {
    for cut in [Field::BytesTx, Field::BytesRx, Field::Hour, Field::SrcApp] {
        for whole in WRITINGS {
            for count in [1, 2, 3, 17, FLOWS] {
                let service = Service::default();
                let what = format!("{cut:?}, {whole:?}, {count}");
                assert_eq!(
                    send(&service, written(Writing::Csv(cut), count, true)),
                    Ok(0)
                );
                let refused = send(&service, written(whole, FLOWS, false)).unwrap();
                // The cut line counted as another flow, which is kept.
                let is_other_flow = matches!(cut, Field::Hour | Field::SrcApp);
                assert_eq!(refused, usize::from(is_other_flow), "{what}");
                assert_eq!(totals(&service), expected(FLOWS), "{what}");
                assert_eq!(
                    send(&service, written(whole, FLOWS, false)),
                    Ok(0),
                    "{what}"
                );
                assert_eq!(totals(&service), expected(FLOWS), "{what}");
            }
        }
    }
}

/// The whole file was counted, in any writing. An earlier copy that is cut inside its last field counts nothing.
#[test]
fn a_cut_copy_in_another_writing_is_refused() {
    for whole in WRITINGS {
        for cut in [Field::BytesTx, Field::BytesRx, Field::Hour] {
            for flows in [1, 5, 17, FLOWS] {
                let service = Service::default();
                assert_eq!(send(&service, written(whole, flows, false)), Ok(0));
                for count in 1..=flows {
                    let result = send(&service, written(Writing::Csv(cut), count, true));
                    let what = format!("{whole:?}, {cut:?}, {count} of {flows}");
                    assert!(
                        matches!(result, Err(FrontierError::Shorter { .. })),
                        "{what}"
                    );
                    assert_eq!(totals(&service), expected(flows), "{what}");
                }
            }
        }
    }
}
