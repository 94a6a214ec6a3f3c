"""The floor: the least work that still does every governance step, written out by hand with no library around it.

Not a product: what a library can at best approach. Validate, decide by look-up, reserve under a lock, approval
flag, a span id in a context variable, the tool, one chained audit record.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from bisect import bisect_right
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from typing import Any

from pydantic_core import to_json

from bench import workload

_span: ContextVar[int] = ContextVar("span", default=0)


def decider() -> Callable[[dict[str, Any]], bool]:
    """Ten rules of one tool, compiled by hand."""
    prefixes = {f"/secret/{n}/" for n in (4, 8)}
    length = len("/secret/4/")
    pattern = re.compile(r"[a-z0-9.]+@blocked(?:1|5|9)\.example").fullmatch
    lows, highs = [100_020, 100_060], [100_029, 100_069]
    modes = frozenset(f"m{n}{c}" for n in (3, 7) for c in "abc")

    def allows(given: dict[str, Any]) -> bool:
        amount = given["amount"]
        if amount > workload.LIMIT or given["mode"] in modes:
            return False
        index = bisect_right(lows, amount) - 1
        if index >= 0 and amount <= highs[index]:
            return False
        return given["path"][:length] not in prefixes and pattern(given["recipient"]) is None

    return allows


def _steps() -> tuple[Any, Any]:
    validate, allows = workload.validator(), decider()
    ids, lock = count(1), threading.Lock()
    state: dict[str, Any] = {"left": 1 << 60, "head": b"\0" * 32}
    kept = bytearray()

    def before(given: dict[str, Any]) -> tuple[dict[str, Any], int, Any]:
        good = validate(given)
        if not allows(good):
            raise PermissionError
        with lock:
            if state["left"] < 1:
                raise PermissionError
            state["left"] -= 1
        span = next(ids)
        return good, span, _span.set(span)

    def after(good: dict[str, Any], span: int, token: Any, start: int) -> None:
        nonlocal kept
        _span.reset(token)
        record = to_json(
            {
                "seq": span,
                "at": start,
                "took": time.time_ns() - start,
                "run": "run-7f3a",
                "agent": "analyst",
                "tool": "tool_0",
                "args": good,
                "decision": "allow",
                "rule": 50,
                "policy": "sha256:0f343b0931126a20f133d67c2b018a3b",
                "status": "ok",
            }
        )
        with lock:
            state["head"] = hashlib.sha256(state["head"] + record).digest()
            kept += record
            if len(kept) > 1 << 24:
                kept = bytearray()

    return before, after


def call() -> Callable[[dict[str, Any]], int]:
    """A hand-written governed call."""
    before, after = _steps()

    def governed(given: dict[str, Any]) -> int:
        start = time.time_ns()
        good, span, token = before(given)
        result = workload.body(**good)
        after(good, span, token, start)
        return result

    return governed


def acall() -> Callable[[dict[str, Any]], Any]:
    """The same for an async tool."""
    before, after = _steps()

    async def governed(given: dict[str, Any]) -> int:
        start = time.time_ns()
        good, span, token = before(given)
        result = await workload.abody(**good)
        after(good, span, token, start)
        return result

    return governed
