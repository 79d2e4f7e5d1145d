"""Shippers, each with the configuration of docs/shippers.md and an input of its own."""
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import urllib.request

from service import end, free_port, until

UNPACKED = pathlib.Path(os.environ["UNPACKED"])


def flow(number):
    """Different flows, of an hour."""
    return {"src_app": "web", "dest_app": "db", "vpc_id": "v", "bytes_tx": number, "bytes_rx": 0, "hour": 5}


class Shipper:
    """A process that reads a file of flows."""

    # Arguments of the service.
    service_arguments = ()

    def __init__(self, work, config, port):
        self.work, self.input = work, work / "flows.ndjson"
        for directory in ["var/lib/syslog-ng", "var/lib/otelcol", "var/spool", "rsyslog"]:
            (work / directory).mkdir(parents=True)
        self.input.touch()
        config = config.replace("127.0.0.1:8080", f"127.0.0.1:{port}").replace("/var/", f"{work}/var/")
        config = config.replace("/usr/bin/flowtally-agent", os.environ["AGENT"])
        self.config = work / "config"
        self.config.write_text(self.complete(config))
        self.log = open(work / "shipper.log", "ab")
        self.start()

    def complete(self, config):
        """The configuration with an input."""
        return config

    def start(self):
        # With a process group of its own, which `kill` ends.
        self.process = subprocess.Popen(
            self.command(), env=self.environment(), stdout=self.log, stderr=self.log, start_new_session=True
        )

    def environment(self):
        return os.environ

    def stop(self):
        end(self.process)

    def kill(self):
        """With the programs that it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def feed(self, numbers):
        with open(self.input, "a") as file:
            file.writelines(json.dumps(flow(number)) + "\n" for number in numbers)

    def feed_invalid(self):
        """A flow that lacks fields. False if this shipper cannot have one."""
        with open(self.input, "a") as file:
            file.write('{"src_app":"web"}\n')
        return True


class SyslogNg(Shipper):
    def environment(self):
        library = next(UNPACKED.rglob("libsyslog-ng-*.so.0"))
        return os.environ | {"LD_LIBRARY_PATH": str(library.parent)}

    def complete(self, config):
        version = subprocess.check_output([self.binary(), "--version"], env=self.environment(), text=True)
        version = next(line for line in version.splitlines() if line.startswith("Config version: ")).split()[-1]
        return (
            f'@version: {version}\nsource s_flows {{ file("{self.input}" flags(no-parse)); }};\n{config}'
            "log { source(s_flows); destination(d_flowtally); flags(flow-control); };\n"
        )

    def binary(self):
        return UNPACKED / "usr/sbin/syslog-ng"

    def command(self):
        modules = next(UNPACKED.rglob("libhttp.so")).parent
        return [
            *[self.binary(), "--foreground", "--no-caps", "--module-path", modules, "--cfgfile", self.config],
            *["--persist-file", self.work / "persist", "--pidfile", self.work / "pid", "--control", self.work / "control"],
        ]


class Rsyslog(Shipper):
    def complete(self, config):
        return (
            f'global(workDirectory="{self.work}/rsyslog")\nmodule(load="imfile")\n{config}'
            f'input(type="imfile" file="{self.input}" tag="flows" ruleset="flows")\n'
        )

    def command(self):
        modules = next(UNPACKED.rglob("omprog.so")).parent
        return [UNPACKED / "usr/sbin/rsyslogd", "-n", "-f", self.config, "-i", self.work / "pid", "-M", modules]


class Collector(Shipper):
    """OpenTelemetry's, to which exports are sent."""

    service_arguments = ("--content-window", "600")

    def complete(self, config):
        self.port = free_port()
        return config.replace("127.0.0.1:4318", f"127.0.0.1:{self.port}")

    def command(self):
        # Without its own metrics, which have a fixed port.
        return [os.environ["COLLECTOR"], f"--config={self.config}", "--config=yaml:service::telemetry::metrics::level: none"]

    def start(self):
        super().start()
        until("the collector listens", lambda: self.post({}))

    def feed(self, numbers):
        def attribute(key, value):
            return {"key": key, "value": {"stringValue": value}}

        points = [
            {
                "timeUnixNano": str(10**18 + number),
                "asInt": str(number),
                "attributes": [attribute("src.name", "web"), attribute("dst.name", "db")],
            }
            for number in numbers
        ]
        sums = {"aggregationTemporality": 1, "dataPoints": points}
        # The filter drops the other one.
        metrics = [{"name": name, "sum": sums} for name in ["obi.network.flow.bytes", "http.requests"]]
        assert self.post({"resourceMetrics": [{"scopeMetrics": [{"metrics": metrics}]}]})

    def feed_invalid(self):
        return False

    def post(self, export):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/metrics", json.dumps(export).encode(), {"content-type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return response.status == 200
        except OSError:
            return False
