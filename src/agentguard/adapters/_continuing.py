"""Tools that belong to a framework: the gateway decides about their calls, and its body hands over to the framework.

A tool is registered by its definition. Its body runs nothing by itself: it takes the continuation that the adapter
has laid down for this one call and lets the framework go on with the arguments the gateway has settled on. What must
stay true: without a continuation nothing runs; a continuation serves the call it was laid down for and no call that
the tool makes meanwhile; a tool that is not the one that was registered is not handed over to.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MethodType
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import to_jsonable_python

from agentguard.canonical import sha256, tagged
from agentguard.domain.approvals import ApprovalRequest
from agentguard.domain.calls import Completed, Outcome, Refused
from agentguard.domain.decisions import StopReason
from agentguard.errors import ConfigurationError, NoActiveRun
from agentguard.tools.current import CURRENT
from agentguard.tools.registry import ToolRegistry
from agentguard.tools.tool import Tool, define

if TYPE_CHECKING:
    from agentguard.gateway import Run

_ID: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,128}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Definition:
    """A tool as its framework describes it.

    Attributes:
        name: Name in the framework.
        description: For the model.
        schema: JSON Schema of the arguments; empty when the framework does not say.
        origin: What tells this tool from another of the same name and schema, or ``None``.
        settings: Further settings as in ``@tool``, declared by whoever wrote the tool.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    origin: object = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the schema."""
        return sha256(tagged(dict(self.schema)))

    def is_same(self, other: Definition) -> bool:
        """Whether both describe one tool: the same arguments, and the same function where both know it."""
        if self.origin is not None and other.origin is not None and self.origin is not other.origin:
            return False
        return not self.schema or not other.schema or self.digest == other.digest


@dataclass(slots=True)
class Continuation:
    """How a framework goes on with one call, and what came of it.

    Attributes:
        tool: Name under which the tool is registered.
        definition: The tool the framework is about to run.
        aproceed: Goes on in async code; gets the arguments by name. Returns what is recorded as the result.
        proceed: The same in sync code, where the framework can do that.
        kept: The framework's own form of the result, set while going on through :meth:`keep`.
        failure: What the framework's tool raised, as it raised it.
    """

    tool: str
    definition: Definition
    aproceed: Callable[[dict[str, Any]], Awaitable[Any]] | None = None
    proceed: Callable[[dict[str, Any]], Any] | None = None
    kept: Any = None
    failure: Exception | None = None
    _recorded: Any = None

    def keep(self, recorded: Any, own: Any) -> Any:
        """Remember the framework's own form of a result beside the form that is recorded."""
        self._recorded, self.kept = recorded, own
        return recorded

    def given(self, outcome: Completed) -> bool:
        """Whether ``kept`` may be handed on: the gateway has changed nothing in the result."""
        return not outcome.replayed and self._recorded is not None and outcome.value is self._recorded


_NEXT: ContextVar[Continuation | None] = ContextVar("agentguard_continuation", default=None)
_OUTER: ContextVar[tuple[str, str] | None] = ContextVar("agentguard_outer_call", default=None)


def origin_of(function: Any) -> object:
    """What stays the same when the same function is made again (nested functions, bound methods)."""
    inner = function.__func__ if isinstance(function, MethodType) else function
    return getattr(inner, "__code__", inner)


def _no_framework(registered: Definition) -> ConfigurationError:
    return ConfigurationError(
        f"AG690 {registered.name} belongs to an agent framework and can only be called by it, through its adapter.",
        code="AG690",
    )


def _taken(registered: Definition) -> Continuation:
    found = _NEXT.get()
    if found is None or found.tool != registered.name:
        raise _no_framework(registered)
    if not registered.is_same(found.definition):
        raise ConfigurationError(
            f"AG691 the framework's tool {registered.name} is not the one that was registered: its arguments or its "
            "function are different. It was not run. Register what is in use now.",
            code="AG691",
        )
    return found


def _bodies(registered: Definition) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def hand_over(**arguments: Any) -> Any:
        found = _taken(registered)
        if found.proceed is None:
            raise _no_framework(registered)
        token = _NEXT.set(None)
        try:
            return found.proceed(arguments)
        except Exception as error:
            found.failure = error
            raise
        finally:
            _NEXT.reset(token)

    async def ahand_over(**arguments: Any) -> Any:
        found = _taken(registered)
        if found.aproceed is None:
            raise _no_framework(registered)
        token = _NEXT.set(None)
        try:
            return await found.aproceed(arguments)
        except Exception as error:
            found.failure = error
            raise
        finally:
            _NEXT.reset(token)

    hand_over.definition = registered  # type: ignore[attr-defined]
    return hand_over, ahand_over


