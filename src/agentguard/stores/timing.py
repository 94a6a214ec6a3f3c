"""The clock of stores that have no server of their own."""

from __future__ import annotations

import time


class SystemClock:
    """The machine's clocks; see :class:`~agentguard.protocols.Clock`."""

    now_ns = staticmethod(time.time_ns)
    """Wall-clock time in ns since the epoch."""

    monotonic = staticmethod(time.monotonic)
    """Seconds on a clock that never goes back."""
