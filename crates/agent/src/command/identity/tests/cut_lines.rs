//! Files that are cut inside the last field of a line, and grow.

use super::*;

/// A file of lines `sN,TX` of which only `bytes` are written, in chunks. The last line counts if its last field has
/// begun.
pub(super) fn lines(
    random: &mut StdRng,
    bytes: &str,
    last_column: Option<Field>,
) -> VecDeque<Chunk> {
    let most = [1, 3, 20, 100][random.random_range(0..4)];
    let all: Vec<&str> = bytes.split_inclusive('\n').collect();
    let whole = |line: &&str| {
        line.trim_end()
            .split_once(',')
            .is_some_and(|(_, tx)| !tx.is_empty())
    };
    let all: Vec<&str> = all.into_iter().filter(whole).collect();
    let groups: Vec<&[&str]> = all.chunks(most).collect();
    let mut chunks = VecDeque::new();
    for (at, group) in groups.iter().enumerate() {
        let is_last = at + 1 == groups.len();
        let mut builder = BatchBuilder::with_capacity(0);
        let (mut text, mut locations) = (String::new(), Vec::new());
        for line in *group {
            let line = line.trim_end();
            let (src, tx) = line.split_once(',').unwrap();
            let counters = Counters {
                tx: tx.parse().unwrap(),
                rx: 0,
            };
            builder.push(
                Hour::new(1).unwrap(),
                [src.as_bytes(), b"d", b"v"],
                counters,
            );
            let start = text.len() as u32;
            text += line;
            locations.push(Line {
                start,
                last_field: start + src.len() as u32 + 1,
                end: text.len() as u32,
                last_column,
            });
        }
        let batch = builder.finish();
        let mut records = RecordHashes::of_flows(&batch, (0..).map(Location::Line));
        for (record, line) in records.iter_mut().zip(locations) {
            record.line = Some(line);
        }
        let is_cut = is_last && !bytes.ends_with('\n');
        chunks.push_back(chunk_of_lines(batch, records, &text, is_cut));
    }
    chunks
}

/// The current state of the growing file.
pub(super) fn run_of_lines(
    random: &mut StdRng,
    service: &Service,
    source: &'static str,
    text: &str,
) -> Run {
    let mut run = Run::new(random, service, source, &[]);
    run.text = Some(text.to_owned());
    run.chunks = lines(random, text, service.borrow().last_column);
    run
}

/// The file is cut at any byte, sent by several commands at the same time, and the commands are killed at any time. In
/// the end, the sums are exact.
#[test]
fn a_file_cut_inside_its_last_field_counts_exactly() {
    for mut random in cases() {
        let service = Service::default();
        // The text identifies the record in flow logs, and the flow in CSV.
        service.borrow_mut().last_column = random.random::<bool>().then_some(Field::BytesTx);
        let lines = random.random_range(1..40);
        let line = |n: u64, random: &mut StdRng| {
            let digits = random.random_range(1..8);
            format!("s{n},{}\n", random.random_range(1..10_u64.pow(digits)))
        };
        let mut text: String = (0..lines).map(|n| line(n, &mut random)).collect();
        if random.random() {
            text.pop();
        }
        let mut length = 0;
        while length < text.len() {
            service.borrow_mut().now_s += 1;
            let mut runs = Vec::new();
            for _ in 0..random.random_range(1..=3) {
                let step = [1, 2, 5, 60][random.random_range(0..4)];
                length = (length + random.random_range(0..=step)).min(text.len());
                runs.push(run_of_lines(&mut random, &service, "", &text[..length]));
            }
            while !runs.is_empty() {
                let at = random.random_range(0..runs.len());
                match runs[at].step(&mut random) {
                    None if random.random_range(0..40) == 0 => drop(runs.remove(at)),
                    None => {}
                    Some(Ok(()) | Err(FrontierError::Shorter { .. })) => drop(runs.remove(at)),
                    Some(Err(stop)) => panic!("{stop:?}"),
                }
            }
            no_more_than(&service, &text);
        }
        let run = run_of_lines(&mut random, &service, "", &text);
        assert_eq!(run.run(&mut random, usize::MAX).0, Some(Ok(())));
        assert_eq!(service.borrow().sums, sums(&text));
        // Nothing in it is new, and shorter copies are refused.
        for length in (0..text.len()).filter(|n| n % 3 == 0) {
            let run = run_of_lines(&mut random, &service, "", &text[..length]);
            let result = run.run(&mut random, usize::MAX).0;
            assert!(
                matches!(result, Some(Ok(()) | Err(FrontierError::Shorter { .. }))),
                "{result:?}"
            );
            assert_eq!(service.borrow().sums, sums(&text), "{length} of {text}");
        }
    }
}

