"""What both drivers share: the parts of one gateway that touch the world, and the one place that runs a body."""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import threading
from collections import OrderedDict
from collections.abc import Coroutine, Iterable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from agentguard._drive.delivering import SINK_DEADLINE_S, Delivery
from agentguard._drive.workers import Workers
from agentguard._flow.effects import Invoke, Probe
from agentguard.domain.events import AuditRecord
from agentguard.domain.plans import ProbeResult
from agentguard.errors import SinkError
from agentguard.protocols import (
    Approver,
    AsyncApprover,
    AsyncCredentialProvider,
    Clock,
    CredentialProvider,
    CredentialRequest,
    Sink,
    Store,
)
from agentguard.resilience.credentials import Credentials, checked

if TYPE_CHECKING:
    from agentguard.audit.redaction import KnownSecrets
    from agentguard.tools.tool import Tool

log = logging.getLogger("agentguard")

T = TypeVar("T")

REST_S = 30.0
"""How long closing a gateway waits for the rest of interrupted calls, in seconds."""

_ATTENDANTS = 64
_COURIERS = 16
_SECRETS = 256


class Ports:
    """The world of one gateway.

    Attributes:
        store: Where everything is kept.
        clock: Tells the time.
        secrets: Secrets in use, removed from everything that leaves.
        approver: Decides inline, or ``None``.
        credentials: Hands out secrets.
        sinks: Receive audit records.
        workers: Threads for sync bodies with a timeout, and for sync bodies under the event loop.
        attendants: Threads for everything else that may wait for a person, a network or a disk: bodies that never
            return must not be able to keep secrets from being given back.
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
        self.attendants = Workers(_ATTENDANTS)
        self._couriers = Workers(_COURIERS)
        self._deliveries = tuple(map(Delivery, sinks))
        self.instant = bool(getattr(store, "instant", False))
        self._cleanups: set[asyncio.Task[Any]] = set()
        self._learning = threading.Lock()
        self._known: OrderedDict[str, None] = OrderedDict()

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

    async def settled(self, patience_s: float = REST_S) -> None:
        """Wait until every detached rest has ended, at most ``patience_s`` seconds: what does not end by then hangs,
        and the leases of its calls will end them."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(patience_s):
                while mine := [task for task in tuple(self._cleanups) if task.get_loop() is loop]:
                    await asyncio.wait(mine)
        except TimeoutError:
            log.error("%d interrupted calls did not end within %g s", len(self._cleanups), patience_s)

    def publish(self, records: tuple[AuditRecord, ...]) -> None:
        """Hand records to every sink, in workers, each with the deadline.

        Raises:
            SinkError: A required sink did not take them. What an optional sink loses is counted.
        """
        failed: SinkError | None = None
        for delivery in self._deliveries:
            try:
                future = self._send(delivery, records)
                try:
                    future.result(SINK_DEADLINE_S)
                except BaseException:
                    delivery.give_up(future)
                    raise
            except Exception as error:
                failed = delivery.lost(len(records), error) or failed
        if failed is not None:
            raise failed

    async def apublish(self, records: tuple[AuditRecord, ...]) -> None:
        """The same without blocking the event loop."""
        failed: SinkError | None = None
        for delivery in self._deliveries:
            try:
                future = self._send(delivery, records)
                try:
                    async with asyncio.timeout(SINK_DEADLINE_S):
                        await asyncio.wrap_future(future)
                except BaseException:
                    delivery.give_up(future)
                    raise
            except Exception as error:
                failed = delivery.lost(len(records), error) or failed
        if failed is not None:
            raise failed

    def _send(self, delivery: Delivery, records: tuple[AuditRecord, ...]) -> Future[Any]:
        if delivery.hangs:
            raise TimeoutError("it has not come back from an earlier delivery")
        return self._couriers.submit(partial(delivery.bring, records, self.store))

    def held(self, taken: Iterable[tuple[CredentialRequest, str]]) -> Credentials:
        """Secrets for one call."""
        return Credentials({request.name: secret for request, secret in taken})

    def learn(self, request: CredentialRequest, secret: object) -> str:
        """Make a secret known to the redaction, which does not forget it when the call ends: another tool may
        still bring it back. Of secrets that are new every time only the last ones are remembered.

        Raises:
            ConfigurationError: It is no secret that a tool could use.
        """
        usable = checked(request, secret)
        with self._learning:
            if usable not in self._known:
                self.secrets.add(usable)
                if len(self._known) >= _SECRETS:
                    oldest, _ = self._known.popitem(last=False)
                    self.secrets.remove(oldest)
            self._known[usable] = None
            self._known.move_to_end(usable)
        return usable


def draw() -> str:
    """32 random hex digits from the operating system."""
    return secrets.token_hex(16)


def _inputs(tool: Tool, effect: Invoke | Probe, credentials: Credentials | None) -> dict[str, Any]:
    given = dict(effect.arguments)
    for name, kind in tool.injected.items():
        given[name] = credentials if kind == "credentials" else effect.context
    return given


def invoke(effect: Invoke, *, awaiting: bool = False) -> Any:
    """Run a tool's body. This is the only place in agentguard that does (a test reads the source for it)."""
    tool = effect.tool
    given = _inputs(tool, effect, effect.credentials) if tool.injected else effect.arguments
    try:
        if awaiting and tool.abody is not None:
            return tool.abody(**given)
        return tool.body(**given)
    except GeneratorExit as error:  # to the drivers it would mean that nobody drives any more
        raise RuntimeError(f"{tool.spec.name} raised GeneratorExit") from error


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
