#!/usr/bin/env python3
"""Measures nodes over Kafka beside the one process without it; `scripts/bench cluster` runs it.

    cluster.py BIN [--runs N] [--flows N] [PART...]      parts: load (replay included), query; both by default

It starts one broker (scripts/kafka) and prints as `load.py` does, with its workloads and its yardstick. CPU is that of
flowtally's process, librdkafka's threads included and the broker's left out, until all is flushed and compacted; of a
node, without what it takes while nothing happens, which is measured in the same process and given by itself. The two
take turns, since only ratios of one run compare on a machine that is noisy. Every byte is checked to be in the answers.
"""
import argparse, glob, os, shutil, subprocess, sys, tempfile, time
from load import HOUR, Figures, Server, body, bodies, post_all, show, sums, yardstick

PARTITIONS = 12
CAUGHT_UP_SECONDS_MAX = 300
ROWS = 1_000_000
# Name, workload, how often each body is sent, connections. Waiting batches share the cost of writing to Kafka, so the
# number of connections matters.
LOADS = (("fleet", "fleet", 10, 8), ("fleet_64_connections", "fleet", 10, 64), ("wide", "wide", 1, 8))


class Broker:
    def __init__(self):
        self.dir = tempfile.mkdtemp(prefix="flowtally-kafka-")
        environment = {**os.environ, "KAFKA_UNTIL": str(os.getpid())}
        started = subprocess.run(["scripts/kafka", "start", "1", self.dir], env=environment, check=True,
                                 stdout=subprocess.PIPE, text=True)
        self.address = started.stdout.split()[-1]

    def topic_bytes(self, topic):
        return sum(os.path.getsize(f) for f in glob.glob(f"{self.dir}/data-1/{topic}-[0-9]*/*.log"))

    def close(self):
        subprocess.run(["scripts/kafka", "stop", self.dir], check=False)


class Node(Server):
    """One node; it has all partitions when it is alone."""
    count = 0

    def __init__(self, binary, broker, topic):
        Node.count += 1
        self.name, self.broker, self.topic = f"node-{Node.count}", broker, topic
        super().__init__(binary)

    def flags(self):
        return ["--kafka-brokers", self.broker.address, "--kafka-topic", self.topic,
                "--kafka-partitions", str(PARTITIONS), "--node-name", self.name, "--node-url", f"http://{self.host}"]

    def await_caught_up(self):
        """Waits until all partitions have a node that serves them: then it has all messages from before their assignment."""
        begin = time.perf_counter()
        while self.get("/hours")[0] != 200:
            assert time.perf_counter() - begin < CAUGHT_UP_SECONDS_MAX, "the nodes do not catch up"
            time.sleep(0.1)

    def await_flows(self, flows):
        """Waits until this many flows are in its sums."""
        begin = time.perf_counter()
        while self.metric("flowtally_flows_applied_total") < flows:
            assert time.perf_counter() - begin < CAUGHT_UP_SECONDS_MAX, "the node does not apply what it took"
            time.sleep(0.1)

    def idle(self, seconds=6):
        """CPU a second while nothing happens."""
        before, begin = self.cpu_exact(), time.perf_counter()
        time.sleep(seconds)
        return (self.cpu_exact() - before) / (time.perf_counter() - begin)


def new_topic(names=iter(range(1_000_000))):
    return f"bench{next(names)}"


