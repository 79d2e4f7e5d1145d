"""One host's traffic. Serves the other hosts, and connects to them, until the file `stop` appears; then prints a JSON
object: for each destination, the bytes of TCP payload that its connections have sent and received.

    traffic.py OWN_NUMBER DIR ADDRESS…      the addresses of all hosts, its own at OWN_NUMBER

An address may have several spellings, separated by commas: that of IPv4 first, which names it, then those of IPv6.

While `DIR/pause-OWN_NUMBER` exists, no connection is opened or ended; one that is open goes on sending.
`DIR/paused-OWN_NUMBER` confirms that.
"""
import http.server, json, os, random, socket, socketserver, struct, subprocess, sys, threading, time

PORT, HTTP_PORT = 9000, 9001
number, directory = int(sys.argv[1]), sys.argv[2]
spellings = {written.split(",")[0]: written.split(",") for written in sys.argv[3:]}
addresses = list(spellings)
has_ipv6 = len(spellings[addresses[0]]) > 1
moved, lock = {}, threading.Lock()


def add(address, sent, received):
    with lock:
        sums = moved.setdefault(address, [0, 0])
        sums[0] += sent
        sums[1] += received


def there(name):
    return os.path.exists(os.path.join(directory, name))


def read(connection, length):
    left = length
    while left:
        part = connection.recv(min(left, 1 << 16))
        if not part:
            raise EOFError
        left -= len(part)


def serve_one(connection):
    # The request: bytes that follow, bytes to answer, and who closes first.
    with connection:
        while True:
            head = b""
            while len(head) < 12:
                part = connection.recv(12 - len(head))
                if not part:
                    return
                head += part
            arrive, answer, closes = struct.unpack(">III", head)
            read(connection, arrive)
            connection.sendall(bytes(answer))
            if closes:
                return


def serve():
    family = socket.AF_INET6 if has_ipv6 else socket.AF_INET
    # Clients of IPv4 have addresses that are written as IPv6 then.
    listener = socket.create_server(("", PORT), family=family, dualstack_ipv6=has_ipv6, backlog=512)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_one, args=(connection,), daemon=True).start()


class Quiet(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = bytes(int(self.path[1:]))
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Web(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6 if has_ipv6 else socket.AF_INET

    def server_bind(self):
        if has_ipv6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        # Without looking up its own name.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = "", HTTP_PORT


def request(connection, arrive, answer, server_closes):
    connection.sendall(struct.pack(">III", arrive, answer, server_closes) + bytes(arrive))
    read(connection, answer)
    return 12 + arrive, answer


def connect(address, rng):
    return socket.create_connection((rng.choice(spellings[address]), PORT))


def short(address, rng):
    server_closes = rng.random() < 0.5
    with connect(address, rng) as connection:
        for last in [False] * rng.randrange(3) + [True]:
            sizes = rng.choice([(0, 0), (1, 1), (100, 300), (5000, 200000), (300000, 10)])
            add(address, *request(connection, *sizes, server_closes and last))
        if server_closes and connection.recv(1):
            raise ValueError("more than the answer")


def curl(address, rng):
    size = rng.choice([0, 1, 5000, 3000000])
    spelling = rng.choice(spellings[address])
    host = f"[{spelling}]" if ":" in spelling else spelling
    out = subprocess.run(
        ["curl", "-sS", "-o", "/dev/null", "-w", "%{size_request} %{size_header} %{size_download}",
         "--globoff", "--noproxy", "*", f"http://{host}:{HTTP_PORT}/{size}"], capture_output=True, text=True, check=True).stdout
    sent, head, body = map(int, out.split())
    assert body == size, out
    add(address, sent, head + body)


def long_lived(address):
    with connect(address, random.Random(number)) as connection:
        while not there("stop"):
            add(address, *request(connection, 1000, 700, False))
            time.sleep(0.05)
        while there(f"pause-{number}"):
            time.sleep(0.05)


def main():
    rng = random.Random(number)
    threading.Thread(target=serve, daemon=True).start()
    web = Web(("", HTTP_PORT), Quiet)
    threading.Thread(target=web.serve_forever, daemon=True).start()
    open(os.path.join(directory, f"serving-{number}"), "w").close()
    while not there("start"):
        time.sleep(0.05)
    others = addresses[:number] + addresses[number + 1:]
    background = threading.Thread(target=long_lived, args=(others[0],))
    background.start()
    confirmation = os.path.join(directory, f"paused-{number}")
    while not there("stop"):
        if there(f"pause-{number}"):
            open(confirmation, "w").close()
            time.sleep(0.05)
            continue
        if os.path.exists(confirmation):
            os.remove(confirmation)
        (curl if rng.random() < 0.2 else short)(rng.choice(others), rng)
        time.sleep(rng.random() / 10)
    background.join()
    print(json.dumps(moved), flush=True)
    # Others may still be served.
    while not there("end"):
        time.sleep(0.05)


main()
