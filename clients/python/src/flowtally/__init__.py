"""Client of flowtally: sends flows, each of which counts once, and reads their sums.

    from flowtally import Client, Flow

    with Client("http://127.0.0.1:8080") as client:
        client.send([Flow("web", "db", "vpc-0", bytes_tx=100, bytes_rx=500, hour=1)])
        for row in client.flows(hour=1):
            print(row.src_app, row.dest_app, row.bytes_tx, row.bytes_rx)
"""

from ._batch import Batch, batches
from ._client import Client
from ._errors import (
    AccessDenied,
    ConnectionFailed,
    FlowtallyError,
    InvalidBatch,
    InvalidRequest,
    KeyReused,
    NotFound,
    Problem,
    TooLarge,
    Truncated,
    Unavailable,
    UnexpectedResponse,
)
from ._retry import Retry
from ._rows import Column, Flow, HourTotals, Receipt, Row, Rows, Sent, Sort, Stats
from ._spool import Spool, SpoolFull

__all__ = [
    "AccessDenied",
    "Batch",
    "Client",
    "Column",
    "ConnectionFailed",
    "Flow",
    "FlowtallyError",
    "HourTotals",
    "InvalidBatch",
    "InvalidRequest",
    "KeyReused",
    "NotFound",
    "Problem",
    "Receipt",
    "Retry",
    "Row",
    "Rows",
    "Sent",
    "Sort",
    "Spool",
    "SpoolFull",
    "Stats",
    "TooLarge",
    "Truncated",
    "Unavailable",
    "UnexpectedResponse",
    "batches",
]
