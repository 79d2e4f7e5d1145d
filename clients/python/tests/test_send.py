"""Sending: each flow counts once, whatever fails in between, and errors say what is wrong."""

from __future__ import annotations

import gzip
import http.server
import json
import os
import random
import threading
import unittest
from typing import Dict, List, Tuple

from flowtally import (
    AccessDenied,
    Client,
    ConnectionFailed,
    Flow,
    InvalidBatch,
    KeyReused,
    NotFound,
    Retry,
    Sent,
    TooLarge,
    Unavailable,
    UnexpectedResponse,
    batches,
)

from .proxy import AFTER, BEFORE, BUSY, LOST, PASS, WITHIN, Proxy
from .service import Service

U64_MAX = 2**64 - 1
# Without pauses that matter.
EAGER = Retry(first_s=0.001, pause_s_max=0.01, total_s_max=60)

Key = Tuple[int, str, str, str]


def sums(flows: List[Flow]) -> Dict[Key, Tuple[int, int]]:
    """What the service has to answer about these flows."""
    model: Dict[Key, Tuple[int, int]] = {}
    for src_app, dest_app, vpc_id, bytes_tx, bytes_rx, hour in flows:
        tx, rx = model.get((hour, src_app, dest_app, vpc_id), (0, 0))
        model[hour, src_app, dest_app, vpc_id] = (min(tx + bytes_tx, U64_MAX), min(rx + bytes_rx, U64_MAX))
    return model


def stored(client: Client, hour: int) -> Dict[Key, Tuple[int, int]]:
    found: Dict[Key, Tuple[int, int]] = {}
    for row in client.flows(hour=hour):
        assert row.src_app is not None and row.dest_app is not None and row.vpc_id is not None
        found[hour, row.src_app, row.dest_app, row.vpc_id] = (row.bytes_tx, row.bytes_rx)
    return found


def some(hour: int, count: int, chance: random.Random) -> List[Flow]:
    names = ["web", "db", "", "größe", "a\0b", '"', "line\nbreak", "x" * 1024]
    return [
        Flow(
            chance.choice(names), chance.choice(names), "vpc", chance.choice([0, 7, U64_MAX]), chance.getrandbits(60), hour
        )
        for _ in range(count)
    ]


