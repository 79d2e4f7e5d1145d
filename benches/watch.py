#!/usr/bin/env python3
"""Measures what `flowtally agent watch` takes; `scripts/bench watch` runs it. It has to be run by root.

    watch.py BIN [--agent AGENT] [--sockets N] [--rate R] [--seconds S] [--runs N]
    watch.py BIN smoke      200 sockets, 100 a second, for 3 seconds

The agent is in a network namespace of its own, beside a program that keeps N connections open, and opens and ends R others
a second, each with a request and an answer, 50 of them at a time. The other ends are in a second namespace, with the
service. The agent has its default settings, so it names applications by their processes here, and asks the directory.

Prints one figure a line, `name: value`, the median of the runs, and `.min` and `.max` of them:

    open_cpu_percent     user + system time of the agent in percent of a core, while the N connections are open
    cpu_percent          the same while others are opened and ended
    us_an_end            the difference, for each connection that ends
    memory_mib           most memory of the agent
    lost_ends            times that the kernel dropped messages about ends
    unknown_percent      bytes whose application was not found
    exact                1: the sums at the service are what was moved, to the byte. Otherwise it exits with an error
"""
import argparse, collections, json, os, resource, selectors, signal, socket, subprocess, sys, tempfile, time
from load import Figures, Server

ADDRESSES = "10.78.0.1", "10.78.0.2"
KEPT_PORT, SHORT_PORT = 9100, 9101
HELLO, REQUEST, ANSWER = bytes(10), bytes(100), bytes(200)
# Short connections that are open at a time: at 1,000 a second, each lives for 50 ms.
HELD = 50
# One in so many is closed by the program that has opened it, the others by the peer.
CLOSED_HERE = 16
# Two looks at all sockets.
SETTLE_S = 12
END_S = 2
SENT_S = 30


def raise_limit(files):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = files + 200
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, max(hard, needed)))


def read(connection, length):
    while length:
        part = connection.recv(length)
        if not part:
            sys.exit("the peer has closed a connection too early")
        length -= len(part)


class Peer:
    """The other ends: greets those that stay, and answers short ones, which it closes after one byte more."""

    def __init__(self, files):
        raise_limit(int(files))
        self.selector, self.arrived = selectors.DefaultSelector(), {}
        for port, accept in ((KEPT_PORT, self.greet), (SHORT_PORT, self.accept)):
            listener = socket.create_server((ADDRESSES[0], port), backlog=4096)
            self.selector.register(listener, selectors.EVENT_READ, accept)
        # Closed when the bench ends.
        self.selector.register(sys.stdin, selectors.EVENT_READ, lambda _: sys.exit())

    def serve(self):
        print("ready", flush=True)
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)

    def greet(self, listener):
        connection, _ = listener.accept()
        self.selector.register(connection, selectors.EVENT_READ, self.echo)

    def echo(self, connection):
        data = connection.recv(1 << 16)
        if data:
            connection.sendall(data)
        else:
            self.close(connection)

    def accept(self, listener):
        connection, _ = listener.accept()
        self.arrived[connection] = 0
        self.selector.register(connection, selectors.EVENT_READ, self.answer)

    def answer(self, connection):
        data = connection.recv(1 << 16)
        before = self.arrived[connection]
        self.arrived[connection] = after = before + len(data)
        if before < len(REQUEST) <= after:
            connection.sendall(ANSWER)
        if not data or after > len(REQUEST):
            del self.arrived[connection]
            self.close(connection)

    def close(self, connection):
        self.selector.unregister(connection)
        connection.close()


