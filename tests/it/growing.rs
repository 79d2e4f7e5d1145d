//! Files that end inside a line, because they are still being written, and lines that are not flows.

use crate::support::Daemon;
use crate::world::{WAYS, Way, World};

const HEADER: &str = "src_app,dest_app,vpc_id,hour,bytes_tx,bytes_rx\n";

/// The file is sent, grows, and is sent again: the difference of the last line counts.
#[test]
fn a_line_that_was_cut_inside_a_number_counts_exactly() {
    for way in WAYS {
        let mut world = World::new();
        let whole = format!("{HEADER}a,b,v,1,10,1\na,b,v,1,20,1234\na,b,v,1,40,1\n");
        let mut rest = whole.find("234\n").unwrap();
        let file = world.file("a.csv", &whole.as_bytes()[..rest]);
        let output = world.run(way, &[&file]);
        output.assert(2, 0);
        let warning = r#"a.csv: line 3 has no line end; it counts as {"src_app":"a","dest_app":"b","vpc_id":"v","bytes_tx":20,"bytes_rx":1,"hour":1}. If the file is still being written, give --growing"#;
        assert!(
            output.error.starts_with("warning: ") && output.error.contains(warning),
            "{output:?}"
        );
        assert_eq!(output.error.matches("warning").count(), 1, "{output:?}");
        assert_eq!(world.counted(), 2);
        // If it is unchanged, the warning is not repeated.
        let output = world.run(way, &[&file]);
        output.assert(0, 2);
        assert_eq!(output.error, "");
        rest += 1;
        let file = world.file("a.csv", &whole.as_bytes()[..rest]);
        assert_eq!(world.run(way, &[&file]).status, Some(0));
        assert_eq!((world.counted(), world.tx()), (1 + 12, 30));
        let file = world.file("a.csv", whole.as_bytes());
        assert_eq!(world.run(way, &[&file]).status, Some(0));
        assert_eq!((world.counted(), world.tx()), (1 + 1234 + 1, 70));
        for other in WAYS {
            world.run(other, &[&file]).assert(0, 3);
        }
        // A line end makes no difference.
        let file = world.file("b.csv", &whole.as_bytes()[..whole.len() - 1]);
        let output = world.run(way, &[&file]);
        output.assert(0, 3);
        assert_eq!(output.error, "");
        // Shorter copies do not count in addition.
        for cut in HEADER.len() + 12..whole.len() {
            let file = world.file("c.csv", &whole.as_bytes()[..cut]);
            let output = world.run(Way::ImportUrl, &[&file]);
            assert!(output.out.starts_with("0 flows"), "{cut}: {output:?}");
        }
        assert_eq!((world.counted(), world.tx()), (1 + 1234 + 1, 70));
    }
}

/// A flow that counted in another hour cannot be undone, so the complete line does not count, and is reported once.
#[test]
fn a_line_that_grew_into_another_flow_is_refused_once() {
    for way in WAYS {
        let mut world = World::new();
        let whole = "src_app,dest_app,vpc_id,bytes_tx,bytes_rx,hour\na,b,v,1,1,1\na,b,v,2,1,123\na,b,v,4,1,1\n";
        let cut = whole.find("23\n").unwrap();
        let file = world.file("a.csv", &whole.as_bytes()[..cut]);
        world.run(way, &[&file]).assert(2, 0);
        for (length, flows) in [(whole.len() - 12, 0), (whole.len(), 1)] {
            let file = world.file("a.csv", &whole.as_bytes()[..length]);
            let rejects = world.dir.path().join("rejects");
            let rejects = rejects.to_str().unwrap();
            let output = world.run(way, &[&file, "--rejects", rejects]);
            assert!(
                output.out.starts_with(&format!("{flows} flows")),
                "{output:?}"
            );
            assert_eq!(output.status, Some(i32::from(flows == 0)), "{output:?}");
            let kept = std::fs::read_to_string(rejects).unwrap();
            assert!(
                kept.contains("a.csv: line 3") && kept.contains("bytes_tx 2"),
                "{kept}"
            );
            assert_eq!(kept.lines().count(), 1, "{kept}");
            assert_eq!(
                output
                    .error
                    .contains("line 3: the file ended inside the last field"),
                flows == 0,
                "{output:?}"
            );
            let output = world.run(way, &[&file]);
            output.assert(0, if flows == 0 { 2 } else { 3 });
            assert_eq!(output.error, "");
        }
        assert_eq!((world.counted(), world.tx()), (3, 7));
    }
}

