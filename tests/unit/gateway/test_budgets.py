"""Every dimension, scope and window of a budget at a gateway; several scopes are charged all or none."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from agentguard import Budget, Policy, StopReason, tool
from agentguard.domain.calls import Completed
from agentguard.errors import ConfigurationError, RunError
from tests.battery.mistakes import ANN
from tests.battery.scene import RULES, Scene, of


def _reason(outcome: Any) -> str:
    return "ran" if isinstance(outcome, Completed) else outcome.reason.value


SHARED = [
    ("session", {"session": "s1"}, {"session": "s2"}),
    ("agent", {"agent": "a1"}, {"agent": "a2"}),
    ("user", {"user": "u1"}, {"user": "u2"}),
    ("team", {"team": "t1"}, {"team": "t2"}),
    ("tenant", {"tenant": "x1"}, {"tenant": "x2"}),
]


@pytest.mark.parametrize(("scope", "one", "other"), SHARED, ids=[s[0] for s in SHARED])
def test_runs_of_one_scope_share_its_budget(
    scene: Scene, scope: Any, one: dict[str, str], other: dict[str, str]
) -> None:
    gateway = scene.gateway(budgets=Budget(scope=scope, max_tool_calls=2))
    said = [_reason(scene.attempt(gateway, run=scene.run(gateway, **one))) for _ in range(3)]
    assert said == ["ran", "ran", "budget_tool_calls"]
    assert _reason(scene.attempt(gateway, run=scene.run(gateway, **other))) == "ran"


def test_the_budget_of_everything_is_one_across_tenants(scene: Scene) -> None:
    gateway = scene.gateway(budgets=Budget(scope="everything", max_tool_calls=1))
    assert _reason(scene.attempt(gateway, run=scene.run(gateway, tenant="x1"))) == "ran"
    assert _reason(scene.attempt(gateway, run=scene.run(gateway, tenant="x2"))) == "budget_tool_calls"


@pytest.mark.parametrize("scope", ["session", "agent", "user", "team"])
def test_equal_names_in_two_tenants_are_two_accounts(scene: Scene, scope: Any) -> None:
    gateway = scene.gateway(budgets=Budget(scope=scope, max_tool_calls=1))
    who: dict[str, Any] = {"agent": "a", "user": "u", "session": "s", "team": "t"}
    assert _reason(scene.attempt(gateway, run=scene.run(gateway, tenant="x1", **who))) == "ran"
    assert _reason(scene.attempt(gateway, run=scene.run(gateway, tenant="x2", **who))) == "ran"
    assert _reason(scene.attempt(gateway, run=scene.run(gateway, tenant="x1", **who))) == "budget_tool_calls"


@pytest.mark.parametrize(("per", "seconds"), [("minute", 60), ("hour", 3600), ("day", 86_400), ("month", 31 * 86_400)])
def test_a_window_begins_anew_with_the_calendar(scene: Scene, per: Any, seconds: int) -> None:
    gateway = scene.gateway(budgets=Budget(scope="tenant", per=per, max_tool_calls=1))
    run = scene.run(gateway)
    first = scene.attempt(gateway, run=run), scene.attempt(gateway, run=run)
    assert [_reason(o) for o in first] == ["ran", "budget_tool_calls"]
    assert first[1].retryable is True  # type: ignore[union-attr]
    scene.clock.advance(seconds)
    assert _reason(scene.attempt(gateway, run=run)) == "ran"


def test_the_end_of_a_run_budget_is_final(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, budget=Budget(max_tool_calls=1))
    scene.attempt(gateway, run=run)
    assert scene.attempt(gateway, run=run).retryable is False  # type: ignore[union-attr]


def test_a_match_limits_each_name_by_itself_and_others_not_at_all(scene: Scene) -> None:
    gateway = scene.gateway(budgets=Budget(scope="agent", match="research-*", max_tool_calls=1))
    runs = {name: scene.run(gateway, agent=name) for name in ("research-a", "research-b", "support")}
    for run in runs.values():
        assert _reason(scene.attempt(gateway, run=run)) == "ran"
    said = {name: _reason(scene.attempt(gateway, run=run)) for name, run in runs.items()}
    assert said == {"research-a": "budget_tool_calls", "research-b": "budget_tool_calls", "support": "ran"}


def test_several_scopes_are_charged_all_or_none(scene: Scene) -> None:
    budgets = [Budget(scope="tenant", max_tool_calls=10), Budget(scope="user", max_tool_calls=1)]
    gateway = scene.gateway(budgets=budgets)
    run = scene.run(gateway)
    scene.attempt(gateway, run=run)
    assert _reason(scene.attempt(gateway, run=run)) == "budget_tool_calls"
    lines = {(line.scope, line.dimension): line for line in scene.hand.do(gateway.budgets, "read", run.run_id)}
    for scope in ("run", "tenant", "user"):
        assert (lines[scope, "tool_calls"].used, lines[scope, "tool_calls"].held) == (1, 0)


def test_a_refused_and_a_pending_call_cost_nothing(scene: Scene) -> None:
    gateway = scene.gateway(Policy(require_approval={"pay"}), budgets=Budget(scope="tenant", max_tool_calls=10))
    run = scene.run(gateway)
    scene.attempt(gateway, run=run)
    scene.attempt(gateway, {"amount": "x"}, run=run)
    scene.attempt(gateway, name="none", run=run)
    assert {(line.used, line.held) for line in scene.hand.do(gateway.budgets, "read", run.run_id)} <= {(0, 0)}


def test_the_tighter_of_the_runs_and_the_gateways_limits_applies(scene: Scene) -> None:
    gateway = scene.gateway(budgets=Budget(max_tool_calls=1, max_steps=5))
    wide = scene.run(gateway, budget=Budget(max_tool_calls=100))
    assert [_reason(scene.attempt(gateway, run=wide)) for _ in range(2)] == ["ran", "budget_tool_calls"]
    tight = scene.run(gateway, budget=Budget(max_steps=1))
    assert [_reason(scene.attempt(gateway, run=tight)) for _ in range(2)] == ["ran", "budget_steps"]


def test_what_a_tool_costs_is_reserved_and_settled_exactly(scene: Scene) -> None:
    priced = scene.tool("pay", cost_usd="0.000000001")
    gateway = scene.gateway(tools=[priced], budgets=Budget(max_cost_usd="0.000000003"))
    run = scene.run(gateway)
    said = [_reason(scene.attempt(gateway, run=run)) for _ in range(4)]
    assert said == ["ran", "ran", "ran", "budget_cost"]


def test_waiting_for_a_person_is_not_working(scene: Scene) -> None:
    gateway = scene.load(of({"require_approval": "pay"}), clock=scene.clock)
    run = scene.run(gateway, budget=Budget(max_working_seconds=60, max_seconds=10_000))
    scene.clock.advance(10)
    request = scene.attempt(gateway, run=run, call_id="c1").request  # type: ignore[union-attr]
    scene.clock.advance(3000)
    scene.hand.do(gateway.approvals, "approve", request.id, by=ANN)
    assert _reason(scene.attempt(gateway, run=run, call_id="c1")) == "ran"
    scene.clock.advance(10)
    usage = scene.hand.do(run, "usage")
    assert (usage.seconds, usage.working_seconds) == (3020, 20)


def test_the_wait_for_the_answer_that_ends_a_run_is_not_work_either(scene: Scene) -> None:
    gateway = scene.load(of({"require_approval": "pay"}), clock=scene.clock)
    run = scene.run(gateway)
    scene.clock.advance(10)
    request = scene.attempt(gateway, run=run).request  # type: ignore[union-attr]
    other = scene.attempt(gateway, {"amount": 6}, run=run).request  # type: ignore[union-attr]
    scene.clock.advance(300)
    scene.hand.do(gateway.approvals, "terminate", request.id, by=ANN)
    scene.clock.advance(300)
    usage = scene.hand.do(run, "usage")
    assert (usage.seconds, usage.working_seconds) == (310, 10)
    report = scene.hand.do(run, "report")
    assert (report.status, report.stop_reason) == ("stopped", StopReason.APPROVAL_REJECTED)
    assert scene.hand.do(gateway.approvals, "get", other.id).status == "superseded"
    assert gateway.audit.verify(run.run_id).ok


def test_another_call_ends_the_loop(scene: Scene) -> None:
    gateway = scene.gateway(max_repeats=2)
    run = scene.run(gateway)
    said = [
        _reason(scene.attempt(gateway, {"amount": a}, run=run, call_id=f"c{n}"))
        for n, a in enumerate([1, 1, 2, 1, 1, 1])
    ]
    assert said == ["ran", "ran", "ran", "ran", "ran", "loop_detected"]


def test_loops_can_be_switched_off_and_code_may_repeat_itself(scene: Scene) -> None:
    gateway = scene.gateway(max_repeats=None)
    run = scene.run(gateway)
    assert {_reason(scene.attempt(gateway, run=run, call_id=f"c{n}")) for n in range(25)} == {"ran"}
    gateway = scene.gateway(max_repeats=2)
    run = scene.run(gateway)
    assert {_reason(scene.attempt(gateway, run=run)) for n in range(5)} == {"ran"}


def test_threads_never_spend_more_than_there_is(scene: Scene) -> None:
    gateway = scene.gateway(budgets=Budget(scope="tenant", max_tool_calls=20))
    runs = [scene.run(gateway) for _ in range(4)]
    found: list[str] = []

    def work(run: Any) -> None:
        found.extend(_reason(run.attempt("pay", {"amount": 5})) for _ in range(10))

    threads = [threading.Thread(target=work, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert (found.count("ran"), found.count("budget_tool_calls")) == (20, 20)


def test_one_run_may_be_used_by_many_threads(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, budget=Budget(max_tool_calls=20))
    found: list[str] = []

    def work() -> None:
        found.extend(_reason(run.attempt("pay", {"amount": 5})) for _ in range(10))
        run.charge_llm(model="m", input_tokens=1, output_tokens=1)
        run.count("pages")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found.count("ran") == 20
    usage = scene.hand.do(run, "usage")
    assert (usage.tool_calls, usage.tokens, usage.counters) == (20, 8, {"pages": 4})
    assert gateway.audit.verify(run.run_id).ok


# --- reading -------------------------------------------------------------------------------------------


def test_budgets_of_a_run_are_found_whoever_owns_it(scene: Scene) -> None:
    gateway = scene.gateway(budgets=Budget(scope="tenant", max_tool_calls=5))
    run = scene.run(gateway, tenant="acme")
    scene.attempt(gateway, run=run)
    lines = scene.hand.do(gateway.budgets, "read", run.run_id)
    assert {(line.label, line.used, line.limit) for line in lines if line.dimension == "tool_calls"} == {
        (f"run {run.run_id}", 1, None),
        ("tenant acme", 1, 5),
    }
    with pytest.raises(RunError):
        scene.hand.do(gateway.budgets, "read", run.run_id, tenant="other")


def test_shared_budgets_are_read_by_name(scene: Scene) -> None:
    budgets = [
        Budget(scope="agent", match="research-*", max_tool_calls=5),
        Budget(scope="agent", per="day", max_tool_calls=6),
        Budget(scope="user", max_tool_calls=7),
        Budget(scope="tenant", max_tool_calls=8),
        Budget(scope="everything", max_tool_calls=9),
    ]
    gateway = scene.gateway(budgets=budgets)
    scene.attempt(gateway, run=scene.run(gateway, agent="support"))

    def read(**who: str) -> dict[str, tuple[int, int | None]]:
        lines = scene.hand.do(gateway.budgets, "read", **who)
        return {line.label: (line.used, line.limit) for line in lines if line.dimension == "tool_calls"}

    assert read() == {"tenant default": (1, 8), "everything": (1, 9)}
    assert read(agent="support") == {
        "agent support per day": (1, 6),
        "tenant default": (1, 8),
        "everything": (1, 9),
    }
    assert read(agent="research-x", user="u-1")["agent research-x"] == (0, 5)
    assert read(user="u-1")["user u-1"] == (1, 7)
    assert read(tenant="acme") == {"tenant acme": (0, 8), "everything": (1, 9)}


@pytest.mark.parametrize("who", [{"usr": "u"}, {"run_id": "r", "agent": "a"}])
def test_a_misspelt_filter_is_refused(plain: Scene, who: dict[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        plain.gateway().budgets.read(**who)


def test_the_short_form_in_a_file_is_the_budget_of_every_run(scene: Scene) -> None:
    gateway = scene.load(RULES + "budgets: {max_tool_calls: 1, max_cost_usd: '0.50', max_seconds: 5m}\n")
    for _ in range(2):
        run = scene.run(gateway)
        assert [_reason(scene.attempt(gateway, run=run)) for _ in range(2)] == ["ran", "budget_tool_calls"]


def test_retries_charge_what_they_use(scene: Scene) -> None:
    from agentguard import Retry

    tries: list[int] = []

    @tool(name="flaky", effect="read", cost_usd="0.01", retry=Retry(attempts=3, wait_s=0, jitter_s=0))
    def flaky() -> str:
        tries.append(1)
        if len(tries) < 2:
            raise OSError
        return "ok"

    gateway = scene.gateway(Policy(allow={"flaky"}), tools=[flaky])
    run = scene.run(gateway)
    assert scene.attempt(gateway, {}, "flaky", run=run).attempts == 2  # type: ignore[union-attr]
    assert str(scene.hand.do(run, "usage").cost_usd) == "0.02"
