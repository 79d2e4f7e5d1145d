"""See `run`. Each shipper gets flows, while responses are lost, requests are refused, the service is killed, and the shipper is
restarted. Then each flow has to be counted once.

Of a configuration, only the service's address, /var and the path of the agent are exchanged.
"""
import concurrent.futures
import os
import pathlib
import re
import subprocess
import sys
import tempfile

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
# Settings of the service that the caller has.
for variable in [name for name in os.environ if name.startswith("FLOWTALLY_")]:
    del os.environ[variable]

from blocks import blocks  # noqa: E402
from service import Between, Service, until  # noqa: E402
from shippers import Collector, Rsyslog, SyslogNg  # noqa: E402

PAGE = ROOT / "docs/shippers.md"
BLOCKS = blocks(PAGE.read_text())
# With the headings of their configurations.
SHIPPERS = {
    "syslog-ng": (SyslogNg, "syslog-ng"),
    "rsyslog": (Rsyslog, "rsyslog"),
    "collector": (Collector, "The collector"),
}
ONLY_IF_NAMED = {"collector"}


def block(heading):
    (only,) = [block.code for block in BLOCKS if block.heading == heading]
    return only


def run_shipper(name, work):
    kind, heading = SHIPPERS[name]
    service = Service(work, kind.service_arguments)
    between = Between(service.port)
    shipper = kind(work, block(heading), between.port)
    fed = []

    def feed(count):
        numbers = range(len(fed) + 1, len(fed) + 1 + count)
        shipper.feed(numbers)
        fed.extend(numbers)

    def until_counted(what):
        until(f"{what}: {sum(fed)} bytes are counted", lambda: service.counted() >= sum(fed))

    try:
        feed(50)
        until_counted("at first")
        between.lose = 3
        feed(10)
        until("a response is lost", lambda: between.lose < 3)
        # Flows that come between two tries.
        feed(10)
        until("responses are lost", lambda: between.lose == 0)
        until_counted("after lost responses")
        between.refuse = 3
        feed(10)
        until("requests are refused", lambda: between.refuse == 0)
        until_counted("after refused requests")
        between.lose = 1
        feed(10)
        until("a response is lost", lambda: between.lose == 0)
        shipper.stop()
        shipper.start()
        until_counted("after a restart of the shipper")
        service.kill()
        feed(10)
        shipper.stop()
        shipper.start()
        feed(10)
        service.start()
        until_counted("after a restart of both")
        if shipper.feed_invalid():
            feed(10)
            until_counted("after an invalid flow")
        shipper.stop()
        assert service.counted() == sum(fed), f"{service.counted()} bytes of {sum(fed)} are counted"
    except BaseException:
        print(f"-- the log of {name}:\n{(work / 'shipper.log').read_text(errors='replace')[-3000:]}")
        raise
    finally:
        shipper.kill()
        service.kill()
    return f"{len(fed)} flows are counted once"


def run_curl(_, work):
    """The command may be given again, too."""
    service = Service(work, [])
    between = Between(service.port)
    code = block("curl").replace("127.0.0.1:8080", f"127.0.0.1:{between.port}")
    try:
        for lose, refuse in [(2, 1), (0, 0)]:
            between.lose, between.refuse = lose, refuse
            subprocess.run(["bash", "-euo", "pipefail", "-c", code], cwd=work, check=True, capture_output=True)
            assert between.lose == between.refuse == 0
            assert service.counted() == 1, service.counted()
    finally:
        service.kill()
    return "a batch is counted once"


def check_page():
    """Each configuration is run, or the page says that it is not."""
    sections = re.split(r"^#+ (.*)\n", PAGE.read_text(), flags=re.MULTILINE)
    texts = dict(zip(sections[1::2], sections[2::2]))
    runs = {heading for _, heading in SHIPPERS.values()}
    # tests/operations runs those of the shell.
    for configured in {block.heading for block in BLOCKS if block.language != "sh"}:
        says_not_run = texts[configured].lstrip().startswith("Not run")
        assert says_not_run != (configured in runs), f"{PAGE.name}: {configured}: is it run?"


def main():
    check_page()
    names = sys.argv[1:] or ["curl", *(name for name in SHIPPERS if name not in ONLY_IF_NAMED)]
    failed = 0
    with tempfile.TemporaryDirectory() as directory, concurrent.futures.ThreadPoolExecutor(len(names)) as pool:
        runs = {}
        for name in names:
            work = pathlib.Path(directory) / name
            work.mkdir()
            runs[name] = pool.submit(run_curl if name == "curl" else run_shipper, name, work)
        for name, run in runs.items():
            try:
                print(f"{name}: ok, {run.result()}", flush=True)
            except Exception as error:
                failed += 1
                print(f"{name}: FAILED, {error!r}", flush=True)
    print(f"shippers: {len(names) - failed} passed, {failed} failed")
    sys.exit(failed > 0)


main()
