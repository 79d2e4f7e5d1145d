#!/usr/bin/env python3
"""Loads a real flowtally with `blast.c`, which is faster than the service; `scripts/bench long` runs all of it.

    blast.py BIN long [NAME ...]    the workloads below, or those that are named
    blast.py BIN short [NAME ...]   15 seconds of each
    blast.py BIN half [NAME ...]    each at half of its own sustained rate (open loop)

Prints one figure a line, `name: value`. During each load, a reader requests `group_by=src_app` of the newest hour each
second. CPU is user + system time of the server process per flow: until the load ended (`cpu_us`), and until everything is
flushed and compacted (`cpu_us_settled`). `first` and `last` are the flows a second in the first and the last third. After
each load, the totals of GET /hours must be what the service acknowledged, to the byte.

With `--seconds FILE`, each second's flows and longest POST are written there, for a chart.
"""
import argparse, json, os, subprocess, sys, threading, time
from load import Server, show

# Workload, seconds, connections, flows a POST, edges, hours.
LONG = {
    "fleet": ("fleet", 60, 8, 1000, 100_000, 2),
    "hot": ("fleet", 60, 8, 1000, 1_000, 1),
    "march": ("march", 60, 8, 1000, 100_000, 1),
    "new": ("new", 200, 8, 1000, 1, 1),
    "new24": ("new", 200, 8, 1000, 1, 24),
    "wide": ("wide", 200, 8, 1000, 4_000_000, 24),
    "churn": ("churn", 1200, 8, 1000, 1, 1),
    "new20": ("new", 1200, 8, 1000, 1, 1),
}
FIRST_HOUR = 1000


def build():
    """Compiles the load generator next to the binaries."""
    here = os.path.dirname(os.path.abspath(__file__))
    target = os.path.join(os.environ.get("CARGO_TARGET_DIR", "/tmp"), "blast")
    subprocess.run(["cc", "-D_GNU_SOURCE", "-O2", "-pthread", "-o", target, os.path.join(here, "blast.c"), "-lm"], check=True)
    return target


class Reader(threading.Thread):
    """Requests the applications of the newest hour each second, and keeps the times."""

    def __init__(self, server, hour):
        super().__init__()
        self.server, self.hour, self.stop, self.ms, self.failed = server, hour, threading.Event(), [], []
        self.start()

    def run(self):
        while not self.stop.wait(1):
            start = time.perf_counter()
            status, data = self.server.get(f"/flows?hour={self.hour()}&group_by=src_app")
            self.ms.append((time.perf_counter() - start) * 1e3)
            if status != 200:
                self.failed.append((status, data[:200]))

    def end(self):
        self.stop.set()
        self.join()


def load(binary, blast, name, seconds=None, rate=0, arguments=(), series=None):
    workload, full, connections, flows, edges, hours = LONG[name]
    seconds = seconds or full
    server = Server(binary, *arguments)
    try:
        began = time.time()
        passing = {"churn": 60, "march": 1}.get(workload)
        newest = {"fleet": hours - 1}.get(workload, 0)
        reader = Reader(server, lambda: FIRST_HOUR + (int((time.time() - began) / passing) if passing else newest))
        cpu = server.cpu()
        port = server.host.rsplit(":", 1)[1]
        out = subprocess.run([blast, port, workload, str(seconds), str(connections), str(flows), str(edges), str(hours),
                              str(rate), str(FIRST_HOUR), "-v"], check=True, capture_output=True, text=True).stdout
        run = server.cpu() - cpu
        reader.end()
        figures = dict(line.split(": ") for line in out.splitlines() if not line.startswith("second "))
        per_second = [line.split() for line in out.splitlines() if line.startswith("second ")]
        acked = int(figures["acked_flows"])
        totals = json.loads(server.get("/hours")[1])
        got = [sum(hour[key] for hour in totals) for key in ("flows", "bytes_tx", "bytes_rx")]
        want = [int(figures[key]) for key in ("acked_flows", "acked_tx", "acked_rx")]
        lost = figures["refused"], figures["broken"]
        if got != want and lost == ("0", "0") or got[0] < want[0]:
            sys.exit(f"NOT CONSERVED: {name}: acknowledged {want}, GET /hours has {got}")
        # An hour is settled a minute after its last flow.
        server.settle(75)
        settled = server.cpu() - cpu
        per = [int(words[2]) for words in per_second][:seconds]
        third = max(1, len(per) // 3)
        label = f"blast.{name}" + (".half" if rate else "")
        show(f"{label}.flows_per_s", float(figures["flows_per_s"]))
        show(f"{label}.first", sum(per[:third]) / third)
        show(f"{label}.last", sum(per[-third:]) / third)
        for key in ("p50_ms", "p99_ms", "p999_ms", "longest_ms"):
            show(f"{label}.{key}", float(figures[key]))
        show(f"{label}.refused", int(figures["refused"]) + int(figures["broken"]))
        show(f"{label}.cpu_us", run * 1e6 / acked)
        show(f"{label}.cpu_us_settled", settled * 1e6 / acked)
        show(f"{label}.memory_mib", server.memory("VmHWM"))
        show(f"{label}.disk_bytes_a_flow", server.disk() / acked)
        if reader.ms:
            show(f"{label}.read_ms", sorted(reader.ms)[len(reader.ms) // 2])
            show(f"{label}.read_longest_ms", max(reader.ms))
        show(f"{label}.reads_refused", len(reader.failed))
        show(f"{label}.conserved", 1)
        if series:
            with open(series, "a") as file:
                for words in per_second:
                    file.write(f"{label} {words[1].rstrip(':')} {words[2]} {words[5]}\n")
        return float(figures["flows_per_s"]) / flows
    finally:
        server.close()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("part", choices=("short", "long", "half"))
    parser.add_argument("names", nargs="*", help=", ".join(LONG))
    parser.add_argument("--seconds")
    parser.add_argument("--memory-max", help="as of `flowtally serve`")
    a = parser.parse_args()
    blast = build()
    arguments = ("--memory-max", a.memory_max) if a.memory_max else ()
    for name in a.names or LONG:
        if a.part == "half":
            rate = load(a.binary, blast, name, 30, 0, arguments)
            load(a.binary, blast, name, 60, rate / 2, arguments)
        else:
            load(a.binary, blast, name, 15 if a.part == "short" else None, 0, arguments, a.seconds)


if __name__ == "__main__":
    main()
