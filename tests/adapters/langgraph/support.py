"""Tools that write down what they did, a chat model that follows a script, agents and graphs in both colours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Annotated, Any, TypedDict

from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AnyMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool, tool
from langgraph.graph import START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.prebuilt import tools_condition

from agentguard import Policy, ToolGateway
from agentguard.adapters.langgraph import AgentGuardMiddleware, governed_tool_node, tools_of, visible
from agentguard.domain.approvals import ApproverIdentity

BO = ApproverIdentity("bo", ("lead",))
SETTINGS = {"read_file": {"effect": "read"}}
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


class Script(BaseChatModel):
    """Plays back turns: a text, or calls as ``(tool, arguments)``."""

    turns: list[Any]
    seen: list[list[str]]
    requests: list[int]
    silent: bool = False

    @property
    def _llm_type(self) -> str:
        return "script"

    def bind_tools(self, tools: Sequence[Any], **settings: Any) -> Any:
        self.seen.append([t["type"] if isinstance(t, dict) else t.name for t in tools])
        return self

    def _generate(self, messages: list[Any], stop: Any = None, run_manager: Any = None, **settings: Any) -> ChatResult:
        at = sum(isinstance(m, AIMessage) for m in messages)
        self.requests.append(at)
        turn = self.turns[min(at, len(self.turns) - 1)]
        usage: Any = None if self.silent else {"input_tokens": 50, "output_tokens": 10, "total_tokens": 60}
        if isinstance(turn, str):
            message = AIMessage(turn, usage_metadata=usage)
        else:
            calls: Any = [
                {"name": n, "args": a, "id": f"c{at}_{j}", "type": "tool_call"} for j, (n, a) in enumerate(turn)
            ]
            message = AIMessage("", usage_metadata=usage, tool_calls=calls)
        return ChatResult(generations=[ChatGeneration(message=message)])


def script(*turns: Any, **settings: Any) -> Script:
    return Script(turns=list(turns), seen=[], requests=[], **settings)


class Desk:
    """Two tools and what they did."""

    def __init__(self) -> None:
        self.ran: list[Any] = []
        ran = self.ran

        @tool
        def read_file(path: str) -> str:
            """Read a file."""
            ran.append(("read", path))
            return f"contents of {path}"

        @tool
        def delete_file(path: str) -> str:
            """Delete a file."""
            ran.append(("delete", path))
            return f"deleted {path}"

        self.tools: list[BaseTool] = [read_file, delete_file]

    def gateway(self, policy: Policy, *more: BaseTool, **settings: Any) -> ToolGateway:
        return ToolGateway(tools_of([*self.tools, *more], settings=SETTINGS), policy, **settings)

    def agent(self, model: Any, *more: Any, middleware: Sequence[Any] = (), guard: Any = None, **settings: Any) -> Any:
        last = guard if guard is not None else AgentGuardMiddleware()
        return create_agent(model, [*self.tools, *more], middleware=[*middleware, last], **settings)

    def graph(self, model: Any, *more: BaseTool, checkpointer: Any = None, **settings: Any) -> Any:
        """A plain graph: a model, a governed tool node, and back."""

        class State(TypedDict):
            messages: Annotated[list[AnyMessage], add_messages]

        def ask(state: State) -> Any:
            bound = model.bind_tools(visible([*self.tools, *more]))
            return {"messages": [bound.invoke(state["messages"])]}

        made = StateGraph(State)
        made.add_node("model", ask)
        made.add_node("tools", governed_tool_node([*self.tools, *more], **settings))
        made.add_edge(START, "model")
        made.add_conditional_edges("model", tools_condition)
        made.add_edge("tools", "model")
        return made.compile(checkpointer=checkpointer)


def invoke(colour: str, graph: Any, given: Any = None, config: Any = None) -> list[Any]:
    """Run a graph in one colour; its messages."""
    start = {"messages": [("user", "go")]} if given is None else given
    if colour == "sync":
        return list(graph.invoke(start, config)["messages"])
    return list(asyncio.run(graph.ainvoke(start, config))["messages"])


def told(messages: list[Any]) -> dict[str, tuple[str, Any]]:
    """Call id to status and content of what the model was told."""
    return {m.tool_call_id: (m.status, m.content) for m in messages if isinstance(m, ToolMessage)}


def recorded(gateway: ToolGateway, run_id: str, kind: str) -> list[dict[str, Any]]:
    """Facts of the audit records of one kind."""
    lines = [json.loads(record.line) for record in gateway.audit.records(run_id)]
    return [line["facts"] for line in lines if line["kind"] == kind]
