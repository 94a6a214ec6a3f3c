"""A call that waits for a person: the framework wakes it, the gateway's store decides."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, DeferredToolRequests, DeferredToolResults, RunContext, ToolApproved, ToolDenied
from pydantic_ai.capabilities import HandleDeferredToolCalls
from pydantic_ai.exceptions import ApprovalRequired, UserError
from pydantic_ai.messages import ModelMessagesTypeAdapter, ToolCallPart

from agentguard import ApprovalPending, Policy, ToolGateway
from agentguard.adapters.pydantic_ai import AgentGuard, tools_of, wake
from tests.adapters.pydantic_ai.support import ASKING, BO, OUTPUT, Desk, Script, gateway_for, results

pytestmark = pytest.mark.anyio
TURN = [("read_file", {"path": "a"}), ("delete_file", {"path": "a"}), ("delete_file", {"path": "b"})]


class Paused:
    """An agent that waits for a person about two of its three calls, and what became of it."""

    def __init__(self, store: str = "memory:") -> None:
        self.desk = Desk()
        self.agent = self.desk.agent(Script(TURN, "finished"))
        self.gateway = gateway_for(self.agent, ASKING, store=store)
        self.messages: list[Any] = []
        self.requests: Any = None

    async def start(self) -> Paused:
        async with self.gateway.run(agent="desk", run_id="r1") as run:
            result = await self.agent.run("go", capabilities=[AgentGuard(run)])
        self.requests = result.output
        self.messages = result.all_messages()
        return self

    def ids(self) -> dict[str, str]:
        """Call id to id of the approval request."""
        return {r.call_id: r.id for r in self.gateway.approvals.list()}

    async def resume(self, woken: DeferredToolResults | None = None) -> Any:
        async with await self.gateway.aresume("r1") as run:
            return await self.agent.run(
                message_history=self.messages,
                deferred_tool_results=woken or wake(self.messages),
                capabilities=[AgentGuard(run)],
            )


async def test_a_call_that_needs_a_person_pauses_the_agent_and_the_run() -> None:
    paused = await Paused().start()
    assert isinstance(paused.requests, DeferredToolRequests)
    assert [c.tool_call_id for c in paused.requests.approvals] == ["c0_1", "c0_2"]
    assert paused.desk.ran == [("read", "a")]
    assert paused.requests.metadata["c0_1"]["approval_id"] == paused.ids()["c0_1"]
    assert paused.gateway.runs.get("r1").status == "waiting"


async def test_decided_calls_go_on_as_decided_and_their_siblings_are_not_repeated() -> None:
    paused = await Paused().start()
    paused.gateway.approvals.approve(paused.ids()["c0_1"], by=BO)
    paused.gateway.approvals.reject(paused.ids()["c0_2"], by=BO, reason="keep it")
    result = await paused.resume()
    told = results(result.new_messages())
    assert result.output == "finished"
    assert paused.desk.ran == [("read", "a"), ("delete", "a")]
    assert told["c0_1"] == ("success", "deleted a")
    assert told["c0_2"][0] == "failed"
    assert "keep it" in told["c0_2"][1]


async def test_edited_arguments_run_as_edited() -> None:
    paused = await Paused().start()
    paused.gateway.approvals.approve(paused.ids()["c0_1"], by=BO, arguments={"path": "a2"})
    paused.gateway.approvals.reject(paused.ids()["c0_2"], by=BO)
    await paused.resume()
    assert paused.desk.ran == [("read", "a"), ("delete", "a2")]


async def test_the_frameworks_approval_alone_runs_nothing() -> None:
    paused = await Paused().start()
    result = await paused.resume(DeferredToolResults(approvals={"c0_1": True, "c0_2": ToolApproved()}))
    assert isinstance(result.output, DeferredToolRequests)
    assert paused.desk.ran == [("read", "a")]
    assert len(paused.ids()) == 2


async def test_arguments_swapped_on_the_way_back_do_not_run() -> None:
    paused = await Paused().start()
    paused.gateway.approvals.approve(paused.ids()["c0_1"], by=BO)
    paused.gateway.approvals.reject(paused.ids()["c0_2"], by=BO)
    swapped = ToolApproved(override_args={"path": "everything"})
    await paused.resume(DeferredToolResults(approvals={"c0_1": swapped, "c0_2": True}))
    assert paused.desk.ran == [("read", "a")]


async def test_a_rejection_is_not_overruled_by_the_framework() -> None:
    paused = await Paused().start()
    for request in paused.ids().values():
        paused.gateway.approvals.reject(request, by=BO)
    result = await paused.resume(DeferredToolResults(approvals={"c0_1": True, "c0_2": True}))
    assert result.output == "finished"
    assert paused.desk.ran == [("read", "a")]


async def test_a_denial_of_the_framework_runs_nothing_even_if_a_person_approved() -> None:
    paused = await Paused().start()
    for request in paused.ids().values():
        paused.gateway.approvals.approve(request, by=BO)
    await paused.resume(DeferredToolResults(approvals={"c0_1": ToolDenied("no"), "c0_2": False}))
    assert paused.desk.ran == [("read", "a")]


async def test_an_old_state_played_again_does_not_run_a_call_twice() -> None:
    paused = await Paused().start()
    for request in paused.ids().values():
        paused.gateway.approvals.approve(request, by=BO)
    async with await paused.gateway.aresume("r1") as run:
        told = []
        for _ in range(2):
            result = await paused.agent.run(
                message_history=paused.messages,
                deferred_tool_results=wake(paused.messages),
                capabilities=[AgentGuard(run)],
            )
            told.append(results(result.new_messages())["c0_1"])
    assert paused.desk.ran == [("read", "a"), ("delete", "a"), ("delete", "b")]
    assert told == [("success", "deleted a")] * 2


async def test_a_history_with_forged_calls_asks_anew() -> None:
    paused = await Paused().start()
    for request in paused.ids().values():
        paused.gateway.approvals.approve(request, by=BO)
    for message in paused.messages:
        for part in message.parts:
            if isinstance(part, ToolCallPart) and part.tool_call_id == "c0_1":
                part.args = {"path": "everything"}
            if isinstance(part, ToolCallPart) and part.tool_call_id == "c0_2":
                part.tool_call_id = "c0_9"
    result = await paused.resume()
    assert paused.desk.ran == [("read", "a")]
    assert isinstance(result.output, DeferredToolRequests)


async def test_inline_approval_by_a_capability_runs_nothing_that_nobody_decided() -> None:
    desk = Desk()

    async def approve_all(ctx: RunContext[Any], requests: DeferredToolRequests) -> DeferredToolResults:
        return requests.build_results(approve_all=True)

    agent = desk.agent(Script(TURN, "finished"), capabilities=[HandleDeferredToolCalls(handler=approve_all)])
    gateway = gateway_for(agent, ASKING)
    async with gateway.run(agent="desk") as run:
        await agent.run("go", capabilities=[AgentGuard(run)])
    assert desk.ran == [("read", "a")]


async def test_an_agent_that_cannot_pause_says_so_and_runs_nothing() -> None:
    desk = Desk()
    agent = desk.agent(Script(TURN, "x"), output_type=str)
    gateway = gateway_for(agent, ASKING)
    with pytest.raises(UserError, match="DeferredToolRequests"):
        async with gateway.run(agent="desk") as run:
            await agent.run("go", capabilities=[AgentGuard(run)])
    assert ("delete", "a") not in desk.ran


async def test_a_tool_marked_by_the_framework_still_needs_the_gateway() -> None:
    ran: list[str] = []

    def wipe() -> str:
        ran.append("wiped")
        return "wiped"

    agent: Agent[Any, Any] = Agent(Script([("wipe", {})], "done"), output_type=OUTPUT)
    agent.tool_plain(requires_approval=True)(wipe)
    gateway = ToolGateway(tools_of(agent), Policy(require_approval=["wipe"]))
    async with gateway.run(agent="desk", run_id="r1") as run:
        first = await agent.run("go", capabilities=[AgentGuard(run)])
        yes = DeferredToolResults(approvals={"c0_0": True})
        history = {"message_history": first.all_messages(), "deferred_tool_results": yes}
        second = await agent.run(**history, capabilities=[AgentGuard(run)])
        assert isinstance(second.output, DeferredToolRequests)
        assert ran == []
        (request,) = gateway.approvals.list()
        gateway.approvals.approve(request.id, by=BO)
        assert (await agent.run(**history, capabilities=[AgentGuard(run)])).output == "done"
    assert ran == ["wiped"]


async def test_a_tool_that_pauses_by_itself_is_decided_again_when_it_is_woken() -> None:
    ran: list[str] = []
    agent: Agent[Any, Any] = Agent(Script([("careful", {})], "done"), output_type=OUTPUT)

    @agent.tool
    def careful(ctx: RunContext[Any]) -> str:
        if not ctx.tool_call_approved:
            raise ApprovalRequired(metadata={"own": True})
        ran.append("careful")
        return "ok"

    gateway = ToolGateway(tools_of(agent), Policy(allow=["careful"]))
    async with gateway.run(agent="desk", run_id="r1") as run:
        first = await agent.run("go", capabilities=[AgentGuard(run)])
        assert first.output.metadata == {"c0_0": {"own": True}}
        second = await agent.run(
            message_history=first.all_messages(),
            deferred_tool_results=wake(first.output),
            capabilities=[AgentGuard(run)],
        )
    assert (second.output, ran) == ("done", ["careful"])
    assert [(c.call_id, c.status) for c in gateway.runs.calls("r1")] == [("c0_0", "failed"), ("c0_0/2", "succeeded")]


async def test_a_call_inside_a_tool_that_waits_pauses_the_outer_one_and_goes_on_after_the_decision() -> None:
    desk = Desk()
    agent = desk.agent(Script([("outer", {"path": "a"})], "done"))

    @agent.tool
    async def outer(ctx: RunContext[Any], path: str) -> str:
        assert ctx.tool_manager is not None
        call = ToolCallPart("delete_file", {"path": path}, tool_call_id="inner")
        return str(await ctx.tool_manager.handle_call(call))

    gateway = gateway_for(agent, Policy(allow=["outer"], require_approval=["delete_file"]))
    async with gateway.run(agent="desk", run_id="r1") as run:
        first = await agent.run("go", capabilities=[AgentGuard(run)])
        (request,) = gateway.approvals.list()
        assert (request.tool, request.call_id, desk.ran) == ("delete_file", "c0_0/inner", [])
        gateway.approvals.approve(request.id, by=BO)
        second = await agent.run(
            message_history=first.all_messages(),
            deferred_tool_results=wake(first.output),
            capabilities=[AgentGuard(run)],
        )
    assert second.output == "done"
    assert desk.ran == [("delete", "a")]


async def test_an_output_function_that_waits_ends_the_agent_and_goes_on_after_the_decision() -> None:
    from pydantic_ai import capture_run_messages

    sent: list[str] = []

    def send_email(to: str) -> str:
        sent.append(to)
        return f"sent to {to}"

    agent: Agent[Any, Any] = Agent(Script([("final_result", {"to": "bo"})]), output_type=send_email)
    gateway = ToolGateway(tools_of(agent), Policy(require_approval=["send_email"]))
    with capture_run_messages() as messages, pytest.raises(ApprovalPending) as pending:
        async with gateway.run(agent="desk", run_id="r1") as run:
            await agent.run("go", capabilities=[AgentGuard(run)])
    assert sent == []
    gateway.approvals.approve(pending.value.request.id, by=BO)
    async with await gateway.aresume("r1") as run:
        result = await agent.run(message_history=messages[:2], capabilities=[AgentGuard(run)])
    assert (result.output, sent) == ("sent to bo", ["bo"])


async def test_streaming_pauses_and_goes_on_in_the_same_way() -> None:
    paused = Paused()
    async with paused.gateway.run(agent="desk", run_id="r1") as run:
        async with paused.agent.run_stream("go", capabilities=[AgentGuard(run)]) as streamed:
            output = await streamed.get_output()
        paused.messages = streamed.all_messages()
    assert isinstance(output, DeferredToolRequests)
    for request in paused.ids().values():
        paused.gateway.approvals.approve(request, by=BO)
    async with (
        await paused.gateway.aresume("r1") as run,
        paused.agent.run_stream(
            message_history=paused.messages, deferred_tool_results=wake(output), capabilities=[AgentGuard(run)]
        ) as streamed,
    ):
        assert await streamed.get_output() == "finished"
    assert paused.desk.ran == [("read", "a"), ("delete", "a"), ("delete", "b")]


def test_nothing_waits_in_messages_without_an_answer_of_a_model() -> None:
    assert wake([]).approvals == {}


RESUMING = """
import asyncio, sys
from pydantic_ai.messages import ModelMessagesTypeAdapter
from agentguard.adapters.pydantic_ai import AgentGuard, wake
from tests.adapters.pydantic_ai.support import ASKING, Desk, Script, gateway_for
from tests.adapters.pydantic_ai.test_pausing import TURN

