"""When a request is tried again."""

from __future__ import annotations

import random
import time
from typing import Callable, NamedTuple, Optional


class Retry(NamedTuple):
    """Pauses between tries: exponential, with full jitter, so that agents do not all come back at once.

    A pause is a random time up to `first_s`, twice that, four times, … and at most `pause_s_max`. Where the service has
    sent `Retry-After`, that time is added.
    """

    first_s: float = 0.2
    pause_s_max: float = 30.0
    total_s_max: float = 120.0
    """No pause begins that would end later than this after the first try."""
    sleep: Callable[[float], None] = time.sleep

    def pause(self, failures: int, retry_after: Optional[float]) -> float:
        """Seconds to wait after so many failures, of which the last one asked for `retry_after`."""
        # 2**30 times any pause is more than enough, and still a float.
        longest = min(self.pause_s_max, self.first_s * 2 ** min(failures - 1, 30))
        return (retry_after or 0.0) + random.uniform(0.0, longest)
