#!/usr/bin/env python3
"""Loads a real flowtally with `blast.c`, which is faster than the service; `scripts/bench write` and others run it.

    blast.py BIN write [NAME ...]   the workloads below that take a few minutes, or those that are named
    blast.py BIN long [NAME ...]    those that take 20 minutes
    blast.py BIN smoke [NAME ...]   15 seconds of each
    blast.py BIN half [NAME ...]    each at half of its own sustained rate (open loop)
    blast.py BIN asked [NAME ...]   the same loads for a minute, while someone asks each second; see below
    blast.py BIN disks              `fleet` with 64 connections: durable by fsync, by the system, and with a slow fsync
    blast.py BIN kill               `new` for 20 minutes, with a SIGKILL in the middle
    blast.py BIN restart            a start with a billion rows in 10,000 hours
    blast.py BIN years              queries over two years of 100,000 edges an hour (--edges)

Prints one figure a line, `name: value`: of several runs the median, and `.min` and `.max` of them. CPU is user + system
time of the server process per flow: until the load ended (`cpu_us`), and until everything is flushed, compacted and
settled (`cpu_us_settled`); `ratio` is the latter over the CPU that CPython's json.loads takes for such a flow in the same
run, which compares between machines. `committer_us` is the CPU of the thread that every batch passes. `last_to_first` is
the flows a second of the last third over those of the first. `growing_us_a_row` and `settled_us_a_row` are the CPU a row of
`group_by=src_app` of an hour right after its last flow and once it is settled.

With `asked`, a reader requests `group_by=src_app` of the newest hour each second, which takes a core for itself where the
hour has millions of rows. After each load, the totals of GET /hours must be what the service acknowledged, to the byte.

With `--series FILE`, each second's flows and longest POST of the first run are written there, for a chart.
"""
import argparse, json, os, signal, subprocess, sys, threading, time
from collections import namedtuple
from load import Figures, Server, ask, bodies, show, yardstick

Workload = namedtuple("Workload", "kind seconds edges hours")
WORKLOADS = {
    "fleet": Workload("fleet", 60, 100_000, 2),
    "hot": Workload("fleet", 60, 1_000, 1),
    "march": Workload("march", 60, 100_000, 1),
    "new": Workload("new", 200, 1, 1),
    "new24": Workload("new", 200, 1, 24),
    "wide": Workload("wide", 200, 4_000_000, 24),
    "churn": Workload("churn", 200, 1, 1),
}
LONG = {
    "churn20": Workload("churn", 1200, 1, 1),
    "new20": Workload("new", 1200, 1, 1),
}
FLOWS_A_POST = 1000
FIRST_HOUR = 1000
# Seconds that an hour of these lasts.
PASSING = {"churn": 60, "march": 1}
# An hour is settled a minute after its last flow, if there is a later one.
SETTLE_S = 75
SLOW_SYNC_US = 5000
# Hours since the epoch: the start of a block of thirty days.
YEARS_FROM = 600 * 720


def compiled(name, *flags):
    """Compiles a file of this folder next to the binaries."""
    here = os.path.dirname(os.path.abspath(__file__))
    target = os.path.join(os.environ.get("CARGO_TARGET_DIR", "/tmp"), name)
    source = os.path.join(here, os.path.splitext(name)[0] + ".c")
    subprocess.run(["cc", "-D_GNU_SOURCE", "-O2", *flags, "-o", target, source, "-lm"], check=True)
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


def cpu_of(server, thread):
    """Seconds of CPU of the threads of this name."""
    seconds = 0
    for task in os.listdir(f"/proc/{server.process.pid}/task"):
        path = f"/proc/{server.process.pid}/task/{task}/"
        if open(path + "comm").read().startswith(thread):
            seconds += int(open(path + "schedstat").read().split()[0]) / 1e9
    return seconds


def post_one(server, hour):
    """A flow in an hour of its own."""
    connection = server.connect()
    row = dict(src_app="a", dest_app="b", vpc_id="v", bytes_tx=0, bytes_rx=0, hour=hour)
    connection.request("POST", "/flows", json.dumps([row]), {"Content-Type": "application/json"})
    assert connection.getresponse().status == 200


