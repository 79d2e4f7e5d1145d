"""Relays TCP connections to servers of this host, and counts the payload: an independent witness of what programs move.

    relay.py DIR LISTEN:TARGET…      ports; the targets are on the loopback interface

`DIR/relaying` appears when it listens. When `DIR/relay-end` appears and all connections have ended, it prints a JSON object: for
each port, and each connection in the order of arrival, the bytes that the client has sent and received. A client that resets its
connection would leave it open how much has arrived: that is an error.
"""
import fcntl, json, os, socket, struct, sys, termios, threading, time

directory, ports = sys.argv[1], [tuple(map(int, pair.split(":"))) for pair in sys.argv[2:]]
moved = {listen: [] for listen, _ in ports}
open_connections, errors = set(), []


def there(name):
    return os.path.exists(os.path.join(directory, name))


def from_client(client, server, sums):
    """All that the client sends counts, whatever the server does with it."""
    is_open = True
    try:
        while data := client.recv(1 << 18):
            sums[0] += len(data)
            try:
                if is_open:
                    server.sendall(data)
            except OSError:
                is_open = False
    finally:
        try:
            server.shutdown(socket.SHUT_WR)
        except OSError:
            pass


def to_client(client, server, sums):
    while True:
        try:
            data = server.recv(1 << 18)
        except OSError:
            break
        if not data:
            break
        client.sendall(data)
        sums[1] += len(data)
    client.shutdown(socket.SHUT_WR)


def unacknowledged(client):
    return struct.unpack("i", fcntl.ioctl(client, termios.TIOCOUTQ, bytes(4)))[0]


def relay(client, target, sums):
    def checked(pump, *arguments):
        try:
            pump(*arguments)
        except OSError as error:
            errors.append(f"{target}: {pump.__name__}: {error}")

    try:
        with client, socket.create_connection(("127.0.0.1", target)) as server:
            answers = threading.Thread(target=checked, args=(to_client, client, server, sums))
            answers.start()
            checked(from_client, client, server, sums)
            answers.join()
            # What was sent counts when the client's kernel has it.
            while unacknowledged(client):
                time.sleep(0.001)
            if error := client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                errors.append(f"{target}: {os.strerror(error)}")
    except OSError as error:
        errors.append(f"{target}: {error}")
    open_connections.discard(client)


def accept(listener, target, sums_of_port):
    while True:
        client, _ = listener.accept()
        open_connections.add(client)
        sums_of_port.append([0, 0])
        threading.Thread(target=relay, args=(client, target, sums_of_port[-1])).start()


for listen, target in ports:
    listener = socket.create_server(("0.0.0.0", listen), backlog=512)
    threading.Thread(target=accept, args=(listener, target, moved[listen]), daemon=True).start()
open(os.path.join(directory, "relaying"), "w").close()
while not there("relay-end") or open_connections:
    time.sleep(0.02)
assert not errors, errors
print(json.dumps(moved), flush=True)
