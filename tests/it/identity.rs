//! A file counts once under any name and compression, whichever command counts it.

use std::io::Write;
use std::time::Duration;

use rand::RngExt;
use rand::seq::IndexedRandom;

use crate::send::{csv_body, flows};
use crate::support::{TestFlow, json_body, ndjson_body, random};
use crate::world::{CommandOutput, WAYS, Way, World, output_of};

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

/// The same flows, in encodings that differ in every byte.
fn copies(flows: &[TestFlow]) -> Vec<(&'static str, Vec<u8>)> {
    let ndjson = ndjson_body(flows);
    let text = String::from_utf8(ndjson.clone()).unwrap();
    let array: serde_json::Value = serde_json::from_slice(&json_body(flows)).unwrap();
    vec![
        ("another-name", ndjson.clone()),
        ("x.gz", gzip(&ndjson)),
        ("x.zst", zstd(&ndjson)),
        ("crlf", text.replace('\n', "\r\n\r\n").into_bytes()),
        ("bom", [b"\xEF\xBB\xBF", &ndjson[..]].concat()),
        ("array", json_body(flows)),
        ("pretty", serde_json::to_vec_pretty(&array).unwrap()),
        ("x.csv", csv_body(flows)),
        (
            "no-end",
            ndjson.strip_suffix(b"\n").unwrap_or(&ndjson).to_vec(),
        ),
    ]
}

#[test]
fn a_file_counts_once_under_any_name_and_compression() {
    let mut world = World::new();
    // Several blocks, which every encoding cuts at other offsets.
    let flows = flows(16_000);
    let file = world.file("flows.ndjson", &ndjson_body(&flows));
    world.run(Way::Send, &[&file]).assert(16_000, 0);
    for (at, (name, bytes)) in copies(&flows).into_iter().enumerate() {
        let copy = world.file(&format!("copies/{name}"), &bytes);
        let way = WAYS[at % 2];
        world.run(way, &[&copy]).assert(0, 16_000);
    }
    // By the same and the other commands, with other times and batch sizes.
    for way in WAYS {
        let touched = std::fs::File::options().append(true).open(&file).unwrap();
        let an_hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        touched.set_modified(an_hour_ago).unwrap();
        world.run(way, &[&file]).assert(0, 16_000);
    }
    world
        .run(Way::Send, &[&file, "--batch-flows", "7", "--no-compress"])
        .assert(0, 16_000);
    assert_eq!(world.counted(), 16_000);
}

#[test]
fn a_file_counted_by_one_command_is_known_to_the_others() {
    for first in WAYS {
        let mut world = World::new();
        let flows = flows(40);
        let file = world.file("flows.csv", &csv_body(&flows));
        world.run(first, &[&file]).assert(40, 0);
        let copy = world.file("copy.json.gz", &gzip(&json_body(&flows)));
        let more = [&flows[..], &self::flows(3)].concat();
        let mut length = 40;
        for second in WAYS {
            world.run(second, &[&copy]).assert(0, length);
            let grown = [&more[..], &self::flows(length - 40)].concat();
            let grown = world.file("grown", &ndjson_body(&grown));
            let new = std::fs::read_to_string(&grown).unwrap().lines().count() as u64 - length;
            world.run(second, &[&grown]).assert(new, length);
            std::fs::write(&copy, std::fs::read(&grown).unwrap()).unwrap();
            length += new;
        }
        assert_eq!(world.counted(), length);
    }
}

/// It grows by a random number of bytes, is compressed or not, and is sent by any command, which may be killed.
#[test]
fn a_file_that_grows_counts_once() {
    let mut random = random("identity");
    let mut world = World::new();
    let flows = flows(45_000);
    let whole = ndjson_body(&flows);
    let mut length = 0;
    let path = world.file("flows.ndjson", b"");
    let mut killed = 0;
    while length < whole.len() {
        let step = *[50, 1000, 300_000, 1_500_000].choose(&mut random).unwrap();
        length = (length + random.random_range(1..=step)).min(whole.len());
        let bytes = match random.random_range(0..3) {
            0 => gzip(&whole[..length]),
            1 => zstd(&whole[..length]),
            _ => whole[..length].to_vec(),
        };
        std::fs::write(&path, bytes).unwrap();
        let way = *WAYS.choose(&mut random).unwrap();
        if random.random_range(0..3) == 0 {
            let mut child = world.spawn(way, &[&path]);
            // The moment does not matter.
            std::thread::sleep(Duration::from_millis(random.random_range(0..400)));
            child.kill().unwrap();
            child.wait().unwrap();
            killed += 1;
            continue;
        }
        let output = world.run(way, &[&path]);
        // The last line may be the beginning of a flow, or a flow without the end of its line.
        let lines: Vec<_> = whole[..length].split(|&byte| byte == b'\n').collect();
        let last = lines.last().unwrap();
        let is_whole = last.ends_with(b"}");
        let is_part = !last.is_empty() && !is_whole;
        assert_eq!(output.status, Some(i32::from(is_part)), "{output:?}");
        let expected = lines.len() as u64 - 1 + u64::from(is_whole);
        assert_eq!(world.counted(), expected, "{way:?}, {length}: {output:?}");
    }
    println!("killed {killed} times");
    world.run(Way::Send, &[&path]);
    world.run(Way::ImportUrl, &[&path]).assert(0, 45_000);
    let sum: u64 = flows.iter().map(|flow| flow.tx).sum();
    assert_eq!((world.counted(), world.tx()), (45_000, sum));
}