fn sums(text: &str) -> BTreeMap<String, u64> {
    let lines = text.lines().map(|line| line.split_once(',').unwrap());
    lines
        .map(|(src, tx)| (src.into(), tx.parse().unwrap()))
        .collect()
}

#[track_caller]
fn no_more_than(service: &Service, text: &str) {
    let most = sums(text);
    for (src, sum) in &service.borrow().sums {
        assert!(
            most.get(src).is_some_and(|most| sum <= most),
            "{src} {sum}: {text}"
        );
    }
}

/// One file has a single line without a line end; another file starts with a longer or different line.
#[test]
fn lines_of_other_files_are_not_grown_lines() {
    let mut random = StdRng::seed_from_u64(1);
    let service = Service::default();
    service.borrow_mut().last_column = Some(Field::BytesTx);
    let mut send = |text: &str| {
        let run = run_of_lines(&mut random, &service, "", text);
        let result = run.run(&mut random, usize::MAX).0;
        (result, service.borrow().sums["s"])
    };
    for (text, sum) in [
        ("s,12", 12),
        ("s,3", 15),
        ("s,3", 15),
        ("s,4\n", 19),
        // It is the first one, which has grown; after that, no other line can be its longer version.
        ("s,1234\n", 19 + 1222),
        ("s,1256\n", 19 + 1222 + 1256),
        ("s,1256\ns,9\n", 19 + 1222 + 1256 + 9),
        ("s,49\n", 19 + 1222 + 1256 + 9 + 49),
    ] {
        assert_eq!(send(text), (Some(Ok(())), sum), "{text}");
    }
    assert!(matches!(
        send("s,125"),
        (Some(Err(FrontierError::Shorter { .. })), _)
    ));
}

/// The flow that was counted cannot be a part of the flow that the line has now.
#[test]
fn a_line_that_grew_into_another_flow_is_refused_once() {
    use super::lines::LineNote;
    let service = Service::default();
    let line_chunk = |src: &'static str, tx: u64, last: &str, is_cut: bool| {
        let mut builder = BatchBuilder::with_capacity(0);
        builder.push(
            Hour::new(1).unwrap(),
            [src.as_bytes(), b"d", b"v"],
            Counters { tx, rx: 0 },
        );
        let batch = builder.finish();
        let mut records = RecordHashes::of_flows(&batch, [Location::Line(7)]);
        let text = format!("stem,{last}");
        records[0].line = Some(Line {
            start: 0,
            last_field: 5,
            end: text.len() as u32,
            last_column: Some(Field::SrcApp),
        });
        chunk_of_lines(batch, records, &text, is_cut)
    };
    let take = |chunk: Chunk| {
        let identity = Identity::new(None, Path::new("file"));
        let mut frontier = Frontier::new(Some(identity), service.clone());
        let taken = frontier.push(chunk).unwrap();
        for batch in &taken.batches {
            assert!(service.borrow_mut().commit(batch).is_ok());
        }
        assert_eq!(frontier.finish(), Ok(()));
        (taken.refused, taken.unfinished.is_some())
    };
    assert_eq!(take(line_chunk("we", 5, "we", true)), (vec![], true));
    let (refused, _) = take(line_chunk("web", 5, "web", false));
    assert_eq!(refused.len(), 1);
    assert_eq!(refused[0].location, Location::Line(7));
    assert!(refused[0].why.contains("bytes_tx 5"), "{refused:?}");
    assert_eq!(take(line_chunk("web", 5, "web", false)), (vec![], false));
    assert_eq!(
        service.borrow().sums,
        BTreeMap::from([("we".to_owned(), 5)])
    );
    let _notes_are_read_as_they_are_written = ["12", "", "a,b", "~x", &"x".repeat(99), "\u{e9}"]
        .map(|last| {
            let counters = Counters {
                tx: u64::MAX,
                rx: u64::MAX,
            };
            let note = LineNote::new(false, last, u64::MAX, counters);
            assert_eq!(LineNote::parse(note.note().unwrap().as_str()), Some(note));
        });
}
