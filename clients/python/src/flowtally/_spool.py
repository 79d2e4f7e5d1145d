"""Batches on disk that wait for the service."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Iterable, List, Union

from ._batch import BATCH_BYTES_MAX, BATCH_FLOWS_MAX, Batch, batches
from ._client import Client
from ._errors import FlowtallyError, InvalidBatch, KeyReused, TooLarge
from ._rows import Flow, Sent

SUFFIX = ".ndjson.gz"
# No file takes longer to write.
UNFINISHED_S_MAX = 3600


class SpoolFull(FlowtallyError):
    """The spool has reached its bound, and `batch` was not stored. `Client.send_batch` can send it."""


class Spool:
    """A directory of batches, each in a file whose name has its key. They survive the end of the process, and each counts
    once: after a restart, `deliver` sends what is left under the same keys.

    Several processes may add to a directory and deliver it at the same time. `bytes_max` bounds it, approximately then.
    """

    def __init__(self, directory: Union[str, Path], *, bytes_max: int = 1 << 30) -> None:
        self._directory = Path(directory)
        self._directory.mkdir(parents=True, exist_ok=True)
        self._bytes_max = bytes_max
        self._numbers = itertools.count()
        # What a process left that died while it was writing. Its `add` has not returned.
        for path in self._directory.glob("*.tmp"):
            if time.time() - _stat(path).st_mtime > UNFINISHED_S_MAX:
                path.unlink(missing_ok=True)

    def add(
        self, flows: Iterable[Flow], *, batch_flows: int = BATCH_FLOWS_MAX, batch_bytes: int = BATCH_BYTES_MAX
    ) -> int:
        """Stores flows as batches, and returns how many flows. When it returns, they survive a power cut.

        Up to `batch_flows` flows are stored as a whole or not at all. Of more, the first ones may have been stored when
        it fails; the iterator continues after them.

        Raises `SpoolFull`, and `OSError` if the disk fails.
        """
        stored = 0
        # With those that were refused, which are someone's to look at.
        size = sum(_stat(path).st_size for path in self._directory.rglob(f"*{SUFFIX}"))
        for batch in batches(flows, flows_max=batch_flows, bytes_max=batch_bytes):
            size += len(batch.body)
            if size > self._bytes_max:
                full = SpoolFull(f"{self._directory} would have {size} bytes; its maximum is {self._bytes_max}")
                full.batch = batch
                raise full
            self._store(batch)
            stored += batch.flows
        return stored

    def _store(self, batch: Batch) -> None:
        # In the order in which they were added; the process and the key keep names apart.
        name = f"{time.time_ns():020}-{next(self._numbers):06}-{batch.flows}-{batch.key}{SUFFIX}"
        temporary = self._directory / f"{name}.{os.getpid()}.tmp"
        with open(temporary, "wb") as file:
            file.write(batch.body)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, self._directory / name)
        _sync_directory(self._directory)

    def deliver(self, client: Client) -> Sent:
        """Sends all batches, in the order in which they were added, and removes them.

        A batch that the service can never accept is moved into the directory `refused`, beside a file with the reason.
        After any other error, the rest stays for the next call.
        """
        sent = Sent()
        for path in self._files():
            try:
                body = path.read_bytes()
            except FileNotFoundError:
                continue  # another process has delivered it
            flows, key = path.name[: -len(SUFFIX)].split("-", 3)[2:]
            batch = Batch(key, body, int(flows), 0)
            try:
                sent = sent.plus(client.send_batch(batch))
            except (InvalidBatch, KeyReused, TooLarge) as error:
                self._set_aside(path, error)
                continue
            except FlowtallyError as error:
                error.batch, error.sent = batch, sent
                raise
            path.unlink(missing_ok=True)
        return sent

    def _set_aside(self, path: Path, error: FlowtallyError) -> None:
        refused = self._directory / "refused"
        refused.mkdir(exist_ok=True)
        (refused / f"{path.name}.txt").write_text(f"{error}\n")
        try:
            os.replace(path, refused / path.name)
        except FileNotFoundError:
            pass  # another process has done so

    def __len__(self) -> int:
        """The number of batches that wait."""
        return len(self._files())

    def _files(self) -> List[Path]:
        return sorted(self._directory.glob(f"*{SUFFIX}"))


def _stat(path: Path) -> os.stat_result:
    try:
        return path.stat()
    except FileNotFoundError:
        return os.stat_result([0] * 10)  # another process has removed it


def _sync_directory(directory: Path) -> None:
    """Makes new names in a directory survive a power cut. Windows cannot, and needs not."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
