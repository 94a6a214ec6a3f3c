"""Adapter of PydanticAI, 2.16 and newer: agents whose tools run through the gateway.

::

    gateway = ToolGateway.from_yaml("agentguard.yaml", tools_of(agent))
    async with gateway.run(agent="support") as run:
        result = await agent.run("Refund order A-17", capabilities=[AgentGuard(run)])

What must stay true: a tool of an agent is run by the gateway's own call of its registered body and by nothing else;
the framework's word that a call was approved only wakes the call, the gateway's store says whether it may run;
whatever goes wrong in here keeps the tool from running.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic_core import SchemaValidator, core_schema, to_jsonable_python

from agentguard.errors import MissingExtra

try:
    from pydantic_ai import DeferredToolRequests, DeferredToolResults, RunContext
except ImportError as error:
    raise MissingExtra("pydantic-ai", "pydantic-ai-slim") from error

from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, ToolCallPart
from pydantic_ai.tools import ToolDefinition
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool

from agentguard.adapters._continuing import current, is_continued, registry_of
from agentguard.adapters._pydantic_ai_calls import Door
from agentguard.adapters._pydantic_ai_guard import AgentGuard
from agentguard.adapters._pydantic_ai_tools import adefinitions, definitions, reachable
from agentguard.adapters._screening import HOSTED, hosted_tool
from agentguard.errors import ConfigurationError
from agentguard.tools.export import description_of

if TYPE_CHECKING:
    from agentguard.gateway import Run
    from agentguard.tools.registry import ToolRegistry

__all__ = [
    "AgentGuard",
    "assert_governed",
    "atools_of",
    "govern",
    "hosted_tool",
    "tools_of",
    "toolset",
    "ungoverned",
    "wake",
]

AgentT = TypeVar("AgentT", bound=AbstractAgent[Any, Any])


# --- tools -------------------------------------------------------------------------------------------------------


def tools_of(
    agent: AbstractAgent[Any, Any],
    *others: AbstractAgent[Any, Any],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    deps: Any = None,
) -> ToolRegistry:
    """The tools of agents, of the agents their tools mention, and their output functions, for a gateway.

    Their bodies run where the framework would run them, when the gateway says so. A tool is irreversible and of
    medium risk until its author (``metadata={"agentguard": {...}}`` of a PydanticAI tool) or ``settings`` says
    otherwise; what an MCP server claims is not believed.

    Args:
        agent: The agent.
        *others: Further agents.
        settings: Tool name to settings as in ``@tool``.
        deps: Dependencies, where toolsets need them to say what they have.

    Raises:
        ToolDefinitionError: A tool cannot be governed, or two different tools have one name.
        ConfigurationError: The tools cannot be read; ``settings`` names a tool that does not exist.
    """
    return registry_of(definitions(reachable(agent, *others), deps), settings)


async def atools_of(
    agent: AbstractAgent[Any, Any],
    *others: AbstractAgent[Any, Any],
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    deps: Any = None,
) -> ToolRegistry:
    """The same where the agent runs: for MCP servers and toolsets that belong to an event loop."""
    return registry_of(await adefinitions(reachable(agent, *others), deps), settings)


_ANY_ARGUMENTS = SchemaValidator(core_schema.dict_schema(core_schema.str_schema(), core_schema.any_schema()))


@dataclass
class _Governed(AbstractToolset[Any]):
    """The gateway's own tools for an agent."""

    run: Run | None

    @property
    def id(self) -> str | None:
        return "agentguard"

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        run = current(self.run)
        seen = run._gateway.visible(run)
        found: dict[str, ToolsetTool[Any]] = {}
        for item in seen:
            if item.spec.name.startswith(HOSTED) or is_continued(item):
                continue
            name = seen.wire_name(item.spec.name)
            shown = ToolDefinition(
                name=name,
                description=description_of(item.spec),
                parameters_json_schema=to_jsonable_python(item.spec.input_schema),
            )
            found[name] = ToolsetTool(toolset=self, tool_def=shown, max_retries=1, args_validator=_ANY_ARGUMENTS)
        return found

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        return await Door(self, current(self.run), {}).call_tool(name, tool_args, ctx, tool)


