"""Adapter of LangChain and LangGraph, 1.0 and newer: agents and graphs whose tools run through the gateway.

::

    gateway = ToolGateway.from_yaml("agentguard.yaml", tools_of([read_file, delete_file]))
    with gateway.run(agent="support") as run:
        agent = create_agent(model, [read_file, delete_file], middleware=[AgentGuardMiddleware()])
        agent.invoke({"messages": "Tidy up"})

What must stay true: a tool runs by the gateway's own call of its registered body and by nothing else; what a graph is
resumed with only wakes a call, the gateway's store says whether it may run; whatever goes wrong in here keeps the
tool from running.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from agentguard.errors import MissingExtra

try:
    from langchain.agents.middleware import AgentMiddleware
    from langgraph.prebuilt import ToolNode
except ImportError as error:
    raise MissingExtra("langgraph", "langgraph or langchain") from error

from langchain.agents.middleware.types import ModelResponse
from langchain_core.messages import AIMessage
from langchain_core.tools import BaseTool
from langchain_core.tools import tool as as_tool
from langgraph.types import Command
from pydantic_core import to_jsonable_python

from agentguard.adapters._continuing import current, is_continued, registry_of, tool_name
from agentguard.adapters._langgraph_gates import Gate, ungoverned
from agentguard.adapters._langgraph_tools import definition_of, gateway_tools, schema_of
from agentguard.adapters._langgraph_watching import paying, report, was_not_done, watch
from agentguard.adapters._metering import Estimate, ahold, hold
from agentguard.adapters._screening import HOSTED, Screen, hosted_tool
from agentguard.adapters._wire import FINAL, estimate_tokens
from agentguard.errors import CallRefused, ConfigurationError
from agentguard.tools.export import description_of

if TYPE_CHECKING:
    from agentguard.gateway import Run
    from agentguard.tools.registry import ToolRegistry

__all__ = [
    "AgentGuardMiddleware",
    "assert_governed",
    "governed_tool_node",
    "hosted_tool",
    "tools",
    "tools_of",
    "ungoverned",
    "visible",
    "wake",
    "watch",
]


# --- tools -------------------------------------------------------------------------------------------------------


def tools_of(
    given: Iterable[BaseTool | Callable[..., Any]], *, settings: Mapping[str, Mapping[str, Any]] | None = None
) -> ToolRegistry:
    """Tools of LangChain for a gateway; their bodies run where the framework would run them, when the gateway says so.

    A tool is irreversible and of medium risk until its author (``metadata={"agentguard": {...}}``) or ``settings``
    says otherwise.

    Args:
        given: Tools, or functions that an agent would make tools of.
        settings: Tool name to settings as in ``@tool``.

    Raises:
        ToolDefinitionError: A tool cannot be governed, or two different tools have one name.
        ConfigurationError: ``settings`` names a tool that does not exist.
    """
    made = [one if isinstance(one, BaseTool) else as_tool(one) for one in given]
    return registry_of([definition_of(one) for one in made], settings)


def tools(run: Run | None = None, *, of: Any = None) -> list[BaseTool]:
    """The gateway's own tools (functions with ``@tool``), for an agent, a model's ``bind_tools`` or a tool node.

    Args:
        run: The run, or ``None`` for the one that is current when a tool is called.
        of: The gateway, where no run is current yet: all of its tools.
    """
    seen = of.registry if of is not None else current(run)._gateway.visible(current(run))
    shown = [
        (seen.wire_name(t.spec.name), t.spec.name, description_of(t.spec), to_jsonable_python(t.spec.input_schema))
        for t in seen
        if not t.spec.name.startswith(HOSTED) and not is_continued(t)
    ]
    return gateway_tools(run, shown)


def visible(given: Iterable[BaseTool | dict[str, Any]], run: Run | None = None) -> list[BaseTool | dict[str, Any]]:
    """Of some tools those that the run may see, for ``bind_tools``; provider tools as the policy allows.

    Args:
        given: Tools, and provider tools as dictionaries.
        run: The run, or ``None`` for the current one.
    """
    governing = current(run)
    seen = governing._gateway.visible(governing)
    screen = Screen(governing)
    kept: list[BaseTool | dict[str, Any]] = []
    for one in given:
        if not isinstance(one, Mapping):
            permitted = tool_name(governing, one.name) in seen
        elif one.get("type") == "function" or "input_schema" in one:
            name = one.get("name") or (one.get("function") or {}).get("name")
            permitted = isinstance(name, str) and tool_name(governing, name) in seen
        else:
            permitted = screen.hosted(one.get("type"), one)
        if permitted:
            kept.append(one)
    return kept


# --- agents ------------------------------------------------------------------------------------------------------


class AgentGuardMiddleware(Gate, AgentMiddleware[Any, Any]):
    """Puts the tools and model calls of an agent made by ``create_agent`` behind the gateway. Put it last.

    Args:
        run: The run that governs, or ``None`` for the one that is current when the agent runs.
        on_stop: What happens when no further model call may be made: ``raise`` (``BudgetExceeded``, ``RunKilled``),
            or ``end``: the run is stopped and the agent ends with an empty message whose ``response_metadata`` holds
            ``agentguard.stop_reason``.
        watched: Stop tools, and pay for models, that tools of the agent call by themselves.
    """

    def __init__(
        self, run: Run | None = None, *, on_stop: Literal["raise", "end"] = "raise", watched: bool = True
    ) -> None:
        AgentMiddleware.__init__(self)
        Gate.__init__(self, run, watched)
        self.on_stop = on_stop

    def _screened(self, run: Run, request: Any) -> tuple[Any, Estimate]:
        shown = visible(request.tools, run)
        said = [getattr(m, "content", "") for m in request.messages]
        definitions = [(t.name, t.description, schema_of(t)) if isinstance(t, BaseTool) else t for t in shown]
        most = request.model_settings.get("max_tokens") or getattr(request.model, "max_tokens", None)
        model = getattr(request.model, "model_name", None) or getattr(request.model, "model", None)
        whole = to_jsonable_python(
            [str(request.system_prompt or ""), said, definitions], fallback=repr, bytes_mode="base64"
        )
        estimate = Estimate(
            str(model or type(request.model).__name__), estimate_tokens(whole), most if isinstance(most, int) else 1
        )
        return request.override(tools=shown), estimate

    def _stopped(self, refusal: CallRefused) -> Any:
        told = {"stop_reason": refusal.reason.value, "detail": refusal.for_people}
        return ModelResponse(result=[AIMessage("", response_metadata={"agentguard": told})])

    def wrap_model_call(self, request: Any, handler: Callable[[Any], Any]) -> Any:
        """Show what the run may see, hold the budget, charge what the provider reports.

        Raises:
            BudgetExceeded: A limit is in the way; the request is not sent.
            RunKilled: A kill switch is on, or the run has ended.
        """
        run = current(self.run)
        request, estimate = self._screened(run, request)
        try:
            meter = hold(run, estimate)
        except CallRefused as refusal:
            if self.on_stop == "raise":
                raise
            if refusal.reason not in FINAL:
                run.stop(refusal.reason, note=refusal.for_people)
            return self._stopped(refusal)
        try:
            with paying():
                response = handler(request)
        except BaseException as error:
            meter.release() if was_not_done(error) else meter.settle()
            raise
        report(meter, _answers(response))
        meter.settle()
        return response

    async def awrap_model_call(self, request: Any, handler: Callable[[Any], Awaitable[Any]]) -> Any:
        """The same for async code."""
        run = current(self.run)
        request, estimate = self._screened(run, request)
        try:
            meter = await ahold(run, estimate)
        except CallRefused as refusal:
            if self.on_stop == "raise":
                raise
            if refusal.reason not in FINAL:
                await run.astop(refusal.reason, note=refusal.for_people)
            return self._stopped(refusal)
        try:
            with paying():
                response = await handler(request)
        except BaseException as error:
            await (meter.arelease() if was_not_done(error) else meter.asettle())
            raise
        report(meter, _answers(response))
        await meter.asettle()
        return response


def _answers(response: Any) -> list[Any]:
    return list(response.result) if hasattr(response, "result") else [response]


# --- graphs ------------------------------------------------------------------------------------------------------


def governed_tool_node(
    given: Sequence[BaseTool | Callable[..., Any]], run: Run | None = None, *, watched: bool = True, **settings: Any
) -> ToolNode:
    """A ``ToolNode`` behind the gateway, for graphs of your own.

    Args:
        given: Its tools.
        run: The run that governs, or ``None`` for the one that is current when the node runs.
        watched: Stop tools, and pay for models, that the tools call by themselves.
        **settings: Further settings of ``ToolNode``.
    """
    gate = Gate(run, watched)
    return ToolNode(given, wrap_tool_call=gate.wrap_tool_call, awrap_tool_call=gate.awrap_tool_call, **settings)


def assert_governed(*graphs: Any) -> None:
    """Check that no tool in reach of graphs and agents would run past the gateway.

    Raises:
        ConfigurationError: AG692; the message names every tool that would escape.
    """
    found = ungoverned(*graphs)
    if found:
        raise ConfigurationError(
            f"AG692 these would run past the gateway: {'; '.join(found)}. Use AgentGuardMiddleware with create_agent, "
            "governed_tool_node instead of ToolNode, or the gateway's own tools.",
            code="AG692",
        )


# --- resuming ----------------------------------------------------------------------------------------------------


def wake(interrupts: Iterable[Any]) -> Command[Any]:
    """What a graph needs to try its waiting calls again. It approves nothing: the gateway's store decides.

    Args:
        interrupts: ``graph.get_state(config).interrupts``. Those that are not of agentguard are left to you.
    """
    ours = [i for i in interrupts if isinstance(i.value, Mapping) and i.value.get("type") == "agentguard.approval"]
    return Command(resume={i.id: True for i in ours})
