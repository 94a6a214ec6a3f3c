"""A tool that comes in both colours: one body for sync callers, one for async callers."""

from __future__ import annotations

import asyncio

import pytest

from agentguard import Policy, ToolDefinitionError, ToolGateway, ToolTimedOut, tool


def in_both_colours(ran: list[str]) -> ToolGateway:
    @tool(timeout="50ms", effect="read")
    def look(path: str) -> str:
        ran.append("sync")
        return path

    async def alook(path: str) -> str:
        ran.append("async")
        if path == "never":
            await asyncio.Event().wait()
        return path

    return ToolGateway([look.tool.with_async_body(alook)], Policy(allow=["look"]))


def test_each_caller_gets_the_body_of_its_colour() -> None:
    ran: list[str] = []
    gateway = in_both_colours(ran)
    with gateway.run(agent="a") as run:
        assert run.call("look", {"path": "x"}) == "x"
        assert asyncio.run(run.acall("look", {"path": "y"})) == "y"
    assert ran == ["sync", "async"]


def test_the_async_body_is_cut_off_when_its_time_is_over() -> None:
    gateway = in_both_colours([])
    with gateway.run(agent="a") as run, pytest.raises(ToolTimedOut):
        asyncio.run(run.acall("look", {"path": "never"}))


def test_a_copy_of_the_tool_keeps_both_bodies() -> None:
    @tool
    def look() -> None: ...

    async def alook() -> None: ...

    both = look.tool.with_async_body(alook)
    assert both.with_spec(name="other").awaits
    assert not both.is_async
    assert not look.tool.awaits


def test_only_a_coroutine_function_beside_a_sync_function_will_do() -> None:
    @tool
    def look() -> None: ...

    @tool
    async def alook() -> None: ...

    for made, function in ((look.tool, look.ungoverned), (alook.tool, alook.ungoverned)):
        with pytest.raises(ToolDefinitionError, match="AG217|coroutine"):
            made.with_async_body(function)
