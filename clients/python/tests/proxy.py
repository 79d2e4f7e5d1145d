"""A proxy between client and service that fails as networks and services do."""

from __future__ import annotations

import http.client
import http.server
import socket
import struct
import sys
import threading
from collections import deque
from types import TracebackType
from typing import Callable, Deque, List, NamedTuple, Optional, Type

HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "date", "server"}

# What happens to a request:
PASS = "pass"
BEFORE = "the connection breaks before the service has the request"
AFTER = "the connection breaks after the service has counted it, before its response"
WITHIN = "the connection breaks within the response"
BUSY = "a 503 with Retry-After, and the service has not seen the request"
LOST = "a 503 with Retry-After, although the service has counted it"


class Request(NamedTuple):
    method: str
    target: str
    key: Optional[str]
    encoding: Optional[str]
    body: bytes
    fault: str


class Proxy:
    """Forwards to `address`. `faults` are those of the next requests; `next_fault` is asked when there are none."""

    def __init__(self, address: str, next_fault: Callable[[], str] = lambda: PASS, retry_after: str = "0") -> None:
        self.faults: Deque[str] = deque()
        self.requests: List[Request] = []
        lock = threading.Lock()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def forward(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                with lock:
                    fault = proxy.faults.popleft() if proxy.faults else next_fault()
                    key, encoding = self.headers.get("Idempotency-Key"), self.headers.get("Content-Encoding")
                    proxy.requests.append(Request(self.command, self.path, key, encoding, body, fault))
                if fault == BEFORE:
                    return self.reset()
                if fault == BUSY:
                    return self.busy()
                upstream = http.client.HTTPConnection(address, timeout=60)
                headers = {name: value for name, value in self.headers.items() if name.lower() != "connection"}
                upstream.request(self.command, self.path, body or None, headers)
                response = upstream.getresponse()
                content = response.read()
                upstream.close()
                if fault == AFTER:
                    return self.reset()
                if fault == LOST:
                    return self.busy()
                self.send_response(response.status)
                for name, value in response.getheaders():
                    if name.lower() not in HOP_BY_HOP:
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content[: len(content) // 2] if fault == WITHIN else content)
                if fault == WITHIN:
                    self.reset()

            do_GET = do_POST = do_DELETE = forward

            def busy(self) -> None:
                content = b'{"type":"urn:flowtally:problem:overloaded","title":"Busy","status":503,"detail":"later"}\n'
                self.send_response(503)
                self.send_header("Retry-After", retry_after)
                self.send_header("Content-Type", "application/problem+json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def reset(self) -> None:
                """Ends the connection with a reset."""
                self.wfile.flush()
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def shutdown_request(self, request: object) -> None:
                # Without the orderly end that the base class sends first.
                self.close_request(request)  # type: ignore[arg-type]

            def handle_error(self, request: object, client_address: object) -> None:
                # Either side may go away at any time, which is what these tests are about.
                if not isinstance(sys.exc_info()[1], OSError):
                    super().handle_error(request, client_address)  # type: ignore[arg-type]

        proxy = self
        self._server = Server(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:{}".format(self._server.server_address[1])
        self.url = f"http://{self.address}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
