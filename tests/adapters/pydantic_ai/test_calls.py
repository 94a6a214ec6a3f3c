"""Every way a tool of an agent is called leads through the gateway."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext, TextOutput, Tool
from pydantic_ai.capabilities import AbstractCapability, NativeTool
from pydantic_ai.exceptions import ModelHTTPError, UnexpectedModelBehavior, UserError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturn
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.native_tools import WebSearchTool
from pydantic_ai.toolsets import AbstractToolset, ExternalToolset, FunctionToolset, ToolsetTool, WrapperToolset

from agentguard import (
    Budget,
    BudgetExceeded,
    ConfigurationError,
    Credentials,
    NoActiveRun,
    Policy,
    RunKilled,
    ToolGateway,
    tool,
)
from agentguard.adapters.pydantic_ai import AgentGuard, atools_of, govern, hosted_tool, tools_of, toolset
from tests.adapters.pydantic_ai.support import DENYING, SETTINGS, Desk, Script, gateway_for, recorded, results

pytestmark = pytest.mark.anyio
DELETE = ("delete_file", {"path": "a"})
READ = ("read_file", {"path": "a"})


async def governed(agent: Agent[Any, Any], policy: Policy, **settings: Any) -> Any:
    """Run an agent in a run of a gateway made for it."""
    gateway = gateway_for(agent, policy, **settings)
    async with gateway.run(agent="desk", run_id="r1") as run:
        result = await agent.run("go", capabilities=[AgentGuard(run)])
    return gateway, result


async def test_an_allowed_call_runs_once_and_is_recorded() -> None:
    desk = Desk()
    gateway, result = await governed(desk.agent(Script([READ], "done")), DENYING)
    assert (result.output, desk.ran) == ("done", [("read", "a")])
    assert [(c.call_id, c.status) for c in gateway.runs.calls("r1")] == [("c0_0", "succeeded")]
    assert results(result.all_messages())["c0_0"] == ("success", "contents of a")


async def test_a_denied_call_does_not_run_and_the_model_is_told_why() -> None:
    desk = Desk()
    _, result = await governed(desk.agent(Script([DELETE], "done")), DENYING)
    outcome, content = results(result.all_messages())["c0_0"]
    assert desk.ran == []
    assert outcome == "failed"
    assert '"type": "policy_denied"' in content


async def test_a_hidden_tool_is_not_shown_and_does_not_run_when_it_is_guessed() -> None:
    desk = Desk()
    model = Script([DELETE], "done")
    await governed(desk.agent(model), Policy(allow=["read_file"]))
    assert desk.ran == []
    assert model.seen[0] == ["read_file"]


async def test_a_tool_that_was_not_registered_is_hidden_and_refused() -> None:
    desk = Desk()
    model = Script([("later", {})], "done")
    agent = desk.agent(model)
    gateway = gateway_for(agent, Policy(allow=["**"]))

    @agent.tool_plain
    def later() -> str:
        desk.ran.append("later")
        return "x"

    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert desk.ran == []
    assert "later" not in model.seen[0]


async def test_parallel_calls_are_decided_one_by_one() -> None:
    desk = Desk()
    _, result = await governed(desk.agent(Script([READ, DELETE, ("read_file", {"path": "b"})], "done")), DENYING)
    assert sorted(desk.ran) == [("read", "a"), ("read", "b")]
    assert results(result.all_messages())["c0_1"][0] == "failed"


async def test_streaming_leads_through_the_gateway() -> None:
    desk = Desk()
    agent = desk.agent(Script([READ, DELETE], "done"))
    gateway = gateway_for(agent, DENYING)
    async with gateway.run(agent="desk") as run:
        async with agent.run_stream("go", capabilities=[AgentGuard(run)]) as streamed:
            text = [chunk async for chunk in streamed.stream_text(delta=True, debounce_by=None)]
        usage = await run.ausage()
    assert "".join(text) == "done"
    assert desk.ran == [("read", "a")]
    assert usage.steps >= 2
    assert usage.tokens > 0


async def test_stepping_through_the_graph_and_events_lead_through_the_gateway() -> None:
    desk = Desk()
    agent = desk.agent(Script([DELETE], "done"))
    gateway = gateway_for(agent, DENYING)
    async with gateway.run(agent="desk") as run:
        async with agent.iter("go", capabilities=[AgentGuard(run)]) as steps:
            async for _ in steps:
                pass
        async with agent.run_stream_events("go", capabilities=[AgentGuard(run)]) as events:
            async for _ in events:
                pass
    assert desk.ran == []


def test_run_sync_leads_through_the_gateway() -> None:
    desk = Desk()
    agent = desk.agent(Script([DELETE, READ], "done"))
    gateway = gateway_for(agent, DENYING)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)  # the framework would make one and leave it open
    try:
        with gateway.run(agent="desk") as run:
            agent.run_sync("go", capabilities=[AgentGuard(run)])
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert desk.ran == [("read", "a")]


async def test_toolsets_prefixed_and_dynamic_ones_lead_through_the_gateway() -> None:
    ran: list[Any] = []

    def note(x: int) -> int:
        ran.append(x)
        return x + 1

    def made() -> FunctionToolset[Any]:
        return FunctionToolset([Tool(note)])

    def dynamic(ctx: RunContext[Any]) -> AbstractToolset[Any]:
        return made().prefixed("dyn")

    model = Script([("note", {"x": 1}), ("pre_note", {"x": 2}), ("dyn_note", {"x": 3})], "done")
    agent: Agent[Any, Any] = Agent(model, toolsets=[made(), made().prefixed("pre")])
    agent.toolset(dynamic)
    gateway = ToolGateway(tools_of(agent), Policy(allow=["note", "dyn_note"]))
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert ran == [1, 3]
    assert sorted(model.seen[0]) == ["dyn_note", "note"]


async def test_a_tool_that_calls_a_tool_leads_through_the_gateway_twice() -> None:
    desk = Desk()
    agent = desk.agent(Script([("outer", {"path": "a"})], "done"))

    @agent.tool
    async def outer(ctx: RunContext[Any], path: str) -> str:
        assert ctx.tool_manager is not None
        desk.ran.append("outer")
        call = ToolCallPart("delete_file", {"path": path}, tool_call_id="inner")
        try:
            await ctx.tool_manager.handle_call(call)
        except Exception as error:
            return type(error).__name__
        return "it ran"

    policy = Policy.from_string(
        """
