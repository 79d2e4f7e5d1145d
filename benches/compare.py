#!/usr/bin/env python3
"""The same flows into flowtally, PostgreSQL, Redis and ClickHouse: compare.py BIN; `scripts/compare` runs it.

Each is set up the way its own users would for speed, durable as flowtally is (a POST, a transaction, an
append-only file synced before the answer; ClickHouse leaves syncing to the system), on loopback, one after the
other, over eight connections; ClickHouse, which runs inside the driver as chdb, in one session. CPU is that of the
server's processes, or of the calls into ClickHouse; what the driver does to make a request or to understand an
answer counts for none. All hours of every system are checked against the flows sent. Prints Markdown tables.
"""
import glob, json, os, shutil, signal, socket, statistics, subprocess, sys, tempfile, threading, time
from collections import defaultdict

from load import HOUR, Server, bodies, post_all, sums, yardstick

CONNECTIONS = 8


def cpu_of(pids):
    total = 0
    for pid in pids:
        try:
            f = open(f"/proc/{pid}/stat").read().rsplit(")", 1)[1].split()
            # Includes the children that have ended: PostgreSQL starts and ends backends.
            total += sum(int(f[i]) for i in (11, 12, 13, 14))
        except OSError:
            pass
    return total / os.sysconf("SC_CLK_TCK")


def tree(pid):
    """A process and all below it."""
    children = defaultdict(list)
    for path in glob.glob("/proc/[0-9]*/stat"):
        try:
            f = open(path).read()
            children[int(f.rsplit(")", 1)[1].split()[1])].append(int(path.split("/")[2]))
        except OSError:
            pass
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        todo += children[found[-1]]
    return found


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def size(path):
    return sum(os.path.getsize(os.path.join(d, n)) for d, _, ns in os.walk(path) for n in ns)


def in_threads(parts, work):
    """Runs work(parts of this thread) in CONNECTIONS threads."""
    failed = []

    def run(mine):
        try:
            work(mine)
        except Exception as e:
            failed.append(e)
    threads = [threading.Thread(target=run, args=(parts[i::CONNECTIONS],)) for i in range(CONNECTIONS)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    if failed:
        raise failed[0]


class Flowtally:
    name = "flowtally"

    def __init__(self, binary):
        self.server = Server(binary)

    def cpu(self):
        return self.server.cpu()

    def write(self, parts):
        post_all(self.server, parts, connections=CONNECTIONS)

    def read(self, hour):
        return self.server.get(f"/flows?hour={hour}")[1]

    def understand(self, answer):
        return {(r["src_app"], r["dest_app"], r["vpc_id"]): [r["bytes_tx"], r["bytes_rx"]] for r in json.loads(answer)}

    def memory(self):
        return private_mib(self.server.process.pid)

    def settle(self):
        self.server.settle()

    def disk(self):
        return self.server.disk()

    def close(self):
        self.server.close()


class PostgreSQL:
    name = "PostgreSQL, one upsert a batch"

    def __init__(self, _):
        import psycopg
        self.psycopg, self.reader = psycopg, None
        binaries = sorted(glob.glob("/usr/lib/postgresql/*/bin"))[-1]
        self.temp = tempfile.mkdtemp(prefix="compare-pg-")
        shutil.chown(self.temp, "postgres")
        self.dir, port = os.path.join(self.temp, "db"), free_port()
        user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
        subprocess.run([*user, f"{binaries}/initdb", "-D", self.dir, "-A", "trust", "-U", "postgres", "--no-locale",
                        "-E", "UTF8"], check=True, stdout=subprocess.DEVNULL)
        settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "shared_buffers": "256MB",
                    "max_wal_size": "4GB", "checkpoint_timeout": "15min", "wal_compression": "lz4"}
        self.process = subprocess.Popen(
            [*user, f"{binaries}/postgres", "-D", self.dir, "-p", str(port),
             *[x for k, v in settings.items() for x in ("-c", f"{k}={v}")]], stderr=subprocess.DEVNULL)
        self.dsn = f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
        for _ in range(200):
            try:
                with psycopg.connect(self.dsn, autocommit=True) as c:
                    c.execute("""CREATE TABLE flows (hour int, src_app text, dest_app text, vpc_id text,
                        bytes_tx bigint, bytes_rx bigint, PRIMARY KEY (hour, src_app, dest_app, vpc_id))""")
                return
            except psycopg.OperationalError:
                time.sleep(0.1)
        sys.exit("PostgreSQL does not start")

    def cpu(self):
        return cpu_of(tree(self.process.pid))

    def write(self, parts):
        # Summed within the batch, since one statement may touch a row once; sorted, since
        # transactions that lock rows in different orders end in deadlocks.
        upsert = """INSERT INTO flows SELECT hour, src_app, dest_app, vpc_id, sum(bytes_tx), sum(bytes_rx)
            FROM json_to_recordset(%s::json) AS f(hour int, src_app text, dest_app text, vpc_id text,
                bytes_tx bigint, bytes_rx bigint)
            GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
            ON CONFLICT (hour, src_app, dest_app, vpc_id) DO UPDATE SET
                bytes_tx = flows.bytes_tx + excluded.bytes_tx, bytes_rx = flows.bytes_rx + excluded.bytes_rx"""

        def work(mine):
            with self.psycopg.connect(self.dsn, autocommit=True) as c:
                for part in mine:
                    c.execute(upsert, (part.decode(),))
        in_threads(parts, work)

    def read(self, hour):
        # One connection for all reads: a backend of its own for each costs more than most reads.
        self.reader = self.reader or self.psycopg.connect(self.dsn, autocommit=True)
        return self.reader.execute("""SELECT src_app, dest_app, vpc_id, bytes_tx, bytes_rx FROM flows WHERE hour = %s
            ORDER BY 1, 2, 3""", (hour,)).fetchall()

    def understand(self, rows):
        return {r[:3]: list(r[3:]) for r in rows}

    def memory(self):
        return sum(private_mib(pid) for pid in tree(self.process.pid))

    def settle(self):
        with self.psycopg.connect(self.dsn, autocommit=True) as c:
            c.execute("VACUUM flows")
            c.execute("CHECKPOINT")

    def disk(self):
        return size(os.path.join(self.dir, "base"))

    def close(self):
        if self.reader:
            self.reader.close()
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        shutil.rmtree(self.temp, ignore_errors=True)


