#!/usr/bin/env python3
"""Reports the bytes of each network interface of this host. Needs `pip install ./clients/python`.

Each report is stored in a spool before it is sent: it outlives a service that is away, and a restart of this agent.
"""

import os
import socket
import sys
import time
from typing import Dict, List, Tuple

from flowtally import Client, Flow, FlowtallyError, Retry, Spool

URL = os.environ.get("FLOWTALLY_URL", "http://127.0.0.1:8080")
PERIOD = float(os.environ.get("PERIOD", "60"))
COUNTERS = os.environ.get("COUNTERS", "/proc/net/dev")
APP = os.environ.get("APP", socket.gethostname())


def read_counters() -> Dict[str, Tuple[int, int]]:
    """The bytes that each interface has sent and received since it exists."""
    counters = {}
    with open(COUNTERS) as file:
        for line in file:
            interface, colon, numbers = line.partition(":")
            if colon:
                columns = numbers.split()
                counters[interface.strip()] = (int(columns[8]), int(columns[0]))
    return counters


def main() -> None:
    client = Client(URL, token=os.environ.get("FLOWTALLY_TOKEN"), retry=Retry(total_s_max=PERIOD))
    spool = Spool(os.environ.get("SPOOL", "spool"))
    before = read_counters()
    print(f"reports {COUNTERS} to {URL} every {PERIOD:g} s", flush=True)
    while True:
        time.sleep(PERIOD)
        now, hour = read_counters(), int(time.time()) // 3600
        flows: List[Flow] = []
        for interface, counters in now.items():
            # A counter that has become smaller began again at 0.
            pairs = zip(counters, before.get(interface, (0, 0)))
            tx, rx = (new - old if new >= old else new for new, old in pairs)
            if tx or rx:
                flows.append(Flow(APP, interface, os.environ.get("VPC", ""), tx, rx, hour))
        spool.add(flows)
        before = now
        try:
            spool.deliver(client)
        except FlowtallyError as error:
            print(f"{error}; {len(spool)} batches wait for the next try", file=sys.stderr)


if __name__ == "__main__":
    main()
