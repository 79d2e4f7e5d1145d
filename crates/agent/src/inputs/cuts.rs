//! Tests that the result of reading an input does not depend on where its reads end: incomplete data is not an error
//! yet.

use std::io::{self, Read, Write};
use std::ops::ControlFlow;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use super::window::BLOCK_BYTES;
use super::{InputFormat, Reader, Unusable};

/// An input of which each read returns one chunk.
struct InputChunks<'a> {
    rest: &'a [u8],
    /// The length of the next chunk.
    next: Box<dyn FnMut() -> usize + 'a>,
}

impl Read for InputChunks<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = (self.next)().min(self.rest.len()).min(buffer.len());
        let (piece, rest) = self.rest.split_at(length);
        buffer[..length].copy_from_slice(piece);
        self.rest = rest;
        Ok(length)
    }
}

/// The result of reading an input: each flow or its error, and the final error.
type Outcome = (Vec<String>, String);

fn read(input: impl Read, format: Option<InputFormat>) -> Outcome {
    let mut units = Vec::new();
    let result = Reader::new(input, format).read(|raw| {
        let unusable = match raw.unusable {
            None => String::new(),
            Some(Unusable::Invalid(why)) => why,
            Some(Unusable::Skipped(why)) => format!("{why:?}"),
        };
        units.push(format!("{}: {} {unusable}", raw.location, raw.text));
        ControlFlow::Continue(())
    });
    (
        units,
        result.err().map(|e| e.to_string()).unwrap_or_default(),
    )
}

fn read_batches(input: impl Read, format: Option<InputFormat>) -> Outcome {
    let mut parts = Vec::new();
    let result = Reader::new(input, format).read_batches(|chunk| {
        let batch = chunk.batch.map(|batch| batch.bytes().to_vec());
        parts.push(format!(
            "{batch:?} {:?} {:?} {}",
            chunk.refused, chunk.skipped, chunk.last
        ));
        ControlFlow::Continue(())
    });
    (
        parts,
        result.err().map(|e| e.to_string()).unwrap_or_default(),
    )
}

