"""The client."""

from __future__ import annotations

import ssl
import time
from types import TracebackType
from typing import Callable, Iterable, List, Literal, NamedTuple, Optional, Sequence, Type, TypeVar, Union

from ._batch import BATCH_BYTES_MAX, BATCH_FLOWS_MAX, Batch, batches
from ._errors import FlowtallyError, NotFound, error_of
from ._http import Parameters, Reply, Transport
from ._retry import Retry
from ._rows import Column, Flow, HourTotals, Receipt, Rows, Sent, Sort, Stats, decode, known

Names = Union[str, Iterable[str]]
"""One name, or several of which any matches."""

T = TypeVar("T")


class _Deleted(NamedTuple):
    deleted: int


class Client:
    """A client of one service. It may be used by one thread at a time.

    `url` is the service's address, such as `http://127.0.0.1:8080`. `token` is sent as a bearer token. `timeout_s` is the
    longest silence of the service. `retry` says for how long a request is tried again. `batch_flows` and `batch_bytes`
    bound the batches of `send`, as `batches` has it. `tls` replaces the system's authorities, and may have a client
    certificate.

    All methods raise a `FlowtallyError`, and `ValueError` for arguments that no service could accept.
    """

    def __init__(
        self,
        url: str,
        *,
        token: Optional[str] = None,
        timeout_s: float = 30.0,
        retry: Retry = Retry(),
        batch_flows: int = BATCH_FLOWS_MAX,
        batch_bytes: int = BATCH_BYTES_MAX,
        tls: Optional[ssl.SSLContext] = None,
    ) -> None:
        self._transport = Transport(url, token, timeout_s, tls)
        self._retry = retry
        self._batch_flows = batch_flows
        self._batch_bytes = batch_bytes

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes idle connections."""
        self._transport.close()

    def send(self, flows: Iterable[Flow]) -> Sent:
        """Sends flows in batches, each of which counts once. When it returns, all of them are on disk.

        After an error, its `batch` has not been counted (4xx), or it is unknown whether it was: `send_batch` sends it
        again. Batches before it have counted (`sent`), and the iterator continues after it.
        """
        sent = Sent()
        for batch in batches(flows, flows_max=self._batch_flows, bytes_max=self._batch_bytes):
            try:
                sent = sent.plus(self.send_batch(batch))
            except FlowtallyError as error:
                error.batch, error.sent = batch, sent
                raise
        return sent

    def send_batch(self, batch: Batch) -> Receipt:
        """Sends a batch. It counts once, however often it is sent within the service's `--idempotency-window`."""
        headers = {
            "Content-Type": "application/x-ndjson",
            "Content-Encoding": "gzip",
            "Idempotency-Key": batch.key,
        }

        def attempt() -> Receipt:
            reply = self._ask("POST", "/flows", [], headers, batch.body)
            replayed = reply.header("Idempotent-Replayed") == "true"
            answer = decode(reply.read())
            if not isinstance(answer, dict):
                answer = {}
            return Receipt(**known(Receipt, {"expired": 0, "replayed": replayed, **answer}))

        return self._repeat(attempt)

    def flows(
        self,
        *,
        hour: Optional[int] = None,
        from_: Optional[int] = None,
        to: Optional[int] = None,
        src_app: Names = (),
        dest_app: Names = (),
        vpc_id: Names = (),
        peer: Names = (),
        src_app_prefix: Names = (),
        dest_app_prefix: Names = (),
        vpc_id_prefix: Names = (),
        peer_prefix: Names = (),
        src_app_not: Names = (),
        dest_app_not: Names = (),
        vpc_id_not: Names = (),
        peer_not: Names = (),
        search: Optional[str] = None,
        group_by: Optional[Sequence[Column]] = None,
        step: Optional[int] = None,
        sort: Optional[Sort] = None,
        limit: Optional[int] = None,
        other: bool = False,
        compare: Union[int, Literal["previous"], None] = None,
        cursor: Optional[str] = None,
        partial: bool = False,
    ) -> Rows:
        """The rows of an hour, or of the hours from `from_` to `to` (exclusive), as one snapshot.

        The parameters are those of `GET /flows`. Without `group_by`, there is a row for each hour, src_app, dest_app and
        vpc_id; an empty `group_by` gives one row of everything. If the response breaks off between two rows, iterating
        raises `Truncated`; ask again then.
        """
        query = _parameters(
            [("hour", hour), ("from", from_), ("to", to), ("search", search), ("step", step), ("sort", sort)]
        )
        names = {
            "src_app": src_app,
            "dest_app": dest_app,
            "vpc_id": vpc_id,
            "peer": peer,
            "src_app_prefix": src_app_prefix,
            "dest_app_prefix": dest_app_prefix,
            "vpc_id_prefix": vpc_id_prefix,
            "peer_prefix": peer_prefix,
            "src_app_not": src_app_not,
            "dest_app_not": dest_app_not,
            "vpc_id_not": vpc_id_not,
            "peer_not": peer_not,
        }
        for parameter, values in names.items():
            query += [(parameter, name) for name in ([values] if isinstance(values, str) else values)]
        if group_by is not None:
            query.append(("group_by", group_by if isinstance(group_by, str) else ",".join(group_by)))
        query += _parameters([("limit", limit), ("compare", compare), ("cursor", cursor)])
        query += _flags([("other", other), ("partial", partial)])
        headers = {"Accept": "application/x-ndjson", "Accept-Encoding": "gzip"}
        return self._repeat(lambda: Rows(self._ask("GET", "/flows", query, headers)))

    def hours(
        self,
        *,
        from_: Optional[int] = None,
        to: Optional[int] = None,
        step: Optional[int] = None,
        partial: bool = False,
    ) -> List[HourTotals]:
        """The hours that have flows, in ascending order, with their totals; `step` adds up so many."""
        query = _parameters([("from", from_), ("to", to), ("step", step)]) + _flags([("partial", partial)])
        headers = {"Accept-Encoding": "gzip"}

        def attempt() -> List[HourTotals]:
            answer = decode(self._ask("GET", "/hours", query, headers).read())
            entries = answer if isinstance(answer, list) else [answer]
            return [HourTotals(**known(HourTotals, entry)) for entry in entries]

        return self._repeat(attempt)

    def stats(self) -> Stats:
        """The totals of all hours, as `flowtally stats` prints them."""
        hours = self.hours()
        return Stats(
            hours=len(hours),
            first_hour=hours[0].hour if hours else None,
            last_hour=hours[-1].hour if hours else None,
            flows=sum(hour.flows for hour in hours),
            bytes_tx=sum(hour.bytes_tx for hour in hours),
            bytes_rx=sum(hour.bytes_rx for hour in hours),
        )

    def delete_hour(self, hour: int) -> int:
        """Deletes an hour. Returns how many flows it had: 0 if none, or if an attempt without response had deleted it."""
        return self._delete([("hour", str(hour))])

    def delete_hours(self, from_: int, to: int) -> int:
        """Deletes the hours from `from_` to `to` (exclusive), as `delete_hour` does one."""
        return self._delete([("from", str(from_)), ("to", str(to))])

    def _delete(self, query: Parameters) -> int:
        def attempt() -> int:
            try:
                answer = decode(self._ask("DELETE", "/flows", query, {}).read())
            except NotFound as error:
                if error.kind == "no-such-hour":
                    return 0
                raise
            return int(known(_Deleted, answer)["deleted"])

        return self._repeat(attempt)

    def is_alive(self) -> bool:
        """Whether the process is alive (`/healthz`). It asks once."""
        return self._is_well("/healthz")

    def is_ready(self) -> bool:
        """Whether the service accepts flows (`/readyz`). It asks once."""
        return self._is_well("/readyz")

    def _is_well(self, path: str) -> bool:
        try:
            self._ask("GET", path, [], {}).read()
        except FlowtallyError:
            return False
        return True

    def metrics(self) -> str:
        """The service's metrics, in Prometheus's text format."""
        return self._repeat(lambda: self._ask("GET", "/metrics", [], {}).read().decode())

    def _ask(
        self, method: str, path: str, query: Parameters, headers: dict[str, str], body: Optional[bytes] = None
    ) -> Reply:
        """One attempt. Raises an error for any status but 200."""
        reply = self._transport.request(method, path, query, headers, body)
        if reply.status != 200:
            raise error_of(reply)
        return reply

    def _repeat(self, attempt: Callable[[], T]) -> T:
        """The result of the first attempt that has one; the last error if there was none in time."""
        end = time.monotonic() + self._retry.total_s_max
        failures = 0
        while True:
            try:
                return attempt()
            except FlowtallyError as error:
                failures += 1
                pause = self._retry.pause(failures, error.retry_after)
                if not error.temporary or time.monotonic() + pause > end:
                    raise
            self._retry.sleep(pause)


def _parameters(pairs: Sequence[tuple[str, Union[int, str, None]]]) -> Parameters:
    return [(name, str(value)) for name, value in pairs if value is not None]


def _flags(pairs: Sequence[tuple[str, bool]]) -> Parameters:
    return [(name, "true") for name, value in pairs if value]
