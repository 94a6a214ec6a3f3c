"""Threads for code that must not hold up its caller: bounded, daemonic, reused.

A thread cannot be stopped. A body that outlives its timeout keeps its worker until it returns; what must
stay true is that nobody waits for it, that the process can still exit, that a body which has not begun
when its caller gives up never begins, and that no job waits for a busy worker while another could be started.
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

from agentguard._flow.effects import NotStarted

_IDLE_S = 10.0


class Workers:
    """A pool of daemon threads.

    Args:
        limit: Threads at most; calls beyond that wait for a free one.
        idle_s: Seconds after which a thread without work ends.
    """

    def __init__(self, limit: int = 64, *, idle_s: float = _IDLE_S) -> None:
        self._limit = limit
        self._idle_s = idle_s
        self._reset()
        if hasattr(os, "register_at_fork"):
            this = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: None if (pool := this()) is None else pool._reset())

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[tuple[Future[Any], contextvars.Context, Callable[[], Any]]] = queue.SimpleQueue()
        self._threads = 0
        # Counted by whoever submits, not by the worker that wakes up: a worker that has been given a job and does
        # not know it yet must not look free.
        self._load = 0

    def submit(self, call: Callable[[], Any], future: Future[Any] | None = None) -> Future[Any]:
        """Run ``call`` in a worker, in a copy of the current context (so that nested calls find their run).

        Args:
            call: What to run.
            future: Where its end is told; made when ``None``. A caller that can be interrupted in here brings it
                along, so that it can still call off what it may have submitted.

        Raises:
            NotStarted: There is no worker and none can be started; ``call`` will not run.
        """
        future = Future() if future is None else future
        context = contextvars.copy_context()
        with self._lock:
            if self._load >= self._threads and self._threads < self._limit:
                self._threads += 1
                try:
                    threading.Thread(target=self._work, name="agentguard-worker", daemon=True).start()
                except RuntimeError as error:  # no more threads, or the interpreter is ending
                    self._threads -= 1
                    if not self._threads:
                        raise NotStarted(f"no worker could be started: {error}") from error
            self._load += 1
            self._queue.put((future, context, call))
        return future

    def _work(self) -> None:
        lock, jobs = self._lock, self._queue
        while True:
            try:
                future, context, call = jobs.get(timeout=self._idle_s)
            except queue.Empty:
                with lock:
                    if self._load < self._threads:
                        self._threads -= 1
                        return
                continue
            if future.set_running_or_notify_cancel():
                _carry_out(future, context, call)
            del future, context, call
            with lock:
                self._load -= 1


def _carry_out(future: Future[Any], context: contextvars.Context, call: Callable[[], Any]) -> None:
    try:
        result = context.run(call)
    except (StopIteration, GeneratorExit) as error:
        # Neither can be raised into a coroutine: asyncio would never answer, or take it for the coroutine's end.
        stand_in = RuntimeError(f"it raised {type(error).__name__}")
        stand_in.__cause__ = error
        future.set_exception(stand_in)
    except BaseException as error:  # handed to whoever waits; the worker goes on
        future.set_exception(error)
    else:
        future.set_result(result)
