//! The memory of `flowtally verify`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use flow::{BatchBuilder, Counters, Hour};
use flowtally::store::{Store, StoreOptions};

use crate::support::Daemon;

fn store_hours(dir: &Path, hours: u64) {
    let (store, _) = Store::open(dir, StoreOptions::default()).unwrap();
    for part in 0..hours.div_ceil(50_000) {
        let mut batch = BatchBuilder::with_capacity(0);
        for hour in part * 50_000..hours.min((part + 1) * 50_000) {
            let hour = Hour::new(hour).unwrap();
            batch.push(hour, [b"a", b"b", b"c"], Counters { tx: 1, rx: 2 });
        }
        store.commit(vec![batch.finish()]).unwrap();
        store.flush().unwrap();
    }
}

/// Verifies `dir`, and returns the output and the peak memory, in KiB.
fn verify(dir: &Path) -> (String, u64) {
    let mut command = Command::new(Daemon::binary());
    let command = command.arg("verify").arg("--data-dir").arg(dir);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let status = format!("/proc/{}/status", child.id());
    let mut most = 0;
    while child.try_wait().unwrap().is_none() {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let of_line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = of_line.and_then(|of| of.trim().strip_suffix(" kB")?.parse().ok());
        most = most.max(kib.unwrap_or(0));
        // Between two samples.
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    (String::from_utf8(output.stdout).unwrap(), most)
}

/// Hours are compared one at a time, so their number costs time and no memory.
#[test]
fn many_hours_take_no_memory() {
    const HOURS: u64 = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let (few, many) = (dir.path().join("few"), dir.path().join("many"));
    store_hours(&few, 10);
    store_hours(&many, HOURS);
    let (output, few_kib) = verify(&few);
    assert!(
        output.starts_with("10 hours, 10 flows in 10 rows"),
        "{output}"
    );
    let (output, many_kib) = verify(&many);
    let expected = format!("{HOURS} hours, {HOURS} flows in {HOURS} rows");
    assert!(output.starts_with(&expected), "{output}");
    println!("{few_kib} KiB with few hours, {many_kib} with many");
    assert!(few_kib > 1000);
    // A tree of the ledger's entries alone had 20 MiB and more.
    assert!(many_kib < few_kib + (12 << 10), "{few_kib}, {many_kib}");
}
