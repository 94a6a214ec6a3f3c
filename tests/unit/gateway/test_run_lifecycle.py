"""How a run is entered, left and ended, and what its report says then."""

from __future__ import annotations

import asyncio
import threading
from decimal import Decimal
from typing import Any

import pytest

from agentguard import Budget, Policy, StopReason, ToolGateway, tool
from agentguard.domain.operations import EndRun, Finish, GetRun
from agentguard.errors import (
    ApprovalPending,
    BudgetExceeded,
    ConfigurationError,
    OutputContractError,
    PolicyDenied,
    RunError,
    RunKilled,
    StoreConflict,
    StoreUnavailable,
    ToolRaised,
)
from agentguard.tools.current import CURRENT
from tests.battery.scene import Broken, Scene, of
from tests.naming import shown as shown_id

ANSWER = {"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]}


def _status(scene: Scene, run: Any) -> tuple[str, StopReason | None]:
    report = scene.hand.do(run, "report")
    return report.status, report.stop_reason


def _left_with(scene: Scene, error: BaseException) -> tuple[str, StopReason | None]:
    run = scene.gateway().run(agent="bot", environment="prod")
    with pytest.raises(type(error)), scene.hand.inside(run):
        raise error
    return _status(scene, run)


def test_a_run_left_without_a_word_is_completed(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot")
    with scene.hand.inside(run):
        pass
    assert _status(scene, run) == ("completed", StopReason.COMPLETED)


@pytest.mark.parametrize("spec", [None, ANSWER])
def test_a_run_left_after_a_budget_refused_to_go_on_says_so(scene: Scene, spec: Any) -> None:
    run = scene.gateway().run(agent="bot", environment="prod", budget=Budget(max_tool_calls=1), output_spec=spec)
    with scene.hand.inside(run):
        assert type(scene.hand.do(run, "attempt", "pay", {"amount": 5})).__name__ == "Completed"
        with pytest.raises(BudgetExceeded):
            scene.hand.do(run, "call", "pay", {"amount": 6})
    assert _status(scene, run) == ("stopped", StopReason.BUDGET_TOOL_CALLS)


def test_a_run_left_after_a_model_call_was_refused_says_so(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot", environment="prod", budget=Budget(max_tokens=10))
    with scene.hand.inside(run), pytest.raises(BudgetExceeded):
        scene.hand.do(run, "reserve_llm", model="m", input_tokens=9, max_output_tokens=9)
    assert _status(scene, run) == ("stopped", StopReason.BUDGET_TOKENS)


@pytest.mark.parametrize("how", ["attempt", "call"])
def test_an_agent_that_found_another_way_has_completed(scene: Scene, how: str) -> None:
    tools = [scene.tool("pay"), scene.tool("ask")]
    gateway = scene.gateway(Policy(allow={"pay", "ask"}), tools=tools)
    run = gateway.run(agent="bot", environment="prod", budget=Budget(per_tool={"pay": 1}))
    with scene.hand.inside(run):
        scene.hand.do(run, "attempt", "pay", {"amount": 5})
        assert scene.hand.do(run, "attempt", "pay", {"amount": 6}).reason == "budget_tool_calls"
        scene.hand.do(run, how, "ask", {"amount": 5})
    assert _status(scene, run) == ("completed", StopReason.COMPLETED)


def test_a_result_counts_whatever_was_refused_before(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot", environment="prod", budget=Budget(max_tool_calls=1))
    with scene.hand.inside(run):
        scene.hand.do(run, "attempt", "pay", {"amount": 5})
        scene.hand.do(run, "attempt", "pay", {"amount": 6})
        scene.hand.do(run, "complete", {"answer": "as far as I got"})
    assert _status(scene, run) == ("completed", StopReason.COMPLETED)


def test_a_run_left_by_an_exception_has_failed(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot")
    with pytest.raises(ZeroDivisionError), scene.hand.inside(run):
        raise ZeroDivisionError("by zero")
    report = scene.hand.do(run, "report")
    assert (report.status, report.stop_reason) == ("failed", StopReason.INTERNAL_ERROR)
    assert report.details["error"] == "ZeroDivisionError: by zero"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)], ids=["interrupted", "exit"])
def test_a_run_whose_process_is_asked_to_end_is_stopped(plain: Scene, error: BaseException) -> None:
    assert _left_with(plain, error) == ("stopped", StopReason.CANCELLED)


@pytest.mark.parametrize("when", ["inside", "while it is opened"])
def test_a_cancelled_run_is_stopped(scene: Scene, when: str) -> None:
    gateway = scene.gateway()
    run = gateway.run(agent="bot")

    async def main() -> None:
        inside = asyncio.Event()

        async def work() -> None:
            async with run:
                inside.set()
                await asyncio.sleep(60)

        task = asyncio.create_task(work())
        if when == "inside":
            await inside.wait()
        else:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await gateway._ports.settled()

    scene.hand.runner.run(main())
    assert _status(scene, run) == ("stopped", StopReason.CANCELLED)


def test_a_run_left_by_a_refusal_is_stopped_for_its_reason(scene: Scene) -> None:
    run = scene.gateway(Policy()).run(agent="bot")
    with pytest.raises(PolicyDenied), scene.hand.inside(run):
        scene.hand.do(run, "call", "pay", {"amount": 5})
    assert _status(scene, run) == ("stopped", StopReason.POLICY_DENIED)


def test_a_run_left_by_a_failing_tool_has_failed_for_its_reason(scene: Scene) -> None:
    @tool(name="broken", effect="read")
    def broken() -> str:
        raise OSError("no route")

    run = scene.gateway(Policy(allow={"broken"}), tools=[broken]).run(agent="bot")
    with pytest.raises(ToolRaised), scene.hand.inside(run):
        scene.hand.do(run, "call", "broken")
    assert _status(scene, run) == ("failed", StopReason.TOOL_ERROR)


def test_a_result_that_breaks_the_contract_fails_the_run(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot", output_spec=ANSWER)
    with pytest.raises(OutputContractError), scene.hand.inside(run):
        scene.hand.do(run, "complete", {"answer": 5})
    assert _status(scene, run) == ("failed", StopReason.INVALID_OUTPUT)


def test_a_run_that_owes_a_result_and_has_none_has_failed(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot", output_spec=ANSWER)
    with scene.hand.inside(run):
        pass
    assert _status(scene, run) == ("failed", StopReason.INVALID_OUTPUT)


def test_a_run_left_by_a_pending_approval_waits(scene: Scene) -> None:
    run = scene.gateway(Policy(require_approval={"pay"})).run(agent="bot")
    with pytest.raises(ApprovalPending), scene.hand.inside(run):
        scene.hand.do(run, "call", "pay", {"amount": 5})
    assert _status(scene, run) == ("waiting", StopReason.APPROVAL_PENDING)


def test_a_run_with_a_suspended_call_waits_although_it_was_left_quietly(scene: Scene) -> None:
    run = scene.gateway(Policy(require_approval={"pay"})).run(agent="bot")
    with scene.hand.inside(run):
        scene.hand.do(run, "attempt", "pay", {"amount": 5})
    assert _status(scene, run) == ("waiting", StopReason.APPROVAL_PENDING)


def test_a_group_of_pending_approvals_leaves_the_run_waiting(scene: Scene) -> None:
    run = scene.gateway(Policy(require_approval={"pay"})).run(agent="bot")

    async def main() -> None:
        async with run, asyncio.TaskGroup() as tasks:
            tasks.create_task(run.acall("pay", {"amount": 5}))
            tasks.create_task(run.acall("pay", {"amount": 6}))

    with pytest.raises(BaseExceptionGroup):
        scene.hand.runner.run(main())
    assert _status(scene, run)[0] == "waiting"


def test_in_a_group_what_failed_says_more_than_what_waits(scene: Scene) -> None:
    run = scene.gateway(Policy(require_approval={"pay"})).run(agent="bot")

    def work() -> None:
        try:
            scene.hand.do(run, "call", "pay", {"amount": 5})
        except ApprovalPending as pending:
            raise ExceptionGroup("both", [pending, ExceptionGroup("inner", [ValueError("x")])]) from None

    with pytest.raises(ExceptionGroup), scene.hand.inside(run):
        work()
    assert _status(scene, run) == ("failed", StopReason.INTERNAL_ERROR)


def test_leaving_never_hides_what_went_wrong_inside(scene: Scene) -> None:
    store = Broken(scene.store())
    run = scene.gateway(store=store).run(agent="bot")
    with pytest.raises(ZeroDivisionError), scene.hand.inside(run):
        store.kinds = (GetRun, EndRun)
        raise ZeroDivisionError


def test_a_run_whose_end_cannot_be_stored_says_so(scene: Scene) -> None:
    store = Broken(scene.store())
    run = scene.gateway(store=store).run(agent="bot")
    with pytest.raises(StoreUnavailable), scene.hand.inside(run):
        store.kinds = (EndRun,)


def test_a_run_that_somebody_else_has_ended_is_left_in_peace(scene: Scene) -> None:
    gateway = scene.gateway()
    run = gateway.run(agent="bot")
    with scene.hand.inside(run):
        scene.hand.do(scene.hand.do(gateway, "resume", run.run_id), "fail", "by another")
    assert _status(scene, run)[0] == "failed"


def test_a_run_that_somebody_else_ends_while_it_is_left_is_left_in_peace(plain: Scene) -> None:
    gateway = plain.gateway()
    run = gateway.run(agent="bot")
    with run:
        other = gateway.resume(run.run_id)
        how = run._how_it_ends

        def meanwhile(*args: Any) -> Any:
            other.stop()
            return how(*args)

        run._how_it_ends = meanwhile  # type: ignore[method-assign]
    assert run.report.status == "stopped"


def test_the_same_end_twice_changes_nothing_and_another_is_refused(scene: Scene) -> None:
    run = scene.run(scene.gateway())
    scene.hand.do(run, "complete", {"answer": 1})
    scene.hand.do(run, "complete", {"answer": 1})
    with pytest.raises(StoreConflict):
        scene.hand.do(run, "complete", {"answer": 2})
    with pytest.raises(StoreConflict):
        scene.hand.do(run, "stop")
    assert scene.hand.do(run, "report").result == {"answer": 1}


@pytest.mark.parametrize("result", [float("nan"), float("inf"), {1, 2}, "\ud800", object(), [[]] * 1])
def test_a_result_that_is_no_json_value_is_refused(scene: Scene, result: Any) -> None:
    run = scene.run(scene.gateway())
    if result == [[]]:
        for _ in range(70):
            result = [result]
    if isinstance(result, set):
        scene.hand.do(run, "complete", sorted(result))  # what JSON has no word for is up to the caller
        return
    with pytest.raises(OutputContractError):
        scene.hand.do(run, "complete", result)
    assert _status(scene, run)[0] == "running"


def test_words_that_cannot_be_written_do_not_keep_a_run_from_ending(scene: Scene) -> None:
    run = scene.run(scene.gateway())
    scene.hand.do(run, "fail", "broken \ud800 text")
    assert _status(scene, run)[0] == "failed"


def test_entering_twice_ends_the_run_when_it_is_left_twice(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot")
    with scene.hand.inside(run):
        with scene.hand.inside(run):
            pass
        assert _status(scene, run)[0] == "running"
    assert _status(scene, run)[0] == "completed"


def test_threads_that_share_a_run_do_not_end_it_for_each_other(plain: Scene) -> None:
    run = plain.gateway().run(agent="bot", environment="prod")
    inside, leave = threading.Barrier(2), threading.Event()
    found: list[Any] = []

    def work() -> None:
        with run:
            inside.wait(5)
            leave.wait(5)
            found.append((CURRENT.get() is run, run.attempt("pay", {"amount": 5})))
        found.append(CURRENT.get())

    thread = threading.Thread(target=work)
    with run:
        thread.start()
        inside.wait(5)
    assert CURRENT.get() is None
    assert run.report.status == "running"
    leave.set()
    thread.join(5)
    assert found[0][0] is True
    assert found[0][1].value == "paid"
    assert found[1] is None
    assert run.report.status == "completed"


def test_opening_twice_opens_once(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot")
    scene.hand.do(run, "open")
    scene.hand.do(run, "open")
    kinds = [r.line for r in run._gateway.audit.records(run.run_id)]
    assert sum(b"run.opened" in line for line in kinds) == 1


def test_tasks_that_open_one_run_at_once_open_it_once(scene: Scene) -> None:
    run = scene.gateway().run(agent="bot")

    async def main() -> None:
        await asyncio.gather(run.aopen(), run.aopen(), run.aopen())

    scene.hand.runner.run(main())
    assert _status(scene, run)[0] == "running"


def test_threads_that_open_one_run_at_once_open_it_once(plain: Scene) -> None:
    run = plain.gateway().run(agent="bot")
    threads = [threading.Thread(target=run.open) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert run.report.status == "running"


def test_an_id_that_is_taken_is_a_conflict(scene: Scene) -> None:
    gateway = scene.gateway()
    scene.run(gateway, run_id="r1")
    with pytest.raises(StoreConflict):
        scene.run(gateway, run_id="r1")


def test_a_run_under_a_kill_switch_is_not_opened(scene: Scene) -> None:
    gateway = scene.gateway()
    scene.hand.do(gateway.switches, "kill", agent="bot", reason="x", by="ops")
    with pytest.raises(RunKilled):
        scene.run(gateway)


def test_a_report_of_a_run_that_was_never_opened_is_refused(scene: Scene) -> None:
    with pytest.raises(RunError):
        scene.hand.do(scene.gateway().run(agent="bot"), "report")


def test_the_report_is_the_output_contract(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, task="Pay the bill", output_spec=ANSWER, budget=Budget(max_tool_calls=2, warn_at=0.5))
    scene.attempt(gateway, run=run, call_id="c1")
    scene.hand.do(run, "charge_llm", model="m", input_tokens=3, output_tokens=4, cost_usd="0.000000001")
    scene.hand.do(run, "complete", {"answer": "done"}, evidence=[{"order": 1}], warnings=["slow"])
    report = scene.hand.do(run, "report")
    assert report.task == "Pay the bill"
    assert report.result == {"answer": "done"}
    assert report.evidence == ({"order": 1},)
    assert [(a.call_id, a.tool, a.status) for a in report.actions_taken] == [("c1", "pay", "succeeded")]
    assert "slow" in report.warnings
    assert any("50 % of tool_calls" in warning for warning in report.warnings)
    assert report.usage.cost_usd == Decimal("0.000000001")
    assert (report.usage.tool_calls, report.usage.steps, report.usage.tokens) == (1, 2, 7)
    assert report.audit_head == scene.hand.do(gateway.runs, "get", run.run_id).audit_head


def test_actions_name_their_place_in_the_audit_trail(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)
    for number in range(2):
        scene.attempt(gateway, {"amount": number}, run=run)
    chain = list(gateway.audit.records(run.run_id))
    for action in scene.hand.do(run, "report").actions_taken:
        line = chain[action.seq - 1].line
        assert b'"kind":"call.intent"' in line
        assert action.call_id.encode() in line


def test_a_report_elsewhere_knows_the_warnings_of_the_first_handle(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, budget=Budget(max_tool_calls=2, warn_at=0.5))
    scene.attempt(gateway, run=run)
    other = scene.hand.do(gateway, "resume", run.run_id)
    assert scene.hand.do(other, "report").warnings == scene.hand.do(run, "report").warnings != ()


def test_bodies_that_are_not_kept_do_not_keep_a_run_from_ending(scene: Scene) -> None:
    gateway = scene.gateway(keep_bodies=False)
    run = scene.run(gateway, task="secret task")
    scene.attempt(gateway, run=run)
    scene.hand.do(run, "step", "plan", "first", input={"a": 1})
    scene.hand.do(run, "complete", {"answer": 1})
    assert scene.hand.do(run, "report").result == {"answer": 1}
    assert all(not record.body for record in gateway.audit.records(run.run_id))


def test_a_redactor_that_fails_withholds_and_does_not_keep_a_run_from_ending(scene: Scene) -> None:
    class Blind:
        def redact(self, value: Any) -> Any:
            raise ValueError

    run = scene.run(scene.gateway(redactor=Blind()))
    scene.hand.do(run, "complete", {"answer": 1})
    assert scene.hand.do(run, "report").status == "completed"


@pytest.mark.parametrize(
    "settings",
    [
        {"agent": ""},
        {"agent": "a b"},
        {"agent": None},
        {"run_id": "x" * 129},
        {"user": "a\nb"},
        {"session": ""},
        {"team": "ü"},
        {"roles": "admin"},
        {"roles": [""]},
        {"labels": ["a b"]},
        {"task": 5},
        {"task": "\ud800"},
        {"context": {"when": object()}},
        {"context": {"x": float("nan")}},
        {"constraints": {"x": {1, 2}}},
        {"output_spec": {"type": "nonsense"}},
        {"budget": Budget(scope="tenant", max_steps=1)},
    ],
    ids=shown_id,
)
def test_a_run_that_cannot_be_kept_is_not_made(plain: Scene, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        plain.gateway().run(**{"agent": "bot", **settings})


def test_a_call_that_ends_after_its_run_is_recorded_and_the_chain_stays_sound(scene: Scene) -> None:
    started, go = threading.Event(), threading.Event()

    @tool(name="slow", effect="read")
    def slow() -> str:
        started.set()
        go.wait(5)
        return "done"

    gateway = scene.gateway(Policy(allow={"slow"}), tools=[slow])
    run = scene.run(gateway)
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(run.attempt("slow")))
    thread.start()
    assert started.wait(5)
    scene.hand.do(run, "stop")
    go.set()
    thread.join(5)
    assert found[0].value == "done"
    assert gateway.audit.verify(run.run_id).ok
    assert scene.hand.do(run, "report").actions_taken[0].status == "succeeded"


def test_an_outcome_that_cannot_be_stored_is_ambiguous(scene: Scene) -> None:
    store = Broken(scene.store(), Finish)
    gateway = scene.gateway(store=store)
    run = scene.run(gateway)
    outcome = scene.attempt(gateway, run=run, call_id="c1")
    assert type(outcome).__name__ == "Ambiguous"
    assert len(scene.ran) == 1
    store.kinds = ()
    again = scene.attempt(gateway, run=run, call_id="c1")
    assert type(again).__name__ == "Refused"
    assert len(scene.ran) == 1


def test_ending_a_run_withdraws_what_it_asked(scene: Scene) -> None:
    gateway: ToolGateway = scene.load(of({"require_approval": "pay"}), clock=scene.clock)
    run = scene.run(gateway)
    scene.attempt(gateway, run=run)
    scene.hand.do(run, "stop")
    assert [r.status for r in scene.hand.do(gateway.approvals, "list")] == ["superseded"]
    assert scene.hand.do(run, "pending") == ()
    assert gateway.audit.verify(run.run_id).ok