/// Cuts the input at every byte, reads it byte by byte, and in random chunks.
fn assert_same_for_all_reads(name: &str, input: &[u8], format: Option<InputFormat>) {
    type ReadFn = fn(InputChunks<'_>, Option<InputFormat>) -> Outcome;
    let ways: [(&str, ReadFn); 2] = [
        ("read", |input, format| read(input, format)),
        ("read_batches", |input, format| read_batches(input, format)),
    ];
    let seed = rand::random();
    let mut random = StdRng::seed_from_u64(seed);
    for (way, run) in ways {
        let whole = run(pieces(input, || usize::MAX), format);
        for cut in 0..=input.len() {
            let mut lengths = vec![usize::MAX, cut.max(1)];
            let next = move || lengths.pop().unwrap_or(usize::MAX);
            let outcome = run(pieces(input, next), format);
            assert_eq!(outcome, whole, "{name}: {way}, cut at {cut}");
        }
        let outcome = run(pieces(input, || 1), format);
        assert_eq!(outcome, whole, "{name}: {way}, byte by byte");
        for _ in 0..20 {
            let outcome = run(pieces(input, || random.random_range(1..40)), format);
            assert_eq!(outcome, whole, "{name}: {way}, seed {seed}");
        }
    }
}

fn pieces<'a>(input: &'a [u8], next: impl FnMut() -> usize + 'a) -> InputChunks<'a> {
    InputChunks {
        rest: input,
        next: Box::new(next),
    }
}

/// A flow with unknown fields that have values of all types.
const RICH: &str = "{\"src_app\":\"a\\\"\\\\\\u00e9\\ud83d\\udce6 {[,]}\",\"dest_app\":\"b\u{e9}\u{1F4E6}\", \
    \"vpc_id\" : \"v\",\n\"rtt\":0.5,\"x\":-1.5e+10,\"y\":[1,-0,{\"z\":null,\"w\":true,\"v\":[false,{}]},\
    \"]},{\"],\"e\":1E5,\"bytes_tx\":1,\"bytes_rx\":18446744073709551615,\"hour\":1,\"s\":\"},\"}";

fn rich_array() -> String {
    format!("\u{FEFF} [{RICH} ,\r\n\t{RICH},{RICH}\n]\n")
}

fn rich_line() -> String {
    RICH.replace('\n', "")
}

const LOG: &str = "\
version account-id interface-id srcaddr dstaddr srcport dstport protocol packets bytes start end action log-status\r
2 210987654321 eni-0a 10.20.0.5 10.20.0.9 40112 5432 6 10 8400 1774746005 1774746064 ACCEPT OK\r
2 210987654321 eni-0a - - - - - - - 1774746005 1774746064 - NODATA\r
2 210987654321 eni-0a 10.20.0.5\r
2 210987654321 eni-0a ::1 10.20.0.9 40112 5432 6 10 8400 1774746005 1774746064 ACCEPT OKversion interface-id dstaddr srcaddr bytes start end
2 eni-0a 10.20.0.5 10.20.0.9 8400 1774746005 1774746064\n";

const CSV: &str = "\u{FEFF}src_app,\"dest_app\",vpc_id,bytes_tx,bytes_rx,hour\r\n\
    \"a,\"\"b\"\"\r\nc\",d,,1,02,3\r\n\r\ne,\"f\"x,g,1,2,3\r\n\"h\",\"\",\"\",1,2,3\n,,,,,\n\
    i,\"j,k,1,2,3\nl,m,n,1,2,3hour,src_app,dest_app,vpc_id,bytes_tx,bytes_rx\n4,o,p\u{e9},q,5,6\n\"r\"";

#[test]
fn flows_are_the_same_wherever_a_read_ends() {
    let array = rich_array();
    let (line, lines) = (rich_line(), [rich_line(), rich_line()].join("\r\n"));
    for (name, text) in [
        ("array", array.clone()),
        ("two arrays", format!("{array}\u{FEFF}{array}[]\n[{RICH}]")),
        ("arrays in a row", "[1][2,3][][4]".into()),
        ("array and something", "[1][2,3] x".into()),
        (
            "NDJSON",
            format!("{lines}\n\n\u{FEFF}{line}\n{{\"torn\":\n{line}{line}\n{line},\n[{line}]"),
        ),
        ("pretty", format!("{}\n{RICH}\n", RICH.replace(',', ",\n"))),
        ("torn line first", format!("{{\"src_app\":\"a\",\n{lines}")),
        ("CSV", CSV.into()),
        ("log", LOG.into()),
        ("nothing", " \n".into()),
    ] {
        assert_same_for_all_reads(name, text.as_bytes(), None);
    }
}

/// An incomplete number, name or escape is not an error yet; a real error stays the same.
#[test]
fn errors_are_the_same_wherever_a_read_ends() {
    for value in [
        "tru",
        "truf",
        "nul",
        "fals",
        "-",
        "1e",
        "1e+",
        "0.",
        "01",
        "1.5.5",
        "\"\\ud83d\"",
        "\"\\ud83d",
        "\"\\x\"",
        "\"\\u12\"",
        "\"a\nb\"",
        "{a}",
        "{\"a\" 1}",
        "[1 2]",
        "{\"a\":1]",
        "[1}",
        "1 2",
        "}",
        "",
        "nan",
        "\"\u{e9}",
    ] {
        for text in [
            format!("[{{\"b\":1}},{{\"a\":{value}}},2]"),
            format!("[{value}]"),
            format!("[{{\"a\":{value}"),
        ] {
            assert_same_for_all_reads(value, text.as_bytes(), None);
        }
    }
    let latin_1 = b"[{\"a\":\"\xFC\"},{\"b\":1}]";
    assert_same_for_all_reads("Latin-1", latin_1, None);
}

/// Wherever the input is truncated.
#[test]
fn truncated_inputs_are_the_same_wherever_a_read_ends() {
    let array = rich_array();
    for text in [
        array.as_bytes(),
        LOG.as_bytes(),
        CSV.as_bytes(),
        rich_line().as_bytes(),
    ] {
        for end in 0..text.len() {
            let text = &text[..end];
            let outcome = read(pieces(text, || 11), None);
            assert_eq!(outcome, read(text, None), "{end}");
            let outcome = read_batches(pieces(text, || 11), None);
            assert_eq!(outcome, read_batches(text, None), "{end}");
        }
    }
}

#[test]
fn compressed_flows_are_the_same_wherever_a_read_ends() {
    let text = [rich_line(), rich_line()].join("\n") + "\n";
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(text.as_bytes()).unwrap();
    let gzip = gzip.finish().unwrap();
    let zstd = zstd::encode_all(text.as_bytes(), 1).unwrap();
    let skippable = b"\x5F\x2A\x4D\x18\x03\0\0\0abc";
    let changed = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0x55;
        bytes
    };
    for (name, bytes) in [
        ("gzip", gzip.clone()),
        ("gzip twice, zeros", [&gzip[..], &gzip, &[0; 20]].concat()),
        ("gzip, garbage", [&gzip[..], b"x"].concat()),
        ("gzip, cut off", gzip[..gzip.len() - 9].to_vec()),
        ("gzip, changed", changed(&gzip)),
        ("zstd", zstd.clone()),
        ("zstd twice", [&zstd[..], &zstd].concat()),
        (
            "zstd, skippable",
            [&skippable[..], &zstd, skippable].concat(),
        ),
        ("zstd, cut off", zstd[..zstd.len() - 1].to_vec()),
        ("zstd, changed", changed(&zstd)),
        ("skippable", skippable.to_vec()),
    ] {
        assert_same_for_all_reads(name, &bytes, None);
    }
}

