"""One call of a PydanticAI tool on its way to the gateway and back.

What must stay true: what the gateway decides on is the JSON form of what runs; what the gateway changes (an edit, an
obligation) is validated by the tool again before it runs; a result goes to the model in the tool's own form only as
long as the gateway has changed nothing in it.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import BaseModel, TypeAdapter
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ApprovalRequired, ToolFailed
from pydantic_ai.messages import ToolReturn, tool_return_ta
from pydantic_ai.output import OutputContext
from pydantic_ai.toolsets import AbstractToolset, ToolsetTool, WrapperToolset
from pydantic_core import to_json, to_jsonable_python

from agentguard.adapters._continuing import Continuation, asked, athrough, call_id_of, tool_name
from agentguard.adapters._pydantic_ai_tools import definition_of
from agentguard.adapters._wire import FINAL, answer_to, error_text
from agentguard.canonical import tagged
from agentguard.domain.calls import Completed, Failed, Outcome, Refused, Suspended
from agentguard.domain.decisions import StopReason
from agentguard.gateway.raising import refusal
from agentguard.gateway.running import Run

_PAUSED: Final = ("ApprovalRequired:", "CallDeferred:")
_ROUNDS: Final = 8
"""Times that a tool may pause by itself in one call."""


def refusal_text(message: str) -> str:
    """What the model reads about a call that cannot be governed."""
    return error_text(StopReason.UNENFORCEABLE.value, message)


def handed_back(outcome: Outcome, next_: Continuation) -> Any:
    """What the framework gets for an outcome.

    Raises:
        ApprovalRequired: A person has to decide first.
        CallRefused: The run has ended.
        ToolFailed: The call was refused or did not deliver; the text is for the model.
        Exception: What the framework's tool raised, which the framework knows how to deal with.
    """
    if isinstance(outcome, Completed):
        notes = outcome.decision.obligations.messages if outcome.decision is not None else ()
        value = next_.kept if next_.given(outcome) else _restored(outcome.value)
        return _with_notes(value, notes) if notes else value
    if isinstance(outcome, Suspended):
        raise ApprovalRequired(metadata=asked(outcome.request))
    if isinstance(outcome, Refused) and outcome.reason in FINAL:
        raise refusal(outcome)
    if isinstance(outcome, Failed) and not outcome.replayed and next_.failure is not None:
        if outcome.reason is StopReason.TOOL_ERROR and isinstance(outcome.error, Exception):
            raise outcome.error
    answer = answer_to("", outcome)
    raise ToolFailed(answer.text if answer is not None else refusal_text("The call was not made."))


def _restored(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("kind") == "tool-return" and "return_value" in value:
        return ToolReturn(value["return_value"], content=value.get("content"), metadata=value.get("metadata"))
    return value


def _with_notes(value: Any, notes: tuple[str, ...]) -> Any:
    text = "\n".join(f"Note: {note}" for note in notes)
    if not isinstance(value, ToolReturn):
        return ToolReturn(value, content=text)
    own = value.content
    content = text if own is None else [own, text] if isinstance(own, str) else [*own, text]
    return ToolReturn(value.return_value, content=content, metadata=value.metadata)


class _Arguments:
    """Arguments of one call: as the tool takes them, and as JSON."""

    def __init__(self, tool: ToolsetTool[Any], given: dict[str, Any]) -> None:
        self._tool = tool
        self._given = given
        values: dict[str, Any] = to_jsonable_python(given)
        properties = tool.tool_def.parameters_json_schema.get("properties", {})
        if len(values) == 1:
            # A function of one model takes that model's fields as its arguments.
            name, inner = next(iter(values.items()))
            if isinstance(given[name], BaseModel) and name not in properties and isinstance(inner, dict):
                values = inner
        self.json = values

    async def own(self, effective: dict[str, Any], ctx: RunContext[Any]) -> dict[str, Any]:
        """The arguments as the tool takes them; validated anew when the gateway has changed something."""
        if tagged(effective) == tagged(self.json):
            return self._given
        validated: dict[str, Any] = self._tool.args_validator.validate_json(
            to_json(effective), context=ctx.validation_context
        )
        if self._tool.args_validator_func is not None:
            answer = self._tool.args_validator_func(ctx, **validated)
            if inspect.isawaitable(answer):
                await answer
        return validated


@dataclass
class Door(WrapperToolset[Any]):
    """A toolset with the gateway in front.

    Attributes:
        wrapped: The toolset.
        run: The run that governs.
        behind: Name to toolset of the tools that are behind this door, as of the last step.
    """

    run: Run
    behind: dict[str, AbstractToolset[Any]] = field(repr=False)

    async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
        """The tools, unchanged."""
        tools = await self.wrapped.get_tools(ctx)
        self.behind.clear()
        self.behind.update({name: tool.toolset for name, tool in tools.items()})
        return tools

    async def call_tool(
        self, name: str, tool_args: dict[str, Any], ctx: RunContext[Any], tool: ToolsetTool[Any]
    ) -> Any:
        """Bring the call to the gateway, which goes on with the toolset's own call if it may run."""
        try:
            arguments = _Arguments(tool, tool_args)
        except Exception:  # no JSON form, so nobody could decide about it
            raise ToolFailed(refusal_text("The arguments cannot be checked, so nothing was done.")) from None

        async def proceed(effective: dict[str, Any]) -> Any:
            own = await arguments.own(effective, ctx)
            result = await self.wrapped.call_tool(name, own, ctx, tool)
            return next_.keep(tool_return_ta.dump_python(result, mode="json"), result)

        next_ = Continuation(tool_name(self.run, name), definition_of(name, tool), proceed)
        call_id = call_id_of(self.run, ctx.tool_call_id)
        outcome = await athrough(self.run, next_, arguments.json, call_id)
        for again in range(2, _ROUNDS):
            # The tool has paused by itself and is woken. That is another call, decided like every other.
            if not (ctx.tool_call_approved and _paused_itself(outcome)):
                break
            following = call_id_of(self.run, f"{ctx.tool_call_id}/{again}")
            outcome = await athrough(self.run, next_, arguments.json, following, outer=call_id)
        return handed_back(outcome, next_)


