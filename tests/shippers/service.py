"""The service, and what is between a shipper and the service."""
import http.client
import http.server
import json
import os
import socket
import subprocess
import threading
import time
import urllib.request

# A shipper may wait for ten seconds and more before it tries again.
DEADLINE_SECONDS = 180
HOP_BY_HOP = {"connection", "content-length", "host", "keep-alive", "transfer-encoding"}


def until(what, holds):
    """Waits until `holds` returns something true, and returns it."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not (value := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not after {DEADLINE_SECONDS} s: {what}")
        time.sleep(0.05)
    return value


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Service:
    def __init__(self, work, arguments):
        self.port = free_port()
        self.command = [os.environ["FLOWTALLY"], "serve", "--listen", f"127.0.0.1:{self.port}"]
        self.command += ["--data-dir", work / "db", *arguments]
        self.log = open(work / "service.log", "ab")
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stderr=self.log)
        until("the service is ready", lambda: self.get("/readyz"))

    def kill(self):
        self.process.kill()
        self.process.wait()

    def get(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as response:
                return response.read()
        except OSError:
            return None

    def counted(self):
        """The sum of bytes_tx of all flows."""
        rows = json.loads(self.get("/flows?from=0&to=4294967295&group_by=hour"))
        return sum(row["bytes_tx"] for row in rows)


class Between(http.server.ThreadingHTTPServer):
    """Passes requests on. Loses responses, or refuses requests, as many as it is told to."""

    daemon_threads = True

    def __init__(self, service_port):
        super().__init__(("127.0.0.1", 0), Handler)
        self.port, self.service_port = self.server_address[1], service_port
        self.lose = self.refuse = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def next(self):
        with self.lock:
            if self.refuse:
                self.refuse -= 1
                return "refuse"
            if self.lose:
                self.lose -= 1
                return "lose"
        return "pass"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.forward("pass")

    def do_POST(self):
        self.forward(self.server.next())

    def forward(self, way):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        if way == "refuse":
            self.respond(503, {"retry-after": "1"}, b"")
            return
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_BY_HOP}
        try:
            service = http.client.HTTPConnection("127.0.0.1", self.server.service_port, timeout=60)
            service.request(self.command, self.path, body, headers)
            response = service.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException):
            way = "lose"
        if way == "lose":
            self.close_connection = True
            return
        headers = {name: value for name, value in response.getheaders() if name.lower() not in HOP_BY_HOP}
        self.respond(response.status, headers, answer)

    def respond(self, status, headers, body):
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def end(process):
    """Ends a process by SIGTERM, and waits for that."""
    process.terminate()
    process.wait(DEADLINE_SECONDS)