/// Flow logs with any field last, sent after each byte of the last record, and then complete.
#[test]
fn a_flow_log_that_was_cut_counts_once() {
    let mut world = World::new();
    let record = |end: &str| format!("2 10.0.0.9 10.0.0.22 3600000000 {end}");
    for (at, (field, bytes, first, last)) in [
        ("bytes", "", "1000", "2345"),
        ("end", "bytes ", "5 3600000060", "5 3600000061"),
        ("vpc-id", "bytes ", "5 vpc-01", "5 vpc-123"),
        ("pkt-dstaddr", "bytes ", "5 10.1.0.1", "5 10.1.0.123"),
        ("action", "bytes ", "5 ACCEPT", "5 ACCEPT"),
        ("log-status", "bytes ", "5 OK", "5 OK"),
    ]
    .into_iter()
    .enumerate()
    {
        let header = format!("version srcaddr dstaddr start {bytes}{field}");
        let whole = format!("{header}\n{}\n{}\n", record(first), record(last));
        let begin = whole.len() - last.len() - 1;
        for cut in begin..whole.len() {
            let source = format!("{at}-{cut}");
            let way = WAYS[cut % 2];
            let give = |world: &mut World, text: &str| {
                let file = world.file("flow.log", text.as_bytes());
                world.run(way, &[&file, "--source", &source])
            };
            let output = give(&mut world, &whole[..cut]);
            let is_sure =
                matches!(field, "action" | "log-status") || !output.out.starts_with("2 flows");
            assert_eq!(
                !is_sure,
                output.error.contains("line 3 has no line end"),
                "{output:?}"
            );
            let counted: u64 = output.out.split(' ').next().unwrap().parse().unwrap();
            let output = give(&mut world, &whole);
            let is_another =
                counted == 2 && cut + 1 < whole.len() && !matches!(field, "bytes" | "end");
            assert_eq!(
                output.status,
                Some(i32::from(is_another)),
                "{field} {cut}: {output:?}"
            );
            let output = give(&mut world, &whole);
            assert_eq!(
                (output.status, output.error.as_str()),
                (Some(0), ""),
                "{output:?}"
            );
        }
        let rows = world.daemon().client.hour(1_000_000);
        let sum: u64 = rows.iter().map(|(_, counters)| counters.tx).sum();
        let each = if field == "bytes" { 3345 } else { 10 };
        assert_eq!(sum, each * (whole.len() - begin) as u64, "{field}");
        let dropped = world.daemon().client.delete("/flows?hour=1000000").unwrap();
        assert_eq!(dropped.status, 200);
    }
}