def private_mib(pid):
    """Memory of a process, shared pages in their share."""
    try:
        for line in open(f"/proc/{pid}/smaps_rollup"):
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0


class Redis:
    name = "Redis, pipelined HINCRBY, AOF synced"

    def __init__(self, _):
        self.temp, self.port = tempfile.mkdtemp(prefix="compare-redis-"), free_port()
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.temp, "--save", "",
             "--appendonly", "yes", "--appendfsync", "always"], stdout=subprocess.DEVNULL)
        for _ in range(200):
            try:
                self.connect().close()
                return
            except OSError:
                time.sleep(0.05)
        sys.exit("Redis does not start")

    def connect(self):
        s = socket.create_connection(("127.0.0.1", self.port))
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return s

    def cpu(self):
        return cpu_of(tree(self.process.pid))

    @staticmethod
    def command(*words):
        words = [w.encode() for w in words]
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)

    def write(self, parts):
        def work(mine):
            s = self.connect()
            f = s.makefile("rb", buffering=1 << 20)
            for part in mine:
                batch = json.loads(part)
                s.sendall(b"".join(
                    self.command("HINCRBY", f"{r['hour']}", f"{r['src_app']}|{r['dest_app']}|{r['vpc_id']}|{d}",
                                 str(r[f"bytes_{d}"])) for r in batch for d in ("tx", "rx")))
                for _ in range(2 * len(batch)):
                    assert f.readline()[:1] == b":"
            s.close()
        in_threads(parts, work)

    def read(self, hour):
        s = self.connect()
        f = s.makefile("rb", buffering=1 << 20)
        s.sendall(self.command("HGETALL", str(hour)))
        words = []
        for _ in range(int(f.readline()[1:])):
            n = int(f.readline()[1:])
            words.append(f.read(n + 2)[:-2].decode())
        s.close()
        return words

    def understand(self, words):
        rows = defaultdict(lambda: [0, 0])
        for key, value in zip(words[::2], words[1::2]):
            *names, d = key.split("|")
            rows[tuple(names)][d == "rx"] = int(value)
        return dict(rows)

    def memory(self):
        return private_mib(self.process.pid)

    def settle(self):
        s = self.connect()
        s.sendall(self.command("BGREWRITEAOF"))
        s.recv(100)
        f = s.makefile("rb")
        for _ in range(600):
            time.sleep(0.1)
            s.sendall(self.command("INFO", "persistence"))
            lines = []
            while b"aof_last_write_status" not in (lines[-1] if lines else b""):
                lines.append(f.readline())
            f.readline()
            if b"aof_rewrite_in_progress:0\r\n" in lines and b"aof_rewrite_scheduled:0\r\n" in lines:
                break
        s.close()

    def disk(self):
        return size(self.temp)

    def close(self):
        self.process.terminate()
        self.process.wait(60)
        shutil.rmtree(self.temp, ignore_errors=True)


