"""Timing: slices of two functions in turn, so that a slow stretch of the machine hits both."""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

now = time.perf_counter_ns


def spread(values: list[float]) -> dict[str, float]:
    """Median and the 10-90 % range."""
    ordered = sorted(values)
    last = len(ordered) - 1
    return {"median": statistics.median(ordered), "p10": ordered[round(0.1 * last)], "p90": ordered[round(0.9 * last)]}


def slice_ns(function: Callable[[Any], Any], argument: Any, n: int) -> float:
    """Mean ns of one call over ``n``."""
    start = now()
    for _ in itertools.repeat(None, n):
        function(argument)
    return (now() - start) / n


async def aslice_ns(function: Callable[[Any], Awaitable[Any]], argument: Any, n: int) -> float:
    """The same for a coroutine function."""
    start = now()
    for _ in itertools.repeat(None, n):
        await function(argument)
    return (now() - start) / n


def _fitting(took_ns: float, slice_ms: float) -> int:
    return max(1, int(slice_ms * 1e6 / max(took_ns, 1)))


def ratios(
    function: Callable[[Any], Any],
    argument: Any,
    base: Callable[[Any], Any],
    base_argument: Any,
    *,
    pairs: int,
    slice_ms: float = 25.0,
) -> list[float]:
    """Ratio of ``function`` to ``base`` per pair of neighbouring slices."""
    for one, given in ((function, argument), (base, base_argument)):
        slice_ns(one, given, 50)  # warm
    n = _fitting(slice_ns(function, argument, 50), slice_ms)
    m = _fitting(slice_ns(base, base_argument, 200), slice_ms)
    found = []
    for turn in range(pairs):
        gc.collect()
        if turn % 2:
            mine, theirs = slice_ns(function, argument, n), slice_ns(base, base_argument, m)
        else:
            theirs, mine = slice_ns(base, base_argument, m), slice_ns(function, argument, n)
        found.append(mine / theirs)
    return found


async def aratios(
    function: Callable[[Any], Awaitable[Any]],
    argument: Any,
    base: Callable[[Any], Awaitable[Any]],
    base_argument: Any,
    *,
    pairs: int,
    slice_ms: float = 25.0,
) -> list[float]:
    """The same for coroutine functions."""
    await aslice_ns(function, argument, 50)
    n = _fitting(await aslice_ns(function, argument, 50), slice_ms)
    m = _fitting(await aslice_ns(base, base_argument, 200), slice_ms)
    found = []
    for turn in range(pairs):
        gc.collect()
        if turn % 2:
            mine, theirs = await aslice_ns(function, argument, n), await aslice_ns(base, base_argument, m)
        else:
            theirs, mine = await aslice_ns(base, base_argument, m), await aslice_ns(function, argument, n)
        found.append(mine / theirs)
    return found


def thread_rate(function: Callable[[Any], Any], argument: Any, threads: int, seconds: float) -> float:
    """Calls per second, summed over threads that call flat out."""
    counts = [0] * threads
    stop = threading.Event()
    gate = threading.Barrier(threads + 1)

    def body(index: int) -> None:
        done = 0
        gate.wait()
        while not stop.is_set():
            for _ in range(8):
                function(argument)
            done += 8
        counts[index] = done

    pool = [threading.Thread(target=body, args=(index,), daemon=True) for index in range(threads)]
    for thread in pool:
        thread.start()
    gate.wait()
    start = now()
    stop.wait(seconds)
    stop.set()
    for thread in pool:
        thread.join()
    return sum(counts) / ((now() - start) / 1e9)


async def task_rate(function: Callable[[Any], Awaitable[Any]], argument: Any, tasks: int, each: int) -> float:
    """Calls per second of many tasks that yield to the loop between calls."""

    async def body() -> None:
        for _ in range(each):
            await function(argument)
            await asyncio.sleep(0)

    gc.collect()
    start = now()
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(body())
    return tasks * each / ((now() - start) / 1e9)
