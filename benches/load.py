#!/usr/bin/env python3
"""Drives a real flowtally over HTTP and measures reads, latency and recovery; `scripts/bench` runs all of it.

    load.py BIN reads              GET: CPU a row, first byte, memory, what it costs ingest
    load.py BIN latency            POST: one at a time
    load.py BIN flat               the same work over and over: does anything get slower?
    load.py BIN recovery           how fast a journal is replayed after a kill
    load.py BIN questions          what people ask of 24 hours, and of a large one
    load.py BIN all                all of these

Prints one figure a line, `name: value`, the median of the runs, and `.min` and `.max` of them. CPU of a load is
user + system time of the server process, from /proc, and includes flushes and the compaction that follows: the
driver waits until the server is idle. CPU of a GET is that of the threads that serve requests, in nanoseconds from
/proc, so that a flush that happens to run is not taken for part of it. Since machines differ and are noisy, CPU per
flow is also given as a ratio to a yardstick of the same run: the CPU that CPython's json.loads takes for the same
bodies. After each load, every byte is checked to be in the answers.

Workloads, from a fixed seed:
    fleet  100,000 edges, Zipf-like; 98 % in one hour, 2 % late in the one before
    wide   4,000,000 edges over 24 hours: nearly every flow is a new key
    hot    1,000 edges in one hour
    long   fleet, with names so long that a flow is about 300 bytes
"""
import argparse, http.client, json, os, random, shutil, signal, socket, statistics, subprocess, sys, tempfile
import threading, time
from collections import defaultdict

HOUR = 12
FIELDS = '{"src_app": "%s", "dest_app": "%s", "vpc_id": "%s", "bytes_tx": %d, "bytes_rx": %d, "hour": %d}'
HEADERS = {"Content-Type": "application/json"}
EDGES = {"fleet": 100_000, "long": 100_000, "wide": 4_000_000, "hot": 1_000}


def flows(kind, count, seed, hour=HOUR):
    rnd = random.Random(f"{kind}/{seed}")
    edges = EDGES[kind]
    pad = "payments-platform-eu-central-production-" if kind == "long" else ""
    for _ in range(count):
        if kind in ("wide", "hot"):
            k = rnd.randrange(edges)
        else:
            k = (int(edges ** rnd.random()) - 1) % edges
        h = rnd.randrange(24) if kind == "wide" else hour
        if kind in ("fleet", "long") and rnd.randrange(50) == 0:
            h = max(0, hour - 1)
        yield (f"{pad}svc-{k % 997}", f"{pad}svc-{k // 997 % 1009}", f"vpc-{k % 7}",
               rnd.randrange(100_000), rnd.randrange(100_000), h)


def body(rows):
    return ("[" + ",".join(FIELDS % row for row in rows) + "]").encode()


