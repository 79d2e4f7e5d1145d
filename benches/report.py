#!/usr/bin/env python3
"""Keeps the figures of the benches, and turns them into RESULTS.md:

    report.py add FIGURES PART NEW   puts the lines of the file NEW into FIGURES, in place of those of this part
    report.py show FIGURES RESULTS.md

A figure is a line `name: value`; the tables below say what each one is and what it should be. A figure that
misses its target says so. In FIGURES, each part begins with a line that says when and by which commit it was measured.
"""
import datetime, platform, re, subprocess, sys

# Columns: what, figure, target (negative: at least; None: for information).
WRITING = [
    ("flows/s", "flows_per_s", {"churn": -1_100_000, "new": -900_000, "new24": -900_000, "wide": -900_000, "churn20": -1_100_000}),
    ("last third to first", "last_to_first", {"new": -0.75, "new24": -0.75, "wide": -0.75}),
    ("p99.9, ms", "p999_ms", {"churn": 100, "new": 100, "new24": 100, "wide": 100, "churn20": 100}),
    ("longest POST, ms", "longest_ms", {"churn": 500, "new": 500, "new24": 500, "wide": 500, "churn20": 500, "new20": 1000}),
    ("refused", "refused", {}),
    ("CPU µs a flow", "cpu_us", {}),
    ("until all is settled", "cpu_us_settled",
     {"fleet": 0.16, "hot": 0.16, "churn": 1.3, "new": 1.3, "new24": 1.3, "wide": 1.3, "churn20": 1.3, "new20": 1.8}),
    ("as a ratio to `json.loads`", "ratio", {}),
    ("committer, µs", "committer_us", {"fleet": 0.04, "hot": 0.04}),
    ("memory, MiB", "memory_mib", dict.fromkeys(("fleet", "hot", "march", "new", "new24", "wide", "churn", "churn20", "new20"), 512)),
    ("disk bytes a flow", "disk_bytes_a_flow", {}),
]
WORKLOADS = {
    "fleet": "100,000 edges, Zipf-like, in two hours",
    "hot": "1,000 edges in one hour",
    "march": "`fleet`, and an hour passes each second",
    "new": "every flow a new key, in one hour, for 200 s",
    "new24": "the same in 24 hours",
    "wide": "4,000,000 edges in each of 24 hours, for 200 s",
    "churn": "every flow a new key, and an hour passes each minute, for 200 s",
    "churn20": "the same for 20 minutes",
    "new20": "`new` for 20 minutes",
}
HALF = [
    ("flows/s", "flows_per_s", {}),
    ("p50, ms", "p50_ms", {}),
    ("p99.9, ms", "p999_ms", dict.fromkeys(WORKLOADS, 25)),
    ("longest POST, ms", "longest_ms", dict.fromkeys(WORKLOADS, 150)),
    ("CPU µs a flow", "cpu_us", {}),
]
DISKS = [
    ("flows/s", "flows_per_s", {}),
    ("to that with fsync", "flows_per_s_to_fsync", {"slow": -0.9}),
    ("CPU µs a flow", "cpu_us", {}),
    ("to that with fsync", "cpu_us_to_fsync", {}),
    ("p50, ms", "p50_ms", {}),
    ("p99.9, ms", "p999_ms", {}),
]