version: 1
name: nested
rules:
  - {id: outer, allow: [outer]}
  - id: own-files
    allow: delete_file
    when: {args: {path: {const: mine}}}
"""
    )
    gateway, _ = await governed(agent, policy)
    assert desk.ran == ["outer"]
    assert [(c.call_id, c.tool) for c in gateway.runs.calls("r1")] == [("c0_0", "outer")]
    assert [facts["call"] for facts in recorded(gateway, "r1", "call.refused")] == ["c0_0/inner"]


@pytest.mark.parametrize("how", ["at the agent", "govern"])
async def test_a_sub_agent_is_governed_by_the_current_run(how: str) -> None:
    desk = Desk()
    own = {"capabilities": [AgentGuard()]} if how == "at the agent" else {}
    # The script of the sub-agent counts its calls like the one above.
    sub = desk.agent(Script([DELETE, READ], "sub done"), **own)
    top: Agent[Any, Any] = Agent(Script([("delegate", {})], "done"), name="top")

    @top.tool_plain
    async def delegate() -> str:
        return str((await sub.run("go")).output)

    if how == "govern":
        govern(top)
    gateway = ToolGateway(tools_of(top, settings=SETTINGS), Policy(allow=["delegate", "read_file"]))
    async with gateway.run(agent="top", run_id="r1") as run:
        caps = [] if how == "govern" else [AgentGuard(run)]
        result = await top.run("go", capabilities=caps)
        usage = await run.ausage()
    assert result.output == "done"
    assert desk.ran == [("read", "a")]
    assert [c.call_id for c in gateway.runs.calls("r1")] == ["c0_0", "c0_0/c0_1"]
    assert usage.steps == 4 + 2


async def test_a_governed_agent_outside_a_run_refuses() -> None:
    desk = Desk()
    model = Script([READ], "done")
    agent = govern(desk.agent(model))
    with pytest.raises(NoActiveRun):
        await agent.run("go")
    assert (desk.ran, model.requests) == ([], 0)


@pytest.mark.parametrize("permitted", [False, True])
async def test_hosted_tools_are_taken_out_unless_the_policy_allows_them(permitted: bool) -> None:
    model = Script("done", native=[WebSearchTool])
    agent: Agent[Any, Any] = Agent(model, capabilities=[NativeTool(WebSearchTool())])
    policy = Policy(allow=["hosted.web_search"] if permitted else [])
    gateway = ToolGateway([hosted_tool("web_search")], policy)
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert model.hosted == [["web_search"] if permitted else []]


async def test_tools_that_would_run_outside_of_the_agent_are_hidden() -> None:
    from pydantic_ai.tools import ToolDefinition

    model = Script([("elsewhere", {})], "done")
    external: ExternalToolset[Any] = ExternalToolset([ToolDefinition(name="elsewhere")])
    agent: Agent[Any, Any] = Agent(model, toolsets=[external])

    @tool
    def elsewhere() -> str:
        return "x"

    gateway = ToolGateway([elsewhere], Policy(allow=["**"]))
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert model.seen[0] == []


async def test_a_tool_that_another_capability_puts_in_front_is_refused() -> None:
    ran: list[str] = []

    class Front(WrapperToolset[Any]):
        async def get_tools(self, ctx: RunContext[Any]) -> dict[str, ToolsetTool[Any]]:
            tools = await super().get_tools(ctx)
            return {name: replace(tool, toolset=self) for name, tool in tools.items()}

        async def call_tool(self, name: str, tool_args: Any, ctx: RunContext[Any], tool: Any) -> Any:
            ran.append(name)
            return "past the gateway"

    class Adding(AbstractCapability[Any]):
        def get_wrapper_toolset(self, toolset: AbstractToolset[Any]) -> AbstractToolset[Any]:
            return Front(toolset)

    desk = Desk()
    agent = desk.agent(Script([READ], "done"), capabilities=[Adding()])
    _, result = await governed(agent, DENYING)
    assert (ran, desk.ran) == ([], [])
    assert results(result.all_messages())["c0_0"][0] == "failed"


async def test_arguments_that_another_capability_rewrites_are_decided_as_rewritten() -> None:
    class Rewriting(AbstractCapability[Any]):
        async def before_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any) -> Any:
            return {"path": "theirs"}

    desk = Desk()
    await governed(desk.agent(Script([("delete_file", {"path": "mine"})], "x"), capabilities=[Rewriting()]), DENYING)
    assert desk.ran == []


async def test_a_tool_that_is_not_the_registered_one_is_not_run() -> None:
    desk = Desk()
    gateway = gateway_for(desk.agent(Script("x")), Policy(allow=["**"]))
    ran: list[str] = []

    def read_file(path: str) -> str:
        ran.append(path)
        return "another function"

    def read_more(path: str, depth: int = 1) -> str:
        ran.append(path)
        return "other arguments"

    for impostor in (Tool(read_file), Tool(read_more, name="read_file")):
        agent: Agent[Any, Any] = Agent(Script([READ], "done"), tools=[impostor])
        async with gateway.run(agent="desk") as run:
            result = await agent.run("go", capabilities=[AgentGuard(run)])
        assert results(result.all_messages())["c0_0"][0] == "failed"
    assert ran == []


async def test_a_tool_named_like_a_gateway_tool_never_runs_in_its_place() -> None:
    ran: list[str] = []

    @tool(effect="read")
    def read_file(path: str) -> str:
        ran.append("governed")
        return path

    def shadow(path: str) -> str:
        ran.append("shadow")
        return path

    agent: Agent[Any, Any] = Agent(Script([READ], "done"), tools=[Tool(shadow, name="read_file")])
    gateway = ToolGateway([read_file], Policy(allow=["**"]))
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert ran == ["governed"]


async def test_a_framework_tool_cannot_be_called_past_the_framework() -> None:
    desk = Desk()
    gateway = gateway_for(desk.agent(Script("x")), Policy(allow=["**"]))
    async with gateway.run(agent="desk") as run:
        outcome = await run.aattempt("read_file", {"path": "a"})
    assert "AG690" in str(getattr(outcome, "error", ""))
    assert desk.ran == []


async def test_a_call_inside_a_tool_does_not_take_over_the_tools_own_body() -> None:
    desk = Desk()
    agent = desk.agent(Script([("outer", {"path": "a"})], "done"))
    seen: list[str] = []

    @agent.tool_plain
    async def outer(path: str) -> str:
        seen.append(path)
        outcome = await gateway.aattempt("outer", {"path": "again"})
        return type(outcome).__name__

    gateway = gateway_for(agent, Policy(allow=["**"]))
    async with gateway.run(agent="desk") as run:
        result = await agent.run("go", capabilities=[AgentGuard(run)])
    assert seen == ["a"]
    assert results(result.all_messages())["c0_0"] == ("success", "Failed")


@pytest.mark.parametrize("guarded", [True, False])
async def test_gateway_tools_are_offered_as_a_toolset(guarded: bool) -> None:
    ran: list[Any] = []

    @tool(name="orders.get", effect="read")
    def get_order(order_id: str) -> dict[str, str]:
        """Look an order up."""
        ran.append(order_id)
        return {"order": order_id}

    @tool(name="orders.delete")
    def delete_order(order_id: str) -> str:
        ran.append("deleted")
        return "x"

    model = Script([("orders_get", {"order_id": "A"}), ("orders_get", {"order_id": 7})], "done")
    gateway = ToolGateway([get_order, delete_order], Policy(allow=["orders.get"]))
    async with gateway.run(agent="desk") as run:
        agent: Agent[Any, Any] = Agent(model, toolsets=[toolset(run)])
        result = await agent.run("go", capabilities=[AgentGuard(run)] if guarded else [])
    told = results(result.all_messages())
    assert model.seen[0] == ["orders_get"]
    assert ran == ["A"]
    assert told["c0_0"] == ("success", {"order": "A"})
    assert "invalid_arguments" in told["c0_1"][1]


async def test_the_gateways_own_toolset_works_in_the_current_run_and_not_outside() -> None:
    @tool(effect="read")
    def ping() -> str:
        return "pong"

    agent: Agent[Any, Any] = Agent(Script([("ping", {})], "done"), toolsets=[toolset()])
    with pytest.raises(NoActiveRun):
        await agent.run("go")
    gateway = ToolGateway([ping], Policy(allow=["ping"]))
    async with gateway.run(agent="desk"):
        assert results((await agent.run("go")).all_messages())["c0_0"] == ("success", "pong")


# --- output functions


async def test_an_output_function_is_a_tool() -> None:
    sent: list[Any] = []

    def send_email(to: str) -> str:
        """Send the last email."""
        sent.append(to)
        return f"sent to {to}"

    for allowed in (False, True):
        agent: Agent[Any, Any] = Agent(Script([("final_result", {"to": "bo"})]), output_type=send_email)
        gateway = ToolGateway(tools_of(agent), Policy(allow=["send_email"] if allowed else []))
        async with gateway.run(agent="desk") as run:
            if allowed:
                assert (await agent.run("go", capabilities=[AgentGuard(run)])).output == "sent to bo"
            else:
                with pytest.raises(Exception, match="retries"):
                    await agent.run("go", capabilities=[AgentGuard(run)])
                assert sent == []
    assert sent == ["bo"]


class Mail(BaseModel):
    to: str
    urgent: bool = False


async def test_output_functions_of_models_texts_and_several_arguments_are_decided_by_their_arguments() -> None:
    seen: list[Any] = []

    def by_model(mail: Mail) -> str:
        seen.append(mail)
        return mail.to

    def by_names(to: str, urgent: bool = False) -> str:
        seen.append((to, urgent))
        return to

    def by_text(text: str) -> str:
        seen.append(text)
        return text

    cases: list[tuple[Any, Any, str]] = [
        (by_model, [("final_result", {"to": "bo"})], "by_model"),
        (by_names, [("final_result", {"to": "bo"})], "by_names"),
        (TextOutput(by_text), "words", "by_text"),
    ]
    for output, turn, name in cases:
        agent: Agent[Any, Any] = Agent(Script(turn), output_type=output)
        gateway = ToolGateway(tools_of(agent), Policy(allow=[name]))
        async with gateway.run(agent="desk", run_id="r1") as run:
            await agent.run("go", capabilities=[AgentGuard(run)])
        assert [facts["tool"] for facts in recorded(gateway, "r1", "call.intent")] == [name]
    assert seen == [Mail(to="bo"), ("bo", False), "words"]


async def test_streamed_output_runs_an_output_function_once_and_governed() -> None:
    sent: list[str] = []

    def send_email(to: str) -> str:
        sent.append(to)
        return f"sent to {to}"

    for allowed in (True, False):
        agent: Agent[Any, Any] = Agent(Script([("final_result", {"to": "bobby"})]), output_type=send_email)
        gateway = ToolGateway(tools_of(agent), Policy(allow=["send_email"] if allowed else []))
        async with gateway.run(agent="desk") as run:
            try:
                async with agent.run_stream("go", capabilities=[AgentGuard(run)]) as streamed:
                    async for _ in streamed.stream_output(debounce_by=None):
                        pass
                assert allowed
            except Exception:
                assert not allowed
    assert sent == ["bobby"]


async def test_output_that_another_capability_changes_is_decided_as_changed_or_not_processed() -> None:
    sent: list[str] = []

    def send_email(to: str) -> str:
        sent.append(to)
        return to

    class Rewriting(AbstractCapability[Any]):
        async def before_output_process(self, ctx: Any, *, output_context: Any, output: Any) -> Any:
            return "eve"

    agent: Agent[Any, Any] = Agent(
        Script([("final_result", {"to": "bo"})]), output_type=send_email, capabilities=[Rewriting()]
    )
    policy = Policy.from_string(
        """
