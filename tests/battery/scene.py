"""What every mistake of the battery is made in: a tool whose body leaves a trace, on one store, in one colour."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agentguard import Policy, ToolGateway, open_store, tool
from agentguard.domain.calls import Outcome
from agentguard.domain.operations import Operation
from agentguard.errors import StoreUnavailable
from agentguard.gateway import Run
from agentguard.testing import FakeClock
from agentguard.tools.tool import Tool

RULES = """\
version: 1
name: battery
rules:
  - id: small
    allow: pay
    when: {environment: prod, args: {amount: {maximum: 100}}}
"""


class Hand:
    """Does things in one colour: ``do(run, "attempt", ...)`` is ``run.attempt`` or ``await run.aattempt``."""

    def __init__(self, colour: str) -> None:
        self.colour = colour
        self.runner = asyncio.Runner()

    def do(self, owner: Any, name: str, *args: Any, **settings: Any) -> Any:
        if self.colour == "blocking":
            found = getattr(owner, name)
            return found(*args, **settings) if callable(found) else found
        return self.runner.run(getattr(owner, f"a{name}")(*args, **settings))

    @contextmanager
    def inside(self, run: Run) -> Iterator[Run]:
        if self.colour == "blocking":
            with run:
                yield run
            return
        self.runner.run(run.__aenter__())
        try:
            yield run
        except BaseException as error:
            self.runner.run(run.__aexit__(type(error), error, error.__traceback__))
            raise
        self.runner.run(run.__aexit__(None, None, None))

    def close(self) -> None:
        self.runner.close()


class Broken:
    """A store that is down for some operations."""

    def __init__(self, store: Any, *kinds: type[Operation[Any]]) -> None:
        self.store = store
        self.kinds = kinds
        self.instant = getattr(store, "instant", False)

    def perform(self, operation: Operation[Any]) -> Any:
        if isinstance(operation, self.kinds):
            raise StoreUnavailable("the store is down")
        return self.store.perform(operation)

    async def aperform(self, operation: Operation[Any]) -> Any:
        if isinstance(operation, self.kinds):
            raise StoreUnavailable("the store is down")
        return await self.store.aperform(operation)

    def close(self) -> None:
        self.store.close()


class Scene:
    """One store, one colour, one tool ``pay`` and the list of what its body was called with."""

    def __init__(self, kind: str, colour: str, folder: Path) -> None:
        self.kind = kind
        self.folder = folder
        self.hand = Hand(colour)
        self.clock = FakeClock()
        self.ran: list[Any] = []
        self._open: list[Any] = []
        self._files = 0
        self.pay = self.tool()

    def tool(self, name: str = "pay", **settings: Any) -> Any:
        """Another tool whose body leaves a trace."""
        settings = {"risk": "high", "effect": "irreversible", "permissions": ["money:send"], **settings}

        def body(amount: int, to: str = "shop", tags: list[str] | None = None) -> str:
            self.ran.append((name, amount, to, tags))
            return "paid"

        return tool(name=name, **settings)(body)

    def store(self) -> Any:
        """A fresh store on the scene's clock."""
        if self.kind == "memory":
            from agentguard.stores.memory import MemoryStore

            store: Any = MemoryStore(self.clock)
        else:
            from agentguard.stores.sqlite import SqliteStore

            self._files += 1
            store = SqliteStore(str(self.folder / f"store{self._files}.db"), clock=self.clock)
        self._open.append(store)
        return store

    def gateway(self, policy: Any = None, *, tools: Any = None, **settings: Any) -> ToolGateway:
        """A gateway over the tool, by default with a policy that allows it."""
        settings.setdefault("store", self.store())
        settings.setdefault("clock", self.clock)
        if policy is None:
            policy = Policy.from_string(RULES)
        gateway = ToolGateway([self.pay] if tools is None else tools, policy, **settings)
        self._open.append(gateway)
        return gateway

    def file(self, text: str | bytes) -> Path:
        """A configuration file."""
        path = self.folder / "agentguard.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def load(self, text: str | bytes, **settings: Any) -> ToolGateway:
        """A gateway from a file."""
        if "store" not in settings and b"store:" not in (text if isinstance(text, bytes) else text.encode()):
            settings["store"] = self.store()
        gateway = ToolGateway.from_yaml(self.file(text), settings.pop("tools", [self.pay]), **settings)
        self._open.append(gateway)
        return gateway

    def run(self, gateway: ToolGateway, **settings: Any) -> Run:
        """A run that is open."""
        made = gateway.run(**{"agent": "bot", "environment": "prod", "user": "u-1", **settings})
        return self.hand.do(made, "open")  # type: ignore[no-any-return]

    def attempt(
        self, gateway: ToolGateway, arguments: Any = None, name: str = "pay", run: Run | None = None, **ids: Any
    ) -> Outcome:
        """One call of the tool."""
        run = self.run(gateway) if run is None else run
        return self.hand.do(run, "attempt", name, {"amount": 5} if arguments is None else arguments, **ids)  # type: ignore[no-any-return]

    def close(self) -> None:
        for one in reversed(self._open):
            one.close()
        self.hand.close()


class Approves:
    """An approver that does what it is told."""

    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer

    def decide(self, request: Any) -> Any:
        return self.answer(request)


def of(settings: Mapping[str, Any]) -> str:
    """A rule that allows ``pay``, with further settings, as YAML."""
    lines = "".join(f"    {key}: {value}\n" for key, value in settings.items())
    return f"version: 1\nrules:\n  - id: one\n{lines}"


__all__ = ["RULES", "Approves", "Broken", "Hand", "Scene", "Tool", "of", "open_store"]