/// Blocks of an array end anywhere in a flow, but all flows are read.
#[test]
fn arrays_are_read_at_all_alignments() {
    let rich = format!("{RICH} ,\n{}", RICH.replace("\"b\u{e9}", "\"c"));
    for shift in 1..RICH.len() + 8 {
        // This many bytes after the first flow are in the first block.
        let long = "x".repeat(BLOCK_BYTES - 2 - shift - RICH.len() - 6);
        let long = RICH.replace("\"v\":[false", &format!("\"u\":\"{long}\",\"v\":[false"));
        let text = format!("[{long},{rich},{rich}]");
        let mut flows = 0;
        let result = Reader::new(text.as_bytes(), None).read_batches(|chunk| {
            assert_eq!(chunk.refused, []);
            flows += chunk.batch.map_or(0, |batch| batch.flows());
            ControlFlow::Continue(())
        });
        assert!(result.is_ok(), "{shift}: {result:?}");
        assert_eq!(flows, 5, "{shift}");
    }
}

/// Nothing panics either. `FLOWTALLY_TEST_SEED=…` repeats a run.
#[test]
fn mutated_inputs_are_the_same_wherever_a_read_ends() {
    const TOKENS: [&str; 18] = [
        "\"",
        "\\",
        "[",
        "]",
        "{",
        "}",
        ",",
        "\n",
        "\r\n",
        " ",
        "\u{FEFF}",
        "\"\"",
        "src_app,dest_app,vpc_id",
        "hour",
        "version srcaddr dstaddr bytes start",
        "OKversion",
        "2026-03-29T01:00:05Z ",
        "\0",
    ];
    let seed = std::env::var("FLOWTALLY_TEST_SEED")
        .ok()
        .and_then(|seed| seed.parse().ok());
    let seed = seed.unwrap_or_else(rand::random);
    println!("FLOWTALLY_TEST_SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let texts = [
        rich_array(),
        [rich_line(), rich_line()].join("\n"),
        CSV.into(),
        LOG.into(),
    ];
    for _ in 0..1500 {
        let mut text = texts[random.random_range(0..texts.len())]
            .clone()
            .into_bytes();
        for _ in 0..random.random_range(1..5) {
            let at = random.random_range(0..text.len());
            let end = (at + random.random_range(0..30)).min(text.len());
            match random.random_range(0..5) {
                0 => drop(text.drain(at..end)),
                1 => {
                    let copy = text[at..end].to_vec();
                    let to = random.random_range(0..=text.len());
                    text.splice(to..to, copy);
                }
                _ => {
                    let token = TOKENS[random.random_range(0..TOKENS.len())].bytes();
                    text.splice(at..at, token);
                }
            }
            text.push(b'\n');
        }
        let shown = String::from_utf8_lossy(&text);
        let mut length = StdRng::seed_from_u64(random.random());
        let outcome = read(pieces(&text, || length.random_range(1..50)), None);
        assert_eq!(outcome, read(&text[..], None), "{shown}");
        let outcome = read_batches(pieces(&text, || length.random_range(1..50)), None);
        assert_eq!(outcome, read_batches(&text[..], None), "{shown}");
    }
}
