"""The real service for tests, on a free port and with data of its own."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Optional, Type

START_S_MAX = 60


def binary() -> Path:
    """`FLOWTALLY_BINARY`, or what `cargo build --release` made."""
    if named := os.environ.get("FLOWTALLY_BINARY"):
        return Path(named)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    target = Path(os.environ.get("CARGO_TARGET_DIR") or cache / "flowtally/target")
    return target / "release/flowtally"


class Service:
    """A running service. Leaving it as a context stops it, and removes its data."""

    def __init__(self, *arguments: str) -> None:
        self._directory = tempfile.TemporaryDirectory()
        self.directory = Path(self._directory.name)
        self._arguments = arguments
        self.address = "127.0.0.1:0"
        self._start()

    def _start(self) -> None:
        log = self.directory / "log"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FLOWTALLY_")}
        with open(log, "wb") as errors:
            self._process = subprocess.Popen(
                [
                    str(binary()),
                    "serve",
                    "--data-dir",
                    str(self.directory / "db"),
                    "--listen",
                    self.address,
                    "--log-format",
                    "json",
                    *self._arguments,
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=errors,
                env=environment,
            )
        end = time.monotonic() + START_S_MAX
        while not self._is_ready(log):
            if self._process.poll() is not None or time.monotonic() > end:
                self._process.kill()
                raise AssertionError(f"the service did not start: {log.read_text()}")
            time.sleep(0.02)

    def _is_ready(self, log: Path) -> bool:
        for line in log.read_text().splitlines(keepends=True):
            # The last line may not be there as a whole yet.
            if '"listening"' in line and line.endswith("\n"):
                self.address = json.loads(line)["address"]
                try:
                    with urllib.request.urlopen(f"{self.url}/readyz", timeout=5):
                        return True
                except OSError:
                    return False
        return False

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    def restart(self) -> None:
        """Kills it, and starts it again with the same data and address."""
        self._process.kill()
        self._process.wait()
        self._start()

    def stop(self) -> None:
        self._process.terminate()
        try:
            status = self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        self._directory.cleanup()
        if status != 0:
            raise AssertionError(f"the service ended with {status}")

    def __enter__(self) -> Service:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.stop()