# Row: what, figure, target (None: for information).
TABLES = {
    "Writing for 20 minutes": [
        (f"`{name}`: {what}", f"blast.{name}.{figure}", target)
        for name in ("churn20", "new20")
        for what, figure, target in (
            ("least minute from the third on, to the third", "least_minute_to_third", -0.85 if name == "churn20" else None),
            ("most", "most_minute_to_third", 1.15 if name == "churn20" else None),
            ("last minute, flows/s", "last_minute_flows_per_s", -500_000 if name == "new20" else None),
        )
    ],
    "Starts": [
        ("20 minutes of `new`, SIGKILL after ten: ready after, s", "blast.kill.ready_s", 5),
        ("the same: acknowledged flows", "blast.kill.acknowledged_flows", None),
        ("the same: flows of POSTs that got no answer, and were counted", "blast.kill.flows_of_unanswered_posts", 8000),
        ("the same: `flowtally verify` finds no fault", "blast.kill.verified", -1),
        ("rows stored", "blast.restart.rows", None),
        ("in hours", "blast.restart.hours", None),
        ("in bytes on disk", "blast.restart.disk_bytes", None),
        ("start after SIGKILL: ready after, s", "blast.restart.ready_s", 2),
    ],
    "Questions while flows come in: `group_by=src_app` of the newest hour, each second": [
        (f"`{name}`: {what}", f"blast.{name}.{figure}", None)
        for name in ("fleet", "wide", "new", "churn")
        for what, figure in (
            ("median, ms", "read_ms"),
            ("longest, ms", "read_longest_ms"),
            ("refused", "reads_refused"),
            ("flows/s meanwhile", "asked_flows_per_s"),
            ("longest POST meanwhile, ms", "asked_longest_ms"),
        )
    ] + [
        ("hour of `wide` right after its last flow: CPU µs a row", "blast.read.growing_us_a_row", None),
        ("the same, settled", "blast.read.settled_us_a_row", None),
        ("the first to the second", "blast.read.growing_to_settled", 1.5),
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
        ("5,000,000 rows, right after the last POST: all of it, ms", "reads.5m_rows.after_last_post_ms", None),
        ("5,000,000 rows, flushed: all of it, ms", "reads.5m_rows.flushed_ms", None),
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
    "An agent on a host with 10,000 open connections": [
        ("CPU, % of a core", "watch.open_cpu_percent", None),
        ("CPU while 1,000 others a second are opened and ended, % of a core", "watch.cpu_percent", 1),
        ("the difference: CPU µs for each that ends", "watch.us_an_end", None),
        ("memory, most, MiB", "watch.memory_mib", 30),
        ("times that the kernel dropped messages about ends", "watch.lost_ends", 0),
        ("bytes whose application was not found, %", "watch.unknown_percent", None),
        ("sums at the service are what was moved, to the byte", "watch.exact", -1),
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


def goal(value, target):
    """The target of a figure, and whether it is missed."""
    if target is None:
        return ""
    missed = value < -target if target < 0 else value > target
    return f"{'≥' if target < 0 else '≤'} {number(abs(target))}" + (", **missed**" if missed else "")


def spread(name, figures):
    least, most = figures.get(name + ".min"), figures.get(name + ".max")
    return f"{number(least)} – {number(most)}" if least is not None and least != most else ""


def table(title, figures):
    out = [f"## {title}", "", "| what | figure | least – most | target |", "|---|---|---|---|"]
    for what, name, target in TABLES[title]:
        if name not in figures:
            out.append(f"| {what} | not measured | | |")
            continue
        value = figures[name]
        out.append(f"| {what} | {number(value)} | {spread(name, figures)} | {goal(value, target)} |")
    return [*out, ""]


def wide_table(title, rows, columns, name_of, figures):
    """A row for each workload; below a figure, its range and its target."""
    out = [f"## {title}", "", "| | " + " | ".join(what for what, *_ in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for row, what in rows.items():
        cells = []
        for _, figure, targets in columns:
            name = name_of(row, figure)
            if name not in figures:
                cells.append("–")
                continue
            below = [spread(name, figures), goal(figures[name], targets.get(row))]
            cells.append("<br>".join([number(figures[name]), *(f"<sub>{text}</sub>" for text in below if text)]))
        out.append(f"| {what} | " + " | ".join(cells) + " |")
    return [*out, ""]


def parts_of(path):
    """The lines of each part, with its heading."""
    parts = {}
    try:
        lines = open(path).read().splitlines()
    except FileNotFoundError:
        return parts
    for line in lines:
        if heading := re.match(r"# part (\w+): ", line):
            part = parts.setdefault(heading[1], [])
        part.append(line)
    return parts


def add(path, part, new):
    lines = open(new).read().splitlines()
    runs = next((line.split()[2] for line in lines if line.startswith("# runs ")), "1")
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    cpu = next((l.split(": ")[1].strip() for l in open("/proc/cpuinfo") if l.startswith("model name")), platform.machine())
    cores = subprocess.run(["nproc"], capture_output=True, text=True).stdout.strip()
    heading = (f"# part {part}: {datetime.date.today()}, commit {commit}, {runs} runs, {cpu}, {cores} cores,"
               f" Linux {platform.release().split('-')[0]}")
    parts = parts_of(path)
    parts[part] = [heading, *(line for line in lines if re.fullmatch(r"[\w.]+: [-+.e\d]+", line))]
    open(path, "w").write("\n".join(line for lines in parts.values() for line in lines) + "\n")


def show(path, results):
    parts = parts_of(path)
    figures = {}
    for lines in parts.values():
        for line in lines[1:]:
            name, _, value = line.partition(": ")
            figures[name] = float(value)
    out = [
        "# Results", "",
        "Written by `scripts/bench record`; do not edit. The scripts in `benches` say how each figure is measured.", "",
        "- Release build, default settings (every POST synced to disk), 8 connections, 1,000 flows a POST. The load generator"
        " runs on the same cores.",
        "- Figures are medians of several runs, with the least and the most.",
        "- A ratio is server CPU per flow, flushes and compaction included, over the CPU of CPython's `json.loads`"
        " for such flows in the same run; it compares between machines.", "",
        "| part | measured |", "|---|---|",
        *("| `%s` | %s |" % tuple(re.match(r"# part (\w+): (.*)", lines[0]).groups()) for lines in parts.values()), "",
    ]
    name_of = lambda workload, figure: f"blast.{workload}.{figure}"
    what = {name: f"`{name}`: {what}" for name, what in WORKLOADS.items()}
    out += wide_table("Writing", what, WRITING, name_of, figures)
    half = {name: f"`{name}`" for name in WORKLOADS if name_of(f"{name}.half", "p999_ms") in figures}
    out += wide_table("Writing at half of each workload's rate", half, HALF, lambda w, f: name_of(f"{w}.half", f), figures)
    disks = {"fsync": "this disk", "os": "`--durability os`", "slow": "a disk whose fsync takes 5 ms longer"}
    out += wide_table("`fleet` over 64 connections", disks, DISKS, lambda w, f: name_of(f"disk.{w}", f), figures)
    for title in TABLES:
        out += table(title, figures)
    open(results, "w").write("\n".join(out))


if __name__ == "__main__":
    {"add": add, "show": show}[sys.argv[1]](*sys.argv[2:])
