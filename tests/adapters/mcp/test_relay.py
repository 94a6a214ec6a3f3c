"""Single messages through the relay, as a hostile client or server would send them. No mcp package is involved."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from agentguard import Policy, ToolGateway
from agentguard.adapters._mcp_calls import Door
from agentguard.adapters._mcp_relay import Relay
from agentguard.adapters._mcp_tools import Watch, registry_from
from agentguard.errors import ConfigurationError, ToolDefinitionError

pytestmark = pytest.mark.anyio

TOOL = {"name": "echo", "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}}}
TYPED = {"name": "typed", "inputSchema": {"type": "object"}, "outputSchema": {"type": "object", "required": ["a"]}}


class Wire:
    """A relay between two lists of messages; the server answers out of a table."""

    def __init__(self, policy: Policy | None = None, tools: tuple[Any, ...] = (TOOL, TYPED), **settings: Any) -> None:
        self.client: list[dict[str, Any]] = []
        self.server: list[dict[str, Any]] = []
        self.tools = list(tools)
        self.results: dict[str, Any] = {"tools/call": {"content": [{"type": "text", "text": "ok"}]}}
        self.silent: set[str] = set()
        self.policy = policy or Policy(allow=["**"])
        self.gateway: ToolGateway | None = None
        self.relay = Relay(self._to_client, self._to_server, self._open, **settings)
        self._tasks: list[asyncio.Task[None]] = []

    async def _open(self, tools: list[Any]) -> Door:
        registry, _ = registry_from(tools)
        self.gateway = ToolGateway(registry, self.policy)
        return Door(self.gateway.run(agent="a", run_id="r"), Watch(registry))

    async def _to_client(self, message: dict[str, Any]) -> None:
        self.client.append(message)

    async def _to_server(self, message: dict[str, Any]) -> None:
        self.server.append(message)
        method = message.get("method")
        if "id" in message and method is not None and method not in self.silent:
            result = {"tools": self.tools} if method == "tools/list" else self.results.get(method, {})
            answer = {"error": result["error"]} if "error" in result else {"result": result}
            self._tasks.append(asyncio.create_task(self.says({"id": message["id"], **answer})))

    async def says(self, message: Any) -> None:
        """The server says something."""
        line = message if isinstance(message, bytes) else json.dumps({"jsonrpc": "2.0", **message}).encode()
        await self.relay.from_server(line)

    async def ask(self, message: Any, *, wait: bool = True) -> Any:
        """The client says something; the last thing it is told."""
        line = message if isinstance(message, bytes) else json.dumps({"jsonrpc": "2.0", **message}).encode()
        before = len(self.client)
        await self.relay.from_client(line)
        for _ in range(200):
            if not wait or len(self.client) > before:
                break
            await asyncio.sleep(0)
            await asyncio.sleep(0.005)
        return self.client[-1] if len(self.client) > before else None

    async def call(self, name: str = "echo", request_id: Any = 1, **params: Any) -> Any:
        return await self.ask({"id": request_id, "method": "tools/call", "params": {"name": name, **params}})

    @property
    def calls(self) -> list[dict[str, Any]]:
        return [m for m in self.server if m.get("method") == "tools/call"]


async def test_the_id_that_the_server_sees_is_never_the_clients() -> None:
    wire = Wire()
    answer = await wire.call(arguments={"n": 1})
    assert (answer["id"], answer["result"]["content"][0]["text"]) == (1, "ok")
    (sent,) = wire.calls
    assert sent["id"] != 1
    assert sent["params"] == {"name": "echo", "arguments": {"n": 1}}


async def test_an_answer_that_nobody_waits_for_does_not_reach_the_client() -> None:
    wire = Wire()
    wire.silent.add("tools/call")
    await wire.ask({"id": 7, "method": "tools/call", "params": {"name": "echo"}}, wait=False)
    await wire.says({"id": 7, "result": {"content": [], "forged": True}})
    assert wire.client == []
    await wire.relay.client_left()


@pytest.mark.parametrize(
    "line",
    [
        b'{"id":1,"id":2}',
        b"[]",
        b"x",
        b'{"id":1,"method":"ping","params":{"a":NaN}}',
        b"[" * 100_000,
        b'{"id":1,"method":"tools/call","method":"ping"}',
        b'{"id":1,"method":"ping","params":{"a":1e999}}',
    ],
)
async def test_a_message_that_two_readers_could_read_differently_is_refused(line: bytes) -> None:
    wire = Wire()
    answer = await wire.ask(line)
    assert answer["error"]["code"] == -32700
    assert wire.server == []


@pytest.mark.parametrize("request_id", [None, True, 1.5, {}, []])
async def test_an_id_that_is_none_is_refused(request_id: Any) -> None:
    wire = Wire()
    answer = await wire.ask({"id": request_id, "method": "ping"})
    assert (answer["error"]["code"], wire.server) == (-32600, [])


async def test_an_id_that_is_in_use_is_refused() -> None:
    wire = Wire()
    wire.silent.add("ping")
    await wire.ask({"id": 1, "method": "ping"}, wait=False)
    assert (await wire.ask({"id": 1, "method": "ping"}))["error"]["code"] == -32600
    assert (await wire.ask({"id": 2, "method": 3}))["error"]["code"] == -32600


@pytest.mark.parametrize("method", ["tasks/result", "tools/call/", "TOOLS/CALL", "x"])
async def test_a_method_that_is_not_known_is_refused(method: str) -> None:
    wire = Wire()
    answer = await wire.ask({"id": 1, "method": method})
    assert (answer["error"]["code"], wire.server) == (-32601, [])


async def test_calls_as_tasks_are_refused_and_not_offered() -> None:
    wire = Wire()
    assert (await wire.call(task={"ttl": 1}))["error"]["code"] == -32602
    wire.results["initialize"] = {"capabilities": {"tasks": {}, "tools": {}}}
    answer = await wire.ask({"id": 2, "method": "initialize"})
    assert answer["result"]["capabilities"] == {"tools": {}}
    assert wire.calls == []


async def test_a_call_without_a_name_is_refused() -> None:
    wire = Wire()
    assert (await wire.ask({"id": 1, "method": "tools/call"}))["error"]["code"] == -32602
    assert (await wire.ask({"id": 1, "method": "tools/call", "params": {"name": 1}}))["error"]["code"] == -32602


@pytest.mark.parametrize("arguments", [[], "x", 1, {"n": "1"}, {"m": 1}])
async def test_arguments_that_do_not_fit_are_refused(arguments: Any) -> None:
    wire = Wire()
    answer = await wire.call(arguments=arguments)
    assert answer["result"]["_meta"]["agentguard/reason"] == "invalid_arguments"
    assert wire.calls == []


async def test_a_cancelled_call_is_cancelled_at_the_server_and_not_answered() -> None:
    wire = Wire()
    wire.silent.add("tools/call")
    await wire.ask({"id": 1, "method": "tools/call", "params": {"name": "echo"}}, wait=False)
    while not wire.calls:
        await asyncio.sleep(0.005)
    cancelled = {"method": "notifications/cancelled", "params": {"requestId": 1}}
    await wire.ask(cancelled, wait=False)
    await wire.relay.client_left()
    assert wire.server[-1]["params"]["requestId"] == wire.calls[0]["id"]
    assert wire.client == []
    assert wire.gateway is not None
    assert [c.status for c in wire.gateway.runs.calls("r")] == ["ambiguous"]
    await wire.ask({"method": "notifications/cancelled", "params": {"requestId": 99}}, wait=False)
    assert wire.server[-1]["params"]["requestId"] == 99


async def test_requests_of_the_server_reach_the_client_and_come_back() -> None:
    wire = Wire()
    await wire.says({"id": "s1", "method": "sampling/createMessage", "params": {"a": 1}})
    assert wire.client[-1]["method"] == "sampling/createMessage"
    await wire.ask({"id": "s1", "result": {"b": 2}}, wait=False)
    await wire.ask({"id": "s1", "result": {"b": 3}}, wait=False)
    await wire.ask({"id": "s2", "result": {"b": 4}}, wait=False)
    assert [m.get("result") for m in wire.server] == [{"b": 2}]


async def test_known_notifications_pass_and_others_do_not() -> None:
    wire = Wire()
    await wire.ask({"method": "notifications/initialized"}, wait=False)
    await wire.ask({"method": "notifications/run_tool"}, wait=False)
    await wire.ask({"method": "tools/call", "params": {"name": "echo"}}, wait=False)
    assert [m["method"] for m in wire.server] == ["notifications/initialized"]
    await wire.says({"method": "notifications/message", "params": {"data": "x"}})
    assert wire.client[-1]["params"] == {"data": "x"}


async def test_a_change_that_the_server_announces_takes_effect_at_the_next_call() -> None:
    wire = Wire()
    await wire.call()
    wire.tools = [{**TOOL, "description": "other"}]
    await wire.says({"method": "notifications/tools/list_changed"})
    answer = await wire.call(request_id=2)
    assert answer["result"]["isError"] is True
    assert len(wire.calls) == 1
    wire.tools = [TOOL]
    await wire.says({"method": "notifications/tools/list_changed"})
    assert "isError" not in (await wire.call(request_id=3))["result"]


async def test_changes_that_cannot_be_read_stop_the_calls() -> None:
    wire = Wire()
    await wire.call()
    await wire.says({"method": "notifications/tools/list_changed"})
    original = wire._to_server

    async def failing(message: dict[str, Any]) -> None:
        if message.get("method") == "tools/list":
            await wire.says({"id": message["id"], "error": {"code": 1, "message": "no"}})
        else:
            await original(message)

    wire.relay._to_server = failing
    for request_id in (2, 3):
        assert (await wire.call(request_id=request_id))["error"] == {"code": 1, "message": "no"}
    assert len(wire.calls) == 1


async def test_a_result_that_breaks_the_servers_own_schema_is_not_handed_on() -> None:
    wire = Wire()
    for number, result in enumerate(({"content": []}, {"content": [], "structuredContent": {"b": 1}})):
        wire.results["tools/call"] = result
        answer = await wire.call("typed", request_id=number, arguments={})
        assert answer["result"]["_meta"]["agentguard/reason"] == "invalid_output"
    wire.results["tools/call"] = {"content": [], "structuredContent": {"a": 1}}
    assert (await wire.call("typed", request_id=9, arguments={}))["result"] == wire.results["tools/call"]


async def test_an_error_of_the_server_is_handed_on() -> None:
    wire = Wire()
    wire.results["tools/call"] = {"error": {"code": -32602, "message": "own", "data": {"x": 1}}}
    assert (await wire.call())["error"] == {"code": -32602, "message": "own", "data": {"x": 1}}


async def test_guidance_of_the_policy_follows_the_result() -> None:
    wire = Wire(Policy.from_string("version: 1\nname: p\nrules: [{id: a, allow: echo, message: Be brief.}]\n"))
    answer = await wire.call()
    assert [part["text"] for part in answer["result"]["content"]] == ["ok", "Note: Be brief."]


async def test_after_the_server_has_ended_calls_are_errors() -> None:
    wire = Wire()
    await wire.call()
    await wire.relay.server_left("gone")
    assert (await wire.call(request_id=2))["error"]["message"] == "The server has ended."


async def test_a_broken_message_of_the_server_is_dropped() -> None:
    wire = Wire()
    await wire.says(b"x")
    await wire.says(b'{"id":1,"id":2}')
    assert wire.client == []


async def test_when_the_door_cannot_be_made_nothing_runs_and_the_relay_is_broken() -> None:
    wire = Wire()

    async def cannot(_: list[Any]) -> Door:
        raise ConfigurationError("no")

    wire.relay._open_door = cannot
    assert "error" in await wire.call()
    assert isinstance(wire.relay.broken.exception(), ConfigurationError)
    assert wire.calls == []


async def test_tools_that_cannot_be_governed_are_left_out_with_the_reason() -> None:
    registry, left_out = registry_from(
        [
            TOOL,
            {**TOOL, "name": "two words"},
            {**TOOL, "name": "twice"},
            {**TOOL, "name": "twice"},
            {"name": "shapeless"},
            {"name": "far", "inputSchema": {"type": "object", "$ref": "https://elsewhere/schema"}},
            {"name": "odd", "inputSchema": {"type": "object"}, "outputSchema": {"type": 3}},
        ]
    )
    assert registry.names == ("echo",)
    assert len(left_out) == 5
    with pytest.raises(ToolDefinitionError):
        registry_from([TOOL], settings={"echo": {"effect": "raed"}})


async def test_hints_of_a_trusted_server_become_effects() -> None:
    hinted = [
        {**TOOL, "name": name, "annotations": hints}
        for name, hints in (("r", {"readOnlyHint": True}), ("i", {"idempotentHint": True}), ("x", {}), ("y", None))
    ]
    registry, _ = registry_from(hinted, trusted=True)
    assert [registry[n].spec.effect for n in ("r", "i", "x", "y")] == ["read", "idempotent"] + ["irreversible"] * 2
    plain, _ = registry_from(hinted)
    assert {tool.spec.effect for tool in plain} == {"irreversible"}


async def test_a_tool_that_is_withdrawn_or_unreadable_is_not_the_same_any_more() -> None:
    registry, _ = registry_from([TOOL, TYPED])
    watch = Watch(registry)
    assert watch.learn([TOOL, TYPED], whole=True) == ()
    assert watch.learn([TOOL], whole=True) == ("typed",)
    assert watch.learn([{"name": "echo"}]) == ("echo", "typed")
    assert watch.learn([TOOL, TYPED]) == ()
    assert watch.learn([{**TOOL, "_meta": {"a": 1}, "icons": []}]) == ()


async def test_a_call_that_goes_on_with_what_the_server_asked_for_is_a_call_of_its_own() -> None:
    wire = Wire()
    meta = {"agentguard/tool_call_id": "c1", "io.modelcontextprotocol/protocolVersion": "2026-07-28"}
    wire.results["tools/call"] = {"resultType": "input_required", "requestState": "s", "inputRequests": {}}
    first = await wire.call(_meta=meta)
    assert first["result"]["resultType"] == "input_required"
    wire.results["tools/call"] = {"resultType": "complete", "content": [{"type": "text", "text": "done"}]}
    second = await wire.call(request_id=2, _meta=meta, requestState="s", inputResponses={})
    assert second["result"]["content"][0]["text"] == "done"
    assert wire.calls[-1]["params"]["requestState"] == "s"
    refused = await wire.call("nothing", request_id=3, _meta=meta)
    assert refused["result"]["resultType"] == "complete"
