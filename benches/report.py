#!/usr/bin/env python3
"""Turns the figures of load.py into RESULTS.md: report.py FIGURES RESULTS.md

Where a figure is there twice, the later one counts: a part that was measured again can be added at the end.

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
        ("`fleet`, 60,000,000 flows, over several flushes: CPU ratio", "fleet_over_flushes.ratio", 0.60),
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
    "Reading: CPU µs a row": [
        (f"`{kind}`, {what}", f"reads.{kind}.{name}", target)
        for kind in ("fleet", "hot")
        for what, name, target in (
            ("right after the last POST, all in memory", "us_per_row_in_memory", 0.5),
            ("right after the last POST, load over several flushes", "us_per_row_over_flushes", 0.5),
            ("the same, slowest of them", "us_per_row_over_flushes_slowest", None),
            ("over several flushes, as a ratio to `json.loads` of a flow", "ratio_over_flushes", None),
            ("compacted", "us_per_row_compacted", None),
            ("in memory, to compacted", "in_memory_to_compacted", 1.3),
            ("over several flushes, to compacted", "over_flushes_to_compacted", 1.3),
        )
    ],
    "Reading: large hours, and beside ingest": [
        ("5,000,000 rows, right after the last POST: first byte, ms", "reads.5m_rows.after_last_post_first_byte_ms", 50),
        ("5,000,000 rows, flushed: first byte, ms", "reads.5m_rows.flushed_first_byte_ms", 50),
        ("5,000,000 rows, right after the last POST: growth, MiB", "reads.5m_rows.after_last_post_growth_mib", 64),
        ("5,000,000 rows, flushed: growth of a fresh process, MiB", "reads.5m_rows.flushed_growth_mib", 64),
        ("100,000 rows read every second: ingest slower by, %", "reads.beside_ingest.slower_percent", 5),
        ("the same: more server CPU, that of the GETs included, %", "reads.beside_ingest.more_server_cpu_percent", None),
    ],
    "Questions, of 24 hours of 100,000 rows": [
        (f"{what}, {state}", f"questions.{key}.{name}", target)
        for key, state in (("as_it_is", "as it is after the last POST"), ("compacted", "compacted"))
        for what, name, target in (
            ("`group_by=src_app`: CPU µs a row read", "by_src_app_us_per_row", 0.5),
            ("`group_by=hour`: CPU µs a row read", "by_hour_us_per_row", None),
            ("`group_by=src_app,dest_app`: CPU µs a row read", "by_edge_us_per_row", None),
            ("`sort=bytes&limit=10`: CPU µs a row read", "top_10_us_per_row", None),
            ("`search=`: CPU µs a row read", "search_us_per_row", None),
            ("`group_by=src_app`, all of it: ms", "by_src_app_ms", None),
            ("`hour=7&src_app=`, 100 rows: CPU µs", "src_app_of_an_hour_us", None),
            ("`from=0&to=24&src_app=`, 2,400 rows: CPU µs", "src_app_of_24_hours_us", None),
        )
    ] + [
        ("top 10 of an hour of 5,000,000 rows, after the last POST: ms", "questions.top_10_of_5m.after_last_post_ms", None),
        ("the same: growth, MiB", "questions.top_10_of_5m.after_last_post_growth_mib", 64),
        ("the same, flushed: growth of a fresh process, MiB", "questions.top_10_of_5m.flushed_growth_mib", 64),
    ],
    "Latency": [
        ("one write and fsync on this disk, ms", "latency.fsync_ms", None),
        ("one POST of 1,000 flows alone: p50, ms", "latency.post_alone_p50_ms", None),
        ("the same, above an fsync, ms", "latency.post_alone_more_than_an_fsync_ms", 2),
        ("half of the rate that the driver reaches, flows a second", "latency.half_rate_flows_per_s", None),
        ("POST at that rate: p99, ms", "latency.post_at_half_rate_p99_ms", 50),
        ("POST at that rate: longest of all runs, ms", "latency.post_at_half_rate_most_ms.max", 250),
    ],
    "Flat for ever": [
        ("20 rounds of 3,000,000 flows, a new hour each: CPU a flow, last 5 to first 5, %", "flat.cpu_ratio_change_percent", 10),
        ("the same, last to first, %", "flat.cpu_ratio_change_of_single_rounds_percent", None),
        ("the same: CPU a row read, last 5 to first 5, %", "flat.get_ratio_change_percent", 10),
        ("the same, last to first, %", "flat.get_ratio_change_of_single_rounds_percent", None),
        ("the same: memory without the block cache, from the second to the tenth round of a process, MiB more", "flat.memory_growth_mib", 16),
        ("the block cache, of at most 32 MiB, at its largest, MiB", "flat.cache_mib", None),
        ("ready after a restart with 30,000,000 flows stored, s", "flat.restart_ready_s", 2),
        ("one key: a GET, all of the request, CPU µs: after 1,000 updates, in memory", "flat.one_key.get_us_in_memory", None),
        ("the same, flushed", "flat.one_key.get_us_first_flushed", None),
        ("after 1,112,000 updates, in memory and on disk", "flat.one_key.get_us_first_of_nine", None),
        ("after 10,000,000 updates, over several flushes", "flat.one_key.get_us_last_of_nine", None),
        ("the last to the first, flushed", "flat.one_key.get_last_to_first_flushed", 1.3),
        ("the last to the first, in memory", "flat.one_key.get_last_to_in_memory", 1.3),
    ],
    "A full tally replayed after a kill": [
        (f"`{kind}`, {count} flows: {what}", f"recovery.{kind}.{name}", target)
        for kind, count in (("fleet", "8,000,000"), ("wide", "450,000"))
        for what, name, target in (
            ("replay, flows a second", "replay_flows_per_s", -3_000_000),
            ("the same, with all of the open: RocksDB reads its log first", "open_flows_per_s", None),
            ("from start to ready, s", "ready_s", None),
        )
    ],
    "Many nodes: writing, of one node over one broker, beside one process without Kafka": [
        (f"`{load.split('_')[0]}`, {connections} connections: {what}", f"cluster.{load}.{name}", target)
        for load, connections in (("fleet", 8), ("fleet_64_connections", 64), ("wide", 8))
        for what, name, target in (
            ("CPU of the node to that of the one process", "node_to_embedded", 1.3),
            ("CPU µs a flow, one process", "embedded_us_per_flow", None),
            ("CPU µs a flow, node, reading it back included", "node_us_per_flow", None),
            ("messages for 1,000 flows, over 12 partitions", "messages_per_1000_flows", None),
            ("bytes a flow in the topic", "topic_bytes_per_flow", None),
            ("POST p50, saturated, ms", "node_post_p50_ms", None),
            ("POST p99, saturated, ms", "node_post_p99_ms", None),
            ("all of the topic read again: flows a second of CPU", "replay_flows_per_cpu_s", -1_000_000),
            ("the same, flows a second, start and group included", "replay_flows_per_s", None),
            ("CPU of a node while nothing happens, % of a core", "node_idle_cpu_percent", None),
            ("memory, most, MiB", "node_memory_mib_most", 512),
        )
    ],
    "Many nodes: reading, an hour of 1,000,000 rows on three nodes over one broker": [
        (f"{question}: {what}", f"cluster.query.{name}_{figure}", None)
        for question, name in (("all rows", "rows"), ("`group_by=src_app`", "groups"), ("`sort=bytes&limit=10`", "top"))
        for what, figure in (
            ("CPU µs a row, one process", "embedded_us_per_row"),
            ("the same, all three nodes", "all_nodes_us_per_row"),
            ("the same, the node that is asked", "asked_node_us_per_row"),
            ("ms, one process", "embedded_ms"),
            ("ms, three nodes on these two cores", "nodes_ms"),
        )
    ],
}


def number(value):
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def table(title, figures):
    out = [f"## {title}", "", "| what | figure | least – most | target |", "|---|---|---|---|"]
    for what, name, target in TABLES[title]:
        if name not in figures:
            out.append(f"| {what} | not measured | | |")
            continue
        value = figures[name]
        spread = f"{number(figures[name + '.min'])} – {number(figures[name + '.max'])}" if name + ".min" in figures else ""
        if target is None:
            goal = ""
        elif target < 0:
            goal = f"≥ {number(-target)}" + ("" if value >= -target else ", **missed**")
        else:
            goal = f"≤ {number(target)}" + ("" if value <= target else ", **missed**")
        out.append(f"| {what} | {number(value)} | {spread} | {goal} |")
    return [*out, ""]


def main():
    figures, runs, commits = {}, "?", []
    for line in open(sys.argv[1]):
        if line.startswith("# runs "):
            runs = line.split()[2]
        if line.startswith("# commit "):
            commits.append("%s (%s)" % tuple(line.split()[2:4]))
        name, _, value = line.partition(": ")
        if not line.startswith("#"):
            figures[name] = float(value)
    cpu = next((l.split(": ")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    cores = subprocess.run(["nproc"], capture_output=True, text=True).stdout.strip()
    out = [
        "# Results", "",
        "Written by `scripts/bench`; do not edit. `benches/load.py` and `benches/cluster.py` say how each figure is measured.", "",
        f"- Commit {', then '.join(commits)}; {datetime.date.today()}, {cpu}, {cores} cores, Linux {platform.release().split('-')[0]}; release build, default settings"
        " (every POST synced to disk), 8 connections, 1,000 flows a POST.",
        f"- Medians of {runs} runs with their least and most, where a range is given; single runs elsewhere. The driver"
        " runs on the same cores and is at its limit before the server is: flows a second are a lower bound.",
        "- A ratio is server CPU per flow, flushes and compaction included, over the CPU of CPython's `json.loads`"
        " for the same bodies in the same run; it compares between machines.", "",
    ]
    for title in TABLES:
        out += table(title, figures)
    open(sys.argv[2], "w").write("\n".join(out))


if __name__ == "__main__":
    main()
