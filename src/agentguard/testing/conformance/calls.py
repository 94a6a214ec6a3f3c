"""Calls: admitted once, remembered, never silently repeated."""

from __future__ import annotations

from typing import Any, Final

from agentguard.domain.decisions import StopReason
from agentguard.domain.events import Event
from agentguard.domain.operations import (
    Finish,
    GetCall,
    ListCalls,
    Moved,
    Proceed,
    Replayed,
    ResolveCall,
    Turned,
    Unresolved,
)
from agentguard.domain.usage import Meter
from agentguard.errors import StoreConflict
from agentguard.testing.conformance.scene import LEASE_S, ONE, RUN_METER, Check, Colour, MakeStore, Scene, blocking


def check_call_is_remembered(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A call that has ended is answered from memory, whatever its end, and charged once."""
    with Scene(make_store, colour) as scene:
        scene.open()
        for call, status in (("c1", "succeeded"), ("c2", "failed")):
            admitted = scene.start(call)
            assert admitted.now == scene.clock.now_ns()
            assert [r.seq for r in admitted.records] == [admitted.seq]
            running = scene.do(GetCall("acme", f"r1/{call}"))
            assert running is not None and (running.status, running.fence, running.outcome) == ("running", 1, None)
            done = scene.finish(admitted, call, status=status)
            assert done.accepted and done.seq == admitted.seq + 1
            again = scene.begin(call)
            assert isinstance(again, Replayed), again
            assert (again.call.status, again.call.outcome) == (status, '{"value":7}')
            assert (again.call.call_id, again.call.tool, again.call.effect) == (call, "email.send", "write")
        assert scene.line(RUN_METER).used == 2
        assert scene.line(RUN_METER).held == 0
        assert [c.call_id for c in scene.do(ListCalls("acme", "r1"))] == ["c1", "c2"]
        assert scene.do(GetCall("acme", "r1/none")) is None
        assert scene.do(ListCalls("acme", "none")) == ()
        kinds = [b'"kind":"call.replayed"' in r.line for r in scene.chain()]
        assert sum(kinds) == 2


def check_key_stands_for_one_call(make_store: MakeStore, colour: Colour = blocking) -> None:
    """The same key with another tool or other arguments is a conflict; so is a call that is running."""
    with Scene(make_store, colour) as scene:
        scene.open()
        admitted = scene.start()
        running = scene.begin()
        assert isinstance(running, Turned) and running.reason is StopReason.IDEMPOTENCY_CONFLICT and running.retryable
        scene.finish(admitted)
        for changes in ({"fingerprint": "e" * 64}, {"tool": "order.cancel"}):
            other = scene.begin(**changes)
            assert isinstance(other, Turned) and other.reason is StopReason.IDEMPOTENCY_CONFLICT, other
            assert not other.retryable
        assert isinstance(scene.begin(fingerprint=""), Replayed), "without a fingerprint nothing can collide"
        scene.chain()


def check_call_that_never_started_is_free_again(make_store: MakeStore, colour: Colour = blocking) -> None:
    """``refused`` gives everything back, the key too, and the next start has a higher fence."""
    with Scene(make_store, colour) as scene:
        scene.open()
        first = scene.start()
        assert scene.line(RUN_METER).held == 1
        scene.finish(first, status="refused", amounts=(), outcome=None)
        assert (scene.line(RUN_METER).held, scene.line(RUN_METER).used) == (0, 0)
        second = scene.start(fingerprint="e" * 64)
        assert second.fence > first.fence
        scene.finish(second)
        assert scene.line(RUN_METER).used == 1
        scene.chain()


def check_finish_is_idempotent(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A worker that did not hear the answer may finish again with the same words; nothing is charged twice."""
    with Scene(make_store, colour) as scene:
        scene.open()
        for call, status in (("c1", "succeeded"), ("c2", "ambiguous")):
            admitted = scene.start(call)
            outcome = '{"value":7}' if status == "succeeded" else None
            assert scene.finish(admitted, call, status=status, outcome=outcome).accepted
            length = len(scene.chain())
            assert scene.finish(admitted, call, status=status, outcome=outcome).accepted
            assert len(scene.chain()) == length
        assert scene.line(RUN_METER).used == 2
        assert scene.finish(scene.start("c3"), "c3").accepted


def check_lost_call_is_ambiguous(make_store: MakeStore, colour: Colour = blocking) -> None:
    """When the lease ends unheard, the call is ambiguous, not absent: it is not repeated, its hold is free."""
    with Scene(make_store, colour) as scene:
        scene.open()
        lost = scene.start()
        scene.clock.advance(LEASE_S - 1)
        assert isinstance(scene.begin(), Turned)
        scene.clock.advance(1)
        for _ in range(2):
            answer = scene.begin()
            assert isinstance(answer, Unresolved), answer
            assert answer.call.status == "ambiguous"
        assert scene.line(RUN_METER).held == 0
        call = scene.do(GetCall("acme", "r1/c1"))
        assert call is not None and call.status == "ambiguous"
        # The worker was only slow: its report still counts, and what it used is charged.
        assert scene.finish(lost).accepted
        assert isinstance(scene.begin(), Replayed)
        assert scene.line(RUN_METER).used == 1
        scene.chain()


def check_repeatable_call_starts_again(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A call that may be repeated starts again after its lease, and fences the earlier worker off."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"tool_calls": 1})
        scene.open(meters=(meter,))
        first = scene.start(meters=(meter,), rerun=True)
        waiting = scene.begin(meters=(meter,), rerun=True)
        assert isinstance(waiting, Turned) and waiting.reason is StopReason.IDEMPOTENCY_CONFLICT
        scene.clock.advance(LEASE_S)
        second = scene.start(meters=(meter,), rerun=True)
        assert second.fence == first.fence + 1
        assert scene.line(meter).held == 1
        late = scene.finish(first)
        assert not late.accepted and len(late.records) == 1
        assert scene.finish(second, outcome='{"value":8}').accepted
        late = scene.finish(first)
        assert not late.accepted
        assert scene.line(meter).used == 1
        answer = scene.begin(meters=(meter,), rerun=True)
        assert isinstance(answer, Replayed) and answer.call.outcome == '{"value":8}'
        assert sum(b'"kind":"call.late"' in r.line for r in scene.chain()) == 2


def check_repeat_that_is_refused_keeps_its_hold(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A repeat that the budget refuses leaves the earlier start as it was."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"tool_calls": 3})
        scene.open(meters=(meter,))
        first = scene.start(meters=(meter,), rerun=True, amounts=(("tool_calls", 1),), lease_ns=10**15)
        scene.finish(first, status="ambiguous", amounts=(("tool_calls", 1),), outcome=None)
        scene.start("c2", meters=(meter,), amounts=(("tool_calls", 2),), lease_ns=10**15)
        turned = scene.begin(meters=(meter,), rerun=True, amounts=(("tool_calls", 1),))
        assert isinstance(turned, Turned) and turned.reason is StopReason.BUDGET_TOOL_CALLS, turned
        assert (scene.line(meter).used, scene.line(meter).held) == (1, 2)
        call = scene.do(GetCall("acme", "r1/c1"))
        assert call is not None and call.status == "ambiguous"
        scene.chain()


def check_lost_start_keeps_its_hold_while_short(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A lost start that asks for more than there is gets a refusal, and its old hold stays until it lapses."""
    with Scene(make_store, colour) as scene:
        meter = Meter("run|r1", "run", "run r1", {"tool_calls": 2})
        scene.open(meters=(meter,))
        scene.start("c1", meters=(meter,), rerun=True)
        scene.start("c2", meters=(meter,), lease_ns=10**15)
        scene.clock.advance(LEASE_S)
        turned = scene.begin("c1", meters=(meter,), rerun=True, amounts=(("tool_calls", 2),))
        assert isinstance(turned, Turned) and turned.reason is StopReason.BUDGET_TOOL_CALLS
        assert scene.line(meter).held == 2
        assert scene.start("c1", meters=(meter,), rerun=True).fence == 2
        assert scene.line(meter).held == 2


def check_replay_brings_the_labels(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A run that is given a remembered result gains the labels of it, as if it had made the call."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.open("r2")
        done = scene.start(key="once")
        scene.do(Finish("acme", "r1", "once", done.fence, "succeeded", ONE, "{}", ("pii",)))
        answer = scene.begin("c9", "r2", key="once", labels=("pii",))
        assert isinstance(answer, Replayed)
        assert (scene.run("r2").labels, scene.run("r2").version) == (("pii",), 1)
        scene.begin("c9", "r2", key="once", labels=("pii",))
        assert scene.run("r2").version == 1


def check_ambiguous_call_is_resolved(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A probe or a person says what became of an ambiguous call, once; a worker that wakes up later is late."""
    with Scene(make_store, colour) as scene:
        scene.open()
        scene.fails(StoreConflict, ResolveCall("acme", "r1/c1", "failed", None, "ann", "why"))
        for call, status in (("c1", "succeeded"), ("c2", "failed"), ("c3", "refused")):
            lost = scene.start(call)
            scene.fails(StoreConflict, ResolveCall("acme", f"r1/{call}", "failed", None, "ann", "why"))
            scene.clock.advance(LEASE_S)
            outcome = '{"value":9}' if status == "succeeded" else None
            resolved = scene.do(ResolveCall("acme", f"r1/{call}", status, outcome, "ann", "looked it up"))  # type: ignore[arg-type]
            assert (resolved.status, resolved.outcome) == (status, outcome)
            assert not scene.finish(lost, call).accepted
            scene.fails(StoreConflict, ResolveCall("acme", f"r1/{call}", status, outcome, "ann", "again"))  # type: ignore[arg-type]
            assert isinstance(scene.begin(call), Proceed if status == "refused" else Replayed)
        finished_so = scene.start("c4")
        scene.finish(finished_so, "c4", status="ambiguous", outcome=None)
        scene.do(ResolveCall("acme", "r1/c4", "succeeded", "{}", "probe", ""))
        assert isinstance(scene.begin("c4"), Replayed)
        bodies = [r.body for r in scene.chain() if b'"kind":"call.resolved"' in r.line]
        assert bodies == [b"looked it up", b"looked it up", b"looked it up", b""]


def check_unknown_or_ended_run_admits_nothing(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Calls need a run that has not ended; what was admitted before may still report."""
    with Scene(make_store, colour) as scene:
        answer = scene.begin()
        assert isinstance(answer, Turned) and answer.reason is StopReason.NO_ACTIVE_RUN
        scene.fails(StoreConflict, Finish("acme", "r1", "r1/c1", 1, "failed", ()))
        scene.open()
        admitted = scene.start()
        scene.end()
        answer = scene.begin("c2")
        assert isinstance(answer, Turned) and answer.reason is StopReason.RUN_ENDED and not answer.retryable
        assert scene.finish(admitted).accepted
        assert scene.line(RUN_METER).used == 1
        assert isinstance(scene.begin(), Replayed), "what is remembered can still be read"


def check_concurrency_is_capped(make_store: MakeStore, colour: Colour = blocking) -> None:
    """A tool runs at most so many times at once; a lost call stops counting when its lease ends."""
    with Scene(make_store, colour) as scene:
        scene.open()
        one = scene.start("c1", concurrency=2)
        scene.start("c2", concurrency=2)
        answer = scene.begin("c3", concurrency=2)
        assert isinstance(answer, Turned) and answer.reason is StopReason.CONCURRENCY and answer.retryable
        assert isinstance(scene.begin("c3", concurrency=2, tool="order.cancel"), Proceed), "it counts per tool"
        scene.finish(one, "c1")
        scene.start("c4", concurrency=2)
        scene.clock.advance(LEASE_S)
        scene.start("c5", concurrency=1)


def check_labels_make_a_decision_stale(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Labels that a result brings reach the run and its parents, and send earlier decisions back."""
    with Scene(make_store, colour) as scene:
        scene.open(labels=("b",))
        scene.open("r2", parent="r1")
        assert scene.run("r2").labels == ("b",), "a child knows what its parent has read"
        admitted = scene.start("c1", "r2", run_version=0)
        done = scene.finish(admitted, "c1", "r2", labels=("pii", "a"))
        assert (done.labels, done.version) == (("a", "b", "pii"), 1)
        for run_id in ("r1", "r2"):
            answer = scene.begin("c2", run_id, run_version=0)
            assert isinstance(answer, Moved), answer
            assert (answer.labels, answer.version) == (("a", "b", "pii"), 1)
            assert scene.run(run_id).labels == ("a", "b", "pii")
        assert isinstance(scene.begin("c2", "r2", run_version=1), Proceed)
        assert isinstance(scene.begin("c3", "r2"), Proceed), "a decision without run state is never stale"
        again = scene.finish(scene.start("c4", "r2"), "c4", "r2", labels=("a",))
        assert again.version == 1, "nothing new, no new version"


def check_loops_are_seen(make_store: MakeStore, colour: Colour = blocking) -> None:
    """So many identical calls in a row and no more; one that is tried again counts once."""
    with Scene(make_store, colour) as scene:
        scene.open()
        loop: dict[str, Any] = {"max_repeats": 2}
        assert isinstance(scene.begin("c0", run_version=9, **loop), Moved)
        assert isinstance(scene.begin("c0", run_version=9, **loop), Moved)
        for call in ("c0", "c1"):
            scene.finish(scene.start(call, **loop), call)
        answer = scene.begin("c2", **loop)
        assert isinstance(answer, Turned) and answer.reason is StopReason.LOOP_DETECTED
        assert isinstance(scene.begin("c1", **loop), Replayed), "a replay is no repetition"
        scene.start("c3", fingerprint="e" * 64, **loop)
        scene.start("c4", **loop)
        scene.start("c5", **loop)
        assert isinstance(scene.begin("c6", **loop), Turned)
        scene.start("c7")


def check_unaudited_call_leaves_no_record(make_store: MakeStore, colour: Colour = blocking) -> None:
    """Without events nothing is recorded; further events come before the outcome."""
    with Scene(make_store, colour) as scene:
        scene.open()
        quiet = scene.start("c1", event=None)
        assert (quiet.seq, quiet.records) == (0, ())
        done = scene.finish(quiet, "c1", event=None)
        assert (done.seq, done.records) == (0, ())
        steps = tuple(Event("step", {"kind": "retry", "attempt": n}) for n in (2, 3))
        loud = scene.finish(scene.start("c2"), "c2", more=steps)
        assert [r.seq for r in loud.records] == [3, 4, 5]
        assert loud.seq == 5
        assert len(scene.chain()) == 5


def check_key_may_move_to_another_run(make_store: MakeStore, colour: Colour = blocking) -> None:
    """With an idempotency key a call belongs to the run that started it last."""
    with Scene(make_store, colour) as scene:
        other = Meter("run|r2", "run", "run r2")
        scene.open()
        scene.open("r2", meters=(other,))
        scene.start(key="once", rerun=True)
        scene.clock.advance(LEASE_S)
        second = scene.start("c9", "r2", key="once", meters=(other,), rerun=True)
        assert [c.call_id for c in scene.do(ListCalls("acme", "r2"))] == ["c9"]
        assert scene.do(ListCalls("acme", "r1")) == ()
        assert scene.do(Finish("acme", "r2", "once", second.fence, "succeeded", ONE, "{}")).accepted
        assert (scene.line(RUN_METER).used, scene.line(RUN_METER).held) == (0, 0)
        assert (scene.line(other).used, scene.line(other).held) == (1, 0)
        third = scene.begin(key="once")
        assert isinstance(third, Replayed)


CHECKS: Final[tuple[Check, ...]] = (
    check_call_is_remembered,
    check_key_stands_for_one_call,
    check_call_that_never_started_is_free_again,
    check_finish_is_idempotent,
    check_lost_call_is_ambiguous,
    check_repeatable_call_starts_again,
    check_repeat_that_is_refused_keeps_its_hold,
    check_lost_start_keeps_its_hold_while_short,
    check_replay_brings_the_labels,
    check_ambiguous_call_is_resolved,
    check_unknown_or_ended_run_admits_nothing,
    check_concurrency_is_capped,
    check_labels_make_a_decision_stale,
    check_loops_are_seen,
    check_unaudited_call_leaves_no_record,
    check_key_may_move_to_another_run,
)