version: 1
name: mail
rules:
  - id: to-bo
    allow: send_email
    when: {args: {to: {const: bo}}}
"""
    )
    gateway = ToolGateway(tools_of(agent), policy)
    async with gateway.run(agent="desk") as run:
        with pytest.raises((ConfigurationError, UnexpectedModelBehavior)):
            await agent.run("go", capabilities=[AgentGuard(run)])
    assert sent == []


async def test_output_without_a_function_is_data_and_needs_no_permission() -> None:
    agent: Agent[Any, Any] = Agent(Script([("final_result", {"to": "bo"})]), output_type=Mail)
    gateway = ToolGateway([], Policy())
    async with gateway.run(agent="desk") as run:
        assert (await agent.run("go", capabilities=[AgentGuard(run)])).output == Mail(to="bo")


# --- arguments and results


async def test_a_tool_of_one_model_is_decided_by_the_models_fields() -> None:
    got: list[Any] = []

    def send(mail: Mail) -> str:
        got.append(mail)
        return "ok"

    agent: Agent[Any, Any] = Agent(Script([("send", {"to": "bo"}), ("send", {"to": "eve"})], "x"), tools=[send])
    policy = Policy.from_string(
        """
version: 1
name: mail
rules:
  - id: to-bo
    allow: send
    when: {args: {to: {const: bo}}}
