#!/usr/bin/env python3
"""What a cluster takes for 1, 10 and 100 million flows a second: `scripts/bench scaling`.

No measurement, and nothing random: arithmetic over what was measured on one core (benches/RESULTS.md, "Many nodes"),
and a simulation of the split by hash. It prints the tables of docs/scaling.md. Change the inputs to those of your own
machines and flows.
"""
import hashlib, math

# Measured: benches/RESULTS.md.
FLOW_US = 1.71             # CPU of a flow's whole way: POST, Kafka, sums, compaction; nearly all keys new (`wide`)
APPLY_US = 0.18            # the part of it behind Kafka, of names that come often (`fleet`): on one thread a partition
MESSAGE_US = 28            # CPU of one more message, both ends: a node with 12 for 1,000 flows beside one with 1.5
REPLAY_FLOWS_PER_CPU_S = 1_560_000  # `wide`
TOPIC_BYTES_PER_FLOW = 26  # in one copy, compressed (`wide`)
STORE_BYTES_PER_KEY = 10.5
READ_US_PER_ROW = 0.18     # CPU of a row that is read and grouped where it is
MERGE_US_PER_ROW = 0.41    # CPU of a row of another node, on the node that is asked, as JSON

# Assumed.
CORES_PER_NODE = 8
LOAD_MAX = 0.6             # of a node's cores: the rest is for questions, and for what a lost node leaves
NODES_MIN = 3              # to go on when one is lost
PARTITIONS_PER_NODE = 4    # so that a lost node's go to several others
PARTITIONS_MAX = 256       # --kafka-partitions
GROUP_SECONDS = 0.025      # between two groups of a busy node (src/service/cluster/batcher.rs)
KEYS_PER_FLOW_A_SECOND = 4 # distinct names in an hour, per flow a second
COPIES = 3                 # of each message
BROKER_BYTES_PER_S = 500e6 # that a broker's network takes, each way, with room to spare
JOURNAL_HOURS = 24         # of the journal that are kept
CHECKPOINT_BYTES_PER_S = 100e6  # NOT MEASURED: download of a node's checkpoints
REPLAY_CORES = 4           # of a node that catches up
TAIL_HOURS = 0.25          # read from Kafka behind a checkpoint

RATES = (1_000_000, 10_000_000, 100_000_000)


def size(rate):
    """Nodes and partitions: each node has a message for each partition in each of its groups."""
    nodes = NODES_MIN
    while True:
        partitions = min(PARTITIONS_MAX, max(12, nodes * PARTITIONS_PER_NODE))
        messages = min(rate, nodes * partitions / GROUP_SECONDS)
        cores = (rate * FLOW_US + messages * MESSAGE_US) / 1e6
        if cores <= nodes * CORES_PER_NODE * LOAD_MAX:
            return nodes, partitions, messages, cores
        nodes += 1


def human(n, unit="B"):
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(n) < 1000:
            return f"{n:.3g} {prefix}{unit}"
        n /= 1000
    return f"{n:.3g} E{unit}"


def time_of(seconds):
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 7200 else f"{seconds / 3600:.3g} h"


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|---" * len(head) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print()


def sizes():
    columns = []
    for rate in RATES:
        nodes, partitions, messages, cores = size(rate)
        wire = rate * TOPIC_BYTES_PER_FLOW
        into, out = wire * COPIES, wire * COPIES  # out: to COPIES - 1 followers and to the node that has the partition
        brokers = max(COPIES, math.ceil(max(into, out) / BROKER_BYTES_PER_S))
        keys = rate * KEYS_PER_FLOW_A_SECOND
        rows_per_node = keys / nodes
        store = keys * STORE_BYTES_PER_KEY
        journal = rate * 3600 / nodes / REPLAY_FLOWS_PER_CPU_S / REPLAY_CORES
        whole = store / nodes * JOURNAL_HOURS / CHECKPOINT_BYTES_PER_S
        columns.append([
            f"{nodes} of {CORES_PER_NODE} cores", f"{cores:.3g}", f"{partitions}", human(messages, "/s"),
            f"{rate / messages:,.0f}", human(wire, "B/s"), f"{brokers}", human(into / brokers, "B/s"),
            human(wire * COPIES * 3600 * JOURNAL_HOURS / brokers), human(store), human(store / nodes * JOURNAL_HOURS),
            f"{nodes - 1}", time_of(rows_per_node * READ_US_PER_ROW / 1e6),
            time_of(keys * (nodes - 1) / nodes * MERGE_US_PER_ROW / 1e6),
            time_of(journal * JOURNAL_HOURS), time_of(whole + journal * TAIL_HOURS)])
    names = ["nodes", "cores that are busy", "partitions", "messages", "flows a message", "into Kafka, one copy",
             "brokers", "a broker's network and disk, each way", f"a broker's disk, {JOURNAL_HOURS} hours",
             "all stores, an hour", f"a node's stores, {JOURNAL_HOURS} hours", "nodes that a question asks",
             "groups of an hour, on each node at once", "all rows of an hour, merging on the node that is asked",
             f"a lost node's sums from Kafka, all {JOURNAL_HOURS} hours, on {REPLAY_CORES} cores",
             f"the same from checkpoints, and {TAIL_HOURS * 60:.0f} minutes of Kafka"]
    table(["flows a second", *(f"{rate // 1_000_000:,} M" for rate in RATES)],
          [[name, *(column[i] for column in columns)] for i, name in enumerate(names)])


def skew(edges=4_000_000, exact=200_000):
    """The shares of partitions when the k-th most frequent (src, dest, vpc) has 1/k of the first one's flows. Those
    behind `exact` are spread evenly: each of them is nothing by itself."""
    total = math.log(edges) + 0.5772156649
    rest = 1 - (math.log(exact) + 0.5772156649) / total
    hashes = [int.from_bytes(hashlib.blake2b(k.to_bytes(4, "big"), digest_size=8).digest(), "big") for k in range(exact)]
    rows = []
    for partitions in (12, 48, 128, 256):
        shares = [rest / partitions] * partitions
        for k, h in enumerate(hashes):
            shares[h % partitions] += 1 / (k + 1) / total
        hottest = max(shares)
        nodes = max(NODES_MIN, partitions // PARTITIONS_PER_NODE)
        of_nodes = [sum(shares[n::nodes]) for n in range(nodes)]
        rows.append([f"{partitions}", f"{hottest:.1%}", f"{hottest * partitions:.2f}", f"{nodes}",
                     f"{max(of_nodes) * nodes:.2f}", human(1e6 / APPLY_US / hottest, "/s")])
    print(f"The most frequent of {edges:,} has {1 / total:.1%} of all flows.\n")
    table(["partitions", "the hottest has", "to the mean", "nodes", "the busiest node, to the mean",
           "flows a second at which the hottest partition's thread is full"], rows)


sizes()
skew()