def bodies(kind, total, seed, size=1000, hour=HOUR):
    return [body(flows(kind, size, f"{seed}/{i}", hour)) for i in range(total // size)]


def sums(parts, repeat=1):
    want = defaultdict(lambda: [0, 0])
    for part in parts:
        for f in json.loads(part):
            s = want[f["hour"], f["src_app"], f["dest_app"], f["vpc_id"]]
            s[0] += f["bytes_tx"] * repeat
            s[1] += f["bytes_rx"] * repeat
    return want


def yardstick(parts):
    """µs of CPU that json.loads takes a flow."""
    parts = parts[:200]
    n = sum(part.count(b"{") for part in parts)
    start = time.process_time()
    for part in parts:
        json.loads(part)
    return (time.process_time() - start) * 1e6 / n


class Server:
    """The binary on a free port and a data directory of its own."""

    def __init__(self, binary, *arguments):
        self.binary, self.arguments = binary, arguments
        self.temp = tempfile.mkdtemp(prefix="flowtally-load-")
        self.dir = os.path.join(self.temp, "db")
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.host = "127.0.0.1:%d" % s.getsockname()[1]
        self.start()

    def start(self):
        begin = self.began = time.perf_counter()
        self.log = open(self.dir + ".log", "ab")
        self.process = subprocess.Popen(
            [self.binary, "serve", "--listen", self.host, "--data-dir", self.dir, *self.flags()],
            stdout=self.log, stderr=self.log)
        while True:
            try:
                if self.get("/readyz")[0] == 200:
                    break
            except OSError:
                pass
            if self.process.poll() is not None or time.perf_counter() - begin > 60:
                sys.exit("the server does not start: " + open(self.dir + ".log").read()[-2000:])
            time.sleep(0.002)
        self.ready_s = time.perf_counter() - begin

    def flags(self):
        return self.arguments

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        self.process.wait(120)
        self.log.close()

    def close(self):
        self.stop()
        shutil.rmtree(self.temp, ignore_errors=True)

    def connect(self):
        return http.client.HTTPConnection(self.host, timeout=300)

    def get(self, path):
        c = self.connect()
        try:
            c.request("GET", path)
            r = c.getresponse()
            return r.status, r.read()
        finally:
            c.close()

    def hour(self, hour):
        status, data = self.get(f"/flows?hour={hour}")
        assert status == 200, data[:300]
        return json.loads(data)

    def cpu(self):
        """Seconds of CPU so far."""
        f = open(f"/proc/{self.process.pid}/stat").read().rsplit(")", 1)[1].split()
        return (int(f[11]) + int(f[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_exact(self):
        """The same in nanoseconds' steps, by the process's clock, as clock_getcpuclockid(3)."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def cpu_of_requests(self):
        """Seconds of CPU so far of the threads that serve requests: all but the store's own."""
        total = self.cpu_exact() * 1e9
        for task in os.listdir(f"/proc/{self.process.pid}/task"):
            path = f"/proc/{self.process.pid}/task/{task}/"
            try:
                if open(path + "comm").read().startswith(("flusher", "compactor", "rocksdb", "committer")):
                    total -= int(open(path + "schedstat").read().split()[0])
            except OSError:
                pass  # it has ended, so it was none of these
        return total / 1e9

    def memory(self, field="VmRSS"):
        """MiB; VmHWM is the most so far."""
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith(field):
                return int(line.split()[1]) / 1024

    def metric(self, name):
        for line in self.get("/metrics")[1].decode().splitlines():
            if line.startswith(name + " "):
                return float(line.split()[1])

    def forget_most_memory(self):
        """Lets VmHWM begin anew."""
        open(f"/proc/{self.process.pid}/clear_refs", "w").write("5")

    def compact(self):
        """Stops, compacts and starts again."""
        self.stop()
        subprocess.run([self.binary, "compact", "--data-dir", self.dir], check=True)
        self.start()

    def disk(self):
        return sum(os.path.getsize(os.path.join(d, n)) for d, _, ns in os.walk(self.dir) for n in ns)

    def settle(self, flush_s=11):
        """Waits until everything is flushed, and nothing has been compacted for longer than the compactor rests."""
        time.sleep(flush_s)
        quiet, last = 0, self.cpu()
        while quiet < 14:
            time.sleep(0.5)
            now = self.cpu()
            quiet, last = (quiet + 1 if now - last < 0.02 else 0), now

    def check(self, want):
        for hour in sorted({key[0] for key in want}):
            got = {(hour, r["src_app"], r["dest_app"], r["vpc_id"]): [r["bytes_tx"], r["bytes_rx"]]
                   for r in self.hour(hour)}
            if got != {k: v for k, v in want.items() if k[0] == hour}:
                sys.exit(f"NOT CONSERVED: hour {hour}")


def post_all(server, parts, repeat=1, connections=8):
    """POSTs all parts. Returns (seconds, sorted latencies in ms)."""
    work = iter([part for _ in range(repeat) for part in parts])
    lock, latencies, failed, begin = threading.Lock(), [], [], time.perf_counter()

    def run():
        c = http.client.HTTPConnection(server.host, timeout=120)
        c.connect()
        c.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        mine = []
        while True:
            with lock:
                part = next(work, None)
            if part is None:
                break
            start = time.perf_counter()
            c.request("POST", "/flows", part, HEADERS)
            r = c.getresponse()
            answer = r.read()
            mine.append((time.perf_counter() - start) * 1e3)
            if r.status != 200:
                failed.append(f"{r.status} {answer[:300]}")
                break
        with lock:
            latencies.extend(mine)

    threads = [threading.Thread(target=run) for _ in range(connections)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    if failed or len(latencies) != repeat * len(parts):
        sys.exit(f"POSTs failed: {failed[:1]}; {len(latencies)} of {repeat * len(parts)} answered")
    return time.perf_counter() - begin, sorted(latencies)


def show(name, value):
    if isinstance(value, float):
        value = float(f"{value:.3g}") if abs(value) < 100 else round(value)
    print(f"{name}: {value}", flush=True)


class Figures:
    """Figures of several runs, under a common name."""

    def __init__(self, name):
        self.name, self.values = name, defaultdict(list)

    def add(self, name, value):
        self.values[name].append(value)

    def last(self, name):
        return self.values[name][-1]

    def show(self):
        for name, values in self.values.items():
            show(f"{self.name}.{name}", statistics.median(values))
            show(f"{self.name}.{name}.min", min(values))
            show(f"{self.name}.{name}.max", max(values))


def busy_hour(server, hour, tries=10):
    """µs of CPU a row of GET `hour`, as the mean over some on one connection."""
    c = http.client.HTTPConnection(server.host, timeout=300)
    c.connect()
    before, rows = server.cpu_of_requests(), 0
    for _ in range(tries):
        c.request("GET", f"/flows?hour={hour}")
        rows += c.getresponse().read().count(b"{")
    after = server.cpu_of_requests()
    c.close()
    return (after - before) * 1e6 / max(rows, 1)


def reads(a):
    for kind in ("fleet", "hot"):
        reads_of_a_busy_hour(a, kind)
    reads_of_five_million_rows(a)
    reads_beside_ingest(a)


def reads_of_a_busy_hour(a, kind):
    tries, repeat = (200, 10) if kind == "hot" else (10, 10)
    figures = Figures(f"reads.{kind}")
    for run in range(a.runs):
        parts = bodies(kind, 300_000, f"reads{run}")
        # Right after the last POST: of a load that is all in memory still, and of parts of one that goes on for
        # several flushes, when a part is in memory, the rest in files, and a flush or compaction may be under way.
        # Then all in one place.
        server = Server(a.binary)
        try:
            post_all(server, parts, repeat)
            in_memory = busy_hour(server, HOUR, tries)
            server.check(sums(parts, repeat))
            flushed, yards, loads = [], [], 1
            begin = time.perf_counter()
            while time.perf_counter() - begin < 32:
                post_all(server, parts, repeat)
                loads += 1
                flushed.append(busy_hour(server, HOUR, tries))
                yards.append(yardstick(parts))
                time.sleep(1)
            server.check(sums(parts, loads * repeat))
            server.compact()
            compacted = busy_hour(server, HOUR, tries)
            server.check(sums(parts, loads * repeat))
            figures.add("us_per_row_in_memory", in_memory)
            figures.add("us_per_row_over_flushes", statistics.median(flushed))
            figures.add("us_per_row_over_flushes_slowest", max(flushed))
            figures.add("ratio_over_flushes", statistics.median(flushed) / statistics.median(yards))
            figures.add("us_per_row_compacted", compacted)
            figures.add("in_memory_to_compacted", in_memory / compacted)
            figures.add("over_flushes_to_compacted", statistics.median(flushed) / compacted)
        finally:
            server.close()
    figures.show()


def reads_of_five_million_rows(a):
    def rows(i):
        return ((f"svc-{k % 997}", f"svc-{k // 997}", "vpc", 1, 1, HOUR) for k in range(i * 10_000, (i + 1) * 10_000))
    parts = [body(rows(i)) for i in range(500)]
    figures = Figures("reads.5m_rows")
    for _ in range(a.runs):
        server = Server(a.binary)
        try:
            # The last part of them is still in memory; then none, in a process that has never held any.
            post_all(server, parts)
            for name in ("after_last_post", "flushed"):
                server.forget_most_memory()
                before = server.memory()
                start = time.perf_counter()
                c = http.client.HTTPConnection(server.host, timeout=300)
                c.request("GET", f"/flows?hour={HOUR}")
                r = c.getresponse()
                n = r.read(1).count(b"{")
                first = (time.perf_counter() - start) * 1e3
                while part := r.read(1 << 20):
                    n += part.count(b"{")
                assert n == 5_000_000, n
                figures.add(f"{name}_first_byte_ms", first)
                figures.add(f"{name}_ms", (time.perf_counter() - start) * 1e3)
                figures.add(f"{name}_growth_mib", server.memory("VmHWM") - before)
                server.stop()
                server.start()
        finally:
            server.close()
    figures.show()


def ask(server, query, tries=3):
    """(µs of CPU of the request, rows read, milliseconds, rows of the answer), as means over some."""
    metric = "flowtally_query_rows_read_total"
    before, read, begin, rows = server.cpu_of_requests(), server.metric(metric), time.perf_counter(), 0
    for _ in range(tries):
        status, data = server.get("/flows?" + query)
        assert status == 200, data
        rows += data.count(b"{")
    wall = (time.perf_counter() - begin) / tries
    cpu = (server.cpu_of_requests() - before) * 1e6 / tries
    return cpu, (server.metric(metric) - read) / tries, wall * 1e3, rows / tries


def questions(a):
    """What people ask of 24 hours of 100,000 rows, over flushes as they come and compacted; and of one large hour."""
    edges = [(f"svc-{k % 997}", f"svc-{k * 7 % 1009}", f"vpc-{k % 8}", k % 999_983, k % 31, 0) for k in range(100_000)]
    figures = Figures("questions")
    for _ in range(a.runs):
        server = Server(a.binary)
        try:
            for hour in range(24):
                rows = [(*edge[:5], hour) for edge in edges]
                post_all(server, [body(rows[i:i + 5000]) for i in range(0, len(rows), 5000)])
            for state in ("as_it_is", "compacted"):
                for name, query in (
                    ("by_src_app", "from=0&to=24&group_by=src_app"),
                    ("by_hour", "from=0&to=24&group_by=hour"),
                    ("by_edge", "from=0&to=24&group_by=src_app,dest_app"),
                    ("top_10", "from=0&to=24&sort=bytes&limit=10"),
                    ("search", "from=0&to=24&search=vpc-7&group_by="),
                ):
                    cpu, read, ms, _ = ask(server, query)
                    figures.add(f"{state}.{name}_us_per_row", cpu / read)
                    figures.add(f"{state}.{name}_ms", ms)
                cpu, read, ms, rows = ask(server, "hour=7&src_app=svc-500", tries=20)
                assert read == rows, (read, rows)
                figures.add(f"{state}.src_app_of_an_hour_us", cpu)
                cpu, read, ms, rows = ask(server, "from=0&to=24&src_app=svc-500", tries=20)
                assert read == rows, (read, rows)
                figures.add(f"{state}.src_app_of_24_hours_us", cpu)
                if state == "as_it_is":
                    server.compact()
        finally:
            server.close()
    rows = lambda i: ((f"svc-{k % 997}", f"svc-{k // 997}", "vpc", k, 1, HOUR) for k in range(i * 10_000, (i + 1) * 10_000))
    parts = [body(rows(i)) for i in range(500)]
    for _ in range(a.runs):
        server = Server(a.binary)
        try:
            post_all(server, parts)
            for state in ("after_last_post", "flushed"):
                server.forget_most_memory()
                before = server.memory()
                cpu, read, ms, rows = ask(server, f"hour={HOUR}&sort=bytes&limit=10", tries=1)
                assert (read, rows) == (5_000_000, 10), (read, rows)
                figures.add(f"top_10_of_5m.{state}_ms", ms)
                figures.add(f"top_10_of_5m.{state}_growth_mib", server.memory("VmHWM") - before)
                server.stop()
                server.start()
        finally:
            server.close()
    figures.show()


READER = """
import signal, sys, time, urllib.request
gets = 0
signal.signal(signal.SIGTERM, lambda *_: (print(gets), sys.exit(0)))
while True:
    time.sleep(1)
    rows = urllib.request.urlopen(sys.argv[1]).read().count(b"{")
    assert rows >= 100_000, rows
    gets += 1
"""


def reads_beside_ingest(a):
    """Ingest with and without a GET of 100,000 rows every second, in turn."""
    server = Server(a.binary)
    figures = Figures("reads.beside_ingest")
    try:
        every = [(f"svc-{k % 997}", f"svc-{k // 997}", f"vpc-{k % 7}", 1, 1, HOUR) for k in range(100_000)]
        post_all(server, [body(every[i:i + 1000]) for i in range(0, 100_000, 1000)])
        parts = bodies("fleet", 300_000, "cost")

        def load(read):
            # A process of its own: a thread would take turns with those that send.
            reader = read and subprocess.Popen(
                [sys.executable, "-c", READER, f"http://{server.host}/flows?hour={HOUR}"], stdout=subprocess.PIPE, text=True)
            before = server.cpu()
            wall = post_all(server, parts, 50)[0]
            cpu = server.cpu() - before
            if reader:
                reader.terminate()
                gets = int(reader.communicate(timeout=60)[0])
                assert reader.returncode == 0 and gets >= 2, (reader.returncode, gets)
            return wall, cpu
        for run in range(a.runs):
            first = load(run % 2 == 1)
            second = load(run % 2 == 0)
            reads, alone = (first, second) if run % 2 else (second, first)
            figures.add("slower_percent", (reads[0] / alone[0] - 1) * 100)
            figures.add("more_server_cpu_percent", (reads[1] / alone[1] - 1) * 100)
        figures.show()
    finally:
        server.close()


def fsync_ms(directory):
    """Median of what one small write and fsync takes here."""
    path, times = os.path.join(directory, "fsync"), []
    with open(path, "wb") as f:
        for _ in range(200):
            f.write(b"x" * 200)
            f.flush()
            start = time.perf_counter()
            os.fsync(f.fileno())
            times.append((time.perf_counter() - start) * 1e3)
    os.remove(path)
    return statistics.median(times)


def latency(a):
    server = Server(a.binary)
    figures = Figures("latency")
    try:
        alone_parts = bodies("fleet", 200_000, "alone")
        for _ in range(a.runs):
            figures.add("fsync_ms", fsync_ms(server.temp))
            _, alone = post_all(server, alone_parts, connections=1)
            figures.add("post_alone_p50_ms", alone[len(alone) // 2])
            figures.add("post_alone_more_than_an_fsync_ms", alone[len(alone) // 2] - figures.last("fsync_ms"))
        figures.show()
        server.check(sums(alone_parts, a.runs))
    finally:
        server.close()


def flat(a):
    flat_rounds(a)
    flat_key(a)


def flat_rounds(a):
    server = Server(a.binary)
    try:
        rounds, cpu, rows, memory, caches = 20, [], [], [], []
        for n in range(rounds):
            # The same flows each round, in a new hour.
            parts = bodies("fleet", 300_000, "flat", hour=100 + n)
            before = server.cpu()
            post_all(server, parts, 10)
            server.settle()
            cpu.append((server.cpu() - before) * 1e6 / 3_000_000)
            rows.append(busy_hour(server, 100 + n))
            # By the yardstick of the same minute: the machine's speed changes over this run.
            yard = yardstick(parts)
            cpu[-1] /= yard
            rows[-1] /= yard
            # The block cache fills up with the hours that are read, to its bound, a sixteenth of --memory-max.
            cache = server.metric("flowtally_cache_bytes") / 2**20
            caches.append(cache)
            memory.append(server.memory() - cache)
            if n == rounds // 2 - 1:
                server.stop()
                server.start()
                show("flat.restart_ready_s", server.ready_s)
        for name, values in (("cpu_ratio", cpu), ("get_ratio", rows)):
            # Single rounds are noisy: five of them against five.
            change = statistics.mean(values[-5:]) / statistics.mean(values[:5])
            show(f"flat.{name}_change_percent", (change - 1) * 100)
            show(f"flat.{name}_change_of_single_rounds_percent", (values[-1] / values[0] - 1) * 100)
        for name, values in (("cpu_ratio", cpu), ("get_ratio", rows), ("memory_mib", memory), ("cache_mib", caches)):
            print("#", name, " ".join(f"{v:.3g}" for v in values), flush=True)
        # The first round of a process fills its caches; after that, within each of the two processes.
        half = rounds // 2
        show("flat.cache_mib", max(caches))
        show("flat.memory_growth_mib", max(memory[half - 1] - memory[1], memory[-1] - memory[half + 1]))
        # The hour before has late flows of this round and the flows of its own.
        server.check({key: value for key, value in sums(parts, 10).items() if key[0] == 100 + rounds - 1})
    finally:
        server.close()


def flat_key(a):
    """One key, updated 10,000,000 times, with a flush a second so that it is in many files."""
    figures = Figures("flat.one_key")

    def get_us(server):
        return busy_hour(server, HOUR, 1000)  # there is one row in it
    part = body([("one", "key", "only", 1, 1, HOUR)] * 1000)
    for _ in range(a.runs):
        server = Server(a.binary, "--flush-interval", "1")
        try:
            post_all(server, [part])
            in_memory = get_us(server)
            time.sleep(2.5)
            flushed, nine = get_us(server), []
            for n in range(9):
                post_all(server, [part], 1_111)
                nine.append(get_us(server))
            assert server.hour(HOUR)[0]["bytes_tx"] == 10_000_000
            figures.add("get_us_in_memory", in_memory)
            figures.add("get_us_first_flushed", flushed)
            figures.add("get_us_first_of_nine", nine[0])
            figures.add("get_us_last_of_nine", nine[-1])
            figures.add("get_us_slowest_of_nine", max(nine))
            figures.add("get_last_to_in_memory", nine[-1] / in_memory)
            figures.add("get_last_to_first_flushed", nine[-1] / flushed)
        finally:
            server.close()
    figures.show()


def recovery(a):
    # As much as there can be: of few keys the journal's bytes are the bound, of many the tally's.
    for kind, flows, repeat in (("fleet", 400_000, 20), ("wide", 450_000, 1)):
        figures = Figures(f"recovery.{kind}")
        parts = bodies(kind, flows, "recovery")
        want = sums(parts, repeat)
        for _ in range(a.runs):
            server = Server(a.binary, "--flush-interval", "3600")
            try:
                post_all(server, parts, repeat)
                server.stop(signal.SIGKILL)
                server.start()
                line = [l for l in open(server.dir + ".log") if "replayed_flows=" in l][-1]
                fields = dict(f.split("=") for f in line.split() if "=" in f)
                # Else a flush came in between, and it was not the whole tally.
                assert int(fields["replayed_flows"]) == flows * repeat, fields
                figures.add("replay_flows_per_s", flows * repeat / max(float(fields["replay_ms"]), 1) * 1000)
                figures.add("open_flows_per_s", flows * repeat / max(float(fields["ms"]), 1) * 1000)
                figures.add("ready_s", server.ready_s)
                server.check(want)
            finally:
                server.close()
        figures.show()


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("what", choices=["reads", "questions", "latency", "flat", "recovery", "all"])
    p.add_argument("--runs", type=int, default=5)
    a = p.parse_args()
    print("# runs", a.runs, flush=True)
    for step in (reads, questions, latency, flat, recovery):
        if a.what in (step.__name__, "all"):
            step(a)


if __name__ == "__main__":
    main()