def run(a, figures, workload, seconds=None, rate=0, connections=8, series=None, reads=False):
    """One load of a fresh server. Returns the POSTs a second."""
    seconds = seconds or workload.seconds
    server = Server(a.binary, *a.arguments)
    try:
        began = time.time()
        passing = PASSING.get(workload.kind)
        first_newest = FIRST_HOUR + (workload.hours - 1 if workload.kind == "fleet" else 0)
        newest = lambda: first_newest + (int((time.time() - began) / passing) if passing else 0)
        reader = Reader(server, newest) if reads else None
        cpu = server.cpu()
        command = [a.blast, server.host.rsplit(":", 1)[1], workload.kind, seconds, connections, FLOWS_A_POST, workload.edges,
                   workload.hours, rate, FIRST_HOUR, "-v"]
        out = subprocess.run([str(word) for word in command], check=True, capture_output=True, text=True).stdout
        loaded, committer = server.cpu() - cpu, cpu_of(server, "committer")
        if reader:
            reader.end()
        said = dict(line.split(": ") for line in out.splitlines() if not line.startswith("second "))
        per_second = [line.split() for line in out.splitlines() if line.startswith("second ")]
        acked, lost = int(said["acked_flows"]), int(said["refused"]) + int(said["broken"])
        totals = json.loads(server.get("/hours")[1])
        got = [sum(hour[key] for hour in totals) for key in ("flows", "bytes_tx", "bytes_rx")]
        want = [int(said[key]) for key in ("acked_flows", "acked_tx", "acked_rx")]
        if got != want and not lost or got[0] < want[0]:
            sys.exit(f"NOT CONSERVED: {workload}: acknowledged {want}, GET /hours has {got}")
        if reader:
            figures.add("asked_flows_per_s", float(said["flows_per_s"]))
            figures.add("read_ms", sorted(reader.ms)[len(reader.ms) // 2])
            figures.add("read_longest_ms", max(reader.ms))
            figures.add("reads_refused", len(reader.failed))
            figures.add("asked_longest_ms", float(said["longest_ms"]))
            return 0
        server.settle(SETTLE_S if len(totals) > 1 else 11)
        settled = server.cpu() - cpu
        flows = [int(words[2]) for words in per_second][:seconds]
        third = max(1, len(flows) // 3)
        figures.add("flows_per_s", float(said["flows_per_s"]))
        figures.add("last_to_first", sum(flows[-third:]) / max(1, sum(flows[:third])))
        if seconds > 4 * 60:
            minutes = [sum(flows[i:i + 60]) for i in range(0, len(flows) - 59, 60)]
            figures.add("least_minute_to_third", min(minutes[2:]) / minutes[2])
            figures.add("most_minute_to_third", max(minutes[2:]) / minutes[2])
            figures.add("last_minute_flows_per_s", minutes[-1] / 60)
        for key in ("p50_ms", "p99_ms", "p999_ms", "longest_ms"):
            figures.add(key, float(said[key]))
        figures.add("refused", lost)
        figures.add("cpu_us", loaded * 1e6 / acked)
        figures.add("cpu_us_settled", settled * 1e6 / acked)
        figures.add("committer_us", committer * 1e6 / acked)
        figures.add("ratio", settled * 1e6 / acked / yardstick(a.parts))
        figures.add("memory_mib", server.memory("VmHWM"))
        figures.add("disk_bytes_a_flow", server.disk() / acked)
        figures.add("conserved", 1)
        if series:
            with open(series, "w") as file:
                file.writelines(f"{words[1].rstrip(':')} {words[2]} {words[5]}\n" for words in per_second)
        return float(said["flows_per_s"]) / FLOWS_A_POST
    finally:
        server.close()


def read(a, figures):
    """CPU a row of an hour of `wide` while it is in many runs, and when it is settled."""
    server = Server(a.binary, *a.arguments)
    try:
        wide = WORKLOADS["wide"]
        load(a, server, wide, a.seconds or 60).communicate()
        query = f"hour={FIRST_HOUR}&group_by=src_app"
        cpu, rows, ms, _ = ask(server, query, 1)
        figures.add("growing_us_a_row", cpu / rows)
        growing = cpu / rows
        post_one(server, FIRST_HOUR + wide.hours)
        server.settle(SETTLE_S)
        cpu, rows, ms, _ = ask(server, query, 3)
        figures.add("settled_us_a_row", cpu / rows)
        figures.add("growing_to_settled", growing / (cpu / rows))
    finally:
        server.close()


def disks(a):
    """The same load on this disk, without syncs, and on a disk whose fsync takes 5 ms."""
    fleet = WORKLOADS["fleet"]
    slow = {"LD_PRELOAD": compiled("slowsync.so", "-shared", "-fPIC"), "SLOWSYNC_US": str(SLOW_SYNC_US)}
    variants = {"fsync": ((), {}), "os": (("--durability", "os"), {}), "slow": ((), slow)}
    figures = {name: Figures(f"blast.disk.{name}") for name in variants}
    for _ in range(a.runs):
        for name, (arguments, environment) in variants.items():
            os.environ.update(environment)
            try:
                run(argparse.Namespace(**{**vars(a), "arguments": arguments}), figures[name], fleet, a.seconds or 20, connections=64)
            finally:
                for variable in environment:
                    del os.environ[variable]
        for name in ("os", "slow"):
            for key in ("flows_per_s", "cpu_us"):
                figures[name].add(f"{key}_to_fsync", figures[name].last(key) / figures["fsync"].last(key))
    for each in figures.values():
        each.show()


def load(a, server, workload, seconds, first_hour=FIRST_HOUR):
    """Starts the load generator; its output is read from the process."""
    command = [a.blast, server.host.rsplit(":", 1)[1], workload.kind, seconds, 8, FLOWS_A_POST, workload.edges,
               workload.hours, 0, first_hour]
    return subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE, text=True)


def kill(a):
    """All that was acknowledged before and after the kill is there; of each connection, one POST may be there as well."""
    figures = Figures("blast.kill")
    server = Server(a.binary, *a.arguments)
    try:
        loading = load(a, server, LONG["new20"], a.seconds or 1200)
        time.sleep((a.seconds or 1200) / 2)
        server.stop(signal.SIGKILL)
        server.start()
        figures.add("ready_s", server.ready_s)
        said = dict(line.split(": ") for line in loading.communicate()[0].splitlines())
        acked = int(said["acked_flows"])
        got = sum(hour["flows"] for hour in json.loads(server.get("/hours")[1]))
        if not acked <= got <= acked + 8 * FLOWS_A_POST:
            sys.exit(f"NOT CONSERVED: acknowledged {acked}, GET /hours has {got}")
        figures.add("acknowledged_flows", acked)
        figures.add("flows_of_unanswered_posts", got - acked)
        server.stop()
        check = subprocess.run([server.binary, "verify", "--data-dir", server.dir], stdout=sys.stderr)
        figures.add("verified", int(check.returncode == 0))
        figures.show()
    finally:
        server.close()


def restart(a):
    # A minute of new keys in 850 hours each, 85,000,000 to 100,000,000 rows on two cores.
    minute = Workload("new", 60, 1, 850)
    figures = Figures("blast.restart")
    server = Server(a.binary, *a.arguments)
    try:
        stored, hour = 0, FIRST_HOUR
        while stored < a.rows:
            said = dict(line.split(": ") for line in load(a, server, minute, a.seconds or minute.seconds, hour).communicate()[0].splitlines())
            stored, hour = stored + int(said["acked_flows"]), hour + minute.hours
            print("#", stored, "rows", file=sys.stderr, flush=True)
        post_one(server, hour)
        server.settle(SETTLE_S)
        figures.add("rows", stored)
        figures.add("hours", len(json.loads(server.get("/hours")[1])))
        figures.add("disk_bytes", server.disk())
        for _ in range(5):
            server.stop(signal.SIGKILL)
            server.start()
            figures.add("ready_s", server.ready_s)
        figures.show()
    finally:
        server.close()


def years(a):
    """What people ask of a year: 8,760 hours, each with the same edges. Two years, of which the first begins on a day."""
    hours, figures = 2 * 8760, Figures("blast.years")
    server = Server(a.binary, *a.arguments)
    try:
        cpu = server.cpu()
        workload = Workload("years", 7200, a.edges, hours)
        out = load(a, server, workload, workload.seconds, YEARS_FROM).communicate()[0]
        said = dict(line.split(": ") for line in out.splitlines())
        stored = int(said["acked_flows"])
        assert stored == a.edges * hours and said["refused"] == said["broken"] == "0", said
        figures.add("rows", stored)
        figures.add("flows_per_s", float(said["flows_per_s"]))
        post_one(server, YEARS_FROM + hours + 720)
        server.settle(SETTLE_S)
        figures.add("cpu_us_settled", (server.cpu() - cpu) * 1e6 / stored)
        figures.add("disk_bytes_a_row", server.disk() / stored)
        first, second = (f"from={YEARS_FROM}&to={YEARS_FROM + 8760}", f"from={YEARS_FROM + 8760}&to={YEARS_FROM + hours}")
        anywhere = f"from={YEARS_FROM + 7}&to={YEARS_FROM + 8760 + 5}"
        for name, query in (
            ("by_src_app", f"{first}&group_by=src_app"),
            ("by_src_app_anywhere", f"{anywhere}&group_by=src_app"),
            ("top_pairs", f"{first}&group_by=src_app,dest_app&sort=bytes&limit=10"),
            ("compared", f"{second}&group_by=src_app&compare=previous&sort=change&limit=10"),
            ("one_src_app_by_day", f"{first}&group_by=hour&step=24&src_app=svc-5"),
            ("one_dest_app_by_day", f"{first}&group_by=hour&step=24&dest_app=svc-5"),
            ("one_peer_by_day", f"{first}&group_by=hour&step=24&peer=svc-5"),
            ("month_by_src_app", f"from={YEARS_FROM + 7}&to={YEARS_FROM + 7 + 720}&group_by=src_app"),
            ("hours_by_month", None),
        ):
            for _ in range(3):
                if query is None:
                    before, begin = server.cpu_of_requests(), time.perf_counter()
                    assert server.get("/hours?step=720")[0] == 200
                    spent, ms = (server.cpu_of_requests() - before) * 1e6, (time.perf_counter() - begin) * 1e3
                else:
                    spent, _, ms, _ = ask(server, query, 1)
                figures.add(f"{name}.ms", ms)
                figures.add(f"{name}.cpu_ms", spent / 1e3)
        figures.show()
    finally:
        server.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("part", choices=("smoke", "write", "long", "half", "asked", "disks", "kill", "restart", "years"))
    parser.add_argument("names", nargs="*", help=", ".join([*WORKLOADS, *LONG, "read"]))
    parser.add_argument("--runs", type=int)
    parser.add_argument("--seconds", type=int, help="of each load")
    parser.add_argument("--rows", type=int, default=1_000_000_000, help="of `restart`")
    parser.add_argument("--edges", type=int, default=100_000, help="of `years`")
    parser.add_argument("--series")
    parser.add_argument("--memory-max", help="as of `flowtally serve`")
    a = parser.parse_args()
    a.runs = a.runs or {"smoke": 1, "long": 2, "half": 1, "asked": 3, "kill": 1}.get(a.part, 5)
    a.blast = compiled("blast", "-pthread")
    a.arguments = ("--memory-max", a.memory_max) if a.memory_max else ()
    a.parts = bodies("fleet", 200_000, "yardstick")
    print("# runs", a.runs, flush=True)
    if part := {"disks": disks, "kill": kill, "restart": restart, "years": years}.get(a.part):
        return part(a)
    known = LONG if a.part == "long" else WORKLOADS
    names = {"write": [*known, "read"], "asked": ["fleet", "wide", "new", "churn"]}.get(a.part, known)
    for name in a.names or names:
        figures = Figures(f"blast.{name}" + (".half" if a.part == "half" else ""))
        for number in range(a.runs):
            if name == "read":
                read(a, figures)
            elif a.part == "asked":
                run(a, figures, known[name], a.seconds or 60, reads=True)
            elif a.part == "half":
                rate = run(a, Figures(""), known[name], 30)
                run(a, figures, known[name], 60, rate / 2)
            else:
                seconds = a.seconds or (15 if a.part == "smoke" else None)
                run(a, figures, known[name], seconds, series=a.series if number == 0 and name == "new" else None)
        figures.show()


if __name__ == "__main__":
    main()
