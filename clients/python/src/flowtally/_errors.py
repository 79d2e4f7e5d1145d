"""Why something failed. All are `FlowtallyError`; those that the service reports are `Problem`."""

from __future__ import annotations

import email.utils
import json
import time
from typing import TYPE_CHECKING, Any, Optional

if TYPE_CHECKING:
    from ._batch import Batch
    from ._http import Reply
    from ._rows import Sent

PROBLEM_TYPE_PREFIX = "urn:flowtally:problem:"
# Statuses after which the same request may succeed.
TEMPORARY = frozenset({408, 425, 429, 500, 502, 503, 504, 507})
# Bytes of an error's body that are read.
PROBLEM_BYTES_MAX = 64 << 10


class FlowtallyError(Exception):
    """Any failure of this package."""

    temporary = False
    """Whether the same request may succeed later. The client has tried again for as long as it was told to."""
    retry_after: Optional[float] = None
    """Seconds that the service, or a proxy, asked to wait."""
    batch: Optional[Batch] = None
    """The batch that was not sent, if `Client.send` or `Spool.deliver` failed. `Client.send_batch` sends it again."""
    sent: Optional[Sent] = None
    """What was sent before that batch."""


class ConnectionFailed(FlowtallyError):
    """There was no response. It is unknown whether a batch counted: send it again under its key."""

    temporary = True


class Truncated(ConnectionFailed):
    """The response ended early. Rows before its end are right, and some are missing."""


class UnexpectedResponse(FlowtallyError):
    """The response is not from flowtally: the address is wrong, or a proxy has answered."""


class Problem(FlowtallyError):
    """The service refused the request, and said why."""

    def __init__(
        self, status: int, kind: str, title: str, detail: str, index: Optional[int] = None, field: Optional[str] = None
    ) -> None:
        super().__init__(f"{title}: {detail} ({status} {kind})")
        self.status = status
        self.kind = kind
        """The name of the problem, as in the table of docs/api.md: `bad-batch`."""
        self.title = title
        self.detail = detail
        self.index = index
        """The first invalid flow of the batch, counted from 0."""
        self.field = field
        """The field of it that is invalid."""


class InvalidRequest(Problem):
    """400 and other statuses about the request itself: correct it. Nothing of a batch counted."""


class InvalidBatch(InvalidRequest):
    """A flow of the batch is wrong: `index` and `field` locate it. Nothing of the batch counted."""


class AccessDenied(Problem):
    """401, 403, 421: the token, the client certificate or the host name is wrong."""


class NotFound(Problem):
    """404."""


class TooLarge(Problem):
    """413: the batch is larger than the service accepts, or the query needs too much memory."""


class KeyReused(Problem):
    """422: other flows were counted under this key. Nothing of the batch counted."""


class Unavailable(Problem):
    """408, 425, 429 and 5xx: try again later. After a 5xx, it is unknown whether a batch counted: send it under its key."""

    temporary = True


def _kind_of(status: int, kind: str) -> type[Problem]:
    if status in TEMPORARY:
        return Unavailable
    if kind in ("bad-batch", "hour-too-far-ahead"):
        return InvalidBatch
    by_status: dict[int, type[Problem]] = {
        401: AccessDenied,
        403: AccessDenied,
        404: NotFound,
        413: TooLarge,
        421: AccessDenied,
        422: KeyReused,
    }
    return by_status.get(status, InvalidRequest if 400 <= status < 500 else Problem)


def error_of(reply: Reply) -> FlowtallyError:
    """The error that a response other than 2xx means."""
    text = reply.read(PROBLEM_BYTES_MAX)
    document: Any = None
    if (reply.header("Content-Type") or "").startswith("application/problem+json"):
        try:
            document = json.loads(text)
        except ValueError:
            pass  # then the status says all that is known
    error: FlowtallyError
    if isinstance(document, dict):
        kind = str(document.get("type", "")).replace(PROBLEM_TYPE_PREFIX, "", 1)
        title, detail = str(document.get("title", "no title")), str(document.get("detail", "no detail"))
        error = _kind_of(reply.status, kind)(
            reply.status, kind, title, detail, document.get("index"), document.get("field")
        )
    elif reply.status in TEMPORARY:
        error = Unavailable(reply.status, "", "No problem document", "a proxy may have answered")
    else:
        error = UnexpectedResponse(f"status {reply.status}, without a problem document: is the address right?")
    error.retry_after = seconds(reply.header("Retry-After"))
    return error


def seconds(retry_after: Optional[str]) -> Optional[float]:
    """The value of `Retry-After`, which is a number of seconds or a date."""
    if retry_after is None:
        return None
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        at = email.utils.parsedate_to_datetime(retry_after)
    except (TypeError, ValueError):
        return None
    return max(0.0, at.timestamp() - time.time())
