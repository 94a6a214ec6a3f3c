"""Approvals, runs, switches and the audit trail of a gateway, in both colours and apart by tenant."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from agentguard import ApproverIdentity, Policy, ProbeResult, tool
from agentguard.audit.verifying import verify_export
from agentguard.domain.operations import Finish
from agentguard.errors import ApprovalError, ConfigurationError, RunError, StoreConflict, StoreUnavailable
from tests.battery.mistakes import ANN
from tests.battery.scene import Broken, Scene, of
from tests.naming import shown as shown_id


def _asked(scene: Scene, **who: Any) -> tuple[Any, Any, Any]:
    gateway = scene.load(of({"require_approval": "pay", "approval": "{roles: [finance]}"}), clock=scene.clock)
    run = scene.run(gateway, **who)
    return gateway, run, scene.attempt(gateway, run=run, call_id="c1").request  # type: ignore[union-attr]


def test_requests_are_listed_by_what_one_looks_for(scene: Scene) -> None:
    gateway, run, request = _asked(scene, tenant="acme")
    listing = gateway.approvals
    for found in (
        {},
        {"tenant": "acme"},
        {"run_id": run.run_id},
        {"status": "pending"},
        {"tool": "pay"},
        {"role": "finance"},
    ):
        assert [r.id for r in scene.hand.do(listing, "list", **found)] == [request.id], found
    for missed in ({"tenant": "other"}, {"run_id": "x"}, {"status": "approved"}, {"tool": "x"}, {"role": "cfo"}):
        assert scene.hand.do(listing, "list", **missed) == (), missed
    with pytest.raises(ConfigurationError, match="AG135"):
        scene.hand.do(listing, "list", tenent="acme")


def test_a_request_of_another_tenant_is_none(scene: Scene) -> None:
    gateway, _, request = _asked(scene, tenant="acme")
    for name, settings in (
        ("get", {}),
        ("approve", {"by": ANN}),
        ("approve", {"by": ANN, "arguments": {"amount": 1}}),
        ("reject", {"by": ANN}),
        ("escalate", {"by": ANN, "to": "cfo"}),
        ("terminate", {"by": ANN}),
    ):
        with pytest.raises(ApprovalError):
            scene.hand.do(gateway.approvals, name, request.id, tenant="other", **settings)
    assert scene.hand.do(gateway.approvals, "get", request.id, tenant="acme").status == "pending"


def test_escalating_lets_another_role_decide(scene: Scene) -> None:
    gateway, run, request = _asked(scene)
    cfo = ApproverIdentity("carla", ("cfo",))
    with pytest.raises(ApprovalError):
        scene.hand.do(gateway.approvals, "approve", request.id, by=cfo)
    scene.hand.do(gateway.approvals, "escalate", request.id, to="cfo", by=ANN)
    scene.hand.do(gateway.approvals, "approve", request.id, by=cfo, note="fine")
    assert scene.attempt(gateway, run=run, call_id="c1").value == "paid"  # type: ignore[union-attr]


def test_roles_that_cannot_be_recorded_change_nothing(scene: Scene) -> None:
    gateway, run, request = _asked(scene)
    with pytest.raises(ApprovalError):
        scene.hand.do(gateway.approvals, "approve", request.id, by=ApproverIdentity("ann", ("finance", "\ud800")))
    assert scene.hand.do(gateway.approvals, "get", request.id).status == "pending"
    assert gateway.audit.verify(run.run_id).ok


def test_a_process_without_the_tool_can_approve_complete_arguments(scene: Scene) -> None:
    gateway, run, request = _asked(scene)
    console = scene.gateway(Policy(), tools=[], store=gateway.store)
    edited = {"amount": 3, "to": "shop", "tags": None}
    scene.hand.do(console.approvals, "approve", request.id, by=ANN, arguments=edited)
    assert scene.attempt(gateway, run=run, call_id="c1").value == "paid"  # type: ignore[union-attr]
    assert scene.ran == [("pay", 3, "shop", None)]


def test_runs_are_listed_by_what_one_looks_for(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, tenant="acme", session="s1")
    for found in ({}, {"tenant": "acme"}, {"agent": "bot"}, {"user": "u-1"}, {"session": "s1"}, {"status": "running"}):
        assert [r.context.run_id for r in scene.hand.do(gateway.runs, "list", **found)] == [run.run_id]
    for missed in ({"tenant": "other"}, {"agent": "x"}, {"status": "failed"}):
        assert scene.hand.do(gateway.runs, "list", **missed) == ()
    with pytest.raises(ConfigurationError):
        scene.hand.do(gateway.runs, "list", agnet="bot")
    with pytest.raises(RunError):
        scene.hand.do(gateway.runs, "get", "none")


def test_tenants_with_equal_ids_never_meet(scene: Scene) -> None:
    gateway = scene.gateway(Policy(allow={"pay"}))
    one, two = (scene.run(gateway, tenant=tenant, run_id="r") for tenant in ("x1", "x2"))
    scene.attempt(gateway, {"amount": 1}, run=one, call_id="c1")
    scene.attempt(gateway, {"amount": 2}, run=two, call_id="c1")
    scene.attempt(gateway, {"amount": 3}, run=one, idempotency_key="k")
    scene.attempt(gateway, {"amount": 4}, run=two, idempotency_key="k")
    assert [amount for _, amount, _, _ in scene.ran] == [1, 2, 3, 4]
    scene.hand.do(one, "charge_llm", model="m", input_tokens=7, output_tokens=0)
    assert scene.hand.do(two, "usage").tokens == 0
    assert [c.tenant for c in scene.hand.do(gateway.runs, "calls", "r", tenant="x1")] == ["x1", "x1"]
    with pytest.raises(RunError):
        scene.hand.do(gateway.runs, "calls", "r")
    scene.hand.do(gateway.switches, "kill", run="r", tenant="x1", reason="x", by="ops")
    assert scene.attempt(gateway, run=one).reason.value == "killed"  # type: ignore[union-attr]
    assert scene.attempt(gateway, run=two).value == "paid"  # type: ignore[union-attr]
    assert all(record.tenant == "x1" for record in gateway.audit.records("r", tenant="x1"))


# --- calls that are lost --------------------------------------------------------------------------------


def _lost(scene: Scene, **settings: Any) -> tuple[Any, Any, Broken]:
    store = Broken(scene.store(), Finish)
    gateway = scene.gateway(store=store, tools=[scene.tool("pay", **settings)])
    run = scene.run(gateway)
    assert type(scene.attempt(gateway, run=run, call_id="c1")).__name__ == "Ambiguous"
    store.kinds = ()
    return gateway, run, store


@pytest.mark.parametrize("status", ["succeeded", "failed", "refused"])
def test_a_lost_call_is_resolved_by_a_person(scene: Scene, status: Any) -> None:
    gateway, run, _ = _lost(scene)
    value = {"value": "found"} if status == "succeeded" else {}
    with pytest.raises(StoreConflict):  # its lease has not ended: it may still report back
        scene.hand.do(gateway.runs, "resolve", run.run_id, "c1", status=status, by="ops", **value)
    scene.clock.advance(3600)
    scene.hand.do(gateway.runs, "resolve", run.run_id, "c1", status=status, by="ops", reason="looked", **value)
    outcome = scene.attempt(gateway, run=run, call_id="c1")
    if status == "succeeded":
        assert (outcome.value, outcome.replayed) == ("found", True)  # type: ignore[union-attr]
    elif status == "failed":
        assert type(outcome).__name__ == "Failed"
    else:
        assert outcome.value == "paid"  # type: ignore[union-attr]
    assert len(scene.ran) == (2 if status == "refused" else 1)
    assert gateway.audit.verify(run.run_id).ok


def test_what_is_not_lost_is_not_resolved(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.attempt(gateway, run=run, call_id="c1")
    with pytest.raises(StoreConflict):
        scene.hand.do(gateway.runs, "resolve", run.run_id, "c1", status="refused", by="ops")
    with pytest.raises(RunError):
        scene.hand.do(gateway.runs, "resolve", run.run_id, "c2", status="refused", by="ops")


@pytest.mark.parametrize(
    "settings",
    [
        {"status": "done"},
        {"status": "failed", "value": 5},
        {"status": "succeeded", "value": object()},
        {"status": "succeeded", "value": float("nan")},
        {"status": "refused", "by": ""},
        {"status": "refused", "by": "a\nb"},
        {"status": "refused", "reason": 5},
    ],
    ids=shown_id,
)
def test_a_resolution_that_says_nothing_is_refused(scene: Scene, settings: dict[str, Any]) -> None:
    gateway, run, _ = _lost(scene)
    scene.clock.advance(3600)
    with pytest.raises(ConfigurationError):
        scene.hand.do(gateway.runs, "resolve", run.run_id, "c1", **{"by": "ops", **settings})


@pytest.mark.parametrize("answer", [ProbeResult("unknown"), None, "completed", ValueError("no")], ids=shown_id)
def test_a_probe_that_cannot_tell_leaves_the_call_ambiguous(scene: Scene, answer: Any) -> None:
    def probe() -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    gateway, run, _ = _lost(scene, probe=probe)
    scene.clock.advance(3600)
    assert type(scene.attempt(gateway, run=run, call_id="c1")).__name__ == "Ambiguous"
    assert len(scene.ran) == 1


# --- switches --------------------------------------------------------------------------------------------

TARGETS: list[dict[str, Any]] = [
    {"everything": True},
    {"tenant": "acme"},
    {"agent": "bot"},
    {"agent": "bot", "tenant": "acme"},
    {"user": "u-1"},
    {"tool": "pay"},
    {"run": "r1"},
    {"run": "r1", "tenant": "acme"},
]


@pytest.mark.parametrize("target", TARGETS, ids=shown_id)
def test_a_switch_stops_and_restores(scene: Scene, target: dict[str, Any]) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, tenant="acme", run_id="r1")
    first = scene.hand.do(gateway.switches, "kill", **target, reason="fire", by="ops")
    assert scene.hand.do(gateway.switches, "kill", **target, reason="again", by="other") == first
    assert scene.hand.do(gateway.switches, "list") == (first,)
    assert scene.hand.do(gateway.switches, "list", tenant="acme") == (first,)
    outcome = scene.attempt(gateway, run=run)
    assert outcome.reason.value == "killed"  # type: ignore[union-attr]
    assert "fire" in outcome.detail  # type: ignore[union-attr]
    assert "fire" not in outcome.message  # type: ignore[union-attr]
    assert scene.hand.do(gateway.switches, "restore", **target, by="ops") is True
    assert scene.hand.do(gateway.switches, "restore", **target, by="ops") is False
    assert scene.attempt(gateway, run=run).value == "paid"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "target",
    [{"tenant": "other"}, {"agent": "x"}, {"agent": "bot", "tenant": "other"}, {"user": "x"}, {"tool": "x"}],
    ids=shown_id,
)
def test_a_switch_of_something_else_stops_nothing(scene: Scene, target: dict[str, Any]) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway, tenant="acme", run_id="r1")
    scene.hand.do(gateway.switches, "kill", **target, reason="x", by="ops")
    assert scene.attempt(gateway, run=run).value == "paid"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "target",
    [
        {},
        {"agent": "a", "user": "u"},
        {"everything": True, "agent": "a"},
        {"everything": True, "tenant": "t"},
        {"agent": ""},
        {"tenant": ""},
        {"tool": "a b"},
        {"agent": "a", "by": ""},
        {"agent": "a", "reason": None},
    ],
    ids=shown_id,
)
def test_a_switch_of_nothing_in_particular_is_refused(scene: Scene, target: dict[str, Any]) -> None:
    gateway = scene.gateway()
    with pytest.raises(ConfigurationError):
        scene.hand.do(gateway.switches, "kill", **{"reason": "x", "by": "ops", **target})


# --- audit -----------------------------------------------------------------------------------------------


def test_the_trail_of_a_run_verifies_and_exports(scene: Scene) -> None:
    gateway = scene.gateway()
    for tenant in ("x1", "x2"):
        run = scene.run(gateway, tenant=tenant, run_id="r")
        scene.attempt(gateway, run=run)
        scene.hand.do(run, "complete")
    assert gateway.audit.verify("r", tenant="x1").ok
    whole = list(gateway.audit.export())
    report = verify_export(whole, anchor=gateway.audit.anchor())
    assert report.ok, report.problems
    assert report.runs == 2
    assert verify_export(list(gateway.audit.export("r", tenant="x1"))).ok
    assert len(list(gateway.runs.timeline("r", tenant="x2"))) == gateway.audit.verify("r", tenant="x2").records

    async def read() -> list[Any]:
        return [record async for record in gateway.audit.arecords("r", tenant="x1")]

    assert scene.hand.runner.run(read()) == list(gateway.audit.records("r", tenant="x1"))


def test_deciding_has_no_effect(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)
    before = scene.hand.do(gateway.runs, "get", run.run_id)
    assert gateway.decide("pay", {"amount": 5}, run.context).verdict == "allow"
    assert gateway.decide("pay", {"amount": 500}, run.context).verdict == "deny"
    assert gateway.decide("pay", {"amount": "x"}, run.context).verdict == "deny"
    assert gateway.decide("pya", {}, run.context).verdict == "deny"
    assert "pay" in gateway.decide("pya", {}, run.context).reasons[0]
    assert scene.hand.do(gateway.runs, "get", run.run_id) == before
    assert scene.ran == []


def test_a_model_sees_what_it_may_use(plain: Scene) -> None:
    tools = [plain.tool("a"), plain.tool("b"), plain.tool("c"), plain.tool("d")]
    gateway = plain.gateway(Policy(allow={"a", "d"}, require_approval={"b"}, deny={"d"}), tools=tools)
    run = plain.run(gateway)
    assert [t.spec.name for t in gateway.visible(run)] == ["a", "b"]
    assert [t.spec.name for t in gateway.visible(run.context)] == ["a", "b"]
    assert gateway.decide("a", {"amount": 1}, run.context, labels=["x"]).verdict == "allow"


# --- the gateway itself ----------------------------------------------------------------------------------


def test_calls_at_the_gateway_belong_to_the_current_run(scene: Scene) -> None:
    gateway = scene.gateway()
    run = gateway.run(agent="bot", environment="prod")
    assert scene.hand.do(gateway, "call", "pay", {"amount": 1}, run=scene.run(gateway)) == "paid"
    assert scene.hand.do(gateway, "attempt", "pay", {"amount": 1}, run=scene.run(gateway)).value == "paid"
    with scene.hand.inside(run):
        assert scene.hand.do(gateway, "call", "pay", {"amount": 2}) == "paid"
        assert scene.hand.do(gateway, "attempt", "pay", {"amount": 3}).value == "paid"
    with pytest.raises(ConfigurationError):
        scene.hand.do(gateway, "attempt", "pay", {"amount": 3}, run=run.context)


def test_a_governed_tool_may_call_another(scene: Scene) -> None:
    @tool(name="outer", effect="irreversible")
    def outer(amount: int) -> str:
        return str(scene.pay(amount))

    gateway = scene.gateway(Policy.from_string(of({"allow": "[pay, outer]"})), tools=[scene.pay, outer])
    run = scene.run(gateway)
    with scene.hand.inside(run):
        assert scene.attempt(gateway, {"amount": 5}, "outer", run=run).value == "paid"  # type: ignore[union-attr]
    assert scene.hand.do(run, "usage").per_tool == {"outer": 1, "pay": 1}


def test_a_closed_gateway_does_nothing_more(scene: Scene) -> None:
    gateway = scene.gateway()
    run = scene.run(gateway)
    scene.hand.do(gateway, "close")
    scene.hand.do(gateway, "close")
    with pytest.raises(StoreUnavailable):
        scene.hand.do(gateway, "resume", run.run_id)
    with pytest.raises(StoreUnavailable):
        scene.hand.do(gateway.run(agent="bot"), "open")
    assert "<ToolGateway: 1 tools" in repr(gateway)
    assert run.run_id in repr(run)


def test_a_gateway_is_a_context_in_both_colours(plain: Scene) -> None:
    with plain.gateway() as gateway:
        plain.run(gateway)

    async def main() -> Any:
        async with plain.gateway() as other, other.run(agent="bot", environment="prod") as run:
            await run.acall("pay", {"amount": 1})
        return other

    other = plain.hand.runner.run(main())
    for closed in (gateway, other):
        assert plain.attempt(closed, run=closed.run(agent="bot")).reason.value == "gateway_closed"  # type: ignore[union-attr]


def test_the_gateway_waits_for_what_is_on_its_way(plain: Scene) -> None:
    from agentguard.stores.sqlite import SqliteStore

    store = SqliteStore(str(plain.folder / "x.db"))
    gateway = plain.gateway(store=store)

    async def main() -> str:
        run = await gateway.run(agent="bot").aopen()
        task = asyncio.create_task(run.acomplete("done"))
        await asyncio.sleep(0)
        task.cancel()
        await gateway.aclose()
        return run.run_id

    run_id = plain.hand.runner.run(main())
    again = plain.gateway(store=store)
    assert again.runs.get(run_id).result == {"result": "done", "evidence": []}
    store.close()
