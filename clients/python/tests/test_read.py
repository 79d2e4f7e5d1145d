"""Reading: every parameter, rows as a stream, and responses that break off."""

from __future__ import annotations

import inspect
import json
import unittest
import urllib.request
from typing import Any, Callable, Dict, List, Tuple

from flowtally import (
    Client,
    Flow,
    HourTotals,
    InvalidRequest,
    NotFound,
    Problem,
    Retry,
    Row,
    Stats,
    Truncated,
)

from .proxy import BUSY, WITHIN, Proxy
from .service import Service

U64_MAX = 2**64 - 1
EAGER = Retry(first_s=0.001, pause_s_max=0.01, total_s_max=60)

FLOWS = [
    Flow("web-1", "db", "vpc-a", 10, 1, 24),
    Flow("web-2", "db", "vpc-a", 20, 2, 24),
    Flow("cron", "web-1", "vpc-b", 5, 3, 25),
    Flow("web-1", "db", "vpc-a", U64_MAX - 10, 4, 30),
    Flow("größe", "queue", "vpc-b", 7, 8, 50),
]


class Reading(unittest.TestCase):
    service: Service

    @classmethod
    def setUpClass(cls) -> None:
        cls.service = Service()
        with Client(cls.service.url) as client:
            client.send(FLOWS)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.service.stop()

    def setUp(self) -> None:
        self.client = Client(self.service.url, retry=EAGER)
        self.addCleanup(self.client.close)

    def names(self, **parameters: Any) -> List[Tuple[Any, Any]]:
        return [(row.hour, row.src_app) for row in self.client.flows(**parameters)]

    def test_rows_of_an_hour(self) -> None:
        rows = list(self.client.flows(hour=24))
        self.assertEqual(
            rows,
            [
                Row(10, 1, src_app="web-1", dest_app="db", vpc_id="vpc-a", hour=24),
                Row(20, 2, src_app="web-2", dest_app="db", vpc_id="vpc-a", hour=24),
            ],
        )
        self.assertEqual(list(self.client.flows(hour=0)), [])

    def test_ranges_and_filters(self) -> None:
        everything = [(24, "web-1"), (24, "web-2"), (25, "cron"), (30, "web-1"), (50, "größe")]
        self.assertEqual(self.names(from_=0), everything)
        self.assertEqual(self.names(to=25), everything[:2])
        self.assertEqual(self.names(from_=25, to=50), everything[2:4])
        cases: List[Tuple[Dict[str, Any], List[int]]] = [
            ({"src_app": "web-1"}, [0, 3]),
            ({"src_app": ["cron", "größe"]}, [2, 4]),
            ({"dest_app": "db"}, [0, 1, 3]),
            ({"vpc_id": "vpc-b"}, [2, 4]),
            ({"peer": "web-1"}, [0, 2, 3]),
            ({"src_app_prefix": "web-"}, [0, 1, 3]),
            ({"dest_app_prefix": "q"}, [4]),
            ({"vpc_id_prefix": ("vpc-a", "x")}, [0, 1, 3]),
            ({"peer_prefix": "web-1"}, [0, 2, 3]),
            ({"src_app_not": "web-1"}, [1, 2, 4]),
            ({"dest_app_not": ["db", "queue"]}, [2]),
            ({"vpc_id_not": "vpc-b"}, [0, 1, 3]),
            ({"peer_not": "db"}, [2, 4]),
            ({"search": "SS"}, []),
            ({"search": "ueu"}, [4]),
            ({"src_app_prefix": "web", "peer_not": "web-2"}, [0, 3]),
        ]
        for parameters, expected in cases:
            with self.subTest(parameters):
                self.assertEqual(self.names(from_=0, **parameters), [everything[n] for n in expected])

    def test_groups(self) -> None:
        self.assertEqual(
            list(self.client.flows(from_=0, group_by=["src_app"], src_app="web-1")),
            # It has saturated.
            [Row(U64_MAX, 5, src_app="web-1")],
        )
        self.assertEqual(list(self.client.flows(to=26, group_by=[])), [Row(35, 6)])
        self.assertEqual(
            list(self.client.flows(to=26, group_by=["vpc_id", "hour"], step=24)),
            [Row(30, 3, vpc_id="vpc-a", hour=24), Row(5, 3, vpc_id="vpc-b", hour=24)],
        )

    def test_order_and_pages(self) -> None:
        first = self.client.flows(to=30, sort="bytes_tx", limit=2, other=True)
        self.assertEqual((first.total_bytes_tx, first.total_bytes_rx), (35, 6))
        rows = list(first)
        self.assertEqual(
            [(row.src_app, row.bytes_tx, row.other) for row in rows],
            [("web-2", 20, False), ("web-1", 10, False), (None, 5, True)],
        )
        self.assertEqual(self.names(to=30, sort="-bytes"), [(25, "cron"), (24, "web-1"), (24, "web-2")])
        found: List[Row] = []
        cursor = None
        for _ in range(3):
            page = self.client.flows(from_=0, limit=2, cursor=cursor)
            found += page
            cursor = page.cursor
        self.assertIsNone(cursor)
        self.assertEqual(found, list(self.client.flows(from_=0)))

    def test_comparison(self) -> None:
        rows = self.client.flows(from_=25, to=26, group_by=["vpc_id"], compare="previous", sort="change")
        self.assertEqual(
            list(rows),
            [
                Row(5, 3, vpc_id="vpc-b", bytes_tx_before=0, bytes_rx_before=0),
                Row(0, 0, vpc_id="vpc-a", bytes_tx_before=30, bytes_rx_before=3),
            ],
        )
        (row,) = self.client.flows(hour=50, group_by=[], compare=24)
        self.assertEqual(row.bytes_tx_before, 30)

    def test_all_parameters_are_there(self) -> None:
        with urllib.request.urlopen(f"{self.service.url}/openapi.json") as response:
            document = json.load(response)
        methods: List[Tuple[str, Callable[..., Any]]] = [("/flows", Client.flows), ("/hours", Client.hours)]
        for path, method in methods:
            parameters = document["paths"][path]["get"]["parameters"]
            described = {parameter["name"] for parameter in parameters if parameter["in"] == "query"}
            own = {name.rstrip("_") for name in inspect.signature(method).parameters} - {"self"}
            self.assertEqual(own, described, path)
        # What the service answers is what the types have.
        row = document["components"]["schemas"]["Row"]["properties"]
        self.assertEqual(set(row), set(Row._fields))
        self.assertEqual(set(document["components"]["schemas"]["HourTotals"]["properties"]), set(HourTotals._fields))
        self.assertEqual(set(document["components"]["schemas"]["Flow"]["properties"]), set(Flow._fields))

    def test_wrong_queries(self) -> None:
        with self.assertRaises(InvalidRequest) as caught:
            self.client.flows()
        self.assertEqual(caught.exception.kind, "bad-query")
        with self.assertRaises(InvalidRequest):
            self.client.flows(hour=1, step=24)
        with self.assertRaises(InvalidRequest):
            self.client.hours(step=0)

    def test_a_stream_is_read_as_it_comes(self) -> None:
        hour = 60
        self.client.send(Flow(f"app-{n:05}", "db", "vpc", n, 1, hour) for n in range(20_000))
        with self.client.flows(hour=hour) as rows:
            for expected, row in zip(range(10), rows):
                self.assertEqual(row.bytes_tx, expected)
                # Another request in between has a connection of its own.
                self.assertEqual(next(self.client.flows(hour=24)).src_app, "web-1")
        # A stream that was left early does not disturb the next one.
        self.assertEqual(sum(row.bytes_tx for row in self.client.flows(hour=hour)), sum(range(20_000)))
        self.assertEqual(self.client.delete_hour(hour), 20_000)

    def test_a_response_that_breaks_off_is_no_end(self) -> None:
        with Proxy(self.service.address) as proxy, Client(proxy.url, retry=EAGER) as client:
            proxy.faults.append(WITHIN)
            with self.assertRaises(Truncated):
                list(client.flows(from_=0))
            # The others are read as a whole, and asked for again.
            proxy.faults += [WITHIN, BUSY, WITHIN]
            self.assertEqual(client.hours(), self.client.hours())
            proxy.faults.append(WITHIN)
            self.assertIn("flowtally_flows_accepted_total", client.metrics())

    def test_hours_and_stats(self) -> None:
        hours = self.client.hours()
        self.assertEqual(hours[0], HourTotals(24, 2, 30, 3))
        self.assertEqual([hour.hour for hour in hours], [24, 25, 30, 50])
        self.assertEqual([hour.hour for hour in self.client.hours(from_=25, to=50)], [25, 30])
        self.assertEqual(self.client.hours(to=48, step=24), [HourTotals(24, 4, U64_MAX - 10 + 35, 10)])
        self.assertEqual(self.client.stats(), Stats(4, 24, 50, 5, U64_MAX + 32, 18))
        with Service() as empty, Client(empty.url) as client:
            self.assertEqual(client.stats(), Stats(0, None, None, 0, 0, 0))

    def test_deleting(self) -> None:
        self.client.send([Flow("gone", "db", "vpc", 1, 2, hour) for hour in (70, 71, 71, 72)])
        self.assertEqual(self.client.delete_hour(71), 2)
        self.assertEqual(self.client.delete_hour(71), 0)
        self.assertEqual(self.client.delete_hours(70, 73), 2)
        self.assertEqual(self.client.hours(from_=70), [])
        with Client(f"{self.service.url}/elsewhere") as elsewhere, self.assertRaises(NotFound):
            elsewhere.delete_hour(1)
        with self.assertRaises(Problem):
            self.client.delete_hours(5, 5)

    def test_health(self) -> None:
        self.assertTrue(self.client.is_alive() and self.client.is_ready())


if __name__ == "__main__":
    unittest.main()
