"""The Python of README.md and of docs/clients.md, each from top to bottom, as one session."""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import unittest
from pathlib import Path
from typing import List

from flowtally import Client

from .service import Service

PACKAGE = Path(__file__).resolve().parent.parent


def run(page: Path) -> List[str]:
    """What the blocks of a page print."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    before = os.getcwd()
    output = io.StringIO()
    with Service() as service, tempfile.TemporaryDirectory() as directory:
        os.chdir(directory)
        try:
            names: dict[str, object] = {}
            for block in blocks:
                code = block.replace("http://127.0.0.1:8080", service.url)
                with contextlib.redirect_stdout(output):
                    exec(compile(code, str(page), "exec"), names)
            last = names["client"]
            assert isinstance(last, Client)
            last.close()
        finally:
            os.chdir(before)
    return output.getvalue().splitlines()


class Pages(unittest.TestCase):
    def test_the_readme_runs(self) -> None:
        printed = run(PACKAGE / "README.md")
        self.assertEqual(printed[0], "flow 2 has a wrong hour")
        self.assertIn("web db vpc-0 100 500", printed)
        # Two sums of 600, and the flows 0 and 1 of the iterator. The batch with the wrong flow did not count.
        self.assertIn("web 1206", printed)

    def test_the_manual_runs(self) -> None:
        self.assertEqual(run(PACKAGE.parent.parent / "docs/clients.md"), ["web 600"])


if __name__ == "__main__":
    unittest.main()
