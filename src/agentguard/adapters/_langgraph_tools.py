"""What tools LangChain and LangGraph have: read for a gateway, and made out of a gateway's own.

What must stay true: a tool is registered with the arguments that a model may fill in, without what the framework
injects; the gateway's own tools run nothing but a call of the gateway.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from typing import Any

from langchain_core.tools import BaseTool, ToolException
from langgraph.types import interrupt
from pydantic import ConfigDict

from agentguard.adapters._continuing import Definition, asked, call_id_of, current, origin_of
from agentguard.adapters._wire import FINAL, answer_to
from agentguard.domain.calls import Outcome, Refused, Suspended
from agentguard.gateway.raising import refusal
from agentguard.gateway.running import Run

DECLARED = "agentguard"
"""Key of a tool's metadata under which its author may declare settings as in ``@tool``."""


def schema_of(tool: BaseTool) -> dict[str, Any]:
    """JSON Schema of the arguments that a model may fill in."""
    shown: Any = tool.tool_call_schema
    return copy.deepcopy(dict(shown)) if isinstance(shown, Mapping) else dict(shown.model_json_schema())


def definition_of(tool: BaseTool) -> Definition:
    """A tool as it is shown to the model."""
    function = getattr(tool, "func", None) or getattr(tool, "coroutine", None) or type(tool)._run
    declared = (tool.metadata or {}).get(DECLARED)
    return Definition(
        tool.name,
        tool.description,
        schema_of(tool),
        origin_of(function),
        declared if isinstance(declared, Mapping) else {},
    )


_CALL_ID: ContextVar[str | None] = ContextVar("agentguard_tool_call_id", default=None)


class GatewayTool(BaseTool):
    """One of the gateway's own tools, as LangChain calls it."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    governing: Any = None
    """The run, or ``None`` for the current one."""
    registered: str
    """Name in the gateway."""
    handle_tool_error: Any = True

    def run(self, tool_input: Any, *args: Any, tool_call_id: str | None = None, **settings: Any) -> Any:
        """Remember the id of the call, which makes it one that can be paused and resumed."""
        token = _CALL_ID.set(tool_call_id)
        try:
            return super().run(tool_input, *args, tool_call_id=tool_call_id, **settings)
        finally:
            _CALL_ID.reset(token)

    async def arun(self, tool_input: Any, *args: Any, tool_call_id: str | None = None, **settings: Any) -> Any:
        """The same for async code."""
        token = _CALL_ID.set(tool_call_id)
        try:
            return await super().arun(tool_input, *args, tool_call_id=tool_call_id, **settings)
        finally:
            _CALL_ID.reset(token)

    def _run(self, **arguments: Any) -> Any:
        run = current(self.governing)
        call_id = call_id_of(run, _CALL_ID.get())
        while True:
            outcome = run.attempt(self.registered, arguments, call_id=call_id)
            if not isinstance(outcome, Suspended):
                return _told(outcome)
            interrupt(payload(outcome, _CALL_ID.get()))

    async def _arun(self, **arguments: Any) -> Any:
        run = current(self.governing)
        call_id = call_id_of(run, _CALL_ID.get())
        while True:
            outcome = await run.aattempt(self.registered, arguments, call_id=call_id)
            if not isinstance(outcome, Suspended):
                return _told(outcome)
            interrupt(payload(outcome, _CALL_ID.get()))


def payload(outcome: Suspended, tool_call_id: str | None) -> dict[str, Any]:
    """What a graph shows while a call waits for a person."""
    return {"type": "agentguard.approval", "tool_call_id": tool_call_id, **asked(outcome.request)}


def _told(outcome: Outcome) -> str:
    if isinstance(outcome, Refused) and outcome.reason in FINAL:
        raise refusal(outcome)
    answer = answer_to("", outcome)
    assert answer is not None
    if answer.failed:
        raise ToolException(answer.text)
    return answer.text


def gateway_tools(run: Run | None, names: Iterable[tuple[str, str, str, Mapping[str, Any]]]) -> list[BaseTool]:
    """Tools of the gateway as (wire name, name, description, schema), for a model and a tool node."""
    return [
        GatewayTool(
            name=wire, description=text, args_schema=copy.deepcopy(dict(schema)), governing=run, registered=name
        )
        for wire, name, text, schema in names
    ]