/// It is unknown whether its flows are those that were counted.
#[test]
fn the_beginning_of_a_file_that_was_counted_is_refused() {
    let mut world = World::new();
    let whole = ndjson_body(&flows(30_000));
    let text = String::from_utf8(whole.clone()).unwrap();
    let file = world.file("flows", &whole);
    world.run(Way::ImportDir, &[&file]).assert(30_000, 0);
    for (at, lines) in [1, 2, 3, 100, 8191, 8193, 15_000, 29_999]
        .into_iter()
        .enumerate()
    {
        let begin: String = text.split_inclusive('\n').take(lines).collect();
        let begin = world.file("begin", begin.as_bytes());
        let output = world.run(WAYS[at % 3], &[&begin]);
        output.assert_refused("may be the beginning of a file that was counted on 20");
        assert!(output.error.contains("give --source NAME"), "{output:?}");
    }
    assert_eq!(world.counted(), 30_000);
    let begin: String = text.split_inclusive('\n').take(5).collect();
    let begin = world.file("begin", begin.as_bytes());
    let output = world.run(Way::Send, &[&begin, "--source", "host-7"]);
    output.assert(5, 0);
    let output = world.run(Way::ImportUrl, &[&begin, "--again"]);
    output.assert(5, 0);
    // A file that differs in a visible way is another file.
    let other: String = text.split_inclusive('\n').take(100).collect();
    let other = other + &*ndjson_lines(60);
    let other = world.file("other", other.as_bytes());
    world.run(Way::Send, &[&other]).assert(160, 0);
    assert_eq!(world.counted(), 30_170);
}

fn ndjson_lines(count: u64) -> String {
    (1_000_000..1_000_000 + count).map(ndjson).collect()
}

pub(crate) fn ndjson(tx: u64) -> String {
    let flow = TestFlow::new(1, "a", "b", "v", tx, 1);
    String::from_utf8(ndjson_body(&[flow])).unwrap()
}

const LOG: &str = "version srcaddr dstaddr bytes start action log-status\n\
                   2 10.0.0.1 10.0.0.2 100 3600000000 ACCEPT OK\n\
                   2 10.0.0.1 10.0.0.3 - - - NODATA\n\
                   2 10.0.0.2 10.0.0.1 50 3600000000 ACCEPT OK\n";

#[test]
fn the_same_records_under_other_names_are_refused() {
    let apps = |text: &str| format!("address,app\n{text}\n");
    for first in WAYS {
        let mut world = World::new();
        let log = world.file("flow.log", LOG.as_bytes());
        let apps_1 = world.file("1.csv", apps("10.0.0.1,web").as_bytes());
        let apps_2 = world.file("2.csv", apps("10.0.0.1,db").as_bytes());
        world.run(first, &[&log, "--apps", &apps_1]).assert(2, 0);
        let grown = LOG.to_owned() + "2 10.0.0.9 10.0.0.8 7 3600000000 ACCEPT OK\n";
        let grown = world.file("grown.log", grown.as_bytes());
        for second in WAYS {
            for arguments in [&[&log[..], "--apps", &apps_2][..], &[&grown]] {
                let output = world.run(second, arguments);
                output.assert_refused(
                    "gave different flows then, with another --apps, --count or --format",
                );
            }
            let output = world.run(second, &[&log, "--format", "ndjson"]);
            output.assert_refused("line 1");
            world.run(second, &[&log, "--apps", &apps_1]).assert(0, 2);
        }
        world.run(first, &[&grown, "--apps", &apps_1]).assert(1, 2);
        let rows = world.daemon().client.hour(1_000_000);
        let sum: u64 = rows.iter().map(|(_, counters)| counters.tx).sum();
        assert_eq!(sum, 157);
        // A log with the same header and different records.
        let other = LOG.replace("10.0.0.", "10.0.1.");
        let other = world.file("other.log", other.as_bytes());
        world.run(first, &[&other]).assert(2, 0);
        // A header alone has no identity.
        let header = world.file(
            "header.log",
            LOG.split_inclusive('\n').next().unwrap().as_bytes(),
        );
        world.run(first, &[&header]).assert(0, 0);
    }
}

