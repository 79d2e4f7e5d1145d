//! The expected result for each file that is imported or sent.

/// The expected result for a file.
pub struct Case {
    pub file: &'static str,
    pub arguments: &'static [&'static str],
    /// Flows that count, and those that are refused.
    pub flows: u64,
    pub refused: u64,
    /// Rows as CSV, in order.
    pub rows: &'static [&'static str],
    /// Words in the output, on either stream.
    pub says: &'static [&'static str],
}

const fn case(
    file: &'static str,
    [flows, refused]: [u64; 2],
    rows: &'static [&'static str],
    says: &'static [&'static str],
) -> Case {
    Case {
        file,
        arguments: &[],
        flows,
        refused,
        rows,
        says,
    }
}

const fn with(arguments: &'static [&'static str], case: Case) -> Case {
    Case { arguments, ..case }
}

const LOG_FORMAT: &[&str] = &["--format", "vpc-flow-logs"];
pub const V01: &[&str] = &[
    "10.20.0.5,10.20.0.9,,8400,0,492985",
    "10.20.0.9,10.20.0.5,,61000,0,492985",
];
pub const WEB: &[&str] = &["web,db,vpc-1,100,2000,492985"];
pub const TWO: &[&str] = &["web,db,vpc-1,101,2001,492985"];
const THREE: &[&str] = &[
    "Zürich-web,db,vpc-1,7,8,492985",
    "web,db,vpc-1,101,2001,492985",
];

