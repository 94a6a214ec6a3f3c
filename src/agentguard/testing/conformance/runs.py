"""Runs: opened once, ended once, timed on the store's clock, with a state that is written by compare-and-set."""

from __future__ import annotations

from typing import Any, Final

from agentguard.domain.context import Contract
from agentguard.domain.decisions import StopReason
from agentguard.domain.events import Event
from agentguard.domain.operations import (
    Describe,
    EndRun,
    GetRun,
    GetState,
    ListRuns,
    ListState,
    PutState,
    Reserve,
    Settle,
    Turned,
)
from agentguard.domain.runs import RunFilter
from agentguard.domain.usage import NANO, Meter
from agentguard.errors import StoreConflict, StoreUnavailable
from agentguard.testing.conformance.scene import Check, Colour, MakeStore, Scene, blocking


def check_run_reads_back_whole(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A run is what it was opened as, types included, with times of the store's clock."""
    with Scene(make_store, colour) as scene:
        contract = Contract("refund", {"order": [1, 2.5, None]}, {"cost": "low"}, {"type": "object"})
        meters = (
            Meter("run|r1", "run", "run r1", {"steps": 5}, None, 0.8),
            Meter("tenant|acme", "tenant", "tenant acme per day", {"cost_usd": 2**60}, "day"),
        )
        scene.open("p1")
        opened = scene.open(
            contract=contract,
            meters=meters,
            seconds=90,
            working_seconds=60,
            parent="p1",
            session="s1",
            labels=("b", "a"),
        )
        record = opened.record
        now = scene.clock.now_ns()
        assert scene.do(GetRun("acme", "r1")) == record
        assert (record.started_at, record.deadline_ns) == (now, now + 90 * NANO)
        assert (record.working_limit_ns, record.status, record.version) == (60 * NANO, "running", 0)
        assert (record.contract, record.meters, record.labels) == (contract, meters, ("a", "b"))
        assert record.context.scope == (("email.*", "order.*"), ("*",)) and record.context.roles == ("support",)
        assert (record.context.parent, record.context.session, record.context.user) == ("p1", "s1", "ann")
        assert [r.hash for r in opened.records] == [record.audit_head] and record.audit_seq == 1
        assert scene.do(GetRun("acme", "none")) is None
        scene.chain()


def check_run_is_opened_once(make_store: MakeStore, colour: Colour = blocking) -> None:
    """An id that is taken is a conflict, and changes nothing."""
    with Scene(make_store, colour) as scene:
        first = scene.open()
        try:
            scene.open(agent="other")
        except StoreConflict as error:
            assert "r1" in str(error)
        else:
            raise AssertionError("opening a run twice must be a conflict")
        assert scene.run() == first.record


def check_run_ends_once(make_store: MakeStore, colour: Colour = blocking) -> None:
    """The same end twice changes nothing; another end is a conflict; results read back."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.clock.advance(5)
        result = {"result": {"sent": 3}, "evidence": ["a", 1.5], "warnings": []}
        ended = scene.end(result=result).record
        assert (ended.status, ended.stop_reason, ended.ended_at) == (
            "completed",
            StopReason.COMPLETED,
            scene.clock.now_ns(),
        )
        assert scene.run() == ended and ended.result == result
        again = scene.end(result=result)
        assert again.records == () and again.record == ended
        event = Event("run.stopped", {})
        scene.fails(StoreConflict, EndRun("acme", "r1", "stopped", StopReason.KILLED, {}, event))
        scene.fails(StoreConflict, EndRun("acme", "none", "stopped", StopReason.KILLED, {}, event))
        assert scene.run() == ended
        scene.chain()


def check_wall_time_ends(make_store: MakeStore, colour: Colour = blocking) -> None:
    """After its wall time a run admits nothing, and a child has no more time than its parent."""
    with Scene(make_store, colour) as scene:
        scene.open(seconds=30)
        scene.open("r2", parent="r1", seconds=300)
        scene.open("r3", parent="r1")
        deadline = scene.run().deadline_ns
        assert deadline == scene.run("r2").deadline_ns == scene.run("r3").deadline_ns
        assert scene.start().deadline_ns == deadline
        scene.clock.advance(30)
        for run_id in ("r1", "r2", "r3"):
            turned = scene.begin("c2", run_id)
            assert isinstance(turned, Turned) and turned.reason is StopReason.BUDGET_TIME, turned
        held = scene.do(Reserve("acme", "r1", "m1", (), (), NANO))
        assert held.reason is StopReason.BUDGET_TIME


def check_working_time_excludes_waiting(make_store: MakeStore, colour: Colour = blocking) -> None:
    """While a run only waits for people its working time stands still; its wall time does not."""
    with Scene(make_store, colour) as scene:
        scene.open(working_seconds=10)
        scene.clock.advance(4)
        demand = scene.demand()
        busy = scene.start("c0")
        scene.begin(approval=demand)
        assert scene.run().status == "running", "another call is still at work"
        scene.clock.advance(1)
        scene.finish(busy, "c0")
        waiting = scene.run()
        assert (waiting.status, waiting.paused_at) == ("waiting", scene.clock.now_ns())
        scene.clock.advance(500)
        request_id = scene.begin(approval=demand).request.id  # type: ignore[union-attr]
        scene.do(scene.vote(request_id))
        scene.clock.advance(10)
        admitted = scene.start(approval=demand)
        run = scene.run()
        assert (run.status, run.paused_at, run.paused_ns) == ("running", None, 510 * NANO)
        assert admitted.deadline_ns == run.started_at + (10 + 510) * NANO
        scene.clock.advance(5)
        turned = scene.begin("c2")
        assert isinstance(turned, Turned) and turned.reason is StopReason.BUDGET_TIME


def check_model_calls_do_not_end_the_wait(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A run that thinks while it waits for people is at work meanwhile, and then waits again."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.begin(approval=scene.demand())
        scene.clock.advance(5)
        scene.do(Reserve("acme", "r1", "m1", (), (("tokens", 1),), NANO))
        assert scene.run().status == "running"
        scene.clock.advance(1)
        scene.do(Settle("acme", "r1", "m1", (), (("tokens", 1),)))
        assert scene.run().status == "waiting"
        scene.clock.advance(5)
        scene.do(Reserve("acme", "r1", "m2", (), (("tokens", 1),), NANO, enforce=False))
        assert (scene.run().status, scene.run().paused_ns) == ("waiting", 10 * NANO)
        scene.end()
        assert scene.run().status == "completed"


def check_child_has_what_is_left_of_working_time(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A child cannot work longer than its parent could have."""
    with Scene(make_store, colour) as scene:
        scene.open(working_seconds=10)
        scene.clock.advance(4)
        assert scene.open("r2", parent="r1").record.working_limit_ns == 6 * NANO
        assert scene.open("r3", parent="r1", working_seconds=2).record.working_limit_ns == 2 * NANO
        scene.clock.advance(20)
        late = scene.open("r4", parent="r1")
        assert late.refused is not None or late.record.working_limit_ns == 0


def check_stopped_parent_stops_what_is_below(make_store: MakeStore, colour: Colour = blocking) -> None:
    """When a run was stopped, those below it start nothing more; what runs may still report."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.open("r2", parent="r1")
        admitted = scene.start("c1", "r2")
        scene.do(EndRun("acme", "r1", "stopped", StopReason.KILLED, {}, Event("run.stopped", {})))
        turned = scene.begin("c2", "r2")
        assert isinstance(turned, Turned) and turned.reason is StopReason.RUN_ENDED
        assert scene.do(Reserve("acme", "r2", "m1", (), (), NANO)).reason is StopReason.RUN_ENDED
        assert scene.finish(admitted, "c1", "r2").accepted
        scene.chain("r2")


def check_child_needs_a_running_parent(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Below an ended or unknown run nothing is opened."""
    with Scene(make_store, colour) as scene:
        for _ in range(2):
            refused = scene.open("r2", parent="r1").refused
            assert refused is not None and refused.reason is StopReason.RUN_ENDED
            assert scene.do(GetRun("acme", "r2")) is None
            if scene.do(GetRun("acme", "r1")) is None:
                scene.open()
                scene.end()


def check_runs_are_listed(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Filters match exactly; the newest comes first; limits hold."""
    with Scene(make_store, colour) as scene:
        scene.open("r1")
        scene.open("r2", agent="other", session="s")
        scene.clock.advance(1)
        scene.open("r3", user=None)
        scene.open("r4", tenant="beta")
        scene.end("r1")

        def listed(**wanted: Any) -> list[str]:
            return [r.context.run_id for r in scene.do(ListRuns(RunFilter(**wanted)))]

        assert listed() == ["r4", "r3", "r2", "r1"]
        assert listed(limit=2) == ["r4", "r3"]
        assert listed(tenant="acme") == ["r3", "r2", "r1"]
        assert listed(agent="other") == ["r2"] == listed(session="s")
        assert listed(user="ann") == ["r4", "r2", "r1"]
        assert listed(status="completed") == ["r1"]
        assert listed(status="running", tenant="acme") == ["r3", "r2"]
        assert scene.do(ListRuns(RunFilter(status="completed"))) == (scene.run(),)


def check_state_is_compare_and_set(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A write names the version it replaces; a run and those below it share one state."""
    with Scene(make_store, colour) as scene:
        scene.fails(StoreConflict, PutState("acme", "r1", "plan", 1, 0, "bot"))
        scene.open()
        scene.open("r2", parent="r1", agent="helper")
        assert scene.do(GetState("acme", "r1", "plan")) is None
        value = {"steps": ["a", 1, 2.5, True, None], "ü": {}}
        first = scene.do(PutState("acme", "r1", "plan", value, 0, "bot"))
        assert (first.key, first.value, first.version, first.by) == ("plan", value, 1, "bot")
        assert first.at == scene.clock.now_ns()
        scene.fails(StoreConflict, PutState("acme", "r2", "plan", 2, 0, "helper"))
        scene.fails(StoreConflict, PutState("acme", "r2", "plan", 2, 2, "helper"))
        assert scene.do(GetState("acme", "r2", "plan")) == first
        second = scene.do(PutState("acme", "r2", "plan", [2], 1, "helper"))
        scene.do(PutState("acme", "r2", "aim", None, 0, "helper"))
        assert [(e.key, e.value, e.version) for e in scene.do(ListState("acme", "r1"))] == [
            ("aim", None, 1),
            ("plan", [2], 2),
        ]
        second.value.append(3)
        seen = scene.do(GetState("acme", "r1", "plan"))
        assert seen is not None and seen.value == [2], "what a caller does to a value does not change the state"
        seen.value.append(3)
        assert scene.do(ListState("acme", "r2"))[1].value == [2]
        for odd in (float("nan"), {1: 2}, object()):
            scene.fails(StoreConflict, PutState("acme", "r1", "odd", odd, 0, "bot"))
        assert sum(b'"kind":"state.written"' in r.line for r in scene.chain("r2")) == 2
        scene.chain()


def check_store_describes_itself(make_store: MakeStore, colour: Colour = blocking) -> None:
    """It says what kind it is and whether it survives the process."""
    with Scene(make_store, colour) as scene:
        facts = scene.do(Describe())
        assert isinstance(facts["kind"], str) and isinstance(facts["durable"], bool)


def check_closed_store_refuses(make_store: MakeStore, colour: Colour = blocking) -> None:
    """After closing, which may be said twice, nothing works and nothing hangs."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.store.close()
        scene.store.close()
        scene.fails(StoreUnavailable, GetRun("acme", "r1"))
        scene.fails(StoreUnavailable, scene.intent())


CHECKS: Final[tuple[Check, ...]] = (
    check_run_reads_back_whole,
    check_run_is_opened_once,
    check_run_ends_once,
    check_wall_time_ends,
    check_working_time_excludes_waiting,
    check_model_calls_do_not_end_the_wait,
    check_child_has_what_is_left_of_working_time,
    check_stopped_parent_stops_what_is_below,
    check_child_needs_a_running_parent,
    check_runs_are_listed,
    check_state_is_compare_and_set,
    check_store_describes_itself,
    check_closed_store_refuses,
)