def toolset(run: Run | None = None) -> AbstractToolset[Any]:
    """The gateway's own tools (functions with ``@tool``) that the run may see, for an agent.

    Args:
        run: The run, or ``None`` for the one that is current when the agent runs.
    """
    return _Governed(run)


# --- agents ------------------------------------------------------------------------------------------------------


def _guarded(agent: AbstractAgent[Any, Any]) -> bool:
    if getattr(vars(agent).get("iter"), "agentguard", False):
        return True
    found: list[AbstractCapability[Any]] = []
    agent.root_capability.apply(found.append)
    return any(isinstance(one, AgentGuard) for one in found)


def govern(agent: AgentT, *others: AbstractAgent[Any, Any]) -> AgentT:
    """Put agents behind the gateway for good, with the agents that their tools mention; the current run governs.

    Every way to run them (``run``, ``run_sync``, ``run_stream``, ``run_stream_events``, ``iter``) gets an
    :class:`AgentGuard`; outside a run they refuse.

    Args:
        agent: The agent.
        *others: Agents that cannot be found from it: made or looked up while a tool runs.

    Returns:
        ``agent``.
    """
    for one in reachable(agent, *others):
        if not _guarded(one):
            _attach(one)
    return agent


def _attach(agent: AbstractAgent[Any, Any]) -> None:
    run_agent: Callable[..., Any] = agent.iter

    def iter_governed(*args: Any, capabilities: Any = None, **settings: Any) -> Any:
        given = list(capabilities or ())
        if not any(isinstance(one, AgentGuard) for one in given):
            given.append(AgentGuard())
        return run_agent(*args, capabilities=given, **settings)

    iter_governed.agentguard = True  # type: ignore[attr-defined]
    agent.iter = iter_governed  # type: ignore[method-assign]


def ungoverned(agent: AbstractAgent[Any, Any], *others: AbstractAgent[Any, Any]) -> tuple[str, ...]:
    """Agents in reach without :class:`AgentGuard`, each with the tools that would run past the gateway."""
    found: list[str] = []
    for one in reachable(agent, *others):
        if _guarded(one):
            continue
        try:
            names = ", ".join(d.name for d in definitions([one], None)) or "no tools"
        except ConfigurationError:
            names = "tools that cannot be listed here"
        found.append(f"agent {one.name or 'without a name'}: {names}")
    return tuple(found)


def assert_governed(agent: AbstractAgent[Any, Any], *others: AbstractAgent[Any, Any]) -> None:
    """Check that an agent and every agent in reach of its tools is governed by itself.

    Raises:
        ConfigurationError: AG692; the message names every tool that would escape.
    """
    found = ungoverned(agent, *others)
    if found:
        raise ConfigurationError(
            f"AG692 these would run past the gateway: {'; '.join(found)}. Use govern(agent), or "
            "capabilities=[AgentGuard()] when the agent is made.",
            code="AG692",
        )


# --- resuming ----------------------------------------------------------------------------------------------------


def wake(paused: DeferredToolRequests | list[ModelMessage]) -> DeferredToolResults:
    """What an agent needs to try its waiting calls again. It approves nothing: the gateway's store decides.

    Args:
        paused: The output of the run that was paused, or its messages.
    """
    if isinstance(paused, DeferredToolRequests):
        waiting = [call.tool_call_id for call in paused.approvals]
    else:
        last = max((n for n, m in enumerate(paused) if isinstance(m, ModelResponse)), default=-1)
        proposed = paused[last].parts if last >= 0 else ()
        answered = {
            getattr(part, "tool_call_id", None)
            for message in paused[last + 1 :]
            if isinstance(message, ModelRequest)
            for part in message.parts
        }
        calls = [part.tool_call_id for part in proposed if isinstance(part, ToolCallPart)]
        waiting = [call_id for call_id in calls if call_id not in answered]
    return DeferredToolResults(approvals=dict.fromkeys(waiting, True))
