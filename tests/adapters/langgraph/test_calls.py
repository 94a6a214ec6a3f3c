"""Every way a tool of an agent or a graph is called leads through the gateway."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Annotated, Any

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ToolRetryMiddleware, hook_config
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import InjectedToolCallId, ToolException, tool
from langgraph.types import Command

import agentguard
from agentguard import Budget, BudgetExceeded, CallRefused, Credentials, NoActiveRun, Policy, RunKilled, ToolGateway
from agentguard.adapters.langgraph import (
    AgentGuardMiddleware,
    governed_tool_node,
    hosted_tool,
    tools,
    tools_of,
    visible,
    watch,
)
from tests.adapters.langgraph.injected import looking
from tests.adapters.langgraph.support import DENYING, Desk, invoke, script, told

READ = ("read_file", {"path": "a"})
DELETE = ("delete_file", {"path": "a"})
EVERYTHING = Policy(allow=["**"])

both = pytest.mark.parametrize("colour", ["sync", "async"])
kinds = pytest.mark.parametrize("kind", ["agent", "graph"])


def make(kind: str, desk: Desk, model: Any, *more: Any, **settings: Any) -> Any:
    return desk.agent(model, *more, **settings) if kind == "agent" else desk.graph(model, *more, **settings)


@both
@kinds
def test_calls_are_allowed_denied_and_recorded_one_by_one(kind: str, colour: str) -> None:
    desk = Desk()
    gateway = desk.gateway(DENYING)
    agent = make(kind, desk, script([READ, DELETE, ("read_file", {"path": "b"})], "done"))
    with gateway.run(agent="desk", run_id="r1"):
        messages = invoke(colour, agent)
    assert messages[-1].content == "done"
    assert sorted(desk.ran) == [("read", "a"), ("read", "b")]
    assert told(messages)["c0_0"] == ("success", "contents of a")
    status, content = told(messages)["c0_1"]
    assert status == "error"
    assert '"type": "policy_denied"' in content
    assert sorted((c.call_id, c.status) for c in gateway.runs.calls("r1")) == [
        ("c0_0", "succeeded"),
        ("c0_2", "succeeded"),
    ]


@both
@kinds
def test_a_hidden_tool_is_not_shown_and_does_not_run_when_it_is_guessed(kind: str, colour: str) -> None:
    desk = Desk()
    model = script([DELETE, ("no_such_tool", {})], "done")
    with desk.gateway(Policy(allow=["read_file"])).run(agent="desk"):
        messages = invoke(colour, make(kind, desk, model))
    assert desk.ran == []
    assert model.seen[0] == ["read_file"]
    assert told(messages)["c0_0"][0] == told(messages)["c0_1"][0] == "error"


@both
def test_hosted_tools_are_taken_out_unless_the_policy_allows_them(colour: str) -> None:
    for permitted in (False, True):
        model = script("done")
        gateway = ToolGateway([hosted_tool("web_search")], Policy(allow=["hosted.web_search"] if permitted else []))
        agent = create_agent(model, [{"type": "web_search"}], middleware=[AgentGuardMiddleware()])
        with gateway.run(agent="desk"):
            invoke(colour, agent)
        assert model.seen == ([["web_search"]] if permitted else [])


def test_function_definitions_are_shown_like_tools() -> None:
    desk = Desk()
    given: list[Any] = [
        {"type": "function", "function": {"name": "read_file"}},
        {"name": "delete_file", "input_schema": {}},
        {"type": "function"},
    ]
    with desk.gateway(Policy(allow=["read_file"])).run(agent="desk") as run:
        assert visible(given, run) == given[:1]


@kinds
def test_streaming_leads_through_the_gateway(kind: str) -> None:
    desk = Desk()
    agent = make(kind, desk, script([READ, DELETE], "done"))
    with desk.gateway(DENYING).run(agent="desk"), watch():
        for _ in agent.stream({"messages": [("user", "go")]}, stream_mode="messages"):
            pass
    assert desk.ran == [("read", "a")]


def test_events_lead_through_the_gateway() -> None:
    desk = Desk()
    agent = desk.agent(script([READ, DELETE], "done"))

    async def go() -> None:
        async for _ in agent.astream_events({"messages": [("user", "go")]}, version="v2"):
            pass

    with desk.gateway(DENYING).run(agent="desk"):
        asyncio.run(go())
    assert desk.ran == [("read", "a")]


@both
def test_a_tool_that_calls_a_tool_by_itself_is_stopped(colour: str) -> None:
    desk = Desk()

    @tool
    def outer(path: str) -> str:
        """Call another tool."""
        try:
            return str(desk.tools[1].invoke({"path": path}))
        except CallRefused as refused:
            return refused.code

    with desk.gateway(EVERYTHING, outer).run(agent="desk"):
        messages = invoke(colour, desk.agent(script([("outer", {"path": "a"})], "done"), outer))
    assert desk.ran == []
    assert told(messages)["c0_0"] == ("success", "AG694")


def test_a_tool_that_calls_itself_is_stopped_too() -> None:
    ran: list[str] = []

    @tool
    def again(path: str) -> str:
        """Call itself."""
        ran.append(path)
        return str(again.invoke({"path": path})) if len(ran) < 3 else "deep"

    agent = create_agent(script([("again", {"path": "a"})], "x"), [again], middleware=[AgentGuardMiddleware()])
    governed = ToolGateway(tools_of([again]), EVERYTHING).run(agent="desk")
    with pytest.raises(CallRefused, match="past the gateway"), governed:
        invoke("sync", agent)
    assert ran == ["a"]


@both
def test_a_nested_agent_without_the_middleware_is_stopped_and_paid_for(colour: str) -> None:
    desk = Desk()
    inner = create_agent(script([DELETE], "sub done"), desk.tools)

    @tool
    def delegate(x: str) -> str:
        """Ask the other agent."""
        try:
            return str(inner.invoke({"messages": [HumanMessage(x)]})["messages"][-1].content)
        except CallRefused as refused:
            return refused.code

    gateway = desk.gateway(EVERYTHING, delegate)
    with gateway.run(agent="desk") as run:
        messages = invoke(colour, desk.agent(script([("delegate", {"x": "1"})], "done"), delegate))
        tokens = run.usage.tokens
    assert desk.ran == []
    assert told(messages)["c0_0"][1] == "AG694"
    assert tokens == 3 * 60


@both
def test_a_nested_agent_with_the_middleware_works_and_its_calls_are_counted_below(colour: str) -> None:
    desk = Desk()
    inner = desk.agent(script([READ, DELETE], "sub done"))

    @tool
    def delegate(x: str) -> str:
        """Ask the other agent."""
        return str(inner.invoke({"messages": [HumanMessage(x)]})["messages"][-1].content)

    policy = Policy(allow=["delegate", "read_file"])
    gateway = desk.gateway(policy, delegate)
    with gateway.run(agent="desk", run_id="r1") as run:
        invoke(colour, desk.agent(script([("delegate", {"x": "1"})], "done"), delegate))
        tokens = run.usage.tokens
    assert desk.ran == [("read", "a")]
    assert sorted(c.call_id for c in gateway.runs.calls("r1")) == ["c0_0", "c0_0/c0_0"]
    assert tokens == 4 * 60


@both
def test_outside_a_run_nothing_runs(colour: str) -> None:
    desk = Desk()
    model = script([READ], "done")
    with pytest.raises(NoActiveRun):
        invoke(colour, desk.agent(model))
    assert (desk.ran, model.requests) == ([], [])


def test_a_run_given_to_the_middleware_counts_in_threads_too() -> None:
    desk = Desk()
    with desk.gateway(DENYING).run(agent="desk") as run:
        agent = desk.agent(script([READ], "done"), guard=AgentGuardMiddleware(run))
    run = desk.gateway(DENYING).run(agent="desk").open()
    agent = desk.agent(script([READ], "done"), guard=AgentGuardMiddleware(run))
    contextvars.Context().run(invoke, "sync", agent)
    assert desk.ran == [("read", "a")]


# --- the tripwire


@both
def test_a_tool_invoked_by_hand_in_a_watched_context_is_stopped(colour: str) -> None:
    desk = Desk()
    with desk.gateway(EVERYTHING).run(agent="desk"), watch(), pytest.raises(CallRefused, match="past the gateway"):
        if colour == "sync":
            desk.tools[0].invoke({"path": "a"})
        else:
            asyncio.run(desk.tools[0].ainvoke({"path": "a"}))
    assert desk.ran == []


@both
def test_a_model_called_by_hand_in_a_watched_context_is_paid_for_and_stopped(colour: str) -> None:
    model = script("hello")
    run = ToolGateway([], Policy()).run(agent="desk", budget=Budget(max_tokens=100))
    with pytest.raises(BudgetExceeded), run, watch():
        for _ in range(3):
            if colour == "sync":
                model.invoke("x" * 200)
            else:
                asyncio.run(model.ainvoke("x" * 200))
    assert len(model.requests) == 1
    assert run.usage.tokens == 60


def test_a_model_that_fails_in_a_watched_context_keeps_what_was_held_unless_it_did_nothing() -> None:
    class Told(Exception):
        status_code = 429

    for error, free in ((ConnectionError("lost"), False), (Told("slow down"), True)):

        class Failing(type(script("x"))):  # type: ignore[misc]
            def _generate(self, *args: Any, **kwargs: Any) -> Any:
                raise error  # noqa: B023

        model = Failing(turns=["x"], seen=[], requests=[])
        run = ToolGateway([], Policy()).run(agent="desk")
        with pytest.raises(type(error)), run, watch():
            model.invoke("x")
        assert (run.usage.tokens == 0) is free


def test_text_models_are_watched_too() -> None:
    from langchain_core.language_models import FakeListLLM

    run = ToolGateway([], Policy()).run(agent="desk")
    with run, watch():
        FakeListLLM(responses=["x"]).invoke("hello there")
    assert run.usage.tokens > 0
    assert run.usage.unpriced_calls == 1


@both
def test_middleware_behind_ours_cannot_change_what_was_decided(colour: str) -> None:
    class Rewriting(AgentMiddleware[Any, Any]):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool_call={**request.tool_call, "args": {"path": "theirs"}}))

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tool_call={**request.tool_call, "args": {"path": "theirs"}}))

    desk = Desk()
    agent = create_agent(
        script([("delete_file", {"path": "mine"})], "x"), desk.tools, middleware=[AgentGuardMiddleware(), Rewriting()]
    )
    with pytest.raises(CallRefused, match="past the gateway"), desk.gateway(DENYING).run(agent="desk"):
        invoke(colour, agent)
    assert desk.ran == []


@both
def test_middleware_in_front_of_ours_is_decided_as_it_rewrites(colour: str) -> None:
    class Rewriting(AgentMiddleware[Any, Any]):
        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tool_call={**request.tool_call, "args": {"path": "theirs"}}))

        async def awrap_tool_call(self, request: Any, handler: Any) -> Any:
            return await handler(request.override(tool_call={**request.tool_call, "args": {"path": "theirs"}}))

    desk = Desk()
    agent = desk.agent(script([("delete_file", {"path": "mine"})], "x"), middleware=[Rewriting()])
    with desk.gateway(DENYING).run(agent="desk"):
        assert told(invoke(colour, agent))["c0_0"][0] == "error"
    assert desk.ran == []


def test_a_jump_to_the_tools_does_not_lead_around_the_gateway() -> None:
    class Jump(AgentMiddleware[Any, Any]):
        @hook_config(can_jump_to=["tools"])
        def after_model(self, state: Any, runtime: Any) -> Any:
            return {"jump_to": "tools"} if getattr(state["messages"][-1], "tool_calls", None) else None

    desk = Desk()
    with desk.gateway(DENYING).run(agent="desk"):
        invoke("sync", desk.agent(script([DELETE], "x"), middleware=[Jump()]))
    assert desk.ran == []


# --- impostors


def test_a_tool_that_is_not_the_registered_one_is_not_run() -> None:
    desk = Desk()
    ran: list[str] = []

    @tool("read_file")
    def other_function(path: str) -> str:
        """Another function."""
        ran.append(path)
        return path

    @tool("read_file")
    def other_arguments(path: str, depth: int = 1) -> str:
        """Other arguments."""
        ran.append(path)
        return path

    gateway = desk.gateway(EVERYTHING)
    for impostor in (other_function, other_arguments):
        agent = create_agent(script([READ], "x"), [impostor], middleware=[AgentGuardMiddleware()])
        with gateway.run(agent="desk"):
            assert told(invoke("sync", agent))["c0_0"][0] == "error"
    assert ran == []


def test_a_tool_named_like_a_gateway_tool_never_runs_in_its_place() -> None:
    ran: list[str] = []

    @agentguard.tool(effect="read")
    def read_file(path: str) -> str:
        ran.append("governed")
        return path

    @tool("read_file")
    def shadow(path: str) -> str:
        """Pretend."""
        ran.append("shadow")
        return path

    agent = create_agent(script([READ], "x"), [shadow], middleware=[AgentGuardMiddleware()])
    with ToolGateway([read_file], EVERYTHING).run(agent="desk"):
        invoke("sync", agent)
    assert ran == ["governed"]


def test_a_tool_added_while_the_agent_runs_is_decided_like_the_others() -> None:
    desk = Desk()

    @tool
    def later(x: int) -> str:
        """Come later."""
        desk.ran.append("later")
        return "x"

    class Adding(AgentMiddleware[Any, Any]):
        def wrap_model_call(self, request: Any, handler: Any) -> Any:
            return handler(request.override(tools=[*request.tools, later]))

        def wrap_tool_call(self, request: Any, handler: Any) -> Any:
            if request.tool_call["name"] != "later":
                return handler(request)
            return ToolMessage(later.invoke(request.tool_call["args"]), tool_call_id=request.tool_call["id"])

    model = script([("later", {"x": 1})], "done")
    with pytest.raises(CallRefused, match="past the gateway"), desk.gateway(EVERYTHING).run(agent="desk"), watch():
        invoke("sync", desk.agent(model, middleware=[Adding()]))
    assert desk.ran == []
    assert "later" not in model.seen[0]


# --- the gateway's own tools


@both
@pytest.mark.parametrize("guarded", [True, False])
def test_gateway_tools_are_offered_to_agents(colour: str, guarded: bool) -> None:
    ran: list[Any] = []

    @agentguard.tool(name="orders.get", effect="read")
    def get_order(order_id: str) -> dict[str, str]:
        """Look an order up."""
        ran.append(order_id)
        return {"order": order_id}

    @agentguard.tool(name="orders.delete")
    def delete_order(order_id: str) -> str:
        ran.append("deleted")
        return "x"

    gateway = ToolGateway([get_order, delete_order], Policy(allow=["orders.get"]))
    model = script([("orders_get", {"order_id": "A"}), ("orders_delete", {"order_id": "A"})], "done")
    given = tools(of=gateway)
    agent = create_agent(model, given, middleware=[AgentGuardMiddleware()] if guarded else [])
    with gateway.run(agent="desk", run_id="r1"):
        assert [t.name for t in tools()] == ["orders_get"]
        messages = invoke(colour, agent)
    assert ran == ["A"]
    assert told(messages)["c0_0"][1] == '{"order":"A"}'
    assert told(messages)["c0_1"][0] == "error"
    assert [c.call_id for c in gateway.runs.calls("r1")] == ["c0_0"]
    if guarded:
        assert model.seen[0] == ["orders_get"]


def test_a_gateway_tool_in_an_ended_run_stops_the_agent() -> None:
    @agentguard.tool(effect="read")
    def ping() -> str:
        return "pong"

    gateway = ToolGateway([ping], EVERYTHING)
    agent = create_agent(script([("ping", {})], "done"), tools(of=gateway))
    with gateway.run(agent="desk") as run:
        run.stop()
        with pytest.raises(RunKilled):
            invoke("sync", agent)


# --- arguments and results


def test_what_the_framework_injects_is_no_argument_and_arrives_as_it_would_without_the_gateway() -> None:
    seen: list[Any] = []
    for middleware in ([], [AgentGuardMiddleware()]):
        got: list[Any] = []
        look = looking(got)
        gateway = ToolGateway(tools_of([look]), EVERYTHING)
        assert list(gateway.registry["look"].spec.input_schema["properties"]) == ["query"]
        agent = create_agent(script([("look", {"query": "x"})], "done"), [look], middleware=middleware)
        with gateway.run(agent="desk"):
            seen.append((got, told(invoke("sync", agent))))
    assert seen[0] == seen[1]


def test_a_model_cannot_fill_in_what_the_framework_injects() -> None:
    got: list[Any] = []
    look = looking(got)
    forged = {"query": "x", "state": {"messages": []}, "call": "mine"}
    agent = create_agent(script([("look", forged)], "done"), [look], middleware=[AgentGuardMiddleware()])
    with ToolGateway(tools_of([look]), EVERYTHING).run(agent="desk"):
        messages = invoke("sync", agent)
    assert got == []
    assert "invalid_arguments" in told(messages)["c0_0"][1]


@both
def test_what_the_policy_changes_is_what_the_tool_gets(colour: str) -> None:
    got: list[Any] = []

    @tool
    def search(query: str, limit: int = 500) -> str:
        """Search."""
        got.append((query, limit))
        return "found"

    policy = Policy.from_string(
        """
