"""Batches: the unit that counts once, or not at all."""

from __future__ import annotations

import gzip
import json
import uuid
from typing import Iterable, Iterator, NamedTuple

from ._rows import Flow

BATCH_FLOWS_MAX = 1_000
BATCH_BYTES_MAX = 1 << 20


class Batch(NamedTuple):
    """Flows that are sent together, and the key under which they count once, however often they are sent.

    A key of your own (`batch._replace(key=…)`) has 1 to 255 visible ASCII characters. Use it where the same flows come
    again after a restart, such as those of a file: made of the file's name and `first`, it counts them once.
    """

    key: str
    body: bytes
    """One flow a line as JSON, compressed with gzip. A retry sends exactly these bytes."""
    flows: int
    first: int
    """The index of its first flow among all that were given to `batches`."""


def batches(
    flows: Iterable[Flow], *, flows_max: int = BATCH_FLOWS_MAX, bytes_max: int = BATCH_BYTES_MAX
) -> Iterator[Batch]:
    """Cuts flows into batches of up to `flows_max` flows.

    A batch ends as soon as its JSON has `bytes_max` bytes, so it may have one flow more than that. It has taken no more
    flows from the iterator than it holds: after a failure, the iterator continues with the flow after the batch.

    Raises `ValueError` if a number is not finite, or a name has a lone surrogate. All else is left to the service, whose
    answer names the flow.
    """
    texts: list[bytes] = []
    size = first = 0
    for flow in flows:
        text = json.dumps(flow._asdict(), ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
        texts.append(text)
        size += len(text) + 1
        if len(texts) >= flows_max or size >= bytes_max:
            yield _batch(texts, first)
            first += len(texts)
            texts, size = [], 0
    if texts:
        yield _batch(texts, first)


def _batch(texts: list[bytes], first: int) -> Batch:
    body = gzip.compress(b"\n".join(texts) + b"\n", mtime=0)
    return Batch(uuid.uuid4().hex, body, len(texts), first)
