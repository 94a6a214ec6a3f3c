"""Middleware on servers of one's own; mcp 2.x has it, 1.x does not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from agentguard import CallRefused, Policy, ToolGateway
from agentguard.adapters.mcp import guard, tools_of
from tests.adapters.mcp.far import BO, failed, reason, text

mcp: Any = pytest.importorskip("mcp")
pytestmark = pytest.mark.anyio

if hasattr(mcp, "Client"):
    from mcp.server import MCPServer

    class Near:
        def __init__(self) -> None:
            self.ran: list[str] = []
            self.server = MCPServer("near")

            @self.server.tool()
            def echo(word: str) -> str:
                self.ran.append(word)
                return word

            @self.server.tool()
            def wipe(all: bool = False) -> str:
                self.ran.append("wiped")
                return "wiped"

    @pytest.mark.parametrize("mode", ["auto", "legacy"])
    async def test_a_guarded_server_answers_what_the_policy_allows(mode: str) -> None:
        near = Near()
        gateway = ToolGateway(await tools_of(near.server), Policy(allow=["echo"]))
        run = gateway.run(agent="desk", run_id="r1")
        near.server.middleware.append(guard(run))
        async with mcp.Client(near.server, mode=mode) as client:
            assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
            assert text(await client.call_tool("echo", {"word": "a"})) == "a"
            assert reason(await client.call_tool("wipe", {})) == "policy_denied"
        assert near.ran == ["a"]
        assert [(c.tool, c.status) for c in gateway.runs.calls("r1")] == [("echo", "succeeded")]

    async def test_a_guarded_server_waits_for_a_person() -> None:
        near = Near()
        gateway = ToolGateway(await tools_of(near.server), Policy(require_approval=["wipe"]))
        near.server.middleware.append(guard(gateway.run(agent="desk")))
        async with mcp.Client(near.server) as client:
            assert reason(await client.call_tool("wipe", {})) == "approval_pending"
            (request,) = gateway.approvals.list()
            gateway.approvals.approve(request.id, by=BO)
            assert text(await client.call_tool("wipe", {})) == "wiped"
        assert near.ran == ["wiped"]

    async def test_a_run_is_chosen_per_request_and_a_crash_in_that_is_a_refusal() -> None:
        near = Near()
        gateway = ToolGateway(await tools_of(near.server), Policy(allow=["echo"]))
        run = gateway.run(agent="desk")
        broken: list[bool] = []

        def choose(ctx: Any) -> Any:
            if broken:
                raise RuntimeError("no run")
            return run

        near.server.middleware.append(guard(choose))
        async with mcp.Client(near.server) as client:
            assert text(await client.call_tool("echo", {"word": "a"})) == "a"
            broken.append(True)
            assert failed(await client.call_tool("echo", {"word": "b"}))
        assert near.ran == ["a"]

    async def test_what_is_no_tool_call_passes_and_calls_as_tasks_do_not() -> None:
        passed: list[str] = []

        async def call_next(ctx: Any) -> Any:
            passed.append(ctx.method)
            tools = [{"name": "echo", "inputSchema": {"type": "object"}}]
            return {"tools": tools} if ctx.method == "tools/list" else {}

        near = Near()
        gateway = ToolGateway(await tools_of(near.server), Policy(allow=["echo"]))
        middleware = guard(gateway.run(agent="desk"))
        assert await middleware(SimpleNamespace(method="ping"), call_next) == {}
        # The list says something else than the server's object did: it is not the tool that was registered.
        assert await middleware(SimpleNamespace(method="tools/list"), call_next) == {"tools": []}
        for method in ("tasks/result", "tools/call"):
            with pytest.raises(CallRefused, match="not governed"):
                await middleware(SimpleNamespace(method=method, params={"name": "echo", "task": {}}), call_next)
        assert passed == ["ping", "tools/list"]

        def none(_: Any) -> Any:
            raise RuntimeError("no run")

        with pytest.raises(RuntimeError):
            await guard(none)(SimpleNamespace(method="tools/list"), call_next)