def load(a, broker):
    for name, kind, repeat, connections in LOADS:
        if a.load not in (None, name):
            continue
        parts = bodies(kind, a.flows // repeat, "cluster")
        n, want = len(parts) * 1000 * repeat, sums(parts, repeat)
        figures = Figures(f"cluster.{name}")
        for _ in range(a.runs):
            yard = yardstick(parts)
            server = Server(a.binary)
            try:
                before = server.cpu_exact()
                post_all(server, parts, repeat, connections)
                answered = server.cpu_exact()
                server.settle()
                one = (server.cpu_exact() - before) * 1e6 / n
                one_answered = (answered - before) * 1e6 / n
                server.check(want)
            finally:
                server.close()
            topic = new_topic()
            node = Node(a.binary, broker, topic)
            try:
                node.await_caught_up()
                before, begin = node.cpu_exact(), time.perf_counter()
                wall, latencies = post_all(node, parts, repeat, connections)
                node.await_flows(n)
                visible, visible_s = node.cpu_exact(), time.perf_counter() - begin
                node.settle()
                settled, settled_s = node.cpu_exact(), time.perf_counter() - begin
                node.check(want)
                idle = node.idle()
                messages = sum(float(line.split()[1]) for line in node.get("/metrics")[1].decode().splitlines()
                               if line.startswith("flowtally_partition_position{"))
                cluster = (settled - before - idle * settled_s) * 1e6 / n
                figures.add("embedded_us_per_flow", one)
                figures.add("node_us_per_flow", cluster)
                figures.add("node_to_embedded", cluster / one)
                figures.add("embedded_ratio", one / yard)
                figures.add("node_ratio", cluster / yard)
                figures.add("embedded_us_per_flow_until_answered", one_answered)
                figures.add("node_us_per_flow_until_visible", (visible - before - idle * visible_s) * 1e6 / n)
                figures.add("node_idle_cpu_percent", idle * 100)
                figures.add("node_flows_per_s", n / wall)
                figures.add("node_post_p50_ms", latencies[len(latencies) // 2])
                figures.add("node_post_p99_ms", latencies[int(len(latencies) * 0.99)])
                figures.add("node_memory_mib_most", node.memory("VmHWM"))
                figures.add("topic_bytes_per_flow", broker.topic_bytes(topic) / n)
                figures.add("messages_per_1000_flows", messages * 1000 / n)
                replay(figures, node, n, want)
            finally:
                node.close()
        figures.show()


def replay(figures, node, n, want):
    """The node without its directory: all of the topic is read."""
    node.stop()
    shutil.rmtree(node.dir)
    node.start()
    node.await_flows(n)
    node.await_caught_up()
    used, wall = node.cpu_exact(), time.perf_counter() - node.began
    node.check(want)
    figures.add("replay_flows_per_cpu_s", n / used)
    figures.add("replay_us_per_flow", used * 1e6 / n)
    figures.add("replay_flows_per_s", n / wall)
    figures.add("replay_s", wall)


def query(a, broker):
    """One hour of rows, from one process, and from three nodes by a query to the first."""
    def rows(i):
        return ((f"svc-{k % 997}", f"svc-{k // 997}", "vpc", 1, 1, HOUR) for k in range(i * 10_000, (i + 1) * 10_000))
    parts = [body(rows(i)) for i in range(ROWS // 10_000)]
    want = sums(parts)
    figures = Figures("cluster.query")
    topic = new_topic()
    server = Server(a.binary)
    nodes = [Node(a.binary, broker, topic) for _ in range(3)]
    try:
        # The group moves partitions to new nodes.
        nodes[0].await_caught_up()
        post_all(server, parts)
        post_all(nodes[0], parts)
        for one in (server, nodes[0]):
            one.settle()
        nodes[0].check(want)
        lines = nodes[0].get("/metrics")[1].decode().splitlines()
        own = sum(float(l.split()[1]) for l in lines if l.startswith("flowtally_partitions "))
        figures.add("partitions_of_the_node_asked", own)
        for name, path in (("rows", f"/flows?hour={HOUR}"), ("groups", f"/flows?hour={HOUR}&group_by=src_app"),
                           ("top", f"/flows?hour={HOUR}&sort=bytes&limit=10")):
            for _ in range(a.runs):
                def cost(one, of):
                    before = [node.cpu_exact() for node in of]
                    begin = time.perf_counter()
                    status, data = one.get(path)
                    assert status == 200, data[:300]
                    return [(node.cpu_exact() - b) * 1e6 / ROWS for node, b in zip(of, before)], time.perf_counter() - begin
                (embedded,), embedded_s = cost(server, [server])
                each, nodes_s = cost(nodes[0], nodes)
                figures.add(f"{name}_embedded_us_per_row", embedded)
                figures.add(f"{name}_all_nodes_us_per_row", sum(each))
                figures.add(f"{name}_asked_node_us_per_row", each[0])
                figures.add(f"{name}_other_nodes_us_per_row", sum(each[1:]))
                figures.add(f"{name}_all_nodes_to_embedded", sum(each) / embedded)
                figures.add(f"{name}_embedded_ms", embedded_s * 1e3)
                figures.add(f"{name}_nodes_ms", nodes_s * 1e3)
        figures.show()
    finally:
        for one in (server, *nodes):
            one.close()


PARTS = {"load": load, "query": query}


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("binary")
    p.add_argument("parts", nargs="*", help=", ".join(PARTS))
    p.add_argument("--load", choices=[load[0] for load in LOADS], help="this one only")
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--flows", type=int, default=3_000_000, help="flows a run of a workload")
    a = p.parse_args()
    print("# runs", a.runs, flush=True)
    broker = Broker()
    try:
        for part in a.parts or PARTS:
            PARTS[part](a, broker)
    finally:
        broker.close()


if __name__ == "__main__":
    main()
