"""One host's traffic. Serves at all addresses that the host has; each answer says which host it is from. Connects to random
addresses until the file `stop` appears; then prints a JSON object: for each address, and each host that has answered there, the
bytes of TCP payload that connections to it have sent and received.

    servers.py OWN_NUMBER DIR ADDRESS…      the addresses to connect to

While `DIR/pause` exists, no connection is open. `DIR/paused-OWN_NUMBER` confirms that.
"""
import json, os, random, socket, struct, sys, threading, time

PORT = 9000
number, directory, addresses = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
moved = {}


def there(name):
    return os.path.exists(os.path.join(directory, name))


def read(connection, length):
    data = b""
    while len(data) < length:
        part = connection.recv(min(length - len(data), 1 << 16))
        if not part:
            raise EOFError
        data += part
    return data


def serve_one(connection):
    # The request: bytes that follow, and bytes to answer.
    with connection:
        while True:
            try:
                arrive, answer = struct.unpack(">II", read(connection, 8))
            except EOFError:
                return
            read(connection, arrive)
            connection.sendall(struct.pack(">I", number) + bytes(answer))


def serve():
    listener = socket.create_server(("0.0.0.0", PORT), backlog=512)
    open(os.path.join(directory, f"serving-{number}"), "w").close()
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve_one, args=(connection,), daemon=True).start()


def talk(address, rng):
    with socket.create_connection((address, PORT), timeout=10) as connection:
        for _ in range(1 + rng.randrange(3)):
            arrive, answer = rng.choice([(0, 0), (100, 300), (5000, 20000)])
            connection.sendall(struct.pack(">II", arrive, answer) + bytes(arrive))
            host = struct.unpack(">I", read(connection, 4))[0]
            read(connection, answer)
            sums = moved.setdefault(address, {}).setdefault(host, [0, 0])
            sums[0] += 8 + arrive
            sums[1] += 4 + answer


def main():
    rng = random.Random(number)
    threading.Thread(target=serve, daemon=True).start()
    while not there("start"):
        time.sleep(0.02)
    confirmation = os.path.join(directory, f"paused-{number}")
    while not there("stop"):
        if there("pause"):
            open(confirmation, "w").close()
            time.sleep(0.02)
            continue
        if os.path.exists(confirmation):
            os.remove(confirmation)
        talk(rng.choice(addresses), rng)
        time.sleep(rng.random() / 20)
    print(json.dumps(moved), flush=True)
    while not there("end"):
        time.sleep(0.05)


main()
