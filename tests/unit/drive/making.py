"""Gateways for tests of the drivers: real flow, real threads, real loops."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

from agentguard import Policy, ToolGateway
from agentguard.domain.operations import ListCalls, ReadAudit, ReadBudgets
from agentguard.stores.memory import MemoryStore

PATIENCE = 20.0
"""Seconds that a test waits for something that happens at once unless it never does."""


def gateway(*tools: Any, allow: str = "*", approve: str | None = None, **settings: Any) -> ToolGateway:
    rules = f'version: 1\nrules:\n  - allow: "{allow}"\n'
    if approve is not None:
        rules += f'  - require_approval: "{approve}"\n'
    return ToolGateway(tools=tools, policy=Policy.from_string(rules), **settings)


class SlowStore:
    """A memory store that takes several turns of the loop before it begins and after it has ended."""

    instant = False

    def __init__(self, turns: int = 2) -> None:
        self.inner = MemoryStore()
        self.turns = turns

    def perform(self, operation: Any) -> Any:
        return self.inner.perform(operation)

    async def aperform(self, operation: Any) -> Any:
        for _ in range(self.turns):
            await asyncio.sleep(0)
        answer = self.inner.perform(operation)
        for _ in range(self.turns):
            await asyncio.sleep(0)
        return answer

    def close(self) -> None:
        self.inner.close()


class Gate:
    """Something a body waits at until the test opens it."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        self.inside.set()
        assert self.opened.wait(PATIENCE)


def calls(at: ToolGateway, run: Any) -> list[str]:
    """How the calls of a run ended."""
    found = at.store.perform(ListCalls(run.context.tenant, run.run_id))
    return [call.status for call in found]


def kinds(at: ToolGateway, run: Any) -> list[str]:
    """Kinds of the records of a run."""
    import json

    records = at.store.perform(ReadAudit(run.context.tenant, run.run_id))
    return [json.loads(record.line)["kind"] for record in records]


def held(at: ToolGateway, run: Any) -> int:
    """What the run still holds in all dimensions."""
    return sum(line.held for line in at.store.perform(ReadBudgets(run._view.meters)))


def until(ready: Callable[[], bool]) -> None:
    """Wait until something that another thread does has been done."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 1000)):
        if ready():
            return
        pause.wait(0.001)
    raise AssertionError("it never happened")
