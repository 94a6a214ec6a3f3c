"""A clock for tests: time passes when the test says so."""

from __future__ import annotations

from agentguard.domain.usage import NANO

NOON = 1_795_176_000 * NANO
"""2026-11-20 12:00:00 UTC, ns since the epoch: far from the edges of minute, hour, day and month."""


class FakeClock:
    """Stands still until it is told to move; see :class:`~agentguard.protocols.Clock`.

    Args:
        now_ns: Wall-clock time to begin with, ns since the epoch.
    """

    def __init__(self, now_ns: int = NOON) -> None:
        self._now = now_ns
        self._passed = 0

    def now_ns(self) -> int:
        """Wall-clock time in ns since the epoch."""
        return self._now

    def monotonic(self) -> float:
        """Seconds that :meth:`advance` has added."""
        return self._passed / NANO

    def advance(self, seconds: float) -> None:
        """Let time pass.

        Args:
            seconds: How much; must not be negative.
        """
        if seconds < 0:
            raise ValueError("time does not run backwards; use set() for a wall clock that is put back")
        step = round(seconds * NANO)
        self._now += step
        self._passed += step

    def set(self, now_ns: int) -> None:
        """Put the wall clock to a time; the monotonic clock does not notice."""
        self._now = now_ns
