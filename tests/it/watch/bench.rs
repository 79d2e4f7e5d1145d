//! `scripts/bench watch` at a smoke size, so that it keeps working. It fails if the sums at the service are not what was
//! moved, to the byte.

use std::process::Command;

use super::network::Network;
use crate::support::Daemon;

#[test]
fn the_bench_of_the_agent_counts_each_byte() {
    let Some(_may_make_namespaces) = Network::new("bench", 0) else {
        return;
    };
    let mut bench = Command::new("python3");
    bench.arg("benches/watch.py").arg(Daemon::binary());
    bench.arg("smoke").env("PYTHONDONTWRITEBYTECODE", "1");
    let done = bench.output().unwrap();
    let figures = String::from_utf8(done.stdout).unwrap();
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{figures}{errors}");
    for figure in ["exact: 1", "lost_ends: 0.0"] {
        let line = format!("watch.{figure}\n");
        assert!(figures.contains(&line), "{line} is not in {figures}");
    }
    assert!(figures.contains("watch.cpu_percent: "), "{figures}");
}