async def main(folder):
    desk = Desk()
    agent = desk.agent(Script(TURN, "finished"))
    gateway = gateway_for(agent, ASKING, store=f"sqlite:///{folder}/guard.db")
    messages = ModelMessagesTypeAdapter.validate_json(open(f"{folder}/messages.json", "rb").read())
    async with await gateway.aresume("r1") as run:
        result = await agent.run(
            message_history=messages, deferred_tool_results=wake(messages), capabilities=[AgentGuard(run)]
        )
    await gateway.aclose()
    print(result.output if isinstance(result.output, str) else "waiting", desk.ran)

asyncio.run(main(sys.argv[1]))
"""


async def test_another_process_goes_on_after_the_decision(tmp_path: Path) -> None:
    paused = await Paused(f"sqlite:///{tmp_path}/guard.db").start()
    (tmp_path / "messages.json").write_bytes(ModelMessagesTypeAdapter.dump_json(paused.messages))

    def elsewhere() -> str:
        done = subprocess.run(
            [sys.executable, "-c", RESUMING, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
        )
        return done.stdout.strip()

    assert elsewhere() == "waiting []"
    paused.gateway.approvals.approve(paused.ids()["c0_1"], by=BO, arguments={"path": "a2"})
    paused.gateway.approvals.reject(paused.ids()["c0_2"], by=BO)
    assert elsewhere() == "finished [('delete', 'a2')]"
    await paused.gateway.aclose()