class Sending(unittest.TestCase):
    service: Service

    @classmethod
    def setUpClass(cls) -> None:
        cls.service = Service()

    @classmethod
    def tearDownClass(cls) -> None:
        cls.service.stop()

    def setUp(self) -> None:
        self.client = Client(self.service.url, retry=EAGER)
        self.addCleanup(self.client.close)

    def test_sums_are_exact(self) -> None:
        flows = some(1, 2_500, random.Random(1))
        self.assertEqual(self.client.send(iter(flows)), Sent(batches=3, accepted=2_500))
        self.assertEqual(stored(self.client, 1), sums(flows))
        self.assertEqual(self.client.send([]), Sent())

    def test_sums_are_exact_under_faults(self) -> None:
        seed = int(os.environ.get("FLOWTALLY_TEST_SEED") or random.getrandbits(32))
        print(f"faults: FLOWTALLY_TEST_SEED={seed}")
        chance = random.Random(seed)
        flows = some(2, 500, chance)
        faults = random.Random(seed)
        with Proxy(self.service.address, lambda: faults.choice([PASS, BEFORE, AFTER, WITHIN, BUSY, LOST])) as proxy:
            with Client(proxy.url, retry=EAGER, batch_flows=7) as client:
                sent = client.send(flows)
        self.assertEqual((sent.accepted, sent.batches), (500, 72))
        self.assertEqual(stored(self.client, 2), sums(flows))
        # There were faults of each kind, or this shows nothing.
        self.assertEqual({request.fault for request in proxy.requests}, {PASS, BEFORE, AFTER, WITHIN, BUSY, LOST})
        # A retry has the same body, byte by byte.
        bodies: Dict[str, bytes] = {}
        for request in proxy.requests:
            assert request.key is not None
            self.assertEqual(request.body, bodies.setdefault(request.key, request.body))
        self.assertEqual(len(bodies), 72)

    def test_a_lost_response_is_a_replay(self) -> None:
        flow = Flow("replay", "db", "vpc", 1, 2, 3)
        with Proxy(self.service.address) as proxy, Client(proxy.url, retry=EAGER) as client:
            proxy.faults += [AFTER, LOST]
            self.assertEqual(client.send([flow]), Sent(batches=1, accepted=1, replayed=1))
        self.assertEqual(stored(self.client, 3), sums([flow]))
        self.assertEqual([request.encoding for request in proxy.requests], ["gzip"] * 3)

    def test_a_killed_service_comes_back(self) -> None:
        with Service() as service, Client(service.url, retry=EAGER) as client:
            client.send([Flow("before", "db", "vpc", 1, 2, 3)])
            service.restart()
            # The kept connection is gone, which is not an error.
            client.send([Flow("after", "db", "vpc", 1, 2, 3)])
            self.assertEqual([row.src_app for row in client.flows(hour=3)], ["after", "before"])

    def test_batches_are_bounded(self) -> None:
        flows = [Flow("x" * 100, "db", "vpc", 1, 2, 4) for _ in range(100)]
        cut = list(batches(flows, flows_max=1_000, bytes_max=1_000))
        self.assertEqual(sum(batch.flows for batch in cut), 100)
        self.assertEqual([batch.first for batch in cut], list(range(0, 100, cut[0].flows)))
        for batch in cut:
            lines = gzip.decompress(batch.body).splitlines(keepends=True)
            self.assertEqual(len(lines), batch.flows)
            self.assertTrue(all(json.loads(line)["hour"] == 4 for line in lines))
            # One flow more at most.
            self.assertLess(len(b"".join(lines[:-1])), 1_000)
        self.assertEqual(len({batch.key for batch in cut}), len(cut))

    def test_an_invalid_flow_refuses_its_batch_only(self) -> None:
        good = [Flow(str(n), "db", "vpc", 1, 2, 5) for n in range(8)]
        wrong = good[5]._replace(bytes_tx=U64_MAX + 1)
        last = Flow("last", "db", "vpc", 1, 2, 5)
        rest = iter([*good[:5], wrong, *good[6:], last])
        with Client(self.service.url, retry=EAGER, batch_flows=4) as client:
            with self.assertRaises(InvalidBatch) as caught:
                client.send(rest)
            error = caught.exception
            self.assertEqual((error.status, error.kind, error.index, error.field), (400, "bad-batch", 1, "bytes_tx"))
            assert error.batch is not None
            self.assertEqual((error.batch.first, error.batch.flows), (4, 4))
            self.assertEqual(error.sent, Sent(batches=1, accepted=4))
            self.assertEqual(stored(client, 5), sums(good[:4]))
            # The iterator is behind the batch.
            client.send(rest)
            self.assertEqual(stored(client, 5), sums([*good[:4], last]))

    def test_other_wrong_input(self) -> None:
        valid = Flow("a", "b", "c", 1, 2, 6)
        for flow, field in [
            (valid._replace(src_app="x" * 1025), "src_app"),
            (valid._replace(hour=2**32), "hour"),
            (valid._replace(bytes_rx=-1), "bytes_rx"),
            (valid._replace(bytes_rx=1.5), "bytes_rx"),  # type: ignore[arg-type]
            (valid._replace(vpc_id=None), "vpc_id"),  # type: ignore[arg-type]
        ]:
            with self.assertRaises(InvalidBatch) as caught:
                self.client.send([valid, flow])
            self.assertEqual((caught.exception.index, caught.exception.field), (1, field))
        # What JSON cannot express is not sent at all.
        with Proxy(self.service.address) as proxy, Client(proxy.url, retry=EAGER) as client:
            for flow in [
                valid._replace(bytes_tx=float("nan")),  # type: ignore[arg-type]
                valid._replace(src_app="\ud800"),
            ]:
                with self.assertRaises(ValueError):
                    client.send([flow])
        self.assertEqual(proxy.requests, [])
        self.assertEqual(stored(self.client, 6), {})

    def test_a_key_is_for_one_batch(self) -> None:
        batch, other = batches([Flow(name, "db", "vpc", 1, 2, 7) for name in "ab"], flows_max=1)
        self.assertFalse(self.client.send_batch(batch).replayed)
        self.assertTrue(self.client.send_batch(batch).replayed)
        with self.assertRaises(KeyReused):
            self.client.send_batch(other._replace(key=batch.key))
        self.assertEqual(stored(self.client, 7), sums([Flow("a", "db", "vpc", 1, 2, 7)]))

    def test_too_large_a_batch(self) -> None:
        with Service("--body-max", "1") as service:
            flows = [Flow(os.urandom(200).hex(), "db", "vpc", 1, 2, 8) for _ in range(4_000)]
            with Client(service.url, retry=EAGER, batch_flows=10_000, batch_bytes=1 << 30) as client:
                with self.assertRaises(TooLarge):
                    client.send(flows)
                self.assertEqual(stored(client, 8), {})
            with Client(service.url, retry=EAGER) as client:
                self.assertEqual(client.send(flows).accepted, 4_000)

    def test_tokens(self) -> None:
        flow = Flow("token", "db", "vpc", 1, 2, 9)
        (self.service.directory / "writers").write_text("w-secret\n")
        (self.service.directory / "readers").write_text("r-secret\n")
        files = [str(self.service.directory / name) for name in ("writers", "readers")]
        with Service("--write-token-file", files[0], "--read-token-file", files[1]) as service:
            for token, kind in [(None, "no-token"), ("wrong", "wrong-token"), ("r-secret", "token-lacks-right")]:
                with Client(service.url, token=token, retry=EAGER) as client:
                    with self.assertRaises(AccessDenied) as caught:
                        client.send([flow])
                    self.assertEqual(caught.exception.kind, kind)
            with Client(service.url, token="w-secret") as writer, Client(service.url, token="r-secret") as reader:
                writer.send([flow])
                self.assertEqual(stored(reader, 9), sums([flow]))
                with self.assertRaises(AccessDenied):
                    writer.flows(hour=9)
                self.assertTrue(reader.is_ready() and reader.is_alive())
        for token in ["", "two words", "größe", "line\nbreak"]:
            with self.assertRaises(ValueError):
                Client(self.service.url, token=token)