/// With --growing, a line counts when it is complete.
#[test]
fn growing_leaves_the_last_line() {
    let texts = [
        format!("{HEADER}a,b,v,1,10,1\na,b,v,1,20,1\n"),
        [crate::identity::ndjson(10), crate::identity::ndjson(20)].concat(),
        "version srcaddr dstaddr start bytes\n2 10.0.0.1 10.0.0.2 3600000000 10\n2 10.0.0.1 10.0.0.2 3600000000 20\n".into(),
    ];
    for way in WAYS {
        for (at, text) in texts.iter().enumerate() {
            let mut world = World::new();
            let lines: Vec<usize> = text.match_indices('\n').map(|(at, _)| at + 1).collect();
            let headers = lines.len() - 2;
            for cut in (0..=text.len()).step_by(3).chain([text.len()]) {
                let file = world.file("file", &text.as_bytes()[..cut]);
                let output = world.run(way, &[&file, "--growing"]);
                assert_eq!(
                    (output.status, output.error.contains("warning")),
                    (Some(0), false),
                    "{output:?}"
                );
                let whole = lines.iter().filter(|&&end| end <= cut).count();
                let expected = [0, 10, 30][whole.saturating_sub(headers)];
                let ways = (way == Way::ImportDir, cut % 12 == 0 || cut == text.len());
                if ways != (true, false) {
                    let rows = world.daemon().client.hour([1, 1, 1_000_000][at]);
                    let sum: u64 = rows.iter().map(|(_, counters)| counters.tx).sum();
                    assert_eq!(sum, expected, "{at} {cut}");
                }
            }
        }
        let mut world = World::new();
        let file = world.file("array", b"[]");
        let output = world.run(way, &[&file, "--growing"]);
        assert!(
            output.error.contains("--growing is for NDJSON"),
            "{output:?}"
        );
    }
}

/// A line that is left in a pipe would be lost.
#[test]
fn growing_is_not_for_pipes() {
    let mut world = World::new();
    let spool = world.dir.path().join("spool");
    let spool = spool.to_str().unwrap().to_owned();
    let fifo = world.dir.path().join("fifo");
    let made = std::process::Command::new("mkfifo").arg(&fifo).status();
    assert!(made.unwrap().success());
    let fifo = fifo.to_str().unwrap().to_owned();
    let body = [crate::identity::ndjson(10), crate::identity::ndjson(20)].concat();
    for (way, arguments) in [
        (Way::Send, &["-", "--growing", "--spool", &spool][..]),
        (Way::Send, &["-", "--growing"]),
        (Way::ImportUrl, &["-", "--growing"]),
        (Way::ImportDir, &["-", "--growing"]),
        (Way::Send, &[&fifo, "--growing"]),
    ] {
        let output = world.run(way, arguments);
        assert_eq!(output.status, Some(1), "{output:?}");
        assert!(
            output.error.contains("what is read from a pipe"),
            "{output:?}"
        );
    }
    assert!(!std::path::Path::new(&spool).exists());
    // With a source, the next run gets the same flows from the beginning.
    for (part, counted) in [(&body[..body.len() - 1], 10), (&body, 30)] {
        let arguments = ["-", "--growing", "--source", "a"];
        let output = world.pipe(Way::Send, &arguments, part.as_bytes());
        assert_eq!(output.status, Some(0), "{output:?}");
        assert_eq!(world.tx(), counted);
    }
}