def _paused_itself(outcome: Outcome) -> bool:
    return isinstance(outcome, Failed) and outcome.replayed and str(outcome.error).startswith(_PAUSED)


class Output:
    """What an output function is about to be given: as it takes it, and as JSON arguments.

    Attributes:
        name: Name under which the function is registered.
        json: Arguments by name.
    """

    def __init__(self, name: str, given: Any, wrapped: str | None) -> None:
        self.name = name
        self._given = given
        self._wrapped = wrapped
        self._current = given
        value = to_jsonable_python(given)
        self.json: dict[str, Any] = value if wrapped is None else {wrapped: value}

    @classmethod
    def of(cls, context: OutputContext, given: Any) -> Output:
        """Read what the framework says about an output."""
        name = context.function_name or (context.tool_def.name if context.tool_def is not None else "output")
        if isinstance(given, BaseModel):
            return cls(name, given, None)
        schema = context.object_def.json_schema if context.object_def is not None else {}
        properties = list(schema.get("properties", {}))
        if isinstance(given, Mapping) and set(given) <= set(properties):
            return cls(name, given, None)
        return cls(name, given, properties[0] if properties else "text")

    def own(self, effective: dict[str, Any]) -> Any:
        """The output as the function takes it; validated anew when the gateway has changed something."""
        if tagged(effective) != tagged(self.json):
            value = effective if self._wrapped is None else effective[self._wrapped]
            self._current = TypeAdapter(type(self._given)).validate_json(to_json(value))
        return self._current

    def permits(self, output: Any) -> bool:
        """Whether this is what was decided."""
        return output is self._current
