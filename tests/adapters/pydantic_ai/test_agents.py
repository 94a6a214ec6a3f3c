"""Which agents and tools are governed, and which would escape."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from pydantic_ai import Agent, NativeOutput, RunContext, TextOutput, Tool, ToolOutput
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset, WrapperToolset

from agentguard import ConfigurationError, Policy, ToolDefinitionError, ToolGateway
from agentguard.adapters.pydantic_ai import AgentGuard, assert_governed, atools_of, govern, tools_of, ungoverned
from tests.adapters.pydantic_ai.support import Script

pytestmark = pytest.mark.anyio


def plain(name: str, **settings: Any) -> Agent[Any, Any]:
    agent: Agent[Any, Any] = Agent(Script("done"), name=name, **settings)
    agent.tool_plain(name=f"{name}_tool")(lambda: "x")
    return agent


LIBRARIAN = plain("librarian")
CREW = {"writer": plain("writer"), "note": "no agent"}


def helper() -> Any:
    return CREW["writer"]


class Office:
    def __init__(self) -> None:
        self.clerk = plain("clerk")

    async def ask(self) -> str:
        return str((await self.clerk.run("go")).output)


def everyone() -> Agent[Any, Any]:
    """An agent whose tools mention others in every way that is looked for."""
    closure, default, bound = plain("closure"), plain("default"), plain("bound")
    top = plain("top")

    @top.tool_plain
    async def by_closure() -> str:
        async def inner() -> str:
            return str((await closure.run("go")).output)

        return await inner()

    @top.tool_plain
    async def by_global() -> str:
        return str((await LIBRARIAN.run("go")).output)

    @top.tool_plain
    async def by_helper() -> str:
        return str((await helper().run("go")).output)

    def picked(agent: Any = default) -> Any:
        return agent

    @top.tool_plain
    async def by_default() -> str:
        return str((await picked().run("go")).output)

    async def by_partial(agent: Any) -> str:
        return str((await agent.run("go")).output)

    top.tool_plain(name="by_method")(Office().ask)

    def dynamic(ctx: RunContext[Any]) -> AbstractToolset[Any] | None:
        return FunctionToolset([Tool(partial(by_partial, bound), name="p")]) if ctx.deps else None

    top.toolset(dynamic)
    return top


def test_agents_that_tools_mention_are_found_and_named_with_their_tools() -> None:
    top = everyone()
    found = ungoverned(top)
    assert {line.split(":")[0] for line in found} == {
        "agent top",
        "agent closure",
        "agent librarian",
        "agent writer",
        "agent clerk",
        "agent default",
        "agent bound",
    }
    assert "agent librarian: librarian_tool" in found


def test_assert_governed_names_what_escapes_and_is_silent_after_govern() -> None:
    top = everyone()
    with pytest.raises(ConfigurationError, match="closure_tool") as escaped:
        assert_governed(top)
    assert escaped.value.code == "AG692"
    assert govern(top) is top
    assert_governed(top)
    run_agent = top.iter
    govern(top)
    assert top.iter == run_agent


def test_a_guard_at_the_agent_counts_and_what_it_reaches_is_looked_at_all_the_same() -> None:
    sub = plain("sub")
    top = plain("top", capabilities=[AgentGuard()])

    @top.tool_plain
    async def delegate() -> str:
        return str((await sub.run("go")).output)

    assert [line.split(":")[0] for line in ungoverned(top)] == ["agent sub"]


def test_an_agent_whose_tools_cannot_be_listed_is_named_all_the_same() -> None:
    class Broken(WrapperToolset[Any]):
        async def get_tools(self, ctx: Any) -> Any:
            raise RuntimeError("not here")

    agent: Agent[Any, Any] = Agent(Script("x"), toolsets=[Broken(FunctionToolset())])
    assert ungoverned(agent) == ("agent without a name: tools that cannot be listed here",)
    with pytest.raises(ConfigurationError, match="AG693"):
        tools_of(agent)


async def test_a_wrapped_agent_is_governed_from_both_sides() -> None:
    ran: list[str] = []
    inner: Agent[Any, Any] = Agent(Script([("act", {})], "done"), name="inner")

    @inner.tool_plain
    def act() -> str:
        ran.append("act")
        return "x"

    outer: WrapperAgent[Any, Any] = WrapperAgent(inner)
    govern(outer)
    gateway = ToolGateway(tools_of(outer), Policy())
    async with gateway.run(agent="desk"):
        await outer.run("go")
        await inner.run("go")
        await inner.run("go", capabilities=[AgentGuard()])
    assert ran == []


def test_output_functions_of_every_kind_are_registered() -> None:
    def one(a: int) -> int:
        return a

    def two(a: int) -> int:
        return a

    def three(text: str) -> str:
        return text

    agent: Agent[Any, Any] = Agent(Script("x"), output_type=[ToolOutput(one), two, TextOutput(three), int])
    native: Agent[Any, Any] = Agent(Script("x"), output_type=NativeOutput([one, int]))
    assert tools_of(agent, native).names == ("one", "three", "two")


def test_settings_come_from_the_author_of_a_tool_and_from_the_caller() -> None:
    agent: Agent[Any, Any] = Agent(Script("x"))
    agent.tool_plain(name="look", metadata={"agentguard": {"effect": "read", "risk": "low"}})(lambda: "x")
    agent.tool_plain(name="act", metadata={"other": 1})(lambda: "x")
    registry = tools_of(agent, settings={"look": {"risk": "high"}})
    assert (registry["look"].spec.effect, registry["look"].spec.risk) == ("read", "high")
    assert registry["act"].spec.effect == "irreversible"
    with pytest.raises(ConfigurationError, match="did you mean"):
        tools_of(agent, settings={"lok": {}})


def test_two_tools_of_one_name_are_an_error_and_the_same_tool_twice_is_not() -> None:
    def act() -> str:
        return "one"

    def made(function: Any) -> Agent[Any, Any]:
        return Agent(Script("x"), tools=[Tool(function, name="act")])

    assert tools_of(made(act), made(act)).names == ("act",)
    with pytest.raises(ToolDefinitionError, match="AG226|registered twice"):
        tools_of(made(act), made(lambda: "two"))


async def test_what_an_mcp_server_claims_about_its_tools_is_not_believed() -> None:
    class Claiming(WrapperToolset[Any]):
        async def get_tools(self, ctx: Any) -> Any:
            from dataclasses import replace

            tools = await super().get_tools(ctx)
            claim = {"agentguard": {"effect": "read"}}
            return {n: replace(t, toolset=self, tool_def=replace(t.tool_def, metadata=claim)) for n, t in tools.items()}

    agent: Agent[Any, Any] = Agent(Script("x"), toolsets=[Claiming(FunctionToolset([Tool(lambda: "x", name="far")]))])
    assert (await atools_of(agent))["far"].spec.effect == "irreversible"
