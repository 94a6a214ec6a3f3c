"""Adapter of the Model Context Protocol: clients (mcp 1.24 and newer, 2.x), servers (2.x), and a proxy between any two.

::

    gateway = ToolGateway.from_yaml("agentguard.yaml", await tools_of(session, config="agentguard.yaml"))
    async with gateway.run(agent="support") as run:
        govern_session(session, run)

What must stay true: a governed session sends no ``tools/call`` but from inside the gateway's call of the registered
tool; what a server says about its own tools is not believed, and what it says differently later is not called.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import TypeAdapter

from agentguard import config as configuration
from agentguard.adapters._continuing import current
from agentguard.adapters._mcp_calls import AnswerLost, Door, refused
from agentguard.adapters._mcp_relay import call_id, in_era_of
from agentguard.adapters._mcp_stdio import ask_for_tools, relay_stdio
from agentguard.adapters._mcp_tools import Watch, registry_from
from agentguard.domain.calls import Refused
from agentguard.domain.decisions import StopReason
from agentguard.errors import CallRefused, ConfigurationError, RunError
from agentguard.gateway import ToolGateway

if TYPE_CHECKING:
    from agentguard.gateway import Run
    from agentguard.tools.registry import ToolRegistry

__all__ = ["Proxy", "govern_session", "guard", "tools_of"]

SessionT = TypeVar("SessionT")

_UNCERTAIN: Final = frozenset({408, -32000, -32001})
"""Codes that an SDK gives its own errors: a timeout (408 in 1.x, -32001 in 2.x), a closed connection (-32000)."""


# --- tools -------------------------------------------------------------------------------------------------------


async def _listed(source: Any) -> list[Any]:
    first = await source.list_tools()
    if isinstance(first, list | tuple):
        return list(first)
    found = list(first.tools)
    cursor = _next(first)
    while cursor is not None:
        page = await source.list_tools(cursor=cursor)
        found += page.tools
        cursor = _next(page)
    return found


def _next(page: Any) -> Any:
    return getattr(page, "next_cursor", None) or getattr(page, "nextCursor", None)


async def tools_of(
    source: Any,
    *,
    prefix: str = "",
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    config: str | os.PathLike[str] | None = None,
    trust_annotations: bool = False,
) -> ToolRegistry:
    """The tools of an MCP server, for a gateway.

    Their bodies run nothing by themselves: they go on where a governed session or a guarded server is in the middle of
    a call. A tool is irreversible and of medium risk until you say otherwise.

    Args:
        source: An initialised ``ClientSession`` or ``Client``, or a server object of your own (``MCPServer``).
        prefix: Stands before every name in the registry, to tell servers apart: ``"files."``.
        settings: Tool name, with prefix, to settings as in ``@tool``.
        config: Configuration file; its ``tools`` section counts like ``settings``.
        trust_annotations: Believe the server's own hints about effects. Only for servers you would let decide.

    Raises:
        ToolDefinitionError: A tool cannot be governed, or ``settings`` names one that does not exist.
        PolicyError: The configuration file does not load.
    """
    document = configuration.read(config).document if config is not None else None
    registry, left_out = registry_from(
        await _listed(source), prefix=prefix, settings=settings, document=document, trusted=trust_annotations
    )
    if left_out:
        raise ConfigurationError(
            f"AG693 these tools of the server cannot be governed: {'; '.join(left_out.values())}. A proxy in front of "
            "the server hides them.",
            code="AG693",
        )
    return registry


# --- clients -----------------------------------------------------------------------------------------------------


def _validated(result_type: Any, wire: Mapping[str, Any]) -> Any:
    adapter = result_type if isinstance(result_type, TypeAdapter) else TypeAdapter(result_type)
    return adapter.validate_python(wire)


def _json(model: Any) -> dict[str, Any]:
    dumped: dict[str, Any] = model.model_dump(by_alias=True, mode="json", exclude_none=True)
    return dumped


def _cannot(message: str) -> CallRefused:
    return CallRefused(Refused(StopReason.UNENFORCEABLE, None, message, False, message, "", "AG652"))


def govern_session(session: SessionT, run: Run | None = None, *, prefix: str = "") -> SessionT:
    """Put a client session behind the gateway: from now on its tool calls are the gateway's.

    Replaces ``send_request`` of this object, which everything that calls tools through the session goes through:
    ``ClientSession.call_tool``, ``Client.call_tool``, frameworks that hold the session. Refusals and calls that wait
    for a person come back as results with ``isError``; hidden tools are missing from ``list_tools``.

    Args:
        session: An initialised ``ClientSession``, or a ``Client`` of mcp 2.x inside ``async with``.
        run: The run, or ``None`` for the one that is current when a call is made.
        prefix: As given to :func:`tools_of`.

    Returns:
        ``session``.

    Raises:
        ConfigurationError: AG138, the session is governed already, or has no ``send_request``.
    """
    target: Any = session if hasattr(session, "send_request") else getattr(session, "session", None)
    inner = getattr(target, "send_request", None)
    if inner is None or getattr(inner, "agentguard", False):
        what = "is governed already" if inner is not None else "is no MCP client session"
        raise ConfigurationError(f"AG138 {type(session).__name__} {what}.", code="AG138")
    doors = _Doors(run, prefix)

    async def call(request: Any, sent: Any, result_type: Any, args: Any, settings: Any) -> Any:
        params = _json(sent).get("params", {})
        if params.get("task") is not None:
            raise _cannot("Calls as tasks are not governed.")

        async def forward(effective: dict[str, Any]) -> tuple[Any, Mapping[str, Any]]:
            changed = sent.model_copy(update={"params": sent.params.model_copy(update={"arguments": effective})})
            try:
                own = await inner(
                    type(request)(changed) if request is not sent else changed, result_type, *args, **settings
                )
                return own, _json(own)
            except Exception as error:
                code = getattr(getattr(error, "error", None), "code", None)
                if code is None or code in _UNCERTAIN:
                    raise AnswerLost(f"{type(error).__name__}: {error}") from error
                raise

        reply = await doors.door().call(str(params.get("name")), params.get("arguments"), call_id(params), forward)
        if reply.error is not None:
            raise reply.error
        return reply.own if reply.made is None else _validated(result_type, reply.made)

    async def send_request(request: Any, result_type: Any, *args: Any, **settings: Any) -> Any:
        sent = getattr(request, "root", request)
        if sent.method == "tools/call":
            return await call(request, sent, result_type, args, settings)
        if sent.method.startswith("tasks/"):
            raise _cannot("Calls as tasks are not governed.")
        result = await inner(request, result_type, *args, **settings)
        if sent.method == "tools/list":
            door = doors.door()
            door.watch.learn(result.tools)
            return result.model_copy(update={"tools": door.shown(list(result.tools), lambda tool: str(tool.name))})
        return result

    send_request.agentguard = True  # type: ignore[attr-defined]
    target.send_request = send_request
    return session


class _Doors:
    """A door per run: the same one as long as the run is the same."""

    def __init__(self, run: Run | None, prefix: str) -> None:
        self._run = run
        self._prefix = prefix
        self._door: Door | None = None

    def door(self, run: Run | None = None) -> Door:
        found = current(run if run is not None else self._run)
        if self._door is None or self._door.run is not found:
            known = self._door.watch if self._door is not None else None
            same = known is not None and self._door is not None and self._door.run._gateway is found._gateway
            self._door = Door(found, known if same and known is not None else Watch(_registry(found), self._prefix))
        return self._door


def _registry(run: Run) -> ToolRegistry:
    return run._gateway.registry


# --- servers -----------------------------------------------------------------------------------------------------


def guard(run: Run | Callable[[Any], Run] | None = None, *, prefix: str = "") -> Callable[[Any, Any], Any]:
    """Middleware for a server of your own (mcp 2.x): ``server.middleware.append(guard(run))``.

    Args:
        run: The run, a function of the request's context that gives one, or ``None`` for the one that is current.
        prefix: As given to :func:`tools_of`.
    """
    fixed = None if run is None or not hasattr(run, "run_id") else run
    choose = run if fixed is None and callable(run) else None
    doors = _Doors(fixed, prefix)  # type: ignore[arg-type]

    async def governed(ctx: Any, call_next: Any) -> Any:
        if ctx.method not in ("tools/call", "tools/list"):
            if ctx.method.startswith("tasks/"):
                raise _cannot("Calls as tasks are not governed.")
            return await call_next(ctx)
        try:
            door = doors.door(choose(ctx) if choose is not None else None)
        except Exception:
            if ctx.method == "tools/list":
                raise
            made = refused(StopReason.NO_ACTIVE_RUN, "The action was not carried out.", "AG625")
            return in_era_of(ctx.params or {}, made)
        if ctx.method == "tools/list":
            return _only_visible(await call_next(ctx), door)
        params = dict(ctx.params or {})
        if params.get("task") is not None:
            raise _cannot("Calls as tasks are not governed.")

        async def forward(effective: dict[str, Any]) -> tuple[Any, Mapping[str, Any]]:
            own = await call_next(dataclasses.replace(ctx, params={**params, "arguments": effective}))
            return own, own if isinstance(own, dict) else _json(own)

        reply = await door.call(str(params.get("name")), params.get("arguments"), call_id(params), forward)
        if reply.error is not None:
            raise reply.error
        return reply.own if reply.made is None else in_era_of(params, reply.made)

    return governed


def _only_visible(result: Any, door: Door) -> Any:
    if isinstance(result, dict):
        door.watch.learn(result["tools"])
        return {**result, "tools": door.shown(list(result["tools"]), lambda tool: str(tool["name"]))}
    door.watch.learn(result.tools)
    return result.model_copy(update={"tools": door.shown(list(result.tools), lambda tool: str(tool.name))})


# --- proxy -------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Proxy:
    """A server that stands in front of another one: ``agentguard mcp-proxy``.

    Attributes:
        config: Configuration file.
        command: Command line of the server.
        prefix: Stands before every tool name in policy and records.
        trust_annotations: Believe the server's own hints about effects.
        only_tools: Refuse resources, prompts and completions, which no policy decides about.
        lock: An ``agentguard.lock``: tools that changed or appeared since it was written are hidden and refused.
        run_id: A run to go on with, opened when there is none of that name and left open at the end; by default each
            session is a run of its own.
        identity: Further arguments of ``ToolGateway.run``: ``agent``, ``tenant``, ``user`` and so on.
        say: Gets messages for people.
    """

    config: Path
    command: Sequence[str]
    prefix: str = ""
    trust_annotations: bool = False
    only_tools: bool = False
    lock: Path | None = None
    run_id: str | None = None
    identity: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {"agent": "mcp"})
    say: Callable[[str], None] = lambda _: None

    async def serve_stdio(self) -> int | None:
        """Serve on the standard streams until the client leaves or the server ends.

        Returns:
            The exit code of a server that ended by itself, ``None`` when the client left.

        Raises:
            PolicyError: The configuration does not load, or does not fit the server's tools.
            StoreUnavailable: The store cannot be opened.
            OSError: The server cannot be started.
        """
        configuration.read(self.config)
        opened: list[Door] = []

        async def open_door(tools: list[Any]) -> Door:
            door = await self._door(tools)
            opened.append(door)
            return door

        try:
            return await relay_stdio(self.command, open_door, only_tools=self.only_tools)
        finally:
            for door in opened:
                await self._leave(door)

    async def tools(self) -> ToolRegistry:
        """Start the server, ask for its tools, and let it go: what a lock is written of.

        Raises:
            ConfigurationError: The server does not say which tools it has.
            PolicyError: The configuration does not load, or does not fit the server's tools.
            OSError: The server cannot be started.
        """
        return self._registry(await ask_for_tools(self.command))

    def _registry(self, tools: list[Any]) -> ToolRegistry:
        settings = configuration.read(self.config)
        registry, left_out = registry_from(
            tools, prefix=self.prefix, document=settings.document, trusted=self.trust_annotations
        )
        for name, reason in left_out.items():
            self.say(f"{name} cannot be governed and is hidden: {reason}")
        # An entry for a tool that the server does not have is found here, with its place in the file.
        return registry.with_document(settings.document) if settings.has_tools else registry

    async def _door(self, tools: list[Any]) -> Door:
        registry = self._registry(tools)
        pinned: dict[str, Any] = {"lock": self.lock} if self.lock else {}
        gateway = ToolGateway.from_yaml(self.config, registry, **pinned)
        try:
            door = Door(await self._run(gateway), Watch(gateway.registry, self.prefix))
            await door.run.aopen()
            if self.run_id is not None:
                await door.remember()
        except BaseException:
            await gateway.aclose()
            raise
        self.say(f"run {door.run.run_id}: {len(registry)} tools behind policy {gateway.policy_digest[:12]}")
        return door

    async def _run(self, gateway: ToolGateway) -> Run:
        if self.run_id is not None:
            try:
                return await gateway.aresume(self.run_id, tenant=self.identity.get("tenant"))
            except RunError:
                return gateway.run(**self.identity, run_id=self.run_id)
        return gateway.run(**self.identity)

    async def _leave(self, door: Door) -> None:
        gateway = door.run._gateway
        try:
            if self.run_id is None:
                async with door.run:  # entering and leaving is what ends a run, unless it waits for a person
                    pass
        finally:
            await gateway.aclose()
