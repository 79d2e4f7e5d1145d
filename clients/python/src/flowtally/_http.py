"""Requests over HTTP/1.1, with connections that are kept."""

from __future__ import annotations

import http.client
import socket
import ssl
import zlib
from typing import Any, Iterable, Iterator, List, Mapping, Optional, Tuple
from urllib.parse import urlencode, urlsplit

from ._errors import ConnectionFailed, Truncated

# Idle connections that are kept.
IDLE_MAX = 4
# Bytes that are read, and decompressed, at a time.
CHUNK_BYTES = 64 << 10
# zlib's name for a gzip header.
GZIP_WBITS = 31

Parameters = List[Tuple[str, str]]


class Transport:
    """Sends single requests to one service. It follows no redirect: the token is for this service only."""

    def __init__(self, url: str, token: Optional[str], timeout_s: float, tls: Optional[ssl.SSLContext]) -> None:
        parts = urlsplit(url)
        has_more = parts.username or parts.query or parts.fragment
        if parts.scheme not in ("http", "https") or not parts.hostname or has_more:
            raise ValueError(f"{url!r} is not the address of a service, such as http://127.0.0.1:8080")
        if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
            raise ValueError("a token consists of visible ASCII characters")
        self._host = parts.hostname
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._prefix = parts.path.rstrip("/")
        self._tls = (tls or ssl.create_default_context()) if parts.scheme == "https" else None
        self._timeout_s = timeout_s
        self._authorization = {} if token is None else {"Authorization": f"Bearer {token}"}
        self._idle: List[http.client.HTTPConnection] = []

    def request(
        self, method: str, path: str, query: Parameters, headers: Mapping[str, str], body: Optional[bytes] = None
    ) -> Reply:
        """The response to one request; its body has not been read yet.

        Raises `ConnectionFailed` if there is none.
        """
        target = self._prefix + path + ("?" + urlencode(query) if query else "")
        headers = {"User-Agent": "flowtally-python/0.1.0", **self._authorization, **headers}
        while True:
            is_kept = bool(self._idle)
            connection = self._idle.pop() if is_kept else self._connection()
            try:
                try:
                    connection.request(method, target, body, headers)
                except BrokenPipeError:
                    pass  # the service may have answered before it has read all of the body
                return Reply(self, connection, connection.getresponse())
            except (OSError, http.client.HTTPException) as error:
                connection.close()
                # The service closes connections that have been idle for long. That is no failure.
                if is_kept and not isinstance(error, socket.timeout):
                    continue
                failed = ConnectionFailed(f"no response: {type(error).__name__}: {error}")
                # A wrong certificate stays wrong.
                failed.temporary = not isinstance(error, ssl.SSLCertVerificationError)
                raise failed from error

    def _connection(self) -> http.client.HTTPConnection:
        if self._tls is None:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._tls)

    def keep(self, connection: http.client.HTTPConnection) -> None:
        """Takes back a connection whose response has been read."""
        if len(self._idle) < IDLE_MAX:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class Reply:
    """A response. Its connection is kept once the body has been read, and closed otherwise."""

    def __init__(
        self, transport: Transport, connection: http.client.HTTPConnection, response: http.client.HTTPResponse
    ) -> None:
        self._transport = transport
        self._connection: Optional[http.client.HTTPConnection] = connection
        self._response = response
        self.status = response.status

    def header(self, name: str) -> Optional[str]:
        return self._response.headers.get(name)

    def chunks(self) -> Iterator[bytes]:
        """The body, decompressed, as it arrives.

        Raises `Truncated` if it ends early.
        """
        is_compressed = self.header("Content-Encoding") == "gzip"
        try:
            yield from _inflated(self._received()) if is_compressed else self._received()
        finally:
            self.close()

    def _received(self) -> Iterator[bytes]:
        try:
            while data := self._response.read(CHUNK_BYTES):
                yield data
        except (OSError, http.client.HTTPException) as error:
            raise Truncated(f"the response broke off: {type(error).__name__}: {error}") from error
        # http.client does not say so by itself if the body is shorter than its Content-Length.
        if self._response.length:
            raise Truncated(f"the response broke off: {self._response.length} bytes are missing")
        if self._connection is not None and not self._response.will_close:
            self._transport.keep(self._connection)
            self._connection = None

    def read(self, bytes_max: Optional[int] = None) -> bytes:
        """The whole body, or its beginning.

        Raises `Truncated` if it ends early.
        """
        body = bytearray()
        chunks = self.chunks()
        for chunk in chunks:
            body += chunk
            if bytes_max is not None and len(body) > bytes_max:
                self.close()
                break
        return bytes(body[:bytes_max])

    def close(self) -> None:
        """Closes the connection, unless all of the body was read."""
        if self._connection is not None:
            self._response.close()
            self._connection.close()
            self._connection = None


def _inflated(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The content of one or more gzip members."""
    member: Any = None  # the decompressor of the one that has begun
    for data in chunks:
        while data:
            member = member or zlib.decompressobj(GZIP_WBITS)
            try:
                yield member.decompress(data, CHUNK_BYTES)
            except zlib.error as error:
                raise Truncated(f"the response is damaged: {error}") from error
            if member.eof:
                data, member = member.unused_data, None
            else:
                data = member.unconsumed_tail
    if member is not None:
        raise Truncated("the response broke off within its compressed data")


def lines(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """The lines of a body, without their ends.

    Raises `Truncated` if the last one has no end.
    """
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        yield from whole
    if rest:
        raise Truncated("the response broke off within a line")