"""
    )
    gateway = ToolGateway(tools_of(agent), policy)
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert got == [Mail(to="bo")]


async def test_what_the_policy_changes_is_what_the_tool_gets() -> None:
    got: list[Any] = []

    def search(query: str, limit: int = 500) -> str:
        got.append((query, limit))
        return "found"

    agent: Agent[Any, Any] = Agent(Script([("search", {"query": "x"})], "done"), tools=[search])
    policy = Policy.from_string(
        """
version: 1
name: clamp
rules:
  - id: few
    allow: search
    clamp: {args.limit: {maximum: 10}}
"""
    )
    gateway = ToolGateway(tools_of(agent), policy)
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert got == [("x", 10)]


async def test_a_rich_result_reaches_the_model_as_the_tool_made_it_and_comes_back_in_a_replay() -> None:
    ran: list[int] = []

    def look() -> ToolReturn[str]:
        ran.append(1)
        return ToolReturn("short", content="long", metadata={"rows": 3})

    agent: Agent[Any, Any] = Agent(Script([("look", {})], "done"), tools=[look])
    gateway = ToolGateway(tools_of(agent), Policy(allow=["look"]))
    async with gateway.run(agent="desk") as run:
        first = await agent.run("go", capabilities=[AgentGuard(run)])
        second = await agent.run("go", capabilities=[AgentGuard(run)])
    for result in (first, second):
        (part,) = [
            p
            for m in result.all_messages()
            for p in m.parts
            if getattr(p, "tool_call_id", "") and hasattr(p, "content")
        ]
        assert (part.content, part.metadata) == ("short", {"rows": 3})
        assert any("long" in str(m) for m in result.all_messages())
    assert ran == [1]


async def test_secrets_are_removed_from_what_the_model_gets() -> None:
    @tool(credentials=["api"], effect="read")
    def unlock(secrets: Credentials) -> str:
        return str(secrets["api"])[:1]

    leaked: list[str] = []

    def leak() -> dict[str, str]:
        leaked.append("x")
        return {"found": "hunter2-hunter2"}

    agent: Agent[Any, Any] = Agent(Script([("unlock", {})], [("leak", {})], "x"), tools=[leak], toolsets=[toolset()])
    registry = tools_of(Agent("test", tools=[leak])).with_tool(unlock)
    gateway = ToolGateway(registry, Policy(allow=["**"]), credentials={"api": "hunter2-hunter2"})
    async with gateway.run(agent="desk") as run:
        result = await agent.run("go", capabilities=[AgentGuard(run)])
    assert leaked == ["x"]
    assert "hunter2" not in str(result.all_messages())


async def test_guidance_of_the_policy_reaches_the_model() -> None:
    desk = Desk()
    policy = Policy.from_string(
        """
