"""Threads for bodies that must not hold up their caller: bounded, daemonic, reused.

A thread cannot be stopped. A body that outlives its timeout keeps its worker until it returns; what must
stay true is that nobody waits for it, that the process can still exit, and that a body which has not begun
when its caller gives up never begins.
"""

from __future__ import annotations

import contextvars
import os
import queue
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

_IDLE_S = 10.0


class Workers:
    """A pool of daemon threads.

    Args:
        limit: Threads at most; calls beyond that wait for a free one.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._reset()
        if hasattr(os, "register_at_fork"):
            this = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: None if (pool := this()) is None else pool._reset())

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Future[Any], contextvars.Context, Callable[[], Any]]] = queue.SimpleQueue()
        self._threads = 0
        self._idle = 0

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        """Run ``call`` in a worker, in a copy of the current context (so that nested calls find their run)."""
        future: Future[Any] = Future()
        with self._lock:
            self._queue.put((future, contextvars.copy_context(), call))
            if self._idle < self._queue.qsize() and self._threads < self._limit:
                self._threads += 1
                threading.Thread(target=self._work, name="agentguard-worker", daemon=True).start()
        return future

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
            try:
                future, context, call = self._queue.get(timeout=_IDLE_S)
            except queue.Empty:
                with self._lock:
                    self._idle -= 1
                    if self._queue.empty():
                        self._threads -= 1
                        return
                continue
            with self._lock:
                self._idle -= 1
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = context.run(call)
            except BaseException as error:  # handed to whoever waits; the worker goes on
                future.set_exception(error)
            else:
                future.set_result(result)
            del future, context, call
