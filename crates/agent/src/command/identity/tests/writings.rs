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
                let mut chunks = cut_lines::lines(&mut random, &text(lines));
                while chunks.len() > 1 {
                    chunks = cut_lines::lines(&mut random, &text(lines));
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
