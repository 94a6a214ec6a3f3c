"""What both drivers share: the parts of one gateway that touch the world, and the one place that runs a body."""

from __future__ import annotations

import asyncio
import inspect
import secrets
from collections.abc import Coroutine, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agentguard._drive.delivering import SINK_DEADLINE_S, Delivery
from agentguard._drive.workers import Workers
from agentguard._flow.effects import Invoke, Probe
from agentguard.domain.events import AuditRecord
from agentguard.domain.plans import ProbeResult
from agentguard.protocols import (
    Approver,
    AsyncApprover,
    AsyncCredentialProvider,
    Clock,
    CredentialProvider,
    Sink,
    Store,
)
from agentguard.resilience.credentials import Credentials

if TYPE_CHECKING:
    from agentguard.audit.redaction import KnownSecrets
    from agentguard.tools.tool import Tool

T = TypeVar("T")


class Ports:
    """The world of one gateway.

    Attributes:
        store: Where everything is kept.
        clock: Tells the time.
        secrets: Secrets in use, removed from everything that leaves.
        approver: Decides inline, or ``None``.
        credentials: Hands out secrets.
        sinks: Receive audit records.
        workers: Threads for sync bodies with a timeout, and for sync parts under the event loop.
        instant: The store answers without waiting, so it may be asked in the event loop's own thread.
    """

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock,
        secrets_in_use: KnownSecrets,
        approver: Approver | AsyncApprover | None,
        credentials: CredentialProvider | AsyncCredentialProvider,
        sinks: tuple[Sink, ...],
        workers: Workers,
    ) -> None:
        self.store = store
        self.clock = clock
        self.secrets = secrets_in_use
        self.approver = approver
        self.credentials = credentials
        self.sinks = sinks
        self.workers = workers
        self._deliveries = tuple(map(Delivery, sinks))
        self.instant = bool(getattr(store, "instant", False))
        self._cleanups: set[asyncio.Task[Any]] = set()
        self._known: set[str] = set()

    def detach(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Run work out of reach of whoever cancels its caller; ``aclose`` waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._cleanups.add(task)
        task.add_done_callback(self._settle)
        return task

    def _settle(self, task: asyncio.Task[Any]) -> None:
        self._cleanups.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone; then nobody else would ever look

    async def settled(self) -> None:
        """Wait until every detached rest has ended."""
        loop = asyncio.get_running_loop()
        while mine := [task for task in self._cleanups if task.get_loop() is loop]:
            await asyncio.wait(mine)

    def publish(self, records: tuple[AuditRecord, ...]) -> None:
        """Hand records to every sink, in workers, each with the deadline.

        Raises:
            SinkError: A required sink did not take them. What an optional sink loses is counted.
        """
        for delivery in self._deliveries:
            future = self.workers.submit(partial(delivery.bring, records, self.store))
            try:
                future.result(SINK_DEADLINE_S)
            except Exception as error:
                future.cancel()
                delivery.lost(len(records), error)

    async def apublish(self, records: tuple[AuditRecord, ...]) -> None:
        """The same without blocking the event loop."""
        for delivery in self._deliveries:
            future = asyncio.wrap_future(self.workers.submit(partial(delivery.bring, records, self.store)))
            try:
                async with asyncio.timeout(SINK_DEADLINE_S):
                    await future
            except Exception as error:
                delivery.lost(len(records), error)

    def held(self, values: Mapping[str, str]) -> Credentials:
        """Secrets for one call. The redaction knows them from now on and does not forget them when the call
        ends: another tool may still bring one of them back."""
        for value in values.values():
            if value not in self._known:
                self._known.add(value)
                self.secrets.add(value)
        return Credentials(values)


def draw() -> str:
    """32 random hex digits from the operating system."""
    return secrets.token_hex(16)


def _inputs(tool: Tool, effect: Invoke | Probe, credentials: Credentials | None) -> dict[str, Any]:
    given = dict(effect.arguments)
    for name, kind in tool.injected.items():
        given[name] = credentials if kind == "credentials" else effect.context
    return given


def invoke(effect: Invoke) -> Any:
    """Run a tool's body. This is the only place in agentguard that does (a test reads the source for it)."""
    tool = effect.tool
    return tool.body(**(_inputs(tool, effect, effect.credentials) if tool.injected else effect.arguments))


def ask_probe(effect: Probe) -> Any:
    """Run a tool's probe with the same arguments as its body, and the call context if it wants one."""
    probe = effect.tool.probe
    if probe is None:
        return None
    wanted = inspect.signature(probe).parameters
    open_ended = any(p.kind is p.VAR_KEYWORD for p in wanted.values())
    given: dict[str, Any] = {name: value for name, value in effect.arguments.items() if open_ended or name in wanted}
    for name, kind in effect.tool.injected.items():
        if kind == "context" and (open_ended or name in wanted):
            given[name] = effect.context
    if "context" in wanted and "context" not in given:
        given["context"] = effect.context
    return probe(**given)


def probed(answer: object) -> ProbeResult | None:
    """A probe's answer; anything but a :class:`~agentguard.ProbeResult` or ``None`` has found out nothing."""
    if answer is None or isinstance(answer, ProbeResult):
        return answer
    raise TypeError(f"a probe must return a ProbeResult or None, not {type(answer).__name__}")