class Client:
    """Keeps connections open, and makes short ones for each line on standard input: `RATE SECONDS`."""

    def __init__(self, sockets):
        raise_limit(int(sockets))
        self.kept = []
        for _ in range(int(sockets)):
            connection = socket.create_connection((ADDRESSES[0], KEPT_PORT))
            connection.sendall(HELLO)
            read(connection, len(HELLO))
            self.kept.append(connection)

    def serve(self):
        greeted = len(self.kept) * len(HELLO)
        self.say(ends=0, sent=greeted, received=greeted)
        for line in sys.stdin:
            rate, seconds = map(float, line.split())
            self.run(rate, seconds)

    def say(self, **said):
        print(json.dumps(said), flush=True)

    def run(self, rate, seconds):
        began, opened, sent, held = time.perf_counter(), 0, 0, collections.deque()
        while (elapsed := time.perf_counter() - began) < seconds:
            while opened < int(elapsed * rate):
                connection = socket.create_connection((ADDRESSES[0], SHORT_PORT))
                connection.sendall(REQUEST)
                read(connection, len(ANSWER))
                held.append(connection)
                opened += 1
                if len(held) > HELD:
                    sent += self.end(held.popleft(), opened)
            time.sleep(0.01)
        for number, connection in enumerate(held):
            sent += self.end(connection, number)
        self.say(ends=opened, sent=sent, received=opened * len(ANSWER))

    def end(self, connection, number):
        """Returns the bytes that it has sent."""
        with connection:
            if number % CLOSED_HERE == 0:
                return len(REQUEST)
            connection.sendall(b"x")
            if connection.recv(1):
                sys.exit("the peer has sent more than the answer")
            return len(REQUEST) + 1


class Service(Server):
    """The service at an address that the agent's namespace reaches."""

    def start(self):
        self.host = f"{ADDRESSES[0]}:{self.host.rsplit(':', 1)[1]}"
        super().start()

    def flags(self):
        return ["--allow-anonymous"]

    def moved(self):
        """Bytes sent and received, without those of the agent's own reports."""
        status, data = self.get("/flows?from=0&to=4294967295&group_by=dest_app")
        assert status == 200, data[:300]
        rows = [row for row in json.loads(data) if row["dest_app"] != "service"]
        return [sum(row[key] for row in rows) for key in ("bytes_tx", "bytes_rx")]


class Agent:
    def __init__(self, a, service):
        self.dir = service.temp
        apps, self.metrics = os.path.join(self.dir, "apps"), os.path.join(self.dir, "metrics")
        with open(apps, "w") as file:
            file.write(f"address,app\n{service.host},service\n")
        self.log = open(os.path.join(self.dir, "agent.log"), "ab")
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", a.inside, *a.agent, "watch", "--url", f"http://{service.host}", "--vpc-id", "bench",
             "--state-dir", os.path.join(self.dir, "state"), "--apps", apps, "--metrics-file", self.metrics],
            stdout=self.log, stderr=self.log)
        while not os.path.exists(self.metrics):
            if self.process.poll() is not None:
                sys.exit("the agent does not start: " + open(self.log.name).read())
            time.sleep(0.01)

    def cpu(self):
        """Seconds of CPU so far, by the process's clock, as clock_getcpuclockid(3)."""
        return time.clock_gettime((~self.process.pid << 3) | 2)

    def percent_during(self, action):
        """CPU in percent of a core."""
        cpu, began = self.cpu(), time.perf_counter()
        action()
        return (self.cpu() - cpu) * 100 / (time.perf_counter() - began)

    def memory(self):
        """The most so far, in MiB."""
        for line in open(f"/proc/{self.process.pid}/status"):
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1024

    def metric(self, name):
        for line in open(self.metrics):
            if line.startswith(f"flowtally_agent_{name} "):
                return float(line.split()[1])

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        return self.process.wait(60)


