"""The clock of stores that have no server of their own."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clocks; see :class:`~agentguard.protocols.Clock`."""

    def now_ns(self) -> int:
        """Wall-clock time in ns since the epoch."""
        return time.time_ns()

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        return time.monotonic()
