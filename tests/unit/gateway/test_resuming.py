"""A run goes on elsewhere: after an approval, in another process, after ``kill -9``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentguard import Budget, Policy, ToolGateway, tool
from agentguard.domain.calls import Completed, Suspended
from agentguard.errors import ApprovalError, RunError
from tests.battery.mistakes import ANN
from tests.battery.scene import Scene, of


def _approve(scene: Scene, gateway: ToolGateway, request: Any, **settings: Any) -> None:
    scene.hand.do(gateway.approvals, "approve", request.id, by=ANN, **settings)


def test_an_approved_call_runs_once_when_it_is_made_again(scene: Scene) -> None:
    gateway = scene.gateway(Policy(require_approval={"pay"}))
    run = scene.run(gateway)
    request = scene.attempt(gateway, run=run, call_id="c1").request  # type: ignore[union-attr]
    _approve(scene, gateway, request)
    first = scene.attempt(gateway, run=run, call_id="c1")
    again = scene.attempt(gateway, run=run, call_id="c1")
    assert isinstance(first, Completed)
    assert isinstance(again, Completed)
    assert (first.replayed, again.replayed) == (False, True)
    assert len(scene.ran) == 1
    assert scene.hand.do(gateway.approvals, "get", request.id).status == "consumed"


def test_edited_arguments_run_and_nothing_else(scene: Scene) -> None:
    gateway = scene.gateway(Policy(require_approval={"pay"}))
    run = scene.run(gateway)
    request = scene.attempt(gateway, {"amount": 500}, run=run, call_id="c1").request  # type: ignore[union-attr]
    _approve(scene, gateway, request, arguments={"amount": 50, "to": "ann"})
    scene.attempt(gateway, {"amount": 500}, run=run, call_id="c1")
    scene.attempt(gateway, {"amount": 500}, run=run, call_id="c1")
    assert scene.ran == [("pay", 50, "ann", None)]


def test_an_edit_is_decided_by_the_policy_again(scene: Scene) -> None:
    text = (
        of({"require_approval": "pay"}) + "  - id: never\n    deny: pay\n    when: {args: {amount: {minimum: 1000}}}\n"
    )
    gateway = scene.gateway(Policy.from_string(text))
    run = scene.run(gateway)
    request = scene.attempt(gateway, run=run, call_id="c1").request  # type: ignore[union-attr]
    _approve(scene, gateway, request, arguments={"amount": 5000})
    assert scene.attempt(gateway, run=run, call_id="c1").reason.value == "policy_denied"  # type: ignore[union-attr]
    assert scene.ran == []


def test_arguments_that_the_caller_changes_after_approval_do_not_run(scene: Scene) -> None:
    gateway = scene.gateway(Policy(require_approval={"pay"}))
    run = scene.run(gateway)
    arguments = {"amount": 5, "tags": ["a"]}
    outcome = scene.attempt(gateway, arguments, run=run, call_id="c1")
    assert isinstance(outcome, Suspended)
    arguments["tags"].append("b")  # type: ignore[attr-defined]
    outcome.request.arguments["tags"].append("c")
    shown = scene.hand.do(gateway.approvals, "get", outcome.request.id)
    assert shown.arguments["tags"] == shown.proposed["tags"] == ["a"]
    _approve(scene, gateway, outcome.request)
    scene.hand.do(run, "resume_calls")
    assert scene.ran == [("pay", 5, "shop", ["a"])]


def test_a_tool_that_changes_its_arguments_changes_nobody_elses(scene: Scene) -> None:
    @tool(name="greedy", effect="read")
    def greedy(tags: list[str]) -> int:
        tags.append("more")
        return len(tags)

    gateway = scene.gateway(Policy(allow={"greedy"}), tools=[greedy])
    run = scene.run(gateway)
    tags = ["a"]
    assert scene.attempt(gateway, {"tags": tags}, "greedy", run=run, call_id="c1").value == 2  # type: ignore[union-attr]
    assert tags == ["a"]
    assert b'"tags":["a"]' in b"".join(r.body or b"" for r in gateway.audit.records(run.run_id))


def test_a_caller_that_changes_arguments_while_the_policy_decides_changes_nothing(plain: Scene) -> None:
    gateway = plain.gateway(Policy.from_string(of({"allow": "pay", "when": "{args: {tags: {maxItems: 1}}}"})))
    arguments = {"amount": 5, "tags": ["a"]}
    rules = gateway._house.rules

    class Meanwhile:
        digest = rules.digest

        def decide(self, *args: Any) -> Any:
            decision = rules.decide(*args)
            arguments["tags"].append("b")  # type: ignore[attr-defined]
            return decision

    gateway._house.rules = Meanwhile()  # type: ignore[assignment]
    plain.attempt(gateway, arguments)
    assert plain.ran == [("pay", 5, "shop", ["a"])]


def test_pending_and_resumed_calls_by_call_id(scene: Scene) -> None:
    gateway = scene.gateway(Policy(require_approval={"pay"}))
    run = scene.run(gateway)
    requests = {i: scene.attempt(gateway, {"amount": i}, run=run, call_id=f"c{i}").request for i in (1, 2, 3, 4)}  # type: ignore[union-attr]
    assert [r.id for r in scene.hand.do(run, "pending")] == [r.id for r in requests.values()]
    _approve(scene, gateway, requests[1])
    scene.hand.do(gateway.approvals, "reject", requests[2].id, by=ANN, reason="too dear")
    _approve(scene, gateway, requests[4], arguments={"amount": 44})
    elsewhere = scene.hand.do(gateway, "resume", run.run_id)
    outcomes = scene.hand.do(elsewhere, "resume_calls")
    assert {i: type(o).__name__ for i, o in outcomes.items()} == {
        "c1": "Completed",
        "c2": "Refused",
        "c3": "Suspended",
        "c4": "Completed",
    }
    assert "too dear" in outcomes["c2"].message
    assert [amount for _, amount, _, _ in scene.ran] == [1, 44]
    assert list(scene.hand.do(elsewhere, "resume_calls")) == ["c3"]


def test_a_suspended_call_with_an_idempotency_key_is_resumed_under_its_key(scene: Scene) -> None:
    gateway = scene.gateway(Policy(require_approval={"pay"}))
    run = scene.run(gateway)
    request = scene.attempt(gateway, run=run, call_id="c1", idempotency_key="order-7").request  # type: ignore[union-attr]
    _approve(scene, gateway, request)
    assert scene.hand.do(run, "resume_calls")["c1"].value == "paid"
    replay = scene.attempt(gateway, call_id="other", idempotency_key="order-7")
    assert isinstance(replay, Completed)
    assert replay.replayed
    assert len(scene.ran) == 1


def test_a_suspended_call_of_a_tool_that_makes_its_own_keys_is_resumed(scene: Scene) -> None:
    keyed = scene.tool("pay", idempotency_key=lambda arguments: f"to {arguments['to']}!")
    gateway = scene.gateway(Policy(require_approval={"pay"}), tools=[keyed])
    run = scene.run(gateway)
    _approve(scene, gateway, scene.attempt(gateway, run=run, call_id="c1").request)  # type: ignore[union-attr]
    assert scene.hand.do(run, "resume_calls")["c1"].value == "paid"


def test_a_suspended_function_call_with_python_values_is_resumed(scene: Scene) -> None:
    seen: list[Any] = []

    @tool(name="book", effect="irreversible")
    def book(when: datetime, price: Decimal) -> str:
        seen.append((when, price))
        return "booked"

    gateway = scene.gateway(Policy(require_approval={"book"}), tools=[book])
    run = scene.run(gateway)
    when = datetime(2026, 11, 20, 12, tzinfo=UTC)
    with scene.hand.inside(run):
        outcome = run.attempt("book", {"when": when, "price": Decimal("1.50")})
    assert isinstance(outcome, Suspended), outcome
    _approve(scene, gateway, outcome.request)
    elsewhere = scene.hand.do(gateway, "resume", run.run_id)
    assert [o.value for o in scene.hand.do(elsewhere, "resume_calls").values()] == ["booked"]
    assert seen == [(when, Decimal("1.50"))]


@pytest.mark.parametrize("scope", ["arguments", "run"])
def test_a_wider_approval_covers_the_next_call(scene: Scene, scope: Any) -> None:
    gateway = scene.gateway(Policy(require_approval={"pay"}))
    run = scene.run(gateway)
    request = scene.attempt(gateway, run=run, call_id="c1").request  # type: ignore[union-attr]
    _approve(scene, gateway, request, scope=scope)
    assert isinstance(scene.attempt(gateway, run=run, call_id="c2"), Completed)
    other = scene.attempt(gateway, {"amount": 6}, run=run, call_id="c3")
    assert isinstance(other, Completed if scope == "run" else Suspended)


def test_two_approvers_who_race_get_one_winner_and_one_clear_error(scene: Scene) -> None:
    gateway = scene.gateway(Policy(require_approval={"pay"}))
    request = scene.attempt(gateway).request  # type: ignore[union-attr]
    _approve(scene, gateway, request)
    with pytest.raises(ApprovalError, match="already approved by ann"):
        scene.hand.do(gateway.approvals, "reject", request.id, by=ANN)


def test_a_run_of_an_id_that_two_tenants_have_needs_the_tenant(scene: Scene) -> None:
    gateway = scene.gateway()
    for tenant in ("x1", "x2"):
        scene.run(gateway, tenant=tenant, run_id="r")
    with pytest.raises(RunError, match="tenant"):
        scene.hand.do(gateway, "resume", "r")
    assert scene.hand.do(gateway, "resume", "r", tenant="x2").context.tenant == "x2"
    with pytest.raises(RunError):
        scene.hand.do(gateway, "resume", "r", tenant="x3")


def test_a_resumed_run_keeps_identity_budget_and_labels(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, tenant="acme", roles=["a"], labels=["l"], scope=["p*"], budget=Budget(max_tool_calls=1))
    scene.attempt(gateway, run=run)
    again = scene.hand.do(gateway, "resume", run.run_id)
    assert again.context == run.context
    assert again.labels == run.labels
    assert scene.attempt(gateway, run=again).reason.value == "budget_tool_calls"  # type: ignore[union-attr]


def test_a_run_that_has_ended_can_be_looked_at_and_not_gone_on_with(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.hand.do(run, "complete", 5)
    again = scene.hand.do(gateway, "resume", run.run_id)
    with scene.hand.inside(again):
        assert scene.attempt(gateway, run=again).reason.value == "run_ended"  # type: ignore[union-attr]
    assert scene.hand.do(again, "report").result == 5


ASKER = """
import asyncio, sys, time
from agentguard import Budget, Policy, ToolGateway, tool