#[test]
fn headers_marks_column_order_and_blanks_do_not_change_the_identity() {
    let header = "version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end \
                  action log-status\n";
    let records: Vec<String> = (1..=20)
        .map(|n| {
            let status = if n % 3 == 0 {
                "- - - - - - - 3600000000 3600000060 - NODATA".into()
            } else {
                format!("10.0.0.1 10.0.0.{n} 1 2 6 1 {n} 3600000000 3600000060 ACCEPT OK")
            };
            format!("2 1 eni-1 {status}\n")
        })
        .collect();
    let logs = [
        format!("{header}{}", records.concat()),
        records.concat(),
        format!(
            "{header}{}{header}{}",
            records[..7].concat(),
            records[7..].concat()
        ),
        format!(
            "\u{feff}{header}{}",
            records.concat().replace(' ', "\t").replace('\n', " \r\n")
        ),
        format!("{header}{}", records.concat().replace("2 1 ", "2   1 ")),
        format!(
            "{header}{}",
            records
                .iter()
                .filter(|r| !r.contains("NODATA"))
                .cloned()
                .collect::<String>()
        ),
    ];
    let rows: Vec<u64> = (1..=9).collect();
    let csv = |columns: &[usize]| {
        let names: Vec<&str> = HEADER.trim().split(',').collect();
        let names: Vec<&str> = columns.iter().map(|&at| names[at]).collect();
        let row = |n: &u64| {
            let values = [
                "a".to_owned(),
                "b".into(),
                "v".into(),
                "1".into(),
                n.to_string(),
                "1".into(),
            ];
            let values: Vec<String> = columns.iter().map(|&at| values[at].clone()).collect();
            values.join(",") + "\n"
        };
        format!(
            "{}\n{}",
            names.join(","),
            rows.iter().map(row).collect::<String>()
        )
    };
    let csvs = [
        csv(&[0, 1, 2, 3, 4, 5]),
        csv(&[5, 4, 3, 2, 1, 0]),
        format!("\u{feff}{}", csv(&[0, 1, 2, 3, 4, 5])),
        csv(&[3, 4, 0, 1, 2, 5]).replace("a,b", "\"a\",\"b\"") + "no flow\n",
    ];
    for (texts, flows) in [(&logs[..], 14), (&csvs[..], 9)] {
        for first in texts {
            let mut world = World::new();
            let format = if flows == 14 { "vpc-flow-logs" } else { "csv" };
            let file = world.file("first", first.as_bytes());
            let output = world.run(Way::Send, &[&file, "--format", format]);
            assert!(
                output.out.starts_with(&format!("{flows} flows")),
                "{output:?}"
            );
            for (at, other) in texts.iter().enumerate() {
                let file = world.file("other", other.as_bytes());
                let output = world.run(WAYS[at % 2], &[&file, "--format", format]);
                let skipped = match flows {
                    1 => "; 1 flow skipped".to_owned(),
                    n => format!("; {n} flows skipped"),
                };
                assert!(
                    output.out.starts_with("0 flows") && output.out.contains(&skipped),
                    "{at}: {output:?}"
                );
            }
        }
    }
}

/// A refused last line may be corrected in the file; others have to be sent separately.
#[test]
fn a_rejected_last_line_may_be_corrected_in_place() {
    for way in WAYS {
        let mut world = World::new();
        let row = |n: u64| format!("a,b,v,1,{n},1\n");
        let text = format!("{HEADER}{}{}a,b,v,1,x,1\n", row(1), row(2));
        let file = world.file("a.csv", text.as_bytes());
        let output = world.run(way, &[&file]);
        assert!(
            output.error.contains("line 4") && output.out.starts_with("2 flows"),
            "{output:?}"
        );
        assert!(
            output.error.contains("correct and send only these"),
            "{output:?}"
        );
        let file = world.file("a.csv", text.replace(",x,", ",4,").as_bytes());
        world.run(way, &[&file]).assert(1, 2);
        assert_eq!(world.tx(), 7);
    }
}

/// The flow is refused with its line number, the rest counts, and all commands recognise the file.
#[test]
fn an_hour_too_far_ahead_is_left_out_by_all_commands() {
    let text: String = (0..3000_u64)
        .map(|n| {
            let hour = if n % 1000 == 7 { 4_000_000_000 - n } else { 1 };
            format!("{{\"src_app\":\"a\",\"dest_app\":\"b\",\"vpc_id\":\"\",\"bytes_tx\":{n},\"bytes_rx\":1,\"hour\":{hour}}}\n\n")
        })
        .collect();
    let csv: String = text
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let flow: serde_json::Value = serde_json::from_str(line).unwrap();
            format!("a,b,,{},{},1\n", flow["hour"], flow["bytes_tx"])
        })
        .collect();
    let csv = format!("{HEADER}{csv}");
    for (name, text, lines) in [
        ("a.ndjson", text, [15, 2015, 4015]),
        ("a.csv", csv, [9, 1009, 2009]),
    ] {
        for way in WAYS {
            let dir = tempfile::tempdir().unwrap();
            let (file, db) = (dir.path().join(name), dir.path().join("db"));
            std::fs::write(&file, &text).unwrap();
            let rejects = dir.path().join("rejects");
            let run = |way: Way| {
                let daemon = (way != Way::ImportDir)
                    .then(|| Daemon::start_with(&db, &["--hour-ahead-max", "48"]));
                let mut command = std::process::Command::new(Daemon::binary());
                match (&daemon, way) {
                    (Some(daemon), Way::Send) => {
                        command.args(["send", "--url", &crate::send::url(daemon)])
                    }
                    (Some(daemon), _) => {
                        command.args(["import", "--url", &crate::send::url(daemon)])
                    }
                    (None, _) => command
                        .args(["import", "--hour-ahead-max", "48", "--data-dir"])
                        .arg(&db),
                };
                let output = command
                    .arg(&file)
                    .arg("--rejects")
                    .arg(&rejects)
                    .output()
                    .unwrap();
                if let Some(daemon) = daemon {
                    daemon.stop();
                }
                crate::send::parts(&output)
            };
            let (status, out, error) = run(way);
            assert_eq!(status, Some(1), "{way:?} {error}");
            assert!(
                out.starts_with("2997 flows") && out.contains("3 refused"),
                "{out} {error}"
            );
            let kept = std::fs::read_to_string(&rejects).unwrap();
            for line in lines {
                assert!(
                    error.contains(&format!("{name}: line {line}: ")),
                    "{line}: {error}"
                );
                assert!(
                    kept.contains(&format!("{name}: line {line}\"")),
                    "{line}: {kept}"
                );
            }
            for other in WAYS {
                let (_, out, _) = run(other);
                assert!(
                    out.starts_with("0 flows") && out.contains("2997 flows skipped")
                        || out.contains("3000 flows skipped"),
                    "{way:?} {other:?}: {out}"
                );
            }
        }
    }
}