#[test]
fn pipes_count_once_per_source() {
    let body = ndjson_body(&flows(100));
    for way in WAYS {
        let mut world = World::new();
        let file = world.file("flows", &body);
        let mut expected = 0;
        for (source, new) in [
            (&[][..], 100),
            (&["--source", "a"], 100),
            (&["--source", "b"], 100),
        ] {
            let arguments = [&[&file[..]], source].concat();
            world.run(way, &arguments).assert(new, 0);
            world.run(way, &arguments).assert(0, 100);
            expected += new;
        }
        // A pipe with a source is treated like a file; one without counts each time.
        world
            .pipe(way, &["-", "--source", "a"], &gzip(&body))
            .assert(0, 100);
        world
            .pipe(way, &["-", "--source", "c"], &body)
            .assert(100, 0);
        world.run(way, &[&file, "--source", "c"]).assert(0, 100);
        for _ in 0..2 {
            world.pipe(way, &["-"], &body).assert(100, 0);
            world.run(way, &[&file, "--again"]).assert(100, 0);
        }
        expected += 500;
        assert_eq!(world.counted(), expected);
        let output = world.run(way, &[&file, "--again", "--source", "a"]);
        assert_eq!(output.status, Some(2), "{output:?}");
    }
}

#[test]
fn a_truncated_file_counts_the_rest_when_it_is_complete() {
    let flows = flows(16_000);
    let (ndjson, json) = (ndjson_body(&flows), json_body(&flows));
    for (name, whole, cut) in [
        ("gz", gzip(&ndjson), 10),
        ("gz-end", gzip(&ndjson), 1),
        ("zst", zstd(&ndjson), 10),
        ("json", json.clone(), 5),
        ("json.gz", gzip(&json), 5000),
    ] {
        let mut world = World::new();
        for (way, next) in WAYS.iter().zip(WAYS.iter().cycle().skip(1)) {
            let source = format!("{way:?}");
            let file = world.file(name, &whole[..whole.len() - cut]);
            let output = world.run(*way, &[&file, "--source", &source]);
            assert_eq!(output.status, Some(1), "{output:?}");
            assert!(
                output.error.contains("only what comes after that counts"),
                "{output:?}"
            );
            let counted: u64 = output.out.split(' ').next().unwrap().parse().unwrap();
            assert!((1..16_000).contains(&counted), "{output:?}");
            let file = world.file(name, &whole);
            let output = world.run(*next, &[&file, "--source", &source]);
            output.assert(16_000 - counted, counted);
        }
        assert_eq!(world.counted(), 48_000, "{name}");
    }
    // A truncated file shorter than a batch counts nothing.
    let mut world = World::new();
    let (gz, json) = (gzip(&ndjson[..5000]), &json[..5000]);
    for (name, bytes) in [("gz", &gz[..gz.len() - 1]), ("json", json)] {
        let file = world.file(name, bytes);
        for way in WAYS {
            world.run(way, &[&file]).assert_refused("none of it");
        }
    }
    assert_eq!(world.counted(), 0);
}

/// Checksums are at the end of a compressed file, but are verified before the first flow counts.
#[test]
fn nothing_of_a_damaged_file_counts() {
    let flows = flows(20_000);
    let ndjson = ndjson_body(&flows);
    let stored = |bytes: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let checked = |bytes: &[u8]| {
        let mut zstd = zstd::Encoder::new(Vec::new(), 1).unwrap();
        zstd.include_checksum(true).unwrap();
        zstd.write_all(bytes).unwrap();
        zstd.finish().unwrap()
    };
    // The bytes_tx of an early flow is changed.
    let mut wrong = stored(&ndjson);
    let at = memchr::memmem::find(&wrong, b"\"bytes_tx\":100,").unwrap();
    wrong[at + 11] = b'9';
    let changed = |mut bytes: Vec<u8>, at: usize| {
        bytes[at] ^= 1;
        bytes
    };
    let gz = gzip(&ndjson);
    let half = ndjson.len() / 2;
    let (first, second) = ndjson.split_at(half);
    for (name, damaged, good) in [
        ("wrong.gz", wrong, stored(&ndjson)),
        ("x.gz", changed(gz.clone(), gz.len() - 5), gz),
        (
            "two.gz",
            [gzip(first), changed(gzip(second), 3000)].concat(),
            [gzip(first), gzip(second)].concat(),
        ),
        (
            "garbage.gz",
            [gzip(&ndjson), b"x".to_vec()].concat(),
            gzip(&ndjson),
        ),
        (
            "x.zst",
            changed(checked(&ndjson), checked(&ndjson).len() - 2),
            checked(&ndjson),
        ),
    ] {
        let mut world = World::new();
        for (way, next) in WAYS.iter().zip(WAYS.iter().cycle().skip(1)) {
            let source = format!("{way:?}");
            let file = world.file(name, &damaged);
            let output = world.run(*way, &[&file, "--source", &source]);
            output.assert_refused("none of it");
            assert!(output.error.contains("is damaged"), "{output:?}");
            assert!(output.error.contains("get a good copy of it"), "{output:?}");
            let file = world.file(name, &good);
            world
                .run(*next, &[&file, "--source", &source])
                .assert(20_000, 0);
        }
        assert_eq!(world.tx(), 3 * (0..20_000).sum::<u64>(), "{name}");
    }
}

