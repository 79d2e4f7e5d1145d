"""The service and Prometheus as deploy/compose/compose.yaml has them, started by hand: the same commands and environments,
with free ports and temporary directories. Not started: Grafana, which cannot be had here."""
import json
import os
import pathlib
import socket
import subprocess
import time
import urllib.error
import urllib.request

import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
COMPOSE = ROOT / "deploy/compose/compose.yaml"
READY_SECONDS_MAX = 60


def compose():
    return yaml.safe_load(COMPOSE.read_text())


def target():
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR") or pathlib.Path(cache) / "flowtally/target")


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, holds):
    """Polls until `holds` returns something true, and returns that."""
    deadline = time.monotonic() + READY_SECONDS_MAX
    while time.monotonic() < deadline:
        found = holds()
        if found:
            return found
        time.sleep(0.2)
    raise SystemExit(f"not after {READY_SECONDS_MAX} s: {what}")


def get(url, data=None, headers=()):
    """The status and the body."""
    request = urllib.request.Request(url, data=data, headers=dict(headers))
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError as error:
        return 0, str(error).encode()


def get_json(url):
    status, body = get(url)
    assert status == 200, f"{url}: {status} {body.decode(errors='replace')}"
    return json.loads(body)


class Stack:
    def __init__(self, work):
        self.work = pathlib.Path(work)
        self.processes = []
        self.service = f"http://127.0.0.1:{free_port()}"
        self.prometheus = f"http://127.0.0.1:{free_port()}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, name, command, environment):
        log = open(self.work / f"{name}.log", "wb")
        process = subprocess.Popen(command, env={"PATH": os.environ["PATH"], **environment}, cwd=self.work, stdout=log, stderr=log)
        self.processes.append(process)
        return process

    def until_ready(self, name, process, url):
        def is_ready():
            if process.poll() is not None:
                raise SystemExit(f"{name} has ended:\n{(self.work / f'{name}.log').read_text()}")
            return get(url)[0] == 200

        until(f"{name} is ready", is_ready)

    def start_service(self):
        definition = compose()["services"]["flowtally"]
        environment = {
            **definition["environment"],
            "FLOWTALLY_LISTEN": self.service.removeprefix("http://"),
            "FLOWTALLY_DATA_DIR": str(self.work / "db"),
        }
        process = self.start("flowtally", [target() / "release/flowtally", *definition["command"]], environment)
        self.until_ready("flowtally", process, f"{self.service}/readyz")

    def start_prometheus(self):
        """With the configuration of the compose file, which scrapes and evaluates each second here."""
        config = yaml.safe_load((ROOT / "deploy/compose/prometheus.yml").read_text())
        config["global"] = {name: "1s" for name in config["global"]}
        (job,) = config["scrape_configs"]
        job["static_configs"] = [{"targets": [self.service.removeprefix("http://")]}]
        directory = self.work / "prometheus"
        directory.mkdir()
        (directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        (directory / "alerts.yml").write_text((ROOT / "deploy/prometheus/alerts.yml").read_text())
        command = [
            argument.replace("/etc/prometheus", str(directory)).replace("=/prometheus", f"={directory}/data")
            for argument in compose()["services"]["prometheus"]["command"]
        ]
        address = self.prometheus.removeprefix("http://")
        process = self.start("prometheus", ["prometheus", *command, f"--web.listen-address={address}"], {})
        self.until_ready("prometheus", process, f"{self.prometheus}/-/ready")
