"""The memory store: the reference of all stores, and the fastest. Everything is gone with the process.

One lock around each operation makes it a transaction: the transitions check everything before they write.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import Any, TypeVar

from agentguard.domain.operations import Begin, Finish, Operation
from agentguard.errors import StoreUnavailable
from agentguard.protocols import Clock
from agentguard.stores._memory_lane import admit, settle
from agentguard.stores._memory_rows import Tables
from agentguard.stores.timing import SystemClock
from agentguard.stores.transitions import begin, finish, perform

T = TypeVar("T")


class MemoryStore:
    """Keeps everything in this process; see :class:`~agentguard.protocols.Store`.

    Args:
        clock: Replaces the machine's clock (tests).
        keep_runs: Ended runs that are kept for inspection; the oldest are forgotten beyond that.
    """

    instant = True
    """Operations wait for nothing but a short lock, so the event loop may perform them in its own thread."""

    def __init__(self, clock: Clock | None = None, *, keep_runs: int = 10_000) -> None:
        self._clock = clock or SystemClock()
        self._now = self._clock.now_ns
        self._lock = threading.Lock()
        self._tables = Tables(keep_runs)
        self._closed = False
        if hasattr(os, "register_at_fork"):
            # A lock held by another thread at fork time would stay locked in the child for ever.
            this: weakref.ref[MemoryStore] = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: _forked(this))

    def seal_later(self) -> None:
        """Seal the records of calls when somebody looks instead of when they are written.

        For an owner without sinks: answers then leave such records out. The chain is the same.
        """
        self._tables.at_once = False

    def perform(self, operation: Operation[T]) -> T:
        """Carry out one operation.

        Raises:
            StoreUnavailable: The store was closed.
            StoreConflict: As the operation says.
            ApprovalError: As the operation says.
        """
        if self._closed:
            raise StoreUnavailable("The memory store is closed.")
        tables = self._tables
        asked: Any = operation
        lock = self._lock
        if not lock.acquire(False):
            _take(lock)
        try:
            tables.now = self._now()
            kind = type(operation)
            answer: Any
            if kind is Begin:
                answer = admit(tables, asked) or begin(tables, asked)
            elif kind is Finish:
                answer = settle(tables, asked) or finish(tables, asked)
            else:
                answer = perform(tables, operation)
            return answer  # type: ignore[no-any-return]
        finally:
            lock.release()

    async def aperform(self, operation: Operation[T]) -> T:
        """Carry out one operation; it never waits for anything but the lock of another thread."""
        return self.perform(operation)

    def close(self) -> None:
        """Refuse further operations."""
        self._closed = True


def _take(lock: threading.Lock) -> None:
    """Take a lock that is held for microseconds, without queueing for it.

    A thread that queues is given the lock before it can run (it still waits for the interpreter), and all
    others then queue too: with 8 threads that convoy cuts the rate to a third. Letting others run and trying
    again does not form one.
    """
    for _ in range(1000):
        time.sleep(0)
        if lock.acquire(blocking=False):
            return
    lock.acquire()


def _forked(this: weakref.ref[MemoryStore]) -> None:
    store = this()
    if store is not None:
        store._lock = threading.Lock()