version: 1
name: clamp
rules:
  - id: few
    allow: search
    clamp: {args.limit: {maximum: 10}}
    message: Results are cut.
"""
    )
    agent = create_agent(script([("search", {"query": "x"})], "done"), [search], middleware=[AgentGuardMiddleware()])
    with ToolGateway(tools_of([search]), policy).run(agent="desk"):
        messages = invoke(colour, agent)
    assert got == [("x", 10)]
    assert told(messages)["c0_0"][1] == "found\n\nNote: Results are cut."


def test_rich_results_reach_the_graph_as_the_tool_made_them_and_come_back_in_a_replay() -> None:
    ran: list[str] = []

    @tool(response_format="content_and_artifact")
    def rows(table: str) -> tuple[str, list[int]]:
        """Read rows."""
        ran.append("rows")
        return "3 rows", [1, 2, 3]

    @tool
    def note(text: str, call: Annotated[str, InjectedToolCallId]) -> Command[Any]:
        """Write into the state."""
        ran.append("note")
        return Command(update={"messages": [ToolMessage(f"noted {text}", tool_call_id=call)]})

    @tool
    def blocks() -> list[Any]:
        """Answer with blocks."""
        ran.append("blocks")
        return [{"type": "text", "text": "a block"}]

    gateway = ToolGateway(tools_of([rows, note, blocks]), EVERYTHING)
    turn = [("rows", {"table": "t"}), ("note", {"text": "x"}), ("blocks", {})]
    agent = create_agent(script(turn, "done"), [rows, note, blocks], middleware=[AgentGuardMiddleware()])
    seen = []
    with gateway.run(agent="desk"):
        for _ in range(2):
            messages = invoke("sync", agent)
            artifact = next(m.artifact for m in messages if isinstance(m, ToolMessage) and m.name == "rows")
            seen.append((told(messages), artifact))
    assert sorted(ran) == ["blocks", "note", "rows"]
    assert seen[0] == seen[1]
    assert seen[0][0]["c0_0"] == ("success", "3 rows")
    assert seen[0][0]["c0_1"] == ("success", "noted x")
    assert seen[0][1] == [1, 2, 3]


def test_secrets_are_removed_from_what_the_model_gets() -> None:
    @agentguard.tool(credentials=["api"], effect="read")
    def unlock(secrets: Credentials) -> str:
        return str(secrets["api"])[:1]

    @tool
    def leak() -> dict[str, str]:
        """Say too much."""
        return {"found": "hunter2-hunter2"}

    @tool
    def fail() -> str:
        """Say too much in an error."""
        raise ToolException("hunter2-hunter2")

    fail.handle_tool_error = True
    registry = tools_of([leak, fail]).with_tool(unlock)
    gateway = ToolGateway(registry, EVERYTHING, credentials={"api": "hunter2-hunter2"})
    model = script([("unlock", {})], [("leak", {}), ("fail", {})], "x")
    agent = create_agent(model, [*tools(of=gateway), leak, fail], middleware=[AgentGuardMiddleware()])
    with gateway.run(agent="desk"):
        messages = invoke("sync", agent)
    assert set(told(messages)) == {"c0_0", "c1_0", "c1_1"}
    assert "hunter2" not in str(messages)


def test_a_tool_that_answers_with_an_error_is_recorded_as_failed() -> None:
    @tool
    def picky(path: str) -> str:
        """Be picky."""
        raise ToolException("not like this")

    picky.handle_tool_error = True
    gateway = ToolGateway(tools_of([picky]), EVERYTHING)
    agent = create_agent(script([("picky", {"path": "a"})], "x"), [picky], middleware=[AgentGuardMiddleware()])
    with gateway.run(agent="desk", run_id="r1"):
        messages = invoke("sync", agent)
        again = invoke("sync", agent)
    assert told(messages)["c0_0"] == ("error", "not like this")
    assert "tool_error" in told(again)["c0_0"][1]
    assert [c.status for c in gateway.runs.calls("r1")] == ["failed"]


@both
def test_a_tool_that_raises_ends_the_agent_as_it_would_without_the_gateway(colour: str) -> None:
    @tool
    def broken() -> str:
        """Break."""
        raise KeyError("words of the tool")

    agent = create_agent(script([("broken", {})], "x"), [broken], middleware=[AgentGuardMiddleware()])
    gateway = ToolGateway(tools_of([broken]), EVERYTHING)
    with pytest.raises(KeyError), gateway.run(agent="desk"):
        invoke(colour, agent)


def test_a_retry_by_middleware_in_front_does_not_run_a_failed_call_again() -> None:
    tries: list[str] = []

    @tool
    def flaky(path: str) -> str:
        """Fail."""
        tries.append(path)
        raise RuntimeError("no")

    retrying = ToolRetryMiddleware(max_retries=3, initial_delay=0.0, on_failure="continue")
    agent = create_agent(
        script([("flaky", {"path": "a"})], "x"), [flaky], middleware=[retrying, AgentGuardMiddleware()]
    )
    gateway = ToolGateway(tools_of([flaky]), EVERYTHING)
    with gateway.run(agent="desk", run_id="r1"):
        invoke("sync", agent)
    assert tries == ["a"]


def test_retries_of_the_plan_run_the_tool_again() -> None:
    tries: list[str] = []

    @tool
    def flaky(path: str) -> str:
        """Fail once."""
        tries.append(path)
        if len(tries) == 1:
            raise RuntimeError("no")
        return "fine"

    flaky.metadata = {"agentguard": {"effect": "read", "retry": {"attempts": 3, "wait": 0, "jitter": 0}}}
    agent = create_agent(script([("flaky", {"path": "a"})], "x"), [flaky], middleware=[AgentGuardMiddleware()])
    with ToolGateway(tools_of([flaky]), EVERYTHING).run(agent="desk"):
        assert told(invoke("sync", agent))["c0_0"] == ("success", "fine")
    assert tries == ["a", "a"]


# --- failing and stopping


@both
@kinds
def test_a_crash_inside_the_hook_keeps_the_tool_from_running(
    kind: str, colour: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from agentguard.gateway.running import Run

    def crash(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("our own mistake")

    desk = Desk()
    with desk.gateway(DENYING).run(agent="desk"):
        monkeypatch.setattr(Run, "attempt", crash)
        monkeypatch.setattr(Run, "aattempt", crash)
        with pytest.raises(RuntimeError, match="our own mistake"):
            invoke(colour, make(kind, desk, script([READ], "x")))
    assert desk.ran == []


@both
def test_a_swallowed_stop_stops_before_the_next_model_call(colour: str) -> None:
    desk = Desk()
    model = script([READ], "never")

    class Killing(AgentMiddleware[Any, Any]):
        def after_model(self, state: Any, runtime: Any) -> None:
            run.stop()

    swallowing = ToolRetryMiddleware(max_retries=0, on_failure="continue")
    with desk.gateway(DENYING).run(agent="desk") as run, pytest.raises(RunKilled):
        invoke(colour, desk.agent(model, middleware=[swallowing, Killing()]))
    assert desk.ran == []
    assert len(model.requests) == 1


def test_a_tool_node_that_swallows_exceptions_does_not_run_what_was_refused() -> None:
    desk = Desk()
    with desk.gateway(DENYING).run(agent="desk") as run:
        run.stop()
        graph = desk.graph(script([READ], "done"), handle_tool_errors=True)
        assert told(invoke("sync", graph, {"messages": [AIMessage("", tool_calls=[])]})) == {}
        node = governed_tool_node(desk.tools, handle_tool_errors=True)
        assert node is not None
        invoke("sync", graph)
    assert desk.ran == []


@both
def test_the_budget_stops_before_the_next_model_call(colour: str) -> None:
    for on_stop in ("raise", "end"):
        desk = Desk()
        model = script([READ], [("read_file", {"path": "b"})], "never")
        gateway = desk.gateway(DENYING)
        agent = desk.agent(model, guard=AgentGuardMiddleware(on_stop=on_stop))  # type: ignore[arg-type]
        run = gateway.run(agent="desk", budget=Budget(max_tokens=140), run_id="r1")
        with run:
            if on_stop == "raise":
                with pytest.raises(BudgetExceeded) as stop:
                    invoke(colour, agent)
                assert stop.value.reason == "budget_tokens"
            else:
                last = invoke(colour, agent)[-1]
                assert last.response_metadata["agentguard"]["stop_reason"] == "budget_tokens"
        assert len(model.requests) == 2
        assert on_stop == "raise" or gateway.runs.get("r1").stop_reason == "budget_tokens"


def test_an_ended_run_ends_the_agent_gracefully_when_that_was_asked_for() -> None:
    desk = Desk()
    model = script("never")
    with desk.gateway(DENYING).run(agent="desk") as run:
        run.stop()
        last = invoke("sync", desk.agent(model, guard=AgentGuardMiddleware(on_stop="end")))[-1]
        assert last.response_metadata["agentguard"]["stop_reason"] == "run_ended"
        agent = desk.agent(model, guard=AgentGuardMiddleware(on_stop="end"))
        assert invoke("async", agent)[-1].response_metadata["agentguard"]["stop_reason"] == "run_ended"
    assert model.requests == []


@both
def test_usage_is_charged_and_a_silent_provider_is_not_free(colour: str) -> None:
    desk = Desk()
    for silent in (False, True):
        gateway = desk.gateway(DENYING)
        run = gateway.run(agent="desk")
        with run:
            invoke(colour, desk.agent(script([READ], "done", silent=silent)))
        usage = run.usage
        assert usage.unpriced_calls == 2
        assert (usage.input_tokens, usage.output_tokens) == (100, 20) if not silent else usage.tokens > 2


@both
def test_a_failing_model_keeps_what_was_held_unless_it_says_that_it_did_nothing(colour: str) -> None:
    class Told(Exception):
        status_code = 429

    for error, free in ((ConnectionError("lost"), False), (Told("slow down"), True)):

        class Failing(type(script("x"))):  # type: ignore[misc]
            def _generate(self, *args: Any, **kwargs: Any) -> Any:
                raise error  # noqa: B023

        run = ToolGateway([], Policy()).run(agent="desk")
        agent = create_agent(Failing(turns=[], seen=[], requests=[]), [], middleware=[AgentGuardMiddleware()])
        with pytest.raises(type(error)), run:
            invoke(colour, agent)
        assert (run.usage.tokens == 0) is free


def test_a_cancelled_agent_leaves_a_settled_call() -> None:
    begun = asyncio.Event()

    @tool
    async def slow() -> str:
        """Wait."""
        begun.set()
        await asyncio.Event().wait()
        return "never"

    gateway = ToolGateway(tools_of([slow]), EVERYTHING)
    agent = create_agent(script([("slow", {})], "x"), [slow], middleware=[AgentGuardMiddleware()])

    async def go() -> None:
        async with gateway.run(agent="desk", run_id="r1"):
            work = asyncio.create_task(agent.ainvoke({"messages": [("user", "go")]}))
            await begun.wait()
            work.cancel()
            with pytest.raises(asyncio.CancelledError):
                await work

    asyncio.run(go())
    assert [c.status for c in gateway.runs.calls("r1")] == ["ambiguous"]


def test_a_framework_tool_cannot_be_called_past_the_framework() -> None:
    desk = Desk()
    with desk.gateway(EVERYTHING).run(agent="desk") as run:
        outcome = run.attempt("read_file", {"path": "a"})
    assert "AG690" in str(getattr(outcome, "error", ""))
    assert desk.ran == []