def run(a, figures):
    here = [sys.executable, os.path.abspath(__file__)]
    peer = subprocess.Popen([*here, "peer", str(a.sockets)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    service = agent = client = None
    try:
        if peer.stdout.readline() != "ready\n":
            sys.exit("the peer does not start")
        service = Service(a.binary)
        agent = Agent(a, service)
        client = subprocess.Popen(["ip", "netns", "exec", a.inside, *here, "client", str(a.sockets)],
                                  stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def said():
            line = client.stdout.readline()
            return json.loads(line) if line else sys.exit("the client has failed")

        def short():
            print(a.rate, a.seconds, file=client.stdin, flush=True)
            all_said.append(said())

        all_said = [said()]
        time.sleep(SETTLE_S)
        figures.add("open_cpu_percent", agent.percent_during(lambda: time.sleep(a.seconds)))
        figures.add("cpu_percent", agent.percent_during(short))
        more = figures.last("cpu_percent") - figures.last("open_cpu_percent")
        figures.add("us_an_end", more * 1e4 * a.seconds / max(1, all_said[-1]["ends"]))
        # Messages about the last ends.
        time.sleep(END_S)
        figures.add("memory_mib", agent.memory())
        if agent.stop() != 0:
            sys.exit("the agent has failed: " + open(agent.log.name).read())
        lost, unknown = agent.metric("lost_ends_total"), agent.metric("unattributed_bytes_total")
        # It sends what is still in the spool.
        agent = Agent(a, service)
        moved = [sum(each[key] for each in all_said) for key in ("sent", "received")]
        until = time.monotonic() + SENT_S
        while (counted := service.moved()) != moved and time.monotonic() < until:
            time.sleep(0.1)
        if counted != moved:
            sys.exit(f"NOT EXACT: moved {moved}, counted {counted}, lost messages: {lost}")
        figures.add("lost_ends", lost)
        figures.add("unknown_percent", unknown * 100 / sum(moved))
        figures.add("exact", 1)
    finally:
        for process in (client, peer):
            if process is not None:
                process.kill()
                process.wait()
        if agent is not None:
            agent.stop(signal.SIGKILL)
        if service is not None:
            service.close()


def in_namespaces():
    """Runs this script in a new network namespace, beside a second one, and returns how it has ended."""
    names = [f"flowtally-bench-{os.getpid()}-{number}" for number in (0, 1)]

    def ip(arguments):
        subprocess.run(["ip", *arguments.split()], check=True)

    try:
        for name in names:
            ip(f"netns add {name}")
            ip(f"-n {name} link set lo up")
        ip(f"-n {names[0]} link add eth0 type veth peer name eth0 netns {names[1]}")
        for name, address in zip(names, ADDRESSES):
            ip(f"-n {name} addr add {address}/24 dev eth0")
            ip(f"-n {name} link set eth0 up")
        command = [sys.executable, os.path.abspath(__file__), *sys.argv[1:], "--inside", names[1]]
        return subprocess.run(["ip", "netns", "exec", names[0], *command]).returncode
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("part", nargs="?", choices=("all", "smoke"), default="all")
    parser.add_argument("--agent", help="the binary flowtally-agent; otherwise `BIN agent`")
    parser.add_argument("--sockets", type=int)
    parser.add_argument("--rate", type=int)
    parser.add_argument("--seconds", type=int, help="of each of both measurements")
    parser.add_argument("--runs", type=int)
    # The namespace of the agent, when it runs in that of the service.
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.inside is None:
        return in_namespaces() if os.geteuid() == 0 else "run it as root: it makes network namespaces"
    sizes = (200, 100, 3, 1) if a.part == "smoke" else (10_000, 1_000, 120, 3)
    for name, size in zip(("sockets", "rate", "seconds", "runs"), sizes):
        setattr(a, name, getattr(a, name) or size)
    a.agent = [a.agent] if a.agent else [a.binary, "agent"]
    print("# runs", a.runs, flush=True)
    figures = Figures("watch")
    for _ in range(a.runs):
        run(a, figures)
    figures.show()


if __name__ == "__main__":
    if sys.argv[1:2] == ["peer"]:
        Peer(sys.argv[2]).serve()
    elif sys.argv[1:2] == ["client"]:
        Client(sys.argv[2]).serve()
    else:
        sys.exit(main())