class GivingUp(unittest.TestCase):
    """Pauses are not slept, but recorded."""

    def setUp(self) -> None:
        self.pauses: List[float] = []

    def retry(self, total_s_max: float) -> Retry:
        return Retry(first_s=0.5, pause_s_max=4, total_s_max=total_s_max, sleep=self.pauses.append)

    def test_retry_after_is_honoured(self) -> None:
        with Service() as service, Proxy(service.address, retry_after="7") as proxy:
            with Client(proxy.url, retry=self.retry(60)) as client:
                proxy.faults += [BUSY, BEFORE, BUSY]
                self.assertEqual(client.send([Flow("a", "b", "c", 1, 2, 3)]).accepted, 1)
        # The connection that was kept after the first 503 is replaced without a pause.
        self.assertEqual([pause >= 7 for pause in self.pauses], [True, True])
        self.assertTrue(7 <= self.pauses[0] <= 7.5 and 7 <= self.pauses[1] <= 8, self.pauses)

    def test_pauses_grow_up_to_a_bound(self) -> None:
        longest = [max(self.retry(1).pause(failures, None) for _ in range(400)) for failures in range(1, 8)]
        for found, bound in zip(longest, [0.5, 1, 2, 4, 4, 4, 4]):
            self.assertTrue(bound / 2 < found <= bound, longest)
        self.assertLessEqual(self.retry(1).pause(10_000, None), 4)

    def test_a_busy_service_is_given_up(self) -> None:
        flow = Flow("busy", "db", "vpc", 1, 2, 3)
        with Service() as service, Proxy(service.address, lambda: LOST, retry_after="2") as proxy:
            with Client(proxy.url, retry=self.retry(1)) as client:
                with self.assertRaises(Unavailable) as caught:
                    client.send([flow])
            error = caught.exception
            self.assertEqual((error.status, error.retry_after), (503, 2.0))
            # It had counted. The same batch, sent by another client, does not count again.
            assert error.batch is not None
            with Client(service.url) as client:
                self.assertTrue(client.send_batch(error.batch).replayed)
                self.assertEqual(stored(client, 3), sums([flow]))

    def test_nobody_there(self) -> None:
        with Proxy("127.0.0.1:1") as proxy:
            address = proxy.url
        with Client(address, retry=self.retry(3)) as client:
            with self.assertRaises(ConnectionFailed) as caught:
                client.send([Flow("a", "b", "c", 1, 2, 3)])
            self.assertIsInstance(caught.exception.__cause__, ConnectionRefusedError)
            self.assertFalse(client.is_alive() or client.is_ready())
        self.assertGreater(len(self.pauses), 0)

    def test_addresses(self) -> None:
        with Service() as service:
            with Client(f"{service.url}/elsewhere/", retry=self.retry(60)) as client:
                with self.assertRaises(NotFound) as caught:
                    client.send([Flow("a", "b", "c", 1, 2, 3)])
                self.assertEqual(caught.exception.kind, "not-found")
                self.assertIn("/elsewhere/flows", caught.exception.detail)
        for url in ["127.0.0.1:8080", "ftp://host", "http://", "http://a/?b=c", "http://user:secret@host/"]:
            with self.assertRaises(ValueError):
                Client(url)
        self.assertEqual(self.pauses, [])

    def test_something_else_answers(self) -> None:
        class Files(http.server.SimpleHTTPRequestHandler):
            """It has no POST, and a page of its own about that."""

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Files)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            with Client("http://127.0.0.1:{}".format(server.server_address[1]), retry=self.retry(60)) as client:
                with self.assertRaises(UnexpectedResponse):
                    client.send([Flow("a", "b", "c", 1, 2, 3)])
        finally:
            server.shutdown()
            thread.join()
            server.server_close()
        self.assertEqual(self.pauses, [])


if __name__ == "__main__":
    unittest.main()