def is_continued(tool: Tool) -> bool:
    """Whether a registered tool belongs to a framework."""
    return isinstance(getattr(tool._function, "definition", None), Definition)


def registry_of(definitions: Iterable[Definition], settings: Mapping[str, Any] | None = None) -> ToolRegistry:
    """Tools out of a framework's definitions; the same tool twice counts once.

    Args:
        definitions: What the framework has.
        settings: Tool name to settings as in ``@tool``; they come before what a definition declares.

    Raises:
        ToolDefinitionError: A definition cannot be governed, or two tools have one name.
    """
    found: dict[str, Definition] = {}
    more = dict(settings or {})
    made: list[Tool] = []
    for one in definitions:
        known = found.get(one.name)
        if known is not None and known.is_same(one):
            continue
        found[one.name] = one
        extra = {**one.settings, **more.pop(one.name, {})}
        given = {"description": one.description, "input_schema": one.schema, **extra}
        body, abody = _bodies(one)
        made.append(define(body, given, name=one.name).with_async_body(abody))
    registry = ToolRegistry(made)
    for name in more:
        if name not in registry:
            hint = registry.did_you_mean(name)
            raise ConfigurationError(
                f"AG229 settings: no tool {name!r:.140} was found{f'; {hint}' if hint else ''}.", code="AG229"
            )
    return registry


def call_id_of(run: Run, given: str | None) -> str | None:
    """The id of a call in its run: the framework's own, below the call that is being carried out, if any.

    Two agents that work in one run may well count their calls alike; what one does inside a call of the other must
    not be taken for a repetition. Ids that a run does not take are replaced by their digest.
    """
    if not given:
        return None
    outer = _OUTER.get()
    whole = f"{outer[1]}/{given}" if outer is not None and outer[0] == run.run_id else given
    return whole if _ID.fullmatch(whole) else f"id:{sha256(whole.encode('utf-8', 'surrogatepass'))}"


def tool_name(run: Run, name: str) -> str:
    """The registered name of a tool that the framework calls ``name``."""
    registry = run._gateway.registry
    if name in registry:
        return name
    found = registry.by_wire_name(name)
    return found.spec.name if found is not None else name


@contextmanager
def _laid_down(run: Run, next_: Continuation, outer: str | None) -> Generator[None]:
    token = _NEXT.set(next_)
    below = _OUTER.set((run.run_id, outer)) if outer is not None else None
    current = CURRENT.set(run)
    try:
        yield
    finally:
        CURRENT.reset(current)
        if below is not None:
            _OUTER.reset(below)
        _NEXT.reset(token)


async def athrough(
    run: Run, next_: Continuation, arguments: Mapping[str, Any], call_id: str | None, *, outer: str | None = None
) -> Outcome:
    """Bring one call of a framework to the gateway; the body of a registered definition goes on with ``next_``.

    Args:
        run: The run.
        next_: How the framework goes on.
        arguments: Arguments as JSON values.
        call_id: Id of the call, from :func:`call_id_of`.
        outer: Id that calls made meanwhile are counted below, if it is not ``call_id``.
    """
    with _laid_down(run, next_, outer or call_id):
        return await run.aattempt(next_.tool, arguments, call_id=call_id)


def through(
    run: Run, next_: Continuation, arguments: Mapping[str, Any], call_id: str | None, *, outer: str | None = None
) -> Outcome:
    """The same as :func:`athrough` for sync code."""
    with _laid_down(run, next_, outer or call_id):
        return run.attempt(next_.tool, arguments, call_id=call_id)


def current(run: Run | None) -> Run:
    """The run, or the one that is current.

    Raises:
        NoActiveRun: There is none.
    """
    from agentguard.gateway.running import Run as Known

    found = run if run is not None else CURRENT.get()
    if isinstance(found, Known):
        return found
    detail = "The agent was run outside a run: use `with gateway.run(...) as run:`, or give the adapter the run."
    raise NoActiveRun(Refused(StopReason.NO_ACTIVE_RUN, None, "The agent was not run.", False, detail, "", "AG625"))


def asked(request: ApprovalRequest) -> dict[str, Any]:
    """What goes along with a paused call, for whoever shows it to a person."""
    return {
        "approval_id": request.id,
        "run_id": request.run_id,
        "tool": request.tool,
        "arguments": to_jsonable_python(request.arguments),
        "expires_at": request.expires_at,
    }
