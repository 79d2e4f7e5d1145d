"""DuckDB, pyarrow, pandas and Polars get the rows that GET /flows has, to the byte, while flows come in.

Writers send flows of the last hour all the time; what is compared are hours that are complete. The order, the names and
the sums have to be the same, up to 2^64-1. Run by tests/columns/run.
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

import duckdb
import polars
import pyarrow
import pyarrow.parquet

ARROW = "application/vnd.apache.arrow.stream"
COLUMNS = ["src_app", "dest_app", "vpc_id", "bytes_tx", "bytes_rx", "hour"]
# 2026-11-28 to 2026-11-30. Flows that come in during the test are those of the last hour.
FIRST = 498_840
DAYS = 3
BUSY = FIRST + 24 * DAYS - 1
FLOWS = 60_000
SEED = int(os.environ.get("FLOWTALLY_TEST_SEED", "1"))
START_SECONDS_MAX = 60
MAX = 2**64 - 1


class Service:
    """The daemon on a free port, with a data directory of its own."""

    def __init__(self, work):
        self.log = open(work / "log", "w+")
        self.process = subprocess.Popen(
            ["flowtally", "serve", "--data-dir", work / "db", "--listen", "127.0.0.1:0", "--log-format", "json"],
            stderr=self.log,
        )
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.is_ready():
            if time.monotonic() > deadline or self.process.poll() is not None:
                sys.exit(f"the service did not become ready:\n{(work / 'log').read_text()}")
            time.sleep(0.1)

    def is_ready(self):
        lines = pathlib.Path(self.log.name).read_text().splitlines()
        found = [line for line in lines if '"listening"' in line and line.endswith("}")]
        if not found:
            return False
        entry = json.loads(found[0])
        address = entry.get("address") or entry["fields"]["address"]
        self.url = f"http://{address}"
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                return True
        except OSError:
            return False

    def post(self, flows):
        body = json.dumps(flows).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.url}/flows", data=body, headers=headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert json.load(response)["accepted"] == len(flows)

    def get(self, query, accept="application/json"):
        request = urllib.request.Request(f"{self.url}/flows?{query}", headers={"Accept": accept})
        return urllib.request.urlopen(request, timeout=60)

    def rows(self, query):
        """The rows in JSON, as tuples."""
        with self.get(query) as response:
            return [tuple(row.get(column) for column in COLUMNS) for row in json.load(response)]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, "the service did not stop gracefully"


def flows():
    """Many edges, with names that are hard on formats, and sums up to the largest."""
    chance = random.Random(SEED)
    odd = ["", " ", "a,b", 'quote"', "line\nbreak", "tab\t", "nul\0", "Zürich", "🦀", "null", "NaN", "1"]
    odd.append("x" * 1024)
    names = odd + [f"svc-{number}" for number in range(300)]
    for _ in range(FLOWS):
        big = chance.random() < 0.02
        yield {
            "src_app": chance.choice(names),
            "dest_app": chance.choice(names),
            "vpc_id": chance.choice(["vpc-0", "vpc-1", ""]),
            "bytes_tx": MAX - chance.randrange(2) if big else chance.randrange(10**9),
            "bytes_rx": chance.randrange(2**63, 2**64) if big else 0,
            "hour": chance.randrange(FIRST, BUSY),
        }


def busy(number):
    """A flow of the last hour."""
    names = {"src_app": f"w-{number % 97}", "dest_app": "d", "vpc_id": ""}
    return names | {"bytes_tx": 1, "bytes_rx": 1, "hour": BUSY}


def write_on(service, stop, sent):
    while not stop.is_set():
        service.post([busy(sent[0])] * 50)
        sent[0] += 1


def same(what, got, expected):
    if got != expected:
        differ = (at for at, (a, b) in enumerate(zip(got, expected)) if a != b)
        at = next(differ, min(len(got), len(expected)))
        one = slice(at, at + 1)
        sys.exit(f"{what}: {len(got)} rows, expected {len(expected)}; row {at}: {got[one]}, not {expected[one]}")
    print(f"{what}: ok, {len(expected)} rows")


def tuples(table):
    return list(zip(*(table.column(column).to_pylist() for column in COLUMNS)))


def check_streams(service):
    complete = f"from={FIRST}&to={BUSY}"
    more = [f"{complete}&src_app%5E=svc-1", f"{complete}&sort=bytes&limit=1000"]
    for query in [complete, f"hour={FIRST}", "hour=3", *more]:
        with service.get(query, ARROW) as response:
            answer = pyarrow.ipc.open_stream(response).read_all()
        expected = service.rows(query)
        same(f"pyarrow, {query}", tuples(answer), expected)
        same(f"Polars, {query}", polars.from_arrow(answer).rows(), expected)
        same(f"DuckDB over Arrow, {query}", duckdb.sql("SELECT * FROM answer").fetchall(), expected)
        frame = answer.to_pandas()
        assert [str(of) for of in frame.dtypes[3:]] == ["uint64", "uint64", "uint32"], frame.dtypes
        same(f"pandas, {query}", list(frame.itertuples(index=False, name=None)), expected)
    with service.get(complete, ARROW) as response:
        frame = polars.read_ipc_stream(response.read())
    same("Polars, its own reader", frame.rows(), service.rows(complete))
    # A row of all others has no names.
    with service.get(f"{complete}&group_by=src_app&sort=bytes&limit=1&other=true", ARROW) as response:
        last = pyarrow.ipc.open_stream(response).read_all().to_pylist()[-1]
    assert last["other"] is True and last["src_app"] is None, last


def export(service, days):
    command = ["flowtally", "export", "--url", service.url, "--format", "parquet", "--to-dir", days]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout


def check_files(service, days):
    out = export(service, days)
    assert out.startswith("3 files written"), out
    names = sorted(path.name for path in days.iterdir())
    assert names == [f"flows-2026-11-{day}.parquet" for day in (28, 29, 30)], names
    expected = service.rows(f"from={FIRST}&to={BUSY}")
    of_complete = f"FROM '{days}/*.parquet' WHERE hour < {BUSY}"
    # Key order is that of bytes, in DuckDB too.
    rows = duckdb.sql(f"SELECT * {of_complete} ORDER BY hour, src_app, dest_app, vpc_id").fetchall()
    same("DuckDB over Parquet", rows, expected)
    types = duckdb.sql(f"SELECT * {of_complete}").types
    assert [str(of) for of in types] == ["VARCHAR"] * 3 + ["UBIGINT"] * 2 + ["UINTEGER"], types
    [sums] = duckdb.sql(f"SELECT sum(bytes_tx), sum(bytes_rx) {of_complete}").fetchall()
    assert sums == (sum(row[3] for row in expected), sum(row[4] for row in expected)), sums
    frame = polars.scan_parquet(days / "*.parquet").filter(polars.col("hour") < BUSY).collect()
    same("Polars over Parquet", frame.rows(), expected)
    table = pyarrow.parquet.read_table(days, filters=[("hour", "<", BUSY)])
    same("pyarrow over Parquet", tuples(table), expected)
    # What is exported, written again by others, and imported is the same.
    for name, write in [
        ("duckdb", lambda to: duckdb.sql(f"COPY (SELECT * {of_complete}) TO '{to}' (FORMAT parquet)")),
        ("polars", lambda to: frame.write_parquet(to)),
        ("pyarrow", lambda to: pyarrow.parquet.write_table(table, to)),
    ]:
        again, into = days.parent / f"{name}.parquet", days.parent / name
        write(again)
        done = subprocess.run(["flowtally", "import", again, "--data-dir", into], capture_output=True, text=True)
        assert done.returncode == 0 and done.stdout.startswith(f"{len(expected)} flows imported"), done
        exported = subprocess.run(["flowtally", "export", "--data-dir", into], capture_output=True, check=True)
        rows = [json.loads(line) for line in exported.stdout.splitlines()]
        rows = [tuple(row[column] for column in COLUMNS) for row in rows]
        same(f"imported, as {name} writes it", rows, expected)


def main():
    print(f"FLOWTALLY_TEST_SEED={SEED}")
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        service = Service(work)
        batch = []
        for flow in flows():
            batch.append(flow)
            if len(batch) == 5000:
                service.post(batch)
                batch = []
        stop, sent = threading.Event(), [0]
        writer = threading.Thread(target=write_on, args=(service, stop, sent))
        writer.start()
        try:
            check_streams(service)
            check_files(service, work / "days")
        finally:
            stop.set()
            writer.join()
        assert sent[0] > 0
        # Only the day that has grown is written again, and then none.
        service.post([busy(0)])
        assert export(service, work / "days").startswith("1 file written"), "the last day has grown"
        assert export(service, work / "days").startswith("0 files written"), "nothing has changed"
        service.stop()


if __name__ == "__main__":
    main()