class ClickHouse:
    """chdb is ClickHouse as a library, so its CPU is what the calls take in this process."""
    name = "ClickHouse SummingMergeTree, 1,000 flows an INSERT"
    flows_an_insert = 1_000

    def __init__(self, _):
        from chdb.session import Session
        self.temp = tempfile.mkdtemp(prefix="compare-ch-")
        self.session = Session(self.temp)
        self.session.query("CREATE DATABASE d")
        self.session.query("""CREATE TABLE d.flows (hour UInt32, src_app String, dest_app String, vpc_id String,
            bytes_tx UInt64, bytes_rx UInt64) ENGINE = SummingMergeTree ORDER BY (hour, src_app, dest_app, vpc_id)""")

    def cpu(self):
        return time.process_time()

    def prepare(self, parts):
        n = self.flows_an_insert // 1_000
        lines = [b"\n".join(json.dumps(r).encode() for r in json.loads(part)) for part in parts]
        return [b"\n".join(lines[i:i + n]).decode() for i in range(0, len(lines), n)]

    def write(self, inserts):
        for rows in inserts:
            self.session.query("INSERT INTO d.flows FORMAT JSONEachRow\n" + rows)

    def read(self, hour):
        return self.session.query(f"""SELECT src_app, dest_app, vpc_id, sum(bytes_tx) tx, sum(bytes_rx) rx
            FROM d.flows WHERE hour = {hour} GROUP BY ALL ORDER BY ALL FORMAT JSONCompactEachRow""")

    def understand(self, answer):
        rows = [json.loads(line) for line in str(answer).splitlines()]
        return {tuple(r[:3]): [int(r[3]), int(r[4])] for r in rows}

    def memory(self):
        return private_mib(os.getpid())

    def settle(self):
        self.session.query("OPTIMIZE TABLE d.flows FINAL")

    def disk(self):
        # Merged parts are kept for some minutes; only active ones count.
        return int(str(self.session.query(
            "SELECT sum(bytes_on_disk) FROM system.parts WHERE active AND database = 'd'")).strip() or 0)

    def close(self):
        self.session.close()
        shutil.rmtree(self.temp, ignore_errors=True)


class ClickHouseBulk(ClickHouse):
    name = "ClickHouse SummingMergeTree, 100,000 flows an INSERT"
    flows_an_insert = 100_000


def measure(system, binary, parts, want):
    yard = yardstick(parts)
    s = system(binary)
    try:
        work = s.prepare(parts) if hasattr(s, "prepare") else parts
        n = 1000 * len(parts)
        cpu, wall = s.cpu(), time.perf_counter()
        s.write(work)
        wall = time.perf_counter() - wall
        written = s.cpu() - cpu
        rows_wanted, read_cpu = len(want[HOUR]), 0
        # As often as it takes for the clock's ticks of 10 ms not to matter.
        reads = max(10, 500_000 // rows_wanted)
        for _ in range(reads):
            cpu = s.cpu()
            s.read(HOUR)
            read_cpu += s.cpu() - cpu
        for hour, rows in want.items():
            if s.understand(s.read(hour)) != rows:
                sys.exit(f"{s.name}: NOT CONSERVED in hour {hour}")
        read = read_cpu * 1e6 / rows_wanted / reads
        memory = s.memory()
        cpu = s.cpu()
        s.settle()
        written += s.cpu() - cpu
        return {"us": written * 1e6 / n, "ratio": written * 1e6 / n / yard, "rate": n / wall, "read": read,
                "memory": memory, "disk": s.disk() / 1e6}
    finally:
        s.close()


def main():
    binary, only = sys.argv[1], sys.argv[2:]
    if only:  # one system, in a process of its own
        system = globals()[only[0]]
        kind, total = only[1], int(only[2])
        parts = bodies(kind, total, "compare")
        want = defaultdict(dict)
        for (hour, *names), value in sums(parts).items():
            want[hour][tuple(names)] = value
        print(json.dumps(measure(system, binary, parts, want)))
        return
    runs = int(os.environ.get("RUNS", "3"))
    systems = (Flowtally, PostgreSQL, Redis, ClickHouse, ClickHouseBulk)
    total = int(os.environ.get("FLOWS", "1000000"))
    for kind in os.environ.get("WORKLOADS", "fleet wide hot long").split():
        print(f"\n`{kind}`, {total:,} flows, {CONNECTIONS} connections (ClickHouse: one session), 1,000 flows a batch"
              f" if not said otherwise, median of {runs} runs:\n")
        print("| system | CPU µs a flow | ratio to json.loads | flows a second | read: CPU µs a row | memory MiB | disk MB |")
        print("|---|---|---|---|---|---|---|")
        results = defaultdict(list)
        for _ in range(runs):  # in turn, so that a slow minute of the machine hits all
            for system in systems:
                out = subprocess.run([sys.executable, __file__, binary, system.__name__, kind, str(total)],
                                     stdout=subprocess.PIPE, check=True).stdout
                results[system].append(json.loads(out.splitlines()[-1]))
        for system in systems:
            m = {k: statistics.median(r[k] for r in results[system]) for k in results[system][0]}
            print(f"| {system.name} | {m['us']:.2f} | {m['ratio']:.2f} | {m['rate']:,.0f} | {m['read']:.2f} "
                  f"| {m['memory']:.0f} | {m['disk']:.0f} |", flush=True)


if __name__ == "__main__":
    main()
