"""Arguments and results in every shape: what is decided is what runs, and what the gateway changed is what goes on."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic_ai import Agent, ModelRetry, RunContext, Tool
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import ToolReturn
from pydantic_ai.models.wrapper import WrapperModel

from agentguard import ApprovalPending, Policy, RunKilled, ToolGateway
from agentguard.adapters.pydantic_ai import AgentGuard, tools_of, wake
from tests.adapters.pydantic_ai.support import BO, OUTPUT, Desk, Script, gateway_for, results

pytestmark = pytest.mark.anyio


def returning(value: Any) -> Agent[Any, Any]:
    agent: Agent[Any, Any] = Agent(Script([("look", {})], "done"))
    agent.tool_plain(name="look")(lambda: value)
    return agent


@pytest.mark.parametrize(
    "value",
    ["plain", ToolReturn("rich"), ToolReturn("rich", content="more"), ToolReturn("rich", content=["one", "two"])],
    ids=["plain", "rich", "with text", "with parts"],
)
async def test_guidance_is_added_to_results_of_every_shape(value: Any) -> None:
    policy = Policy.from_string("version: 1\nname: p\nrules: [{id: a, allow: look, message: Quote it.}]")
    agent = returning(value)
    async with ToolGateway(tools_of(agent), policy).run(agent="desk") as run:
        result = await agent.run("go", capabilities=[AgentGuard(run)])
    said = str(result.all_messages())
    assert "Note: Quote it." in said
    assert ("rich" if isinstance(value, ToolReturn) else "plain") in said
    for part in value.content or () if isinstance(value, ToolReturn) else ():
        assert part in said


async def test_what_the_policy_hides_is_hidden_in_rich_results_too() -> None:
    policy = Policy.from_string(
        "version: 1\nname: p\nrules: [{id: a, allow: look, redact: [output.return_value.secret]}]"
    )
    agent = returning(ToolReturn({"secret": "1234", "name": "bo"}, metadata={"rows": 1}))
    async with ToolGateway(tools_of(agent), policy).run(agent="desk") as run:
        result = await agent.run("go", capabilities=[AgentGuard(run)])
    outcome, content = results(result.all_messages())["c0_0"]
    assert (outcome, content["name"]) == ("success", "bo")
    assert "1234" not in str(result.all_messages())


async def test_edited_arguments_are_validated_by_the_tool_again() -> None:
    got: list[Any] = []

    async def check(ctx: RunContext[Any], path: str) -> None:
        if path == "forbidden":
            raise ModelRetry("not this one")

    def act(path: str) -> str:
        got.append(path)
        return "done"

    for edited, ran in (("fine", ["fine"]), ("forbidden", [])):
        got.clear()
        agent: Agent[Any, Any] = Agent(
            Script([("act", {"path": "a"})], "done"), output_type=OUTPUT, tools=[Tool(act, args_validator=check)]
        )
        gateway = ToolGateway(tools_of(agent), Policy(require_approval=["act"]))
        async with gateway.run(agent="desk") as run:
            first = await agent.run("go", capabilities=[AgentGuard(run)])
            (request,) = gateway.approvals.list()
            gateway.approvals.approve(request.id, by=BO, arguments={"path": edited})
            await agent.run(
                message_history=first.all_messages(),
                deferred_tool_results=wake(first.output),
                capabilities=[AgentGuard(run)],
            )
        assert got == ran


async def test_an_edited_output_is_what_the_output_function_gets() -> None:
    from pydantic_ai import capture_run_messages

    sent: list[Any] = []

    def send_email(to: str, urgent: bool = False) -> str:
        sent.append((to, urgent))
        return to

    def send_one(to: str) -> str:
        sent.append(to)
        return to

    for function, edit in ((send_email, {"to": "eva", "urgent": True}), (send_one, {"to": "eva"})):
        agent: Agent[Any, Any] = Agent(Script([("final_result", {"to": "bo"})]), output_type=function)
        gateway = ToolGateway(tools_of(agent), Policy(require_approval=["send_*"]))
        with capture_run_messages() as messages, pytest.raises(ApprovalPending) as pending:
            async with gateway.run(agent="desk", run_id="r1") as run:
                await agent.run("go", capabilities=[AgentGuard(run)])
        gateway.approvals.approve(pending.value.request.id, by=BO, arguments=edit)
        async with await gateway.aresume("r1") as run:
            await agent.run(message_history=messages[:2], capabilities=[AgentGuard(run)])
    assert sent == [("eva", True), "eva"]


async def test_arguments_without_a_json_form_are_refused() -> None:
    ran: list[Any] = []

    class Spoiling(AbstractCapability[Any]):
        async def before_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any) -> Any:
            return {"path": object()}

    desk = Desk()
    agent = desk.agent(Script([("read_file", {"path": "a"})], "x"), capabilities=[Spoiling()])
    async with gateway_for(agent, Policy(allow=["**"])).run(agent="desk") as run:
        result = await agent.run("go", capabilities=[AgentGuard(run)])
    assert (ran, desk.ran) == ([], [])
    assert "unenforceable" in results(result.all_messages())["c0_0"][1]


async def test_a_run_that_ends_between_two_calls_stops_the_agent_and_not_only_the_call() -> None:
    desk = Desk()
    agent = desk.agent(Script([("stop", {}), ("read_file", {"path": "a"})], "never"))

    @agent.tool_plain(sequential=True)
    async def stop() -> str:
        await run.astop()
        return "stopped"

    gateway = gateway_for(agent, Policy(allow=["**"]))
    async with gateway.run(agent="desk") as run:
        with pytest.raises(RunKilled):
            await agent.run("go", capabilities=[AgentGuard(run)])
    assert desk.ran == []


async def test_ids_that_a_run_does_not_take_are_replaced_and_still_tell_calls_apart() -> None:
    desk = Desk()
    agent = desk.agent(Script([("read_file", {"path": "a"}, "an id !"), ("read_file", {"path": "b"}, "x" * 300)], "x"))
    gateway = gateway_for(agent, Policy(allow=["**"]))
    async with gateway.run(agent="desk", run_id="r1") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert sorted(desk.ran) == [("read", "a"), ("read", "b")]
    assert all(c.call_id.startswith("id:") for c in gateway.runs.calls("r1"))


def test_sync_code_cannot_call_a_tool_of_the_framework_either() -> None:
    desk = Desk()
    gateway = gateway_for(desk.agent(Script("x")), Policy(allow=["**"]))
    with gateway.run(agent="desk") as run:
        outcome = run.attempt("read_file", {"path": "a"})
    assert "AG690" in str(getattr(outcome, "error", ""))
    assert desk.ran == []
    assert AgentGuard.get_serialization_name() is None


async def test_every_further_attempt_at_a_model_request_is_paid_for() -> None:
    class Flaky(WrapperModel):
        async def request(self, *args: Any, **kwargs: Any) -> Any:
            tries.append(1)
            return await super().request(*args, **kwargs)

    class Again(AbstractCapability[Any]):
        async def after_model_request(self, ctx: Any, *, request_context: Any, response: Any) -> Any:
            if len(tries) == 1:
                raise ModelRetry("once more")
            return response

    tries: list[int] = []
    agent: Agent[Any, Any] = Agent(Flaky(Script("done")), capabilities=[Again()])
    gateway = ToolGateway([], Policy())
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
        usage = await run.ausage()
    assert len(tries) == 2
    assert usage.steps == 2


def test_without_the_framework_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['pydantic_ai'] = None; import agentguard.adapters.pydantic_ai"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "pip install 'agentguard[pydantic-ai]'" in done.stderr
