"""The memory store: bounded, and forgetful only of what nobody can need."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentguard.domain.events import Event
from agentguard.domain.operations import (
    Append,
    GetCall,
    GetRun,
    ListCalls,
    ListRuns,
    ReadAccount,
    ReadAudit,
    Settle,
    Waiting,
)
from agentguard.domain.runs import RunFilter
from agentguard.domain.usage import Meter
from agentguard.stores import memory as module
from agentguard.stores.memory import MemoryStore
from agentguard.stores.timing import SystemClock
from agentguard.testing.conformance.scene import ONE, RUN_METER, Scene, blocking


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene(lambda clock: MemoryStore(clock, keep_runs=2), blocking) as made:
        yield made


def live(run_id: str) -> Meter:
    return Meter(f"run|{run_id}", "run", f"run {run_id}")


def work(scene: Scene, run_id: str, **settings: Any) -> None:
    scene.open(run_id, meters=(live(run_id),), **settings)
    scene.finish(scene.start("c1", run_id, meters=(live(run_id),)), "c1", run_id)


def test_the_oldest_ended_runs_are_forgotten_with_all_that_is_theirs(scene: Scene) -> None:
    for number in range(4):
        work(scene, f"r{number}")
        scene.end(f"r{number}")
    assert [r.context.run_id for r in scene.do(ListRuns(RunFilter()))] == ["r3", "r2"]
    assert scene.do(ListCalls("acme", "r0")) == ()
    assert scene.do(ReadAudit("acme", "r0")) == ()
    assert scene.do(ReadAccount("run|r0")) == {}
    assert scene.do(ReadAccount("run|r3")) == dict(ONE)
    assert scene.do(GetCall("acme", "r0/c1")) is None
    assert scene.do(GetCall("acme", "r3/c1")) is not None


def test_runs_that_have_not_ended_are_kept(scene: Scene) -> None:
    work(scene, "r0")
    for number in range(1, 5):
        work(scene, f"r{number}")
        scene.end(f"r{number}")
    assert scene.run("r0").status == "running"


def test_a_run_is_kept_while_runs_below_it_charge_its_account(scene: Scene) -> None:
    work(scene, "top")
    scene.open("below", parent="top", meters=(live("below"), live("top")))
    scene.end("top")
    for number in range(4):
        work(scene, f"r{number}")
        scene.end(f"r{number}")
    assert scene.do(ReadAccount("run|top")) == dict(ONE)
    assert scene.do(GetRun("acme", "top")) is not None


def test_requests_of_forgotten_runs_are_forgotten(scene: Scene) -> None:
    scene.open("r0")
    assert isinstance(scene.begin("c1", "r0", approval=scene.demand()), Waiting)
    scene.end("r0")
    for number in range(1, 4):
        work(scene, f"r{number}")
        scene.end(f"r{number}")
    assert scene.store._tables._approvals == {}  # type: ignore[attr-defined]


def test_settled_reservations_are_remembered_for_a_day(scene: Scene) -> None:
    scene.open()
    settled = Settle("acme", "r1", "m1", (RUN_METER,), (("cost_usd", 1),))
    scene.do(settled)
    scene.clock.advance(86_000)
    scene.do(settled)
    assert scene.do(ReadAccount(RUN_METER.account)) == {"cost_usd": 1}
    scene.clock.advance(401)
    scene.do(Settle("acme", "r1", "m2", (RUN_METER,), (("cost_usd", 1),)))
    assert len(scene.store._tables._settled) == 1  # type: ignore[attr-defined]


def test_standing_approvals_that_ended_make_room(scene: Scene) -> None:
    scene.open()
    for number in range(4):
        waiting = scene.begin(f"c{number}", approval=scene.demand({"n": number}))
        assert isinstance(waiting, Waiting)
        scene.do(scene.vote(waiting.request.id, scope="arguments"))
        scene.clock.advance(601)
    assert len(scene.store._tables._grants) <= 2  # type: ignore[attr-defined]


def test_a_forked_child_gets_a_lock_of_its_own() -> None:
    store = MemoryStore()
    store._lock.acquire()
    module._forked(lambda: store)  # type: ignore[arg-type]
    assert not store._lock.locked()
    module._forked(lambda: None)  # type: ignore[arg-type]


def test_a_chain_that_is_sealed_later_is_the_same_chain(scene: Scene) -> None:
    scene.store.seal_later()  # type: ignore[attr-defined]
    scene.open()
    admitted = scene.start()
    scene.do(Append("acme", "r1", Event("step", {"n": 1}, b"x")))
    scene.finish(admitted)
    scene.end()
    kinds = [r.line.partition(b'"kind":"')[2].partition(b'"')[0] for r in scene.chain()]
    assert kinds == [b"run.opened", b"call.intent", b"step", b"call.outcome", b"run.completed"]


def test_the_machines_clocks_move_forward() -> None:
    clock = SystemClock()
    assert clock.now_ns() > 1_700_000_000 * 10**9
    assert clock.monotonic() <= clock.monotonic()