@tool(name="pay", effect="irreversible")
def pay(amount: int) -> str:
    with open(sys.argv[2], "a") as file:
        file.write(f"{amount}\\n")
    return "paid"

gateway = ToolGateway([pay], Policy(require_approval={"pay"}), store=sys.argv[1])
run = gateway.run(agent="bot", tenant="acme", run_id="r1", task="Pay", budget=Budget(max_tool_calls=1)).open()
if sys.argv[3] == "blocking":
    outcome = run.attempt("pay", {"amount": 5}, call_id="c1")
else:
    outcome = asyncio.run(run.aattempt("pay", {"amount": 5}, call_id="c1"))
print(outcome.request.id, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("edited", [False, True])
def test_another_process_goes_on_after_kill_9(tmp_path: Path, colour: str, edited: bool) -> None:
    script, done = tmp_path / "asker.py", tmp_path / "done.txt"
    script.write_text(textwrap.dedent(ASKER))
    url = f"sqlite:///{tmp_path / 'store.db'}"
    asker = subprocess.Popen([sys.executable, str(script), url, str(done), colour], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    with asker.stdout:
        approval = asker.stdout.readline().strip()
    os.kill(asker.pid, signal.SIGKILL)
    asker.wait(10)

    @tool(name="pay", effect="irreversible")
    def pay(amount: int) -> str:
        with done.open("a") as file:
            file.write(f"{amount}\n")
        return "paid"

    with ToolGateway([pay], Policy(require_approval={"pay"}), store=url) as gateway:
        gateway.approvals.approve(approval, by=ANN, arguments={"amount": 4} if edited else None)
        run = gateway.resume("r1")
        outcomes = run.resume_calls()
        assert outcomes["c1"].value == "paid"  # type: ignore[union-attr]
        assert run.resume_calls() == {}
        assert done.read_text() == ("4\n" if edited else "5\n")
        run.complete("done")
        assert run.report.task == "Pay"
        assert gateway.audit.verify("r1").ok