version: 1
name: noted
rules:
  - id: reads
    allow: read_file
    message: Quote the file name.
"""
    )
    _, result = await governed(desk.agent(Script([READ], "done")), policy)
    assert "Note: Quote the file name." in str(result.all_messages())


async def test_a_retry_of_the_tool_is_a_new_governed_call() -> None:
    tries: list[str] = []

    def flaky(path: str) -> str:
        tries.append(path)
        if len(tries) == 1:
            raise ModelRetry("use another path")
        return "fine"

    agent: Agent[Any, Any] = Agent(
        Script([("flaky", {"path": "a"})], [("flaky", {"path": "b"})], "done"), tools=[flaky]
    )
    gateway = ToolGateway(tools_of(agent), Policy(allow=["flaky"]))
    async with gateway.run(agent="desk", run_id="r1") as run:
        result = await agent.run("go", capabilities=[AgentGuard(run)])
    assert tries == ["a", "b"]
    assert "use another path" in str(result.all_messages())
    assert [c.status for c in gateway.runs.calls("r1")] == ["failed", "succeeded"]


async def test_a_tool_that_raises_ends_the_agent_as_it_would_without_the_gateway() -> None:
    def broken() -> str:
        raise KeyError("words of the tool")

    agent: Agent[Any, Any] = Agent(Script([("broken", {})], "done"), tools=[broken])
    gateway = ToolGateway(tools_of(agent), Policy(allow=["broken"]))
    with pytest.raises(KeyError):
        async with gateway.run(agent="desk", run_id="r1") as run:
            await agent.run("go", capabilities=[AgentGuard(run)])
    assert [c.status for c in gateway.runs.calls("r1")] == ["failed"]


async def test_a_crash_inside_the_hook_keeps_the_tool_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentguard.gateway.running import Run

    async def crash(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("our own mistake")

    desk = Desk()
    agent = desk.agent(Script([READ], "done"))
    gateway = gateway_for(agent, DENYING)
    async with gateway.run(agent="desk") as run:
        monkeypatch.setattr(Run, "aattempt", crash)
        with pytest.raises(RuntimeError, match="our own mistake"):
            await agent.run("go", capabilities=[AgentGuard(run)])
    assert desk.ran == []


async def test_a_capability_that_swallows_exceptions_does_not_make_a_refused_tool_run() -> None:
    class Swallowing(AbstractCapability[Any]):
        async def on_tool_execute_error(self, ctx: Any, *, call: Any, tool_def: Any, args: Any, error: Any) -> Any:
            return "swallowed"

    desk = Desk()
    agent = desk.agent(Script([READ], "done"), capabilities=[Swallowing()])
    gateway = gateway_for(agent, DENYING)
    async with gateway.run(agent="desk", run_id="r1") as run:

        @agent.instructions
        def kill() -> str:
            return ""

        await run.astop()
        with pytest.raises(RunKilled):
            await agent.run("go", capabilities=[AgentGuard(run)])
    assert desk.ran == []


async def test_a_cancelled_agent_leaves_a_settled_call() -> None:
    begun = asyncio.Event()

    async def slow() -> str:
        begun.set()
        await asyncio.Event().wait()
        return "never"

    agent: Agent[Any, Any] = Agent(Script([("slow", {})], "done"), tools=[slow])
    gateway = ToolGateway(tools_of(agent), Policy(allow=["slow"]))
    async with gateway.run(agent="desk", run_id="r1") as run:
        work = asyncio.create_task(agent.run("go", capabilities=[AgentGuard(run)]))
        await begun.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
    assert [c.status for c in gateway.runs.calls("r1")] == ["ambiguous"]


# --- budgets


async def test_the_budget_stops_before_the_next_model_request() -> None:
    desk = Desk()
    model = Script([READ], [("read_file", {"path": "b"})], "never")
    agent = desk.agent(model)
    gateway = gateway_for(agent, DENYING)
    run = gateway.run(agent="desk", budget=Budget(max_tokens=100), run_id="r1")
    with pytest.raises(BudgetExceeded) as stop:
        async with run:
            await agent.run("go", capabilities=[AgentGuard(run)])
    assert model.requests == 1
    assert desk.ran == [("read", "a")]
    assert stop.value.reason == "budget_tokens"
    assert gateway.runs.get("r1").stop_reason == "budget_tokens"


async def test_what_the_provider_reports_is_charged() -> None:
    agent: Agent[Any, Any] = Agent(Script("some words"))
    gateway = ToolGateway([], Policy())
    async with gateway.run(agent="desk") as run:
        result = await agent.run("go", capabilities=[AgentGuard(run)])
        usage = await run.ausage()
    reported = result.usage
    assert (usage.input_tokens, usage.output_tokens) == (reported.input_tokens, reported.output_tokens)


async def test_a_model_that_fails_keeps_what_was_held_unless_it_says_that_it_did_nothing() -> None:
    async def spent(error: Exception) -> int:
        def fail(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            raise error

        agent: Agent[Any, Any] = Agent(FunctionModel(fail))
        gateway = ToolGateway([], Policy())
        run = gateway.run(agent="desk")
        with pytest.raises(type(error)):
            async with run:
                await agent.run("go", capabilities=[AgentGuard(run)])
        return int((await run.ausage()).tokens)

    assert await spent(ConnectionError("lost")) > 0
    assert await spent(ModelHTTPError(429, "m")) == 0


async def test_a_model_that_never_reports_usage_is_not_free() -> None:
    from pydantic_ai.models.wrapper import WrapperModel
    from pydantic_ai.usage import RequestUsage

    class Silent(WrapperModel):
        async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
            answer = await super().request(*args, **kwargs)
            answer.usage = RequestUsage()
            return answer

    agent: Agent[Any, Any] = Agent(Silent(FunctionModel(lambda m, i: ModelResponse(parts=[TextPart("x")]))))
    gateway = ToolGateway([], Policy())
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
        usage = await run.ausage()
    assert usage.tokens > 0
    assert usage.unpriced_calls == 1


async def test_a_second_capability_replaces_the_agents_own_or_is_refused() -> None:
    desk = Desk()
    agent = desk.agent(Script([READ], "done"), capabilities=[AgentGuard()])
    gateway = gateway_for(agent, DENYING)
    async with gateway.run(agent="desk", run_id="r1") as run:
        try:
            await agent.run("go", capabilities=[AgentGuard(run)])
        except UserError:  # before 2.60 the framework wants every id once
            await agent.run("go")
        usage = await run.ausage()
    assert desk.ran == [("read", "a")]
    assert [c.call_id for c in gateway.runs.calls("r1")] == ["c0_0"]
    assert usage.steps == 2 + 1


async def test_tools_are_read_where_the_agent_runs_too() -> None:
    desk = Desk()
    registry = await atools_of(desk.agent(Script("x")), settings=SETTINGS)
    assert registry.names == ("delete_file", "read_file")
    assert registry["read_file"].spec.effect == "read"
