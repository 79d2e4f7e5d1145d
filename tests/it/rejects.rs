//! Flows that `flowtally import` and `send` refuse, while the rest counts.

use crate::import::{Bench, import};
use crate::send::{flows, url};
use crate::support::{Daemon, Model, add_to, hour_of, ndjson_body};
use flow::Counters;

/// The refused flows: location without the file, reason, and length of the text.
fn refused(rejects: &str) -> Vec<(String, String, usize)> {
    let kept = std::fs::read_to_string(rejects).unwrap();
    let lines = kept.lines().map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        let place = text("place");
        let (_, place) = place.rsplit_once(": ").unwrap();
        (place.to_owned(), text("why"), text("flow").len())
    });
    lines.collect()
}

/// A line of any length is refused like others, by each command; the batches of the file are unchanged, so that it
/// counts once.
#[test]
fn a_line_that_is_too_long_is_refused() {
    let bench = Bench::new();
    let flows = flows(30_000);
    let mut model = Model::new();
    add_to(&mut model, &flows);
    let (one, other) = flows.split_at(10_000);
    let long = vec![b'x'; (5 << 20) + 7];
    let body = [&ndjson_body(one)[..], &long, b"\n", &ndjson_body(other)].concat();
    let plain = bench.file("flows.ndjson", &body);
    let rejects = bench.dir.path().join("rejects.ndjson");
    let rejects = rejects.to_str().unwrap();
    let why = "more than 1048576 bytes; these are the first 1000".to_owned();
    let expected = [("line 10001".to_owned(), why, 1000)];
    for said in [
        "30000 flows imported",
        "0 flows imported in 0 batches; 1 refused; 30000 flows skipped",
    ] {
        let (status, out, error) = import(&[&plain, "--data-dir", &bench.db, "--rejects", rejects]);
        assert_eq!(status, Some(1), "{error}");
        assert!(out.starts_with(said) && out.contains("1 refused"), "{out}");
        assert_eq!(refused(rejects), expected);
    }
    assert_eq!(bench.hour(1), hour_of(&model, 1));

    let daemon = Daemon::start(&bench.dir.path().join("served"));
    let by_url = rejects.replace("rejects", "by-url");
    let (status, _, error) = import(&[&plain, "--url", &url(&daemon), "--rejects", &by_url]);
    assert_eq!(status, Some(1), "{error}");
    assert_eq!(refused(&by_url), expected);
    assert_eq!(daemon.client.hour(1), hour_of(&model, 1));
    daemon.stop();
}

#[test]
fn an_unclosed_quote_is_reported_with_its_line() {
    let bench = Bench::new();
    let text = "hour,src_app,dest_app,vpc_id,bytes_tx,bytes_rx\n\
                1,a,b,v,1,2\n3,a,\"b\n1,a,b,v,1,1\n1,a,b,v,1\n";
    let file = bench.file("flows.csv", text.as_bytes());
    let (status, out, error) = import(&[&file, "--data-dir", &bench.db]);
    assert_eq!(status, Some(1), "{error}");
    assert!(out.starts_with("2 flows imported"), "{out}");
    for said in [
        ": line 3: the quote is not closed\n",
        ": line 5: 5 columns, but the header has 6\n",
    ] {
        assert!(error.contains(said), "{error}");
    }
    assert_eq!(bench.hour(1)[0].1, Counters { tx: 2, rx: 3 });
}

