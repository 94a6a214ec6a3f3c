"""One tool call of LangGraph on its way to the gateway and back.

What must stay true: a call that waits for a person parks the graph with ``interrupt()``, and whatever the graph is
resumed with only wakes it: the gateway is asked again, as often as it takes. What was decided is what runs. A result
goes on in the framework's own form only as long as the gateway has changed nothing in it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from langchain_core.messages import ToolMessage, convert_to_messages
from langchain_core.tools import BaseTool
from langgraph.types import Command, interrupt
from pydantic_core import from_json, to_json, to_jsonable_python

from agentguard.adapters._continuing import (
    Continuation,
    Definition,
    athrough,
    call_id_of,
    through,
    tool_name,
)
from agentguard.adapters._langgraph_tools import definition_of, payload
from agentguard.adapters._langgraph_watching import permitting
from agentguard.adapters._wire import FINAL, answer_to
from agentguard.domain.calls import Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.decisions import StopReason
from agentguard.gateway.raising import refusal
from agentguard.gateway.running import Run

_PAUSED: Final = ("GraphInterrupt:", "NodeInterrupt:")


class ToolReported(Exception):
    """A tool has answered with an error message instead of raising one."""


def _recorded(result: Any) -> Any:
    """What is kept of a result: the text or data that the model gets, the artifact, an update of the state."""
    if isinstance(result, ToolMessage):
        content: Any = result.content
        if isinstance(content, str) and content[:1] in ("{", "["):
            try:  # data, so that the policy can speak about its fields
                content = from_json(content)
            except ValueError:
                content = result.content
        if result.artifact is None:
            return content
        return {"content": content, "artifact": to_jsonable_python(result.artifact, fallback=repr)}
    if isinstance(result, Command):
        update = result.update
        if isinstance(update, Mapping):
            update = {key: _messages(value) if key == "messages" else value for key, value in update.items()}
        kept = {"update": update, "goto": result.goto, "graph": result.graph}
        return {"command": to_jsonable_python(kept, fallback=repr)}
    return to_jsonable_python(result, fallback=repr)


def _messages(given: Any) -> Any:
    return [m.model_dump() if hasattr(m, "model_dump") else m for m in given] if isinstance(given, list) else given


def _text(content: Any) -> Any:
    """Content as a message takes it: text, or a list of blocks."""
    if isinstance(content, str) or (isinstance(content, list) and all(isinstance(c, str | dict) for c in content)):
        return content
    return to_json(content).decode()


def _injected(tool: BaseTool, args: Mapping[str, Any]) -> set[str]:
    """Arguments that the tool takes and the model does not see."""
    fields: Mapping[str, Any] = getattr(tool.get_input_schema(), "model_fields", {})
    return {key for key in args if key in fields}


def _proposed(state: Any, call_id: str) -> Mapping[str, Any] | None:
    """The arguments of a call as the model gave them."""
    messages = state if isinstance(state, list) else state.get("messages") if isinstance(state, Mapping) else None
    for message in reversed(messages if messages is not None else getattr(state, "messages", [])):
        for call in getattr(message, "tool_calls", None) or ():
            if call["id"] == call_id:
                return dict(call["args"])
    return None


class Call:
    """A tool call as a tool node hands it over.

    Args:
        run: The run that governs.
        request: ``ToolCallRequest`` of the tool node.
        watched: Watch what the tool does meanwhile.
    """

    def __init__(self, run: Run, request: Any, watched: bool) -> None:
        self._run = run
        self._request = request
        self._watched = watched
        self._id: str = request.tool_call["id"] or ""
        self._name: str = request.tool_call["name"]
        tool = request.tool
        known = isinstance(tool, BaseTool)
        self._definition = definition_of(tool) if known else Definition(self._name, "", {})
        self._known = frozenset(self._definition.schema.get("properties", {}))
        self._registered = tool_name(run, self._name)
        self._outer = call_id_of(run, self._id)
        args: dict[str, Any] = request.tool_call["args"]
        # Old versions put what they inject (the state, the store) beside the arguments before anybody can look.
        self._injected = {k: args[k] for k in _injected(tool, args) - self._known} if known else {}
        if self._injected:
            proposed = _proposed(request.state, self._id)
            self._injected = {k: v for k, v in self._injected.items() if proposed is not None and k not in proposed}
        self._arguments = {k: v for k, v in args.items() if k not in self._injected}
        self._round = 1
        self._next: Continuation | None = None

    def _call_id(self) -> str | None:
        return self._outer if self._round == 1 else call_id_of(self._run, f"{self._id}/{self._round}")

    def _decided(self, effective: Mapping[str, Any]) -> Any:
        return self._request.override(tool_call={**self._request.tool_call, "args": {**effective, **self._injected}})

    def _kept(self, next_: Continuation, result: Any) -> Any:
        recorded = next_.keep(_recorded(result), result)
        if isinstance(result, ToolMessage) and result.status == "error":
            raise ToolReported(str(result.content))
        return recorded

    def attempt(self, handler: Callable[[Any], Any]) -> Outcome:
        """Bring the call to the gateway."""

        def proceed(effective: dict[str, Any]) -> Any:
            with permitting(self._run, self._name, effective, self._known, watched=self._watched):
                return self._kept(next_, handler(self._decided(effective)))

        self._next = next_ = Continuation(self._registered, self._definition, proceed=proceed)
        return through(self._run, next_, self._arguments, self._call_id(), outer=self._outer)

    async def aattempt(self, handler: Callable[[Any], Awaitable[Any]]) -> Outcome:
        """The same for async code."""

        async def aproceed(effective: dict[str, Any]) -> Any:
            with permitting(self._run, self._name, effective, self._known, watched=self._watched):
                return self._kept(next_, await handler(self._decided(effective)))

        self._next = next_ = Continuation(self._registered, self._definition, aproceed=aproceed)
        return await athrough(self._run, next_, self._arguments, self._call_id(), outer=self._outer)

    def goes_on(self, outcome: Outcome) -> bool:
        """Whether the gateway has to be asked again: a person has to decide, or the tool had paused by itself.

        Raises:
            GraphInterrupt: The graph parks here.
        """
        if isinstance(outcome, Suspended):
            # Whatever this returns is no decision: it may have been meant for another call of the same node.
            interrupt(payload(outcome, self._id))
            return True
        if isinstance(outcome, Failed) and outcome.replayed and str(outcome.error).startswith(_PAUSED):
            self._round += 1  # woken, the tool runs anew: another call, decided like every other
            return True
        return False

    def _message(self, content: Any, **more: Any) -> ToolMessage:
        return ToolMessage(content=_text(content), name=self._name, tool_call_id=self._id, **more)

    def handed_back(self, outcome: Outcome) -> Any:
        """What the framework gets.

        Raises:
            CallRefused: The run has ended.
            Exception: What the tool raised, which the framework knows how to deal with.
        """
        next_ = self._next
        assert next_ is not None
        if isinstance(outcome, Completed):
            result = next_.kept if next_.given(outcome) else self._restored(outcome.value)
            notes = outcome.decision.obligations.messages if outcome.decision is not None else ()
            if notes and isinstance(result, ToolMessage):
                text = "\n\n".join([str(_text(result.content)), *(f"Note: {note}" for note in notes)])
                result = result.model_copy(update={"content": text})
            return result
        if isinstance(outcome, Refused) and outcome.reason in FINAL:
            raise refusal(outcome)
        if isinstance(outcome, Failed) and not outcome.replayed and outcome.reason is StopReason.TOOL_ERROR:
            if isinstance(outcome.error, ToolReported) and outcome.error is next_.failure:
                return next_.kept
            if next_.failure is not None and not isinstance(next_.failure, ToolReported):
                raise outcome.error
        answer = answer_to(self._id, outcome)
        assert answer is not None
        return self._message(answer.text, status="error")

    def _restored(self, value: Any) -> Any:
        """A result in the framework's form, out of what the gateway gives back."""
        if isinstance(value, dict) and set(value) == {"command"} and isinstance(value["command"], dict):
            kept = value["command"]
            update = kept.get("update")
            if isinstance(update, dict) and isinstance(update.get("messages"), list):
                update = {**update, "messages": convert_to_messages(update["messages"])}
            return Command(update=update, goto=kept.get("goto") or (), graph=kept.get("graph"))
        if isinstance(value, dict) and set(value) == {"content", "artifact"}:
            return self._message(value["content"], artifact=value["artifact"])
        return self._message(value)


def carry_out(run: Run, request: Any, handler: Callable[[Any], Any], *, watched: bool) -> Any:
    """Carry out one call of a tool node."""
    call = Call(run, request, watched)
    while call.goes_on(outcome := call.attempt(handler)):
        pass
    return call.handed_back(outcome)


async def acarry_out(run: Run, request: Any, handler: Callable[[Any], Awaitable[Any]], *, watched: bool) -> Any:
    """The same for async code."""
    call = Call(run, request, watched)
    while call.goes_on(outcome := await call.aattempt(handler)):
        pass
    return call.handed_back(outcome)
