"""An agent with tools of every kind, a model that follows a script, and a gateway."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, DeltaToolCall, FunctionModel
from pydantic_ai.profiles import ModelProfile

from agentguard import Policy, ToolGateway
from agentguard.adapters.pydantic_ai import tools_of
from agentguard.domain.approvals import ApproverIdentity

BO = ApproverIdentity("bo", ("lead",))
SETTINGS = {"read_file": {"effect": "read"}}
OUTPUT = [str, DeferredToolRequests]


class Script(FunctionModel):
    """A model that plays back turns: a text, or calls as ``(tool, arguments)`` or ``(tool, arguments, id)``."""

    def __init__(self, *turns: Any, native: Any = ()) -> None:
        self.turns = turns
        self.seen: list[list[str]] = []
        self.hosted: list[list[str]] = []
        self.requests = 0
        profile = ModelProfile(supported_native_tools=frozenset(native)) if native else None
        super().__init__(self._answer, stream_function=self._stream, profile=profile)

    def _turn(self, messages: list[ModelMessage], info: AgentInfo) -> tuple[int, Any]:
        at = sum(isinstance(m, ModelResponse) for m in messages)
        self.seen.append([t.name for t in info.function_tools])
        self.hosted.append([t.kind for t in info.model_request_parameters.native_tools])
        self.requests += 1
        return at, self.turns[min(at, len(self.turns) - 1)]

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        at, turn = self._turn(messages, info)
        if isinstance(turn, str):
            return ModelResponse(parts=[TextPart(turn)])
        calls = [(n, a, r[0] if r else f"c{at}_{j}") for j, (n, a, *r) in enumerate(turn)]
        return ModelResponse(parts=[ToolCallPart(n, a, tool_call_id=i) for n, a, i in calls])

    async def _stream(self, messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[Any]:
        at, turn = self._turn(messages, info)
        if isinstance(turn, str):
            for letter in turn:
                yield letter
        else:
            for j, (name, arguments, *_) in enumerate(turn):
                yield {j: DeltaToolCall(name=name, json_args=json.dumps(arguments), tool_call_id=f"c{at}_{j}")}


class Desk:
    """Tools that write down what they did."""

    def __init__(self) -> None:
        self.ran: list[Any] = []

    def agent(self, model: Any, **settings: Any) -> Agent[Any, Any]:
        made: Agent[Any, Any] = Agent(model, **{"output_type": OUTPUT, "name": "desk", **settings})
        ran = self.ran

        @made.tool_plain
        def read_file(path: str) -> str:
            """Read a file."""
            ran.append(("read", path))
            return f"contents of {path}"

        @made.tool_plain
        async def delete_file(path: str) -> str:
            """Delete a file."""
            ran.append(("delete", path))
            return f"deleted {path}"

        return made


DENYING = Policy.from_string(
    """
version: 1
name: desk
rules:
  - {id: reads, allow: [read_file]}
  - id: own-files
    allow: delete_file
    when: {args: {path: {const: mine}}}
"""
)
"""Only one file can be deleted, so that the tool is visible and most of its calls are denied."""

ASKING = Policy(allow=["read_file"], require_approval=["delete_file"])


def results(messages: list[ModelMessage]) -> dict[str, tuple[str, Any]]:
    """Call id to outcome and content of what the model was told."""
    found: dict[str, tuple[str, Any]] = {}
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolReturnPart):
                found[part.tool_call_id] = (part.outcome, part.content)
    return found


def gateway_for(agent: Agent[Any, Any], policy: Policy, **settings: Any) -> ToolGateway:
    return ToolGateway(tools_of(agent, settings=SETTINGS), policy, **settings)


def recorded(gateway: ToolGateway, run_id: str, kind: str) -> list[dict[str, Any]]:
    """Facts of the audit records of one kind."""
    lines = [json.loads(record.line) for record in gateway.audit.records(run_id)]
    return [line["facts"] for line in lines if line["kind"] == kind]
