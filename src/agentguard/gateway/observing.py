"""How long decisions take, measured only while somebody listens: the flow itself reads no clock."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextvars import ContextVar
from typing import Any

from agentguard.domain.context import RunContext
from agentguard.domain.decisions import Decision
from agentguard.policy.deciding import Rulebook

_SPENT: ContextVar[list[float] | None] = ContextVar("agentguard_decision_seconds", default=None)


class TimedRules:
    """A rulebook that notes how long its answers take, for the call that is being made in this context."""

    def __init__(self, rules: Rulebook) -> None:
        self._rules = rules
        self.digest = rules.digest
        self.visible = rules.visible

    def decide(
        self, tool: str, arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now_ns: int
    ) -> Decision:
        """Decide, and note the seconds."""
        begun = time.perf_counter()
        decision = self._rules.decide(tool, arguments, context, labels, now_ns)
        spent = _SPENT.get()
        if spent is not None:
            spent.append(time.perf_counter() - begun)
        return decision


class Stopwatch:
    """Collects the seconds of all decisions of one call; a context manager around it."""

    def __init__(self) -> None:
        self._spent: list[float] = []

    def __enter__(self) -> Stopwatch:
        self._token = _SPENT.set(self._spent)
        return self

    def __exit__(self, *details: object) -> None:
        _SPENT.reset(self._token)

    @property
    def seconds(self) -> float | None:
        """What the decisions took together, ``None`` when there was none."""
        return sum(self._spent) if self._spent else None
