"""Sub-agents can only have less; what they use and read comes back; the agents of a task share one state."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from agentguard import Budget, Policy, StopReason
from agentguard.errors import ApprovalPending, ConfigurationError, RunKilled, StoreConflict
from tests.battery.scene import Scene, of


def _child(scene: Scene, parent: Any, **settings: Any) -> Any:
    return scene.hand.do(parent.spawn(**{"agent": "sub", **settings}), "open")


def test_a_child_acts_for_the_same_people(plain: Scene) -> None:
    parent = plain.run(plain.gateway(), tenant="acme", roles=["b", "a"], session="s", team="t", labels=["x"])
    child = _child(plain, parent, task="sub task").context
    assert (child.tenant, child.environment, child.user, child.session, child.team) == ("acme", "prod", "u-1", "s", "t")
    assert (child.roles, child.labels, child.parent, child.task) == (("a", "b"), ("x",), parent.run_id, "sub task")


def test_scopes_only_narrow(scene: Scene) -> None:
    tools = [scene.tool("a.x"), scene.tool("a.y"), scene.tool("b.x")]
    gateway = scene.gateway(Policy(allow={"*"}), tools=tools)
    parent = scene.run(gateway, scope=["a.*"])
    child = _child(scene, parent, scope=["*.x"])
    reasons = {name: scene.attempt(gateway, name=name, run=child) for name in ("a.x", "a.y", "b.x")}
    assert {name: type(outcome).__name__ for name, outcome in reasons.items()} == {
        "a.x": "Completed",
        "a.y": "Refused",
        "b.x": "Refused",
    }
    assert [t.spec.name for t in gateway.visible(child)] == ["a.x"]


def test_a_child_spends_its_parents_budget(scene: Scene) -> None:
    gateway = scene.gateway()
    parent = scene.run(gateway, budget=Budget(max_tool_calls=3))
    child = _child(scene, parent, budget=Budget(max_tool_calls=2))
    grandchild = _child(scene, child)
    assert scene.attempt(gateway, run=grandchild).value == "paid"  # type: ignore[union-attr]
    assert scene.attempt(gateway, run=child).value == "paid"  # type: ignore[union-attr]
    assert scene.attempt(gateway, run=child).reason is StopReason.BUDGET_TOOL_CALLS  # type: ignore[union-attr]
    assert scene.attempt(gateway, run=parent).value == "paid"  # type: ignore[union-attr]
    assert scene.attempt(gateway, run=parent).reason is StopReason.BUDGET_TOOL_CALLS  # type: ignore[union-attr]
    used = [scene.hand.do(run, "usage").tool_calls for run in (parent, child, grandchild)]
    assert used == [3, 2, 1]


def test_what_a_child_reads_its_parent_knows(scene: Scene) -> None:
    reading = scene.tool("read", output_labels=["secret"], effect="read")
    text = (
        of({"allow": '["pay", "read"]'}) + "  - id: secret\n    deny: pay\n    when: {run: {labels: {any: [secret]}}}\n"
    )
    gateway = scene.gateway(Policy.from_string(text), tools=[scene.pay, reading])
    parent = scene.run(gateway)
    sibling = _child(scene, parent)
    scene.attempt(gateway, name="read", run=_child(scene, parent))
    assert scene.attempt(gateway, run=parent).reason is StopReason.POLICY_DENIED  # type: ignore[union-attr]
    assert parent.labels == ("secret",)
    assert scene.attempt(gateway, run=_child(scene, parent)).reason is StopReason.POLICY_DENIED  # type: ignore[union-attr]
    assert scene.attempt(gateway, run=sibling).value == "paid"  # type: ignore[union-attr]


def test_a_child_ends_when_its_parents_time_is_over(scene: Scene) -> None:
    gateway = scene.gateway()
    parent = scene.run(gateway, budget=Budget(max_seconds=60))
    scene.clock.advance(30)
    child = _child(scene, parent, budget=Budget(max_seconds=600))
    scene.clock.advance(30)
    assert scene.attempt(gateway, run=child).reason is StopReason.BUDGET_TIME  # type: ignore[union-attr]


def test_a_child_may_be_given_less_time(scene: Scene) -> None:
    gateway = scene.gateway()
    parent = scene.run(gateway, budget=Budget(max_seconds=60, max_working_seconds=60))
    child = _child(scene, parent, budget=Budget(max_seconds=10))
    other = _child(scene, parent, budget=Budget(max_working_seconds=10))
    scene.clock.advance(10)
    for run in (child, other):
        assert scene.attempt(gateway, run=run).reason is StopReason.BUDGET_TIME  # type: ignore[union-attr]
    assert scene.attempt(gateway, run=parent).value == "paid"  # type: ignore[union-attr]


def test_a_child_gets_what_is_left_of_the_working_time_and_waiting_is_free(scene: Scene) -> None:
    gateway = scene.gateway(Policy(allow={"read"}, require_approval={"pay"}), tools=[scene.pay, scene.tool("read")])
    parent = scene.run(gateway, budget=Budget(max_working_seconds=60))
    scene.clock.advance(20)
    child = _child(scene, parent)
    scene.attempt(gateway, run=child)
    scene.clock.advance(3000)  # a person thinks
    assert scene.attempt(gateway, name="read", run=child).value == "paid"  # type: ignore[union-attr]
    scene.clock.advance(40)
    usage = scene.hand.do(child, "usage")
    assert usage.seconds == 3040
    late = _child(
        scene, scene.run(gateway, budget=Budget(max_working_seconds=5)), budget=Budget(max_working_seconds=50)
    )
    scene.clock.advance(5)
    assert scene.attempt(gateway, name="read", run=late).reason is StopReason.BUDGET_TIME  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["complete", "stop", "fail"])
def test_no_child_of_a_run_that_has_ended(scene: Scene, how: str) -> None:
    parent = scene.run(scene.gateway())
    scene.hand.do(parent, how, *(["x"] if how == "fail" else []))
    with pytest.raises(RunKilled):
        _child(scene, parent)


def test_a_child_that_waits_may_go_on_when_its_parent_is_done(scene: Scene) -> None:
    gateway = scene.load(of({"require_approval": "pay"}), clock=scene.clock)
    parent = scene.run(gateway)
    child = _child(scene, parent)
    request = scene.attempt(gateway, run=child, call_id="c1").request  # type: ignore[union-attr]
    scene.hand.do(parent, "complete")
    from tests.battery.mistakes import ANN

    scene.hand.do(gateway.approvals, "approve", request.id, by=ANN)
    assert scene.attempt(gateway, run=child, call_id="c1").value == "paid"  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["stop", "fail"])
def test_a_child_cannot_think_or_call_when_its_parent_was_stopped(scene: Scene, how: str) -> None:
    gateway = scene.gateway()
    parent = scene.run(gateway)
    grandchild = _child(scene, _child(scene, parent))
    scene.hand.do(parent, how, *(["x"] if how == "fail" else []))
    assert scene.attempt(gateway, run=grandchild).reason is StopReason.RUN_ENDED  # type: ignore[union-attr]
    with pytest.raises(RunKilled):
        scene.hand.do(grandchild, "reserve_llm", model="m")


def test_a_child_is_spawned_and_opened_in_async_code_without_blocking(plain: Scene) -> None:
    gateway = plain.gateway()

    async def main() -> Any:
        async with gateway.run(agent="bot", environment="prod") as parent, parent.spawn(agent="sub") as child:
            return await child.acall("pay", {"amount": 5})

    assert plain.hand.runner.run(main()) == "paid"


def test_a_pending_approval_of_a_child_leaves_both_open(plain: Scene) -> None:
    gateway = plain.gateway(Policy(require_approval={"pay"}))
    runs: list[Any] = []

    def work() -> None:
        with gateway.run(agent="bot") as parent, parent.spawn(agent="sub") as child:
            runs.extend((parent, child))
            child.call("pay", {"amount": 5})

    with pytest.raises(ApprovalPending):
        work()
    assert [run.report.status for run in runs] == ["running", "waiting"]


def test_a_childs_scope_is_a_list(plain: Scene) -> None:
    with pytest.raises(ConfigurationError):
        plain.run(plain.gateway()).spawn(agent="sub", scope="pay")


# --- state ---------------------------------------------------------------------------------------------


def test_the_state_of_a_task_is_one_for_all_its_runs(scene: Scene) -> None:
    gateway = scene.gateway()
    parent = scene.run(gateway)
    one, two = _child(scene, parent, agent="one"), _child(scene, parent, agent="two")
    scene.hand.do(one.state, "put", "plan", {"steps": [1, 2.5, None, True]}, expected=0)
    entry = scene.hand.do(two.state, "get", "plan")
    assert (entry.value, entry.version, entry.by) == ({"steps": [1, 2.5, None, True]}, 1, "one")
    scene.hand.do(two.state, "put", "plan", "new", expected=1)
    assert [(e.key, e.value, e.by) for e in scene.hand.do(parent.state, "items")] == [("plan", "new", "two")]
    assert scene.hand.do(parent.state, "get", "other") is None


def test_a_write_on_an_old_version_is_a_conflict(scene: Scene) -> None:
    run = scene.run(scene.gateway())
    scene.hand.do(run.state, "put", "k", 1, expected=0)
    for expected in (0, 2):
        with pytest.raises(StoreConflict):
            scene.hand.do(run.state, "put", "k", 2, expected=expected)
    assert scene.hand.do(run.state, "get", "k").value == 1


def test_other_tasks_have_other_states(scene: Scene) -> None:
    gateway = scene.gateway()
    one, two = scene.run(gateway, tenant="acme", run_id="r"), scene.run(gateway, tenant="other", run_id="r")
    scene.hand.do(one.state, "put", "k", 1, expected=0)
    assert scene.hand.do(two.state, "get", "k") is None


def test_what_a_reader_does_to_a_value_does_not_reach_the_state(scene: Scene) -> None:
    run = scene.run(scene.gateway())
    given = {"list": [1]}
    scene.hand.do(run.state, "put", "k", given, expected=0)
    given["list"].append(2)
    scene.hand.do(run.state, "get", "k").value["list"].append(3)
    assert scene.hand.do(run.state, "get", "k").value == {"list": [1]}


def test_agents_that_race_lose_nothing(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.hand.do(run.state, "put", "sum", 0, expected=0)

    def add() -> None:
        for _ in range(10):
            while True:
                entry = run.state.get("sum")
                assert entry is not None
                try:
                    run.state.put("sum", entry.value + 1, expected=entry.version)
                    break
                except StoreConflict:
                    continue

    async def aadd() -> None:
        for _ in range(10):
            while True:
                entry = await run.state.aget("sum")
                assert entry is not None
                try:
                    await run.state.aput("sum", entry.value + 1, expected=entry.version)
                    break
                except StoreConflict:
                    continue

    async def main() -> None:
        await asyncio.gather(*(aadd() for _ in range(4)))

    if scene.hand.colour == "awaiting":
        scene.hand.runner.run(main())
    else:
        threads = [threading.Thread(target=add) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert scene.hand.do(run.state, "get", "sum").value == 40
    assert scene.hand.do(run.state, "get", "sum").version == 41


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("a b", 1, 0),
        ("k", object(), 0),
        ("k", float("nan"), 0),
        ("k", "\ud800", 0),
        ("k", 1, True),
        ("k", 1, -1),
        ("k", 1, "0"),
    ],
)
def test_what_cannot_be_kept_is_refused(plain: Scene, key: str, value: Any, expected: Any) -> None:
    with pytest.raises(ConfigurationError):
        plain.run(plain.gateway()).state.put(key, value, expected=expected)


def test_who_changed_what_is_in_the_audit_trail(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.hand.do(run.state, "put", "plan", 1, expected=0)
    written = [r.line for r in gateway.audit.records(run.run_id) if b"state.written" in r.line]
    assert len(written) == 1
    assert b'"by":"bot"' in written[0]
    assert b'"key":"plan"' in written[0]
