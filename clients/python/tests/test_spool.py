"""The spool: what it has taken counts once, whatever dies."""

from __future__ import annotations

import os
import tempfile
import time
import unittest
from pathlib import Path

from flowtally import AccessDenied, Client, ConnectionFailed, Flow, Retry, Spool, SpoolFull

from .proxy import AFTER, Proxy
from .service import Service
from .test_send import EAGER, stored, sums

# One attempt.
ONCE = Retry(total_s_max=0)


class Spooling(unittest.TestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name) / "spool"

    def test_it_survives_both_ends(self) -> None:
        flows = [Flow(f"app-{n}", "db", "vpc", n, 2, 3) for n in range(10)]
        with Service() as service, Proxy(service.address) as proxy:
            spool = Spool(self.directory)
            self.assertEqual(spool.add(flows, batch_flows=3), 10)
            self.assertEqual(len(spool), 4)
            # The first batch counts, but its response is lost, and this process ends.
            proxy.faults.append(AFTER)
            with Client(proxy.url, retry=ONCE) as client:
                with self.assertRaises(ConnectionFailed) as caught:
                    spool.deliver(client)
            assert caught.exception.sent is not None
            self.assertEqual((caught.exception.sent.batches, len(spool)), (0, 4))
            # The next one finds them all, sends them under the same keys, and removes them.
            again = Spool(self.directory)
            with Client(proxy.url, retry=EAGER) as client:
                sent = again.deliver(client)
                self.assertEqual((sent.batches, sent.accepted, sent.replayed), (4, 10, 1))
                self.assertEqual(len(again), 0)
                self.assertEqual(list(self.directory.iterdir()), [])
                self.assertEqual(again.deliver(client).batches, 0)
                self.assertEqual(stored(client, 3), sums(flows))
            keys = [request.key for request in proxy.requests if request.method == "POST"]
            self.assertEqual(keys[0], keys[1])

    def test_order_is_kept(self) -> None:
        spool = Spool(self.directory)
        for n in range(20):
            spool.add([Flow(str(n), "db", "vpc", 1, 2, 3)])
        with Service() as service, Proxy(service.address) as proxy, Client(proxy.url) as client:
            spool.deliver(client)
            names = [path.name for path in self.directory.iterdir()]
            self.assertEqual((names, len(proxy.requests)), ([], 20))

    def test_a_batch_that_never_counts_does_not_block_others(self) -> None:
        spool = Spool(self.directory)
        good = Flow("good", "db", "vpc", 1, 2, 3)
        spool.add([good._replace(hour=2**32)])
        spool.add([good])
        with Service() as service, Client(service.url, retry=EAGER) as client:
            self.assertEqual(spool.deliver(client).accepted, 1)
            self.assertEqual(stored(client, 3), sums([good]))
        refused = sorted((self.directory / "refused").iterdir())
        self.assertEqual(len(refused), 2)
        self.assertIn("hour", refused[1].read_text())
        self.assertEqual(len(spool), 0)

    def test_a_wrong_token_loses_nothing(self) -> None:
        spool = Spool(self.directory)
        spool.add([Flow("a", "b", "c", 1, 2, 3)])
        tokens = self.directory.parent / "tokens"
        tokens.write_text("secret\n")
        with Service("--write-token-file", str(tokens)) as service:
            with Client(service.url, token="wrong") as client, self.assertRaises(AccessDenied):
                spool.deliver(client)
            self.assertEqual(len(spool), 1)
            with Client(service.url, token="secret") as client:
                self.assertEqual(spool.deliver(client).accepted, 1)

    def test_it_is_bounded(self) -> None:
        spool = Spool(self.directory, bytes_max=2_000)
        flows = iter([Flow(os.urandom(100).hex(), "db", "vpc", 1, 2, 3) for _ in range(100)])
        with self.assertRaises(SpoolFull) as caught:
            spool.add(flows, batch_flows=1)
        size = sum(path.stat().st_size for path in self.directory.iterdir())
        self.assertTrue(1_500 < size <= 2_000, size)
        assert caught.exception.batch is not None
        # Nothing is lost: what is in the spool, the batch that did not fit, and what was not read.
        self.assertEqual(len(spool) + caught.exception.batch.flows + len(list(flows)), 100)

    def test_unfinished_files_are_removed(self) -> None:
        spool = Spool(self.directory)
        spool.add([Flow("a", "b", "c", 1, 2, 3)])
        old, new = self.directory / "old.ndjson.gz.1.tmp", self.directory / "new.ndjson.gz.2.tmp"
        for path in (old, new):
            path.write_bytes(b"")
        os.utime(old, (time.time() - 7_200, time.time() - 7_200))
        self.assertEqual(len(Spool(self.directory)), 1)
        self.assertEqual((old.exists(), new.exists()), (False, True))


if __name__ == "__main__":
    unittest.main()
