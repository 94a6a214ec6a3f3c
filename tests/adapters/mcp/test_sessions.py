"""Client sessions whose requests go through the gateway: mcp 1.x and 2.x, against a real server process."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel

from agentguard import CallRefused, ConfigurationError, Policy, ToolGateway, tool
from agentguard.adapters.mcp import govern_session, tools_of
from agentguard.errors import StoreUnavailable
from agentguard.stores.memory import MemoryStore
from tests.adapters.mcp.far import BO, Far, failed, reason, text

pytestmark = pytest.mark.anyio

ALLOWED = Policy(allow={"read_file", "raises", "report", "rename", "slow"}, require_approval={"delete_file"})


async def test_tool_calls_of_a_session_are_the_gateways(far: Far) -> None:
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED)
        async with gateway.run(agent="desk", run_id="r1") as run:
            govern_session(session, run)
            names = {tool.name for tool in (await session.list_tools()).tools}
            good = await session.call_tool("read_file", {"path": "a"})
            bad = await session.call_tool("secret", {})
            odd = await session.call_tool("read_fil", {})
            own = await session.call_tool("raises", {"word": "x"})
            structured = await session.call_tool("report", {"name": "n"})
    assert "secret" not in names
    assert "read_file" in names
    assert (text(good), failed(good)) == ("contents of a", False)
    assert [reason(bad), reason(odd)] == ["policy_denied", "unknown_tool"]
    assert failed(own)
    assert "reason" not in text(own)
    assert structured.model_dump(by_alias=True)["structuredContent"]["count"] == 2
    assert far.ran == ["read a", "raises", "report n 2"]
    assert [(c.tool, c.status) for c in gateway.runs.calls("r1")] == [
        ("read_file", "succeeded"),
        ("raises", "failed"),
        ("report", "succeeded"),
    ]


async def test_a_call_goes_on_when_it_is_repeated_after_approval(far: Far) -> None:
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED)
        async with gateway.run(agent="desk") as run:
            govern_session(session, run)
            assert reason(await session.call_tool("delete_file", {"path": "a"})) == "approval_pending"
            (request,) = gateway.approvals.list()
            gateway.approvals.approve(request.id, by=BO)
            assert text(await session.call_tool("delete_file", {"path": "a"})) == "deleted a"
    assert far.ran == ["delete a"]


async def test_a_tool_that_changed_since_it_was_registered_is_not_called(far: Far) -> None:
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED)
        async with gateway.run(agent="desk") as run:
            govern_session(session, run)
            await session.call_tool("rename", {})
            assert "read_file" not in {tool.name for tool in (await session.list_tools()).tools}
            assert failed(await session.call_tool("read_file", {"path": "a"}))
    assert far.ran == []


async def test_without_a_run_nothing_is_called(far: Far) -> None:
    async with far.direct() as session:
        govern_session(session)
        with pytest.raises(CallRefused):
            await session.call_tool("read_file", {"path": "a"})
    assert far.ran == []


async def test_the_current_run_governs(far: Far) -> None:
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED)
        govern_session(session)
        async with gateway.run(agent="desk"):
            assert text(await session.call_tool("read_file", {"path": "a"})) == "contents of a"


async def test_a_server_does_not_get_to_answer_for_a_tool_of_somebody_else(far: Far) -> None:
    ran: list[str] = []

    @tool(name="read_file", effect="read")
    def mine(path: str) -> str:
        ran.append(path)
        return "mine"

    async with far.direct() as session:
        gateway = ToolGateway([mine], Policy(allow=["**"]))
        async with gateway.run(agent="desk") as run:
            govern_session(session, run)
            assert failed(await session.call_tool("read_file", {"path": "a"}))
    assert (ran, far.ran) == ([], [])


async def test_a_registered_tool_runs_only_through_its_session(far: Far) -> None:
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED)
        async with gateway.run(agent="desk") as run:
            outcome = await run.aattempt("read_file", {"path": "a"})
    assert "AG690" in str(getattr(outcome, "error", ""))
    assert far.ran == []


async def test_a_hook_that_crashes_keeps_the_tool_from_running(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED)
        async with gateway.run(agent="desk") as run:
            govern_session(session, run)

            async def crash(*_: Any, **__: Any) -> Any:
                raise RuntimeError("in the hook")

            monkeypatch.setattr(run, "aattempt", crash)
            result = await session.call_tool("read_file", {"path": "a"})
    assert (reason(result), far.ran) == ("internal_error", [])


async def test_the_fate_of_a_call_is_unknown_when_the_connection_breaks(far: Far) -> None:
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED)
        async with gateway.run(agent="desk", run_id="r1") as run:
            govern_session(session, run)
            assert reason(await session.call_tool("slow", {"seconds": 0.1})) == "ambiguous"
    assert [c.status for c in gateway.runs.calls("r1")] == ["ambiguous"]


async def test_settings_and_files_complete_what_a_server_says(far: Far) -> None:
    async with far.direct() as session:
        plain = await tools_of(session)
        settled = await tools_of(session, settings={"report": {"risk": "high"}}, config=far.config)
        trusted = await tools_of(session, trust_annotations=True, prefix="far.")
        with pytest.raises(ConfigurationError, match="did you mean"):
            await tools_of(session, settings={"raed_file": {"effect": "read"}})
    assert [plain["read_file"].spec.effect, plain["delete_file"].spec.effect] == ["irreversible", "irreversible"]
    assert [settled["read_file"].spec.effect, settled["report"].spec.risk] == ["read", "high"]
    assert trusted["far.delete_file"].spec.effect == "read"


async def test_a_session_is_governed_once(far: Far) -> None:
    async with far.direct() as session:
        govern_session(session)
        with pytest.raises(ConfigurationError, match="AG138"):
            govern_session(session)
    with pytest.raises(ConfigurationError, match="AG138"):
        govern_session(object())


async def test_a_client_of_the_second_version_is_governed_with_its_session(tmp_path: Path) -> None:
    mcp = pytest.importorskip("mcp")
    if not hasattr(mcp, "Client"):
        assert not hasattr(mcp, "Client")
        return
    os.environ["UP_LOG"] = str(tmp_path / "log")
    ran: list[str] = []
    from mcp.server import MCPServer

    server = MCPServer("near")

    @server.tool()
    def echo(word: str) -> str:
        ran.append(word)
        return word

    @server.tool()
    def wipe() -> str:
        ran.append("wiped")
        return "wiped"

    for mode in ("auto", "legacy"):
        async with mcp.Client(server, mode=mode) as client:
            gateway = ToolGateway(await tools_of(client), Policy(allow=["echo"]))
            async with gateway.run(agent="desk") as run:
                govern_session(client, run)
                assert text(await client.call_tool("echo", {"word": mode})) == mode
                assert reason(await client.call_tool("wipe", {})) == "policy_denied"
                assert reason(await client.session.call_tool("wipe", {})) == "policy_denied"
                assert [tool.name for tool in (await client.list_tools()).tools] == ["echo"]
    assert ran == ["auto", "legacy"]


class Counting(MemoryStore):
    """Counts what it is asked for."""

    asked: int = 0

    def perform(self, operation: Any) -> Any:
        self.asked += 1
        return super().perform(operation)


async def test_a_call_costs_one_pair_of_store_operations(far: Far) -> None:
    store = Counting()
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED, store=store)
        async with gateway.run(agent="desk") as run:
            govern_session(session, run)
            await session.call_tool("read_file", {"path": "a"})
            before = store.asked
            for number in range(5):
                await session.call_tool("read_file", {"path": str(number)})
            assert store.asked - before <= 10


class Paged:
    """Lists one tool per page, as a server with many tools does."""

    def __init__(self, *names: str, description: str = "") -> None:
        self.names = names
        self.description = description

    async def list_tools(self, cursor: str | None = None) -> Any:
        at = int(cursor or 0)
        name, schema = self.names[at], {"type": "object"}
        following = str(at + 1) if at + 1 < len(self.names) else None
        return SimpleNamespace(tools=[{"name": name, "inputSchema": schema}], next_cursor=following)


async def test_every_page_of_a_servers_list_is_read() -> None:
    assert (await tools_of(Paged("a", "b", "c"))).names == ("a", "b", "c")


async def test_a_tool_that_cannot_be_governed_is_an_error_where_nobody_could_hide_it() -> None:
    with pytest.raises(ConfigurationError, match="AG693"):
        await tools_of(Paged("a", "two words"))


async def test_the_servers_answer_with_an_error_is_handed_on_as_it_was_raised(far: Far) -> None:
    class Own(Exception):
        error = SimpleNamespace(code=-32602)

    async with far.direct() as session:
        tools = await tools_of(session)

        async def answer_with_error(*_: Any, **__: Any) -> Any:
            raise Own("own words")

        session.send_request = answer_with_error
        gateway = ToolGateway(tools, ALLOWED)
        async with gateway.run(agent="desk", run_id="r1") as run:
            govern_session(session, run)
            with pytest.raises(Own, match="own words"):
                await session.call_tool("read_file", {"path": "a"})
        assert [c.status for c in gateway.runs.calls("r1")] == ["failed"]


@pytest.mark.parametrize("method", ["tasks/result", "tools/call"])
async def test_calls_as_tasks_are_refused(method: str, far: Far) -> None:
    class Request(BaseModel):
        method: str
        params: dict[str, Any]

    async with far.direct() as session:
        govern_session(session)
        with pytest.raises(CallRefused, match="not governed"):
            await session.send_request(Request(method=method, params={"name": "read_file", "task": {}}), dict)


async def test_a_store_that_is_down_means_that_nothing_runs(far: Far) -> None:
    class Down(MemoryStore):
        def perform(self, operation: Any) -> Any:
            raise StoreUnavailable("the store is down")

        async def aperform(self, operation: Any) -> Any:
            raise StoreUnavailable("the store is down")

    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED, store=Down())
        govern_session(session, gateway.run(agent="desk"))
        result = await session.call_tool("read_file", {"path": "a"})
    assert (reason(result), far.ran) == ("store_unavailable", [])


async def test_a_run_that_was_killed_calls_nothing_any_more(far: Far) -> None:
    async with far.direct() as session:
        gateway = ToolGateway(await tools_of(session), ALLOWED)
        gateway.switches.kill(agent="desk", reason="stop", by="bo")
        govern_session(session, gateway.run(agent="desk"))
        result = await session.call_tool("read_file", {"path": "a"})
    assert (reason(result), far.ran) == ("killed", [])
