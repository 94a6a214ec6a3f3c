"""Which tools of graphs are governed, and which would escape."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain_core.tools import tool
from langgraph.graph import START, StateGraph
from langgraph.prebuilt import ToolNode

from agentguard import ConfigurationError, ToolDefinitionError
from agentguard.adapters.langgraph import assert_governed, governed_tool_node, tools_of, ungoverned
from tests.adapters.langgraph.support import Desk, script


class State(TypedDict):
    messages: list[Any]


def graph_of(**nodes: Any) -> Any:
    made = StateGraph(State)
    for name, node in nodes.items():
        made.add_node(name, node)
        made.add_edge(START, name)
    return made.compile()


def test_governed_agents_and_graphs_are_silent() -> None:
    desk = Desk()
    assert_governed(desk.agent(script("x")), desk.graph(script("x")), governed_tool_node(desk.tools))


def test_an_agent_without_the_middleware_is_named_with_its_tools() -> None:
    bare = create_agent(script("x"), Desk().tools, name="bare")
    with pytest.raises(ConfigurationError, match="bare.tools: read_file; bare.tools: delete_file") as escaped:
        assert_governed(bare)
    assert escaped.value.code == "AG692"


def test_agents_inside_tools_and_graphs_inside_graphs_are_found() -> None:
    desk = Desk()
    inner = create_agent(script("x"), desk.tools, name="inner")

    @tool
    def delegate(x: str) -> str:
        """Ask the other agent."""
        return str(inner.invoke({"messages": [("user", x)]}))

    outer = create_agent(script("x"), [delegate], middleware=[_guard()], name="outer")
    assert ungoverned(outer) == (
        "outer.tools.delegate.tools: read_file",
        "outer.tools.delegate.tools: delete_file",
    )
    assert ungoverned(graph_of(sub=outer))[0].startswith("LangGraph.sub.tools.delegate")


def _guard() -> Any:
    from agentguard.adapters.langgraph import AgentGuardMiddleware

    return AgentGuardMiddleware()


def test_tools_that_nodes_call_by_themselves_are_found() -> None:
    desk = Desk()
    reading, deleting = desk.tools

    def node(state: State) -> Any:
        return {"messages": [reading.invoke({"path": "a"})]}

    def by_default(state: State, one: Any = deleting) -> Any:
        return {"messages": [one.invoke({"path": "a"})]}

    def given(one: Any, state: State) -> Any:
        return {"messages": [one.invoke({"path": "a"})]}

    found = ungoverned(graph_of(a=node, b=by_default, c=partial(given, deleting), d=ToolNode(desk.tools)))
    assert {line.split(".")[1] for line in found} == {
        "a: read_file",
        "b: delete_file",
        "c: delete_file",
        "d: read_file",
        "d: delete_file",
    }


def test_a_tool_alone_is_looked_at_too() -> None:
    assert ungoverned(Desk().tools[0]) == ("read_file: read_file",)


def test_functions_are_taken_as_tools_and_settings_are_checked() -> None:
    def look(path: str) -> str:
        """Look."""
        return path

    registry = tools_of([look], settings={"look": {"effect": "read"}})
    assert registry["look"].spec.effect == "read"
    with pytest.raises(ConfigurationError, match="did you mean"):
        tools_of([look], settings={"lok": {}})


def test_two_tools_of_one_name_are_an_error() -> None:
    @tool("act")
    def one() -> str:
        """One."""
        return "one"

    @tool("act")
    def two() -> str:
        """Two."""
        return "two"

    assert tools_of([one, one]).names == ("act",)
    with pytest.raises(ToolDefinitionError, match="registered twice"):
        tools_of([one, two])


def test_without_the_framework_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['langgraph'] = None; import agentguard.adapters.langgraph"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install 'agentguard[langgraph]'" in done.stderr