/// A pipe without a spool cannot wait for the service's clock.
#[test]
fn an_hour_too_far_ahead_ends_a_pipe_without_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = Daemon::start_with(dir.path(), &["--hour-ahead-max", "48"]);
    let body = br#"{"src_app":"a","dest_app":"b","vpc_id":"","bytes_tx":1,"bytes_rx":1,"hour":4000000000}"#;
    let begun = std::time::Instant::now();
    let output = crate::send::send(&crate::send::url(&daemon), &["-"], body);
    let (status, _, error) = crate::send::parts(&output);
    assert_eq!(status, Some(1), "{error}");
    assert!(error.contains("hours after"), "{error}");
    assert!(begun.elapsed().as_secs() < 20);
    daemon.stop();
}

#[test]
fn a_pipe_that_is_read_again_has_no_spool() {
    let mut world = World::new();
    let spool = world.dir.path().join("spool");
    let spool = spool.to_str().unwrap().to_owned();
    let output = world.pipe(Way::Send, &["-", "--source", "a", "--spool", &spool], b"");
    assert_eq!(output.status, Some(1), "{output:?}");
    assert!(output.error.contains("give one of them"), "{output:?}");
    assert!(!std::path::Path::new(&spool).exists());
}

/// After a second header in another spelling, no line is read by the previous columns.
#[test]
fn a_header_in_another_spelling_ends_the_reading() {
    let log = "version srcaddr dstaddr bytes start\n2 10.0.0.1 10.0.0.2 7 3600\n";
    for (at, (begin, header, row)) in [
        (
            log,
            "VERSION SRCADDR DSTADDR START BYTES",
            "2 10.0.0.1 10.0.0.2 3600 9",
        ),
        (
            log,
            "${version} ${srcaddr} ${dstaddr} ${start} ${bytes}",
            "2 10.0.0.1 10.0.0.2 3600 9",
        ),
        (
            HEADER,
            "Source,Destination,VPC,Sent,Received,Hour",
            "a,b,v,1,1,1",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let begin = if begin == HEADER {
            format!("{HEADER}a,b,v,1,7,1\n")
        } else {
            begin.into()
        };
        let mut world = World::new();
        let file = world.file("file", format!("{begin}{header}\n{row}\n").as_bytes());
        for way in WAYS {
            let output = world.run(way, &[&file]);
            assert_eq!(output.status, Some(1), "{at}: {output:?}");
            assert!(output.error.contains("line 3"), "{at}: {output:?}");
            assert!(output.out.starts_with("0 flows"), "{at}: {output:?}");
        }
    }
}
