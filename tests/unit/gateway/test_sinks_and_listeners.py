"""Sinks get the whole chain of every run, in order; listeners are told and can change nothing."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from agentguard import MemorySink, Policy, StopReason
from agentguard.errors import SinkError
from tests.battery.mistakes import ANN
from tests.battery.scene import Scene, of


class Taking:
    """A sink that remembers what it took."""

    def __init__(self, *, required: bool = False) -> None:
        self.required = required
        self.taken: list[Any] = []
        self.fails: Any = None
        self.closed = 0

    def write(self, records: Any) -> None:
        if self.fails is not None and self.fails(records):
            raise OSError("disk full")
        self.taken.extend(records)

    def close(self) -> None:
        self.closed += 1
        raise OSError("cannot close")


def _everything(scene: Scene, gateway: Any) -> Any:
    run = scene.run(gateway)
    scene.attempt(gateway, {"amount": "x"}, run=run)
    scene.attempt(gateway, name="none", run=run)
    scene.attempt(gateway, name="read", run=run, call_id="r1")
    scene.attempt(gateway, name="read", run=run, call_id="r1")
    scene.hand.do(run, "charge_llm", model="m", input_tokens=1, output_tokens=1)
    scene.hand.do(run, "step", "plan")
    scene.hand.do(run.state, "put", "k", 1, expected=0)
    request = scene.attempt(gateway, run=run, call_id="c1").request  # type: ignore[union-attr]
    scene.hand.do(gateway.approvals, "approve", request.id, by=ANN)
    return run, request


def test_a_sink_has_heard_of_everything_as_soon_as_it_has_happened(scene: Scene) -> None:
    sink = Taking()
    gateway = scene.gateway(
        Policy(require_approval={"pay"}, allow={"read"}), tools=[scene.pay, scene.tool("read")], sinks=[sink]
    )
    run, _ = _everything(scene, gateway)
    assert sink.taken == list(gateway.audit.records(run.run_id))
    scene.attempt(gateway, run=run, call_id="c1")
    assert sink.taken == list(gateway.audit.records(run.run_id))
    scene.hand.do(run, "complete")
    assert sink.taken == list(gateway.audit.records(run.run_id))
    kinds = {part for record in sink.taken for part in [record.line.split(b'"kind":"')[1].split(b'"')[0].decode()]}
    assert {"run.opened", "call.refused", "call.replayed", "approval.requested", "approval.decided"} <= kinds


def test_what_another_process_wrote_comes_in_its_place(scene: Scene) -> None:
    store = scene.store()
    first = scene.gateway(Policy(require_approval={"pay"}), store=store)
    run = scene.run(first)
    request = scene.attempt(first, run=run, call_id="c1").request  # type: ignore[union-attr]
    scene.hand.do(first.approvals, "approve", request.id, by=ANN)
    sink = Taking()
    second = scene.gateway(Policy(require_approval={"pay"}), store=store, sinks=[sink])
    scene.hand.do(scene.hand.do(second, "resume", run.run_id), "resume_calls")
    assert [record.seq for record in sink.taken] == list(range(1, len(sink.taken) + 1))
    assert sink.taken == list(second.audit.records(run.run_id))


def test_an_optional_sink_that_fails_stops_nothing_and_catches_up(scene: Scene) -> None:
    sink = Taking()
    gateway = scene.gateway(sinks=[sink])
    run = scene.run(gateway)
    sink.fails = lambda _: True
    assert scene.attempt(gateway, run=run).value == "paid"  # type: ignore[union-attr]
    sink.fails = None
    scene.hand.do(run, "complete")
    assert sink.taken == list(gateway.audit.records(run.run_id))


def test_a_required_sink_that_fails_after_the_fact_does_not_undo_it(scene: Scene) -> None:
    sink = Taking(required=True)
    gateway = scene.gateway(sinks=[sink])
    run = scene.run(gateway)
    sink.fails = lambda records: any(b"call.outcome" in r.line for r in records)
    assert scene.attempt(gateway, run=run).value == "paid"  # type: ignore[union-attr]
    sink.fails = lambda _: True
    scene.hand.do(run, "charge_llm", model="m", input_tokens=1, output_tokens=1)
    scene.hand.do(run, "complete", 5)
    assert scene.hand.do(run, "report").result == 5


def test_a_run_that_a_required_sink_does_not_take_is_not_opened(scene: Scene) -> None:
    sink = Taking(required=True)
    sink.fails = lambda _: True
    with pytest.raises(SinkError):
        scene.run(scene.gateway(sinks=[sink]))


def test_a_sink_that_hangs_takes_no_workers_hostage(plain: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    from agentguard._drive import delivering, ports

    monkeypatch.setattr(delivering, "SINK_DEADLINE_S", 0.01)
    monkeypatch.setattr(ports, "SINK_DEADLINE_S", 0.05)
    go = threading.Event()

    class Hanging(Taking):
        def write(self, records: Any) -> None:
            go.wait(20)

    gateway = plain.gateway(sinks=[Hanging()], max_workers=2)
    run = plain.run(gateway)
    for _ in range(4):
        assert run.attempt("pay", {"amount": 5}).value == "paid"  # type: ignore[union-attr]
    assert gateway._ports.workers.submit(lambda: "free").result(5) == "free"
    go.set()


def test_sinks_are_closed_with_the_gateway_and_may_fail(plain: Scene) -> None:
    sink = Taking()
    gateway = plain.gateway(sinks=[sink])
    gateway.close()
    gateway.close()
    assert sink.closed == 1


def test_the_shipped_memory_sink_takes_part(plain: Scene) -> None:
    sink = MemorySink()
    gateway = plain.gateway(sinks=(s for s in [sink]))
    plain.attempt(gateway)
    assert len(sink.records) >= 3


class Listening:
    def __init__(self) -> None:
        self.heard: list[Any] = []

    def on_event(self, kind: str, facts: Any) -> None:
        self.heard.append((kind, facts))


class Shouting:
    def on_event(self, kind: str, facts: Any) -> None:
        raise RuntimeError("!")


def test_listeners_hear_every_outcome_and_may_fail(scene: Scene) -> None:
    listener = Listening()
    gateway = scene.gateway(listeners=[Shouting(), listener])
    run = scene.run(gateway)
    scene.attempt(gateway, run=run, call_id="c1")
    scene.attempt(gateway, {"amount": 500}, run=run, call_id="c2")
    assert [(k, f["outcome"], f["reason"], f["call"]) for k, f in listener.heard] == [
        ("call.outcome", "completed", None, "c1"),
        ("call.outcome", "refused", "policy_denied", "c2"),
    ]
    assert len(scene.ran) == 1


def test_a_suspension_reaches_a_sink_before_anybody_decides(scene: Scene) -> None:
    sink = Taking()
    gateway = scene.gateway(Policy.from_string(of({"require_approval": "pay"})), sinks=[sink])
    run = scene.run(gateway)
    scene.attempt(gateway, run=run)
    assert b"approval.requested" in sink.taken[-1].line
    assert scene.hand.do(run, "report").stop_reason is StopReason.APPROVAL_PENDING
