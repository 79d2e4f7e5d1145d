"""What is sent and what comes back. All numbers are exact: Python's integers have no bound."""

from __future__ import annotations

import json
from typing import Any, Iterator, List, Literal, NamedTuple, Optional, Type
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

from ._errors import UnexpectedResponse
from ._http import Reply, lines

Column = Literal["src_app", "dest_app", "vpc_id", "hour"]
Sort = Literal["bytes", "bytes_tx", "bytes_rx", "change", "-bytes", "-bytes_tx", "-bytes_rx", "-change"]


class Flow(NamedTuple):
    """`src_app` sent `bytes_tx` to `dest_app` in `hour`, and received `bytes_rx` from it.

    Names are strings of up to 1,024 bytes of UTF-8, bytes are integers up to 2**64 - 1, and the hour is one of a day, or
    counted from the epoch.
    """

    src_app: str
    dest_app: str
    vpc_id: str
    bytes_tx: int
    bytes_rx: int
    hour: int


class Receipt(NamedTuple):
    """The service's response to a batch."""

    accepted: int
    """Flows that count."""
    expired: int
    """Flows that do not count, since they are older than all that the service keeps."""
    replayed: bool
    """The batch had been counted before, under the same key."""


class Sent(NamedTuple):
    """What `Client.send` and `Spool.deliver` have sent."""

    batches: int = 0
    accepted: int = 0
    """Flows that count."""
    expired: int = 0
    """Flows that do not count, since they are older than all that the service keeps."""
    replayed: int = 0
    """Batches that an earlier attempt had brought to the service."""

    def plus(self, receipt: Receipt) -> Sent:
        return Sent(
            self.batches + 1,
            self.accepted + receipt.accepted,
            self.expired + receipt.expired,
            self.replayed + receipt.replayed,
        )


class Row(NamedTuple):
    """A row of a response. A column is None if the rows are grouped without it."""

    bytes_tx: int
    bytes_rx: int
    src_app: Optional[str] = None
    dest_app: Optional[str] = None
    vpc_id: Optional[str] = None
    hour: Optional[int] = None
    bytes_tx_before: Optional[int] = None
    """The sum of the hours that `compare` names."""
    bytes_rx_before: Optional[int] = None
    other: bool = False
    """The sums of all rows that are not among the first."""


class HourTotals(NamedTuple):
    """An hour, and all that was counted in it. These totals do not saturate at 2**64 - 1."""

    hour: int
    flows: int
    bytes_tx: int
    bytes_rx: int
    finest_step: int = 1
    """The smallest `step` in which its rows can be queried."""


class Stats(NamedTuple):
    """The totals of all hours."""

    hours: int
    first_hour: Optional[int]
    last_hour: Optional[int]
    flows: int
    bytes_tx: int
    bytes_rx: int


class Rows(Iterator[Row]):
    """Iterates over the rows of a response as they arrive. Its memory does not grow with their number.

    `close` ends it before its last row, and so does `with`.
    """

    total_bytes_tx: Optional[int]
    """With `other`: the sum of all rows."""
    total_bytes_rx: Optional[int]
    cursor: Optional[str]
    """With `limit`: where the next page begins; None after the last one."""
    missing: List[int]
    """With `partial`: the partitions that are left out."""

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._lines = lines(reply.chunks())
        self.total_bytes_tx = _integer(reply.header("Flowtally-Total-Bytes-Tx"))
        self.total_bytes_rx = _integer(reply.header("Flowtally-Total-Bytes-Rx"))
        self.cursor = _cursor(reply.header("Link"))
        missing = reply.header("Flowtally-Missing")
        self.missing = [int(partition) for partition in missing.split(",")] if missing else []

    def __next__(self) -> Row:
        return Row(**known(Row, decode(next(self._lines))))

    def close(self) -> None:
        self._reply.close()

    def __enter__(self) -> Rows:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()


def decode(text: bytes) -> Any:
    """The JSON of a response.

    Raises `UnexpectedResponse` if it is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise UnexpectedResponse(f"the response is not from flowtally: {text[:80]!r} is not JSON") from error


def known(kind: Any, value: Any) -> Any:
    """The members of a JSON object that are fields of the named tuple `kind`. A later version may send more."""
    if not isinstance(value, dict):
        raise UnexpectedResponse(f"the response is not from flowtally: {str(value)[:80]!r} is not an object")
    missing = [name for name in kind._fields if name not in value and name not in kind._field_defaults]
    if missing:
        raise UnexpectedResponse(f"the response is not from flowtally: it has no {missing[0]}")
    return {name: value[name] for name in kind._fields if name in value}


def _integer(text: Optional[str]) -> Optional[int]:
    return None if text is None else int(text)


def _cursor(link: Optional[str]) -> Optional[str]:
    """The cursor of `</flows?…&cursor=…>; rel="next"`."""
    if link is None:
        return None
    target = link.partition("<")[2].partition(">")[0]
    return parse_qs(urlsplit(target).query).get("cursor", [None])[0]