/// For an unreadable file, no flow counts, none is refused, and the error names its format.
pub const CASES: &[Case] = &[
    case(
        "v01-v2-header.log",
        [2, 0],
        V01,
        &["1 records without traffic skipped (0 NODATA, 0 SKIPDATA, 1 REJECT)"],
    ),
    case(
        "v02-v2-no-header.log",
        [0, 0],
        &[],
        &["without its header", "--format vpc-flow-logs"],
    ),
    with(LOG_FORMAT, case("v02-v2-no-header.log", [2, 0], V01, &[])),
    case(
        "v03-v5-custom-order.log",
        [2, 0],
        &["10.20.0.5,203.0.113.40,vpc-0c1d2e3f405162738,9000,410000,492985"],
        &["(1 NODATA, 1 SKIPDATA, 0 REJECT)"],
    ),
    with(
        &["--count", "sender"],
        case(
            "v03-v5-custom-order.log",
            [1, 0],
            &["10.20.0.5,203.0.113.40,vpc-0c1d2e3f405162738,9000,0,492985"],
            &["1 records of the other end skipped"],
        ),
    ),
    with(
        &["--count", "receiver"],
        case(
            "v03-v5-custom-order.log",
            [1, 0],
            &["10.20.0.5,203.0.113.40,vpc-0c1d2e3f405162738,0,410000,492985"],
            &["1 records of the other end skipped"],
        ),
    ),
    case(
        "v04-nodata-without-times.log",
        [1, 0],
        &["10.20.0.5,10.20.0.9,,8400,0,492985"],
        &["(1 NODATA, 1 SKIPDATA, 0 REJECT)"],
    ),
    with(
        &["--apps", "v06-apps.csv"],
        case(
            "v06-ipv6-and-mapped.log",
            [3, 0],
            &["web,db,,500,0,492985", "web6,db6,,311,0,492985"],
            &[],
        ),
    ),
    case(
        "v06-ipv6-and-mapped.log",
        [3, 0],
        &[
            "10.20.0.5,10.20.0.9,,500,0,492985",
            "2001:db8:20::5,2001:db8:20::9,,311,0,492985",
        ],
        &[],
    ),
    case(
        "v07-transit-gateway.log",
        [0, 0],
        &[],
        &["Transit Gateway", "not supported"],
    ),
    case("v09-tabs.log", [2, 0], V01, &[]),
    case("v11-cloudwatch-export.log.gz", [2, 0], V01, &["1 NODATA"]),
    with(
        LOG_FORMAT,
        case("v11-cloudwatch-export.log.gz", [2, 0], V01, &["1 NODATA"]),
    ),
    case(
        "v12-cloudwatch-console.csv",
        [0, 0],
        &[],
        &["the CloudWatch console's CSV"],
    ),
    case(
        "v13-cloudwatch-subscription.json.gz",
        [0, 1],
        &[],
        &[
            "the envelope of a CloudWatch subscription",
            "nothing was counted",
        ],
    ),
    case(
        "v14-firehose-no-newlines.json",
        [0, 1],
        &[],
        &["several values are on one line", "nothing was counted"],
    ),
    case(
        "v16-glued-header.log",
        [4, 0],
        &[
            "10.20.0.5,10.20.0.9,,67400,0,492985",
            "10.20.0.9,10.20.0.5,,61000,0,492985",
        ],
        &[],
    ),
    case(
        "v16-glued-header.log.gz",
        [4, 0],
        &[
            "10.20.0.5,10.20.0.9,,67400,0,492985",
            "10.20.0.9,10.20.0.5,,61000,0,492985",
        ],
        &[],
    ),
    case(
        "v17-twice-gzipped.log.gz",
        [0, 0],
        &[],
        &["compressed twice"],
    ),
    case(
        "v18-both-enis-v2.log",
        [2, 0],
        &["10.20.0.5,10.20.0.9,,16800,0,492985"],
        &[
            "warning: line 3: ",
            "recorded at more than one interface",
            "docs/directions.md",
        ],
    ),
    with(
        &["--count", "sender"],
        case(
            "v18-both-enis-v2.log",
            [0, 0],
            &[],
            &["line 1: ", "no flow-direction"],
        ),
    ),
    case(
        "v19-hour-boundary.log",
        [2, 0],
        &[
            "10.20.0.5,10.20.0.9,,1000,0,492985",
            "10.20.0.5,10.20.0.9,,10,0,492986",
        ],
        &[],
    ),
    case(
        "v20-athena-result.csv",
        [0, 0],
        &[],
        &["as Athena writes it"],
    ),
    case("v21-parquet-magic.log.parquet", [0, 0], &[], &["Parquet"]),
    case(
        "v24-milliseconds.log",
        [0, 1],
        &[],
        &["line 2: start: 1774746000000 is not a time", "in seconds"],
    ),
    case("v25-truncated.log.gz", [0, 0], &[], &["ends early"]),
    case("v26-a-tar.tar.gz", [0, 0], &[], &["a tar archive"]),
    case("j01-bom.ndjson", [2, 0], TWO, &[]),
    case("j02-crlf.ndjson", [2, 0], TWO, &[]),
    case(
        "j04-pretty-objects.ndjson",
        [0, 0],
        &[],
        &["an object over several lines", "jq -c . FILE"],
    ),
    case(
        "j06-lines-with-commas.ndjson",
        [1, 2],
        &["Zürich-web,db,vpc-1,7,8,492985"],
        &[
            "line 1: a comma follows the flow",
            "line 2: a comma follows the flow",
            "[ ]",
        ],
    ),
    case("j07-pretty-array.json", [3, 0], THREE, &[]),
    case("j08-two-arrays.json", [3, 0], THREE, &[]),
    case("j08-two-arrays.json.gz", [3, 0], THREE, &[]),
    case(
        "j09-duplicate-keys.json",
        [0, 1],
        &[],
        &["flow 0: bytes_tx: the field is given twice"],
    ),
    case(
        "j10-surrogates.json",
        [1, 0],
        &["📦-web,db\0x,vpc-1,1,0,492985"],
        &[],
    ),
    case(
        "j11-lone-surrogate.ndjson",
        [2, 1],
        TWO,
        &["line 2: src_app: "],
    ),
    case(
        "j12-numbers.ndjson",
        [4, 12],
        &[
            "n11,db,,18446744073709551615,0,492985",
            "n13,db,,9007199254740993,0,492985",
            "n14,db,,100,0,492985",
            "n15,db,,100,0,492985",
        ],
        &["line 1: bytes_tx: ", "line 10: bytes_tx: "],
    ),
    case(
        "j14-big-sums.ndjson",
        [3, 0],
        &["big,db,vpc-1,18446744073709551615,27021597764222979,492985"],
        &[],
    ),
    // By its name, it has one flow per line. Concatenated arrays, as in j08, are read only if the name does not
    // contradict this.
    case(
        "j15-array-a-line.ndjson",
        [0, 2],
        &[],
        &[
            "line 1: an array, and not a flow; --format json",
            "nothing was counted",
        ],
    ),
    with(
        &["--format", "json"],
        case("j15-array-a-line.ndjson", [2, 0], TWO, &[]),
    ),
    case("j17-utf16.json", [0, 0], &[], &["iconv -f UTF-16 -t UTF-8"]),
    case("j18-latin1.ndjson", [2, 1], TWO, &["line 2: not UTF-8"]),
    case(
        "j19-wrapped.json",
        [0, 1],
        &[],
        &["an object with flows in it", "nothing was counted"],
    ),
    case(
        "j20-telegraf-batch.json",
        [0, 1],
        &[],
        &["Telegraf", "nothing was counted"],
    ),
    case("j21-fluent-bit-json_lines.body", [2, 0], TWO, &[]),
    case(
        "j22-azure-vnet-flow-log.json",
        [1, 0],
        &["10.20.0.5,10.20.0.9,,8400,61000,492985"],
        &["1 records without traffic skipped (1 NODATA, 0 SKIPDATA, 0 REJECT)"],
    ),
    case(
        "j23-gcp-vpc-flows.ndjson",
        [1, 0],
        &["10.20.0.5,10.20.0.9,,8400,0,492985"],
        &[],
    ),
    case(
        "j24-hubble.ndjson",
        [0, 1],
        &[],
        &["Hubble's", "no numbers of bytes"],
    ),
    case("c01-excel-semicolons-bom.csv", [0, 0], &[], &["semicolons"]),
    case("c02-excel-sep-line.csv", [0, 0], &[], &["a sep= line"]),
    case(
        "c03-excel-unicode-text.csv",
        [0, 0],
        &[],
        &["iconv -f UTF-16 -t UTF-8"],
    ),
    case("c04-bom-quoted-crlf.csv", [1, 0], WEB, &[]),
    case(
        "c06-formulas.csv",
        [6, 0],
        &[
            "\tweb,db,vpc-1,1,1,492985",
            "+1,db,vpc-1,1,1,492985",
            "-1,db,vpc-1,1,1,492985",
            "=1+1,db,vpc-1,1,1,492985",
            "\"=HYPERLINK(\"\"http://x.example\"\",\"\"y\"\")\",db,vpc-1,1,1,492985",
            "@SUM(1),db,vpc-1,1,1,492985",
        ],
        &[],
    ),
    case(
        "c07-excel-empty-column-and-rows.csv",
        [0, 0],
        &[],
        &["a column has no name"],
    ),
    case(
        "c08-blank-comma-rows.csv",
        [1, 2],
        WEB,
        &["line 3: an empty row", "line 4: an empty row"],
    ),
    case(
        "c09-header-case-and-spaces.csv",
        [0, 0],
        &[],
        &["\"Src_App\", which must be written src_app"],
    ),
    case(
        "c11-spreadsheet-numbers.csv",
        [1, 9],
        &["x6,db,vpc-1,7,1,492985"],
        &["line 2: bytes_tx: "],
    ),
    case(
        "c14-nul-and-control.csv",
        [1, 0],
        &["we\0b,d\x1bb,vpc-1,1,1,492985"],
        &[],
    ),
    case("z01-skippable-frame-first.ndjson.zst", [2, 0], TWO, &[]),
    case("z02-skippable-frame-last.ndjson.zst", [2, 0], TWO, &[]),
    case(
        "z04-two-frames.ndjson.zst",
        [4, 0],
        &["web,db,vpc-1,202,4002,492985"],
        &[],
    ),
    case("z05-zeros-behind.ndjson.gz", [2, 0], TWO, &[]),
    case("z06-plain-named-gz.ndjson.gz", [2, 0], TWO, &[]),
];
