#!/usr/bin/env python3
"""Turns the figures of load.py into RESULTS.md: report.py FIGURES RESULTS.md

A figure is a line `name: value`; the tables below say what each one is and what it should be. A figure that
misses its target says so.
"""
import datetime, platform, subprocess, sys

# Row: what, figure, target (None: for information).
TABLES = {
    "Writing": [
        ("`fleet`: CPU ratio", "fleet.ratio", 0.60),
        ("`hot`: CPU ratio", "hot.ratio", 0.55),
        ("`long` (300-byte flows): CPU ratio", "long.ratio", 0.70),
        ("`wide` (nearly all keys new): CPU ratio", "wide.ratio", 2.2),
        ("`fleet`: CPU µs a flow", "fleet.cpu_us_per_flow", None),
        ("`hot`: CPU µs a flow", "hot.cpu_us_per_flow", None),
        ("`long`: CPU µs a flow", "long.cpu_us_per_flow", None),
        ("`wide`: CPU µs a flow", "wide.cpu_us_per_flow", None),
        ("`fleet`: flows a second", "fleet.flows_per_s", None),
        ("`wide`: flows a second", "wide.flows_per_s", None),
        ("`fleet`: POST p99, saturated, ms", "fleet.post_p99_ms", None),
        ("`wide`: disk after compaction, bytes a key", "wide.disk_bytes_per_key", 22),
    ],
    "Memory, most, MiB": [
        (f"`{kind}`", f"{kind}.memory_mib_most", 512) for kind in ("fleet", "hot", "long", "wide")
    ],
    "Reading": [
        ("`fleet`, right after the last POST, nothing flushed yet: CPU µs a row", "reads.fleet_us_per_row_after_last_post", 0.5),
        ("`fleet`, compacted: CPU µs a row", "reads.fleet_us_per_row_compacted", None),
        ("`hot`, right after the last POST, nothing flushed yet: CPU µs a row", "reads.hot_us_per_row_after_last_post", 0.5),
        ("`hot`, compacted: CPU µs a row", "reads.hot_us_per_row_compacted", None),
        ("5,000,000 rows, right after the last POST: first byte, ms", "reads.5m_rows_after_last_post_first_byte_ms", 50),
        ("5,000,000 rows, flushed: first byte, ms", "reads.5m_rows_flushed_first_byte_ms", 50),
        ("5,000,000 rows, right after the last POST: growth, MiB", "reads.5m_rows_after_last_post_growth_mib", 64),
        ("5,000,000 rows, flushed: growth, MiB", "reads.5m_rows_flushed_growth_mib", 64),
        ("100,000 rows read every second: ingest slower by, %", "reads.ingest_slowdown_percent_by_a_get_a_second", 5),
    ],
    "Latency": [
        ("one write and fsync on this disk, ms", "latency.fsync_ms", None),
        ("one POST of 1,000 flows alone: p50, ms (target: an fsync + 2 ms)", "latency.post_alone_p50_ms", "fsync"),
        ("half of the saturating rate, flows a second", "latency.half_rate_flows_per_s", None),
        ("POST at that rate: p99, ms", "latency.post_at_half_rate_p99_ms", 50),
        ("POST at that rate: longest of all runs, ms", "latency.post_at_half_rate_most_ms.max", 250),
    ],
    "Flat for ever": [
        ("20 rounds of 3,000,000 flows, a new hour each: CPU a flow, last 8 to first 8, %", "flat.cpu_ratio_change_percent", 10),
        ("the same: CPU a row read, last 8 to first 8, %", "flat.get_ratio_change_percent", 10),
        ("the same: memory, last 8 to first 8, %", "flat.memory_mib_change_percent", 10),
        ("ready after a restart with 30,000,000 flows stored, s", "flat.restart_ready_s", 2),
        ("one key: GET, wall µs, first", "flat.one_key_get_us_first", None),
        ("one key: GET, wall µs, after 10,000,000 updates in some seconds (target: 1.3 × the first)", "flat.one_key_get_us_after_10m_updates", "first"),
        ("replay after a kill, flows a second, without RocksDB's reading of its own log", "recovery.flows_per_s", -3_000_000),
    ],
}


def number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def main():
    figures = {}
    for line in open(sys.argv[1]):
        name, _, value = line.partition(": ")
        if not line.startswith("#"):
            figures[name] = float(value)
    special = {"fsync": figures.get("latency.fsync_ms", 0) + 2, "first": 1.3 * figures.get("flat.one_key_get_us_first", 0)}
    cpu = next((l.split(": ")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    cores = subprocess.run(["nproc"], capture_output=True, text=True).stdout.strip()
    out = [
        "# Results", "",
        "Written by `scripts/bench`; do not edit. `benches/load.py` says how each figure is measured.", "",
        f"- {datetime.date.today()}, {cpu}, {cores} cores, Linux {platform.release().split('-')[0]}; release build, default settings"
        " (every POST synced to disk), 8 connections, 1,000 flows a POST.",
        "- Medians of five runs with their least and most, where a range is given; single runs elsewhere. The driver"
        " runs on the same cores and is at its limit before the server is.",
        "- A ratio is server CPU per flow, flushes and compaction included, over the CPU of CPython's `json.loads`"
        " for the same bodies in the same run; it compares between machines.", "",
    ]
    for title, rows in TABLES.items():
        out += [f"## {title}", "", "| what | figure | least – most | target |", "|---|---|---|---|"]
        for what, name, target in rows:
            if name not in figures:
                out.append(f"| {what} | not measured | | |")
                continue
            value, target = figures[name], special.get(target, target)
            spread = f"{number(figures[name + '.min'])} – {number(figures[name + '.max'])}" if name + ".min" in figures else ""
            if target is None:
                goal = ""
            elif target < 0:
                goal = f"≥ {number(-target)}" + ("" if value >= -target else ", **missed**")
            else:
                goal = f"≤ {number(target)}" + ("" if value <= target else ", **missed**")
            out.append(f"| {what} | {number(value)} | {spread} | {goal} |")
        out.append("")
    open(sys.argv[2], "w").write("\n".join(out))


if __name__ == "__main__":
    main()