/// The service is slow, so that all commands read the file at the same time.
#[test]
fn overlapping_commands_count_a_file_once() {
    let mut world = World::new();
    let whole = ndjson_body(&flows(60_000));
    let path = world.file("flows", b"");
    let mut children = Vec::new();
    for part in 1..=8 {
        let lines = whole.split_inclusive(|&byte| byte == b'\n');
        let begin: Vec<u8> = lines.take(part * 7_500).flatten().copied().collect();
        // A new file, as if a job had rewritten it.
        let new = world.file("new", &begin);
        std::fs::rename(&new, &path).unwrap();
        children.push(world.spawn(WAYS[part % 2], &[&path]));
        // They start at different times; the sums are the same in all cases.
        std::thread::sleep(Duration::from_millis(30));
    }
    let outputs = children.into_iter().map(|child| child.wait_with_output());
    let all: Vec<CommandOutput> = outputs.map(|output| output_of(&output.unwrap())).collect();
    // A later command that has read less finds the beginning of a counted file.
    let too_late = |output: &CommandOutput| output.error.contains("may be the beginning");
    assert!(
        all.iter().all(|s| s.status == Some(0) || too_late(s)),
        "{all:?}"
    );
    assert_eq!(world.counted(), 60_000, "{all:?}");
    assert_eq!(world.tx(), (0..60_000).sum::<u64>());
}

#[test]
fn a_changed_copy_counts_and_is_named() {
    for way in WAYS {
        let mut world = World::new();
        let text = String::from_utf8(ndjson_body(&flows(500))).unwrap();
        let file = world.file("flows.ndjson", text.as_bytes());
        world.run(way, &[&file]).assert(500, 0);
        let changed = ndjson(1_000_000) + text.as_str();
        let changed = world.file("mended/flows.ndjson.gz", &gzip(changed.as_bytes()));
        let output = world.run(way, &[&changed]);
        output.assert(501, 0);
        assert!(
            output
                .error
                .contains("a file of this name with many of the same flows was counted on 20"),
            "{output:?}"
        );
        let other = ndjson(2_000_000) + text.as_str();
        let other = world.file("other.ndjson", other.as_bytes());
        let output = world.run(way, &[&other]);
        output.assert(501, 0);
        assert_eq!(output.error, "");
    }
}

#[test]
fn files_of_a_few_bytes_count_once() {
    let mut world = World::new();
    for way in WAYS {
        for (at, body) in [
            "",
            "\n",
            "[]",
            "src_app,dest_app,vpc_id,hour,bytes_tx,bytes_rx\n",
        ]
        .into_iter()
        .enumerate()
        {
            let file = world.file(&format!("empty-{at}"), body.as_bytes());
            world.run(way, &[&file]).assert(0, 0);
        }
    }
    for (at, tx) in (0..9).enumerate() {
        let file = world.file(&format!("{tx}"), ndjson(tx).as_bytes());
        world.run(WAYS[at % 3], &[&file]).assert(1, 0);
        world.run(WAYS[(at + 1) % 3], &[&file]).assert(0, 1);
    }
    assert_eq!(world.counted(), 9);
    // Many in one command, one of them twice.
    let names: Vec<String> = (0..20)
        .map(|n| world.file(&format!("n{n}"), ndjson(100 + n % 19).as_bytes()))
        .collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for way in [Way::ImportDir, Way::ImportUrl] {
        let source = ["--source", if way == Way::ImportDir { "a" } else { "b" }];
        world
            .run(way, &[&names[..], &source].concat())
            .assert(19, 1);
    }
}