/// The command in the message sends them to the same service.
#[test]
fn the_printed_command_sends_the_refused_flows() {
    let bench = Bench::new();
    let daemon = Daemon::start(&bench.dir.path().join("served"));
    let flow = |name: &str, tx: &str| {
        format!(
            "{{\"src_app\":\"{name}\",\"dest_app\":\"b\",\"vpc_id\":\"\",\"bytes_tx\":{tx},\"bytes_rx\":0,\"hour\":1}}\n"
        )
    };
    let body = [flow("good", "1"), flow("bad", "\"x\"")].concat();
    let file = bench.file("flows.ndjson", body.as_bytes());
    let url = url(&daemon);
    for (arguments, name) in [
        (["send", "--url", &url], "it's one"),
        (["import", "--url", &url], "two"),
        (["import", "--data-dir", &bench.db], "three"),
    ] {
        let rejects = bench.dir.path().join(name);
        let output = std::process::Command::new(Daemon::binary())
            .args(arguments)
            .arg(&file)
            .arg("--rejects")
            .arg(&rejects)
            .output()
            .unwrap();
        let (status, _, error) = crate::send::parts(&output);
        assert_eq!(status, Some(1), "{error}");
        let line = error
            .lines()
            .find(|line| line.contains("jq -r .flow"))
            .unwrap();
        let command = &line[line.find("jq -r .flow").unwrap()..];
        // The user corrects the flow.
        let kept = std::fs::read_to_string(&rejects).unwrap();
        std::fs::write(&rejects, kept.replace("\\\"x\\\"", "5")).unwrap();
        let binary = Daemon::binary().display().to_string();
        let line = command.replacen("| flowtally ", &format!("| {binary} "), 1);
        let mut sh = std::process::Command::new("sh");
        let output = sh.args(["-c", &line]).env_remove("FLOWTALLY_URL").output();
        let (status, _, error) = crate::send::parts(&output.unwrap());
        assert_eq!(status, Some(0), "{line}: {error}");
    }
    let sum = |rows: Vec<(_, Counters)>| -> u64 { rows.iter().map(|(_, c)| c.tx).sum() };
    assert_eq!(sum(daemon.client.hour(1)), 1 + 5 + 5);
    daemon.stop();
    assert_eq!(sum(bench.hour(1)), 1 + 5);
}

/// A batch of a file that is too large: neither a spool nor `--batch-flows` would help, and none of them is named.
#[test]
fn a_file_that_is_too_large_for_a_proxy() {
    let bench = Bench::new();
    let body = ndjson_body(&flows(100));
    let file = bench.file("flows.ndjson", &body);
    let response = |_: usize, request: &str| match request.contains("/receipts") {
        true => crate::spool_refused::response("200 OK", "{\"receipts\":[]}"),
        false => crate::spool_refused::response("413 Payload Too Large", ""),
    };
    for command in ["send", "import"] {
        let run = |more: &[&str]| {
            let output = std::process::Command::new(Daemon::binary())
                .args([
                    command,
                    "--url",
                    &crate::spool_refused::answering_to(response),
                    &file,
                ])
                .args(more)
                .output()
                .unwrap();
            crate::send::parts(&output)
        };
        let (status, _, error) = run(&[]);
        assert_eq!(status, Some(1), "{error}");
        assert!(
            error.contains("413") && error.contains("give --rejects FILE"),
            "{error}"
        );
        assert!(!error.contains("--spool"), "{error}");
        let rejects = bench.dir.path().join(command);
        let (status, _, error) = run(&["--rejects", rejects.to_str().unwrap()]);
        assert_eq!(status, Some(1), "{error}");
        assert!(error.contains(" --batch-flows 12"), "{error}");
    }
}

/// If the disk was full when the last line was written, the next entry begins on a new line.
#[test]
fn a_torn_line_does_not_affect_others() {
    let bench = Bench::new();
    let rejects = bench.file("rejects.ndjson", b"{\"flow\":\"cut o");
    let bad = bench.file("bad.ndjson", b"{nonsense\n");
    for _ in 0..2 {
        let (status, _, error) = import(&[&bad, "--data-dir", &bench.db, "--rejects", &rejects]);
        assert_eq!(status, Some(1), "{error}");
        let kept = std::fs::read_to_string(&rejects).unwrap();
        let lines: Vec<&str> = kept.lines().collect();
        assert_eq!(lines.len(), 2, "{kept}");
        assert_eq!(lines[0], "{\"flow\":\"cut o");
        let line: serde_json::Value = serde_json::from_str(lines[1]).unwrap();
        assert_eq!(line["flow"], "{nonsense");
    }
}
