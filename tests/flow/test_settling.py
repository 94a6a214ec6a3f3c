"""Whatever fails, wherever: after ``Proceed`` the call is settled once, and the outcome tells the truth.

Every scenario is played again and again with a fault at its first, second, ... effect. The store in these tests
remembers what it was told: a call that was begun is ``running`` until a ``Finish`` reaches it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from agentguard import Credentials, ProbeResult, tool
from agentguard._flow import execute
from agentguard._flow.effects import Draw, Interrupted, NotStarted, Tick, TimedOut
from agentguard._flow.govern import govern
from agentguard.domain.calls import Ambiguous, Completed, Failed, Refused, Suspended
from agentguard.domain.decisions import StopReason
from agentguard.domain.operations import Edited, Finished, Replayed, Unresolved, Waiting
from agentguard.errors import AuditError, StoreConflict, StoreUnavailable
from agentguard.naming import check_id
from tests.flow.playing import (
    FINISHED,
    PROCEED,
    YES,
    Append,
    Begin,
    Finish,
    Invoke,
    Lease,
    Publish,
    Release,
    World,
    call,
    house,
    job,
    lost_call,
    request,
)

ASK = "version: 1\nrules:\n  - require_approval: do\n  - allow: stand_in\n"


@tool(
    name="do",
    effect="idempotent",
    credentials=["k"],
    retry={"attempts": 2, "jitter": 0},
    timeout=5,
    breaker=3,
    fallback="stand_in",
    probe=lambda context: None,
)
def do(keys: Credentials, x: int = 1) -> int:
    return x


@tool(name="stand_in", effect="read")
def stand_in(x: int = 1) -> int:
    return -x


class Stop(BaseException):
    """What a canceller throws."""


class Ledger(World):
    """A world whose store knows which calls are running, and what each ended as."""

    def __init__(self, **answers: Any) -> None:
        super().__init__(**answers)
        self.running: dict[str, int] = {}
        self.ended: list[str] = []
        self.invoked: list[str] = []
        self.leased = 0
        self.admitted = 0

    def perform(self, effect: Any) -> Any:
        if isinstance(effect, Invoke):
            assert effect.context.idempotency_key in self.running, "a body without admission"
            self.invoked.append(effect.tool.spec.name)
        answer = super().perform(effect)
        self.took(effect, answer)
        return answer

    def took(self, effect: Any, answer: Any) -> None:
        if isinstance(effect, Begin) and answer is PROCEED:
            self.running[effect.key] = answer.fence
            self.admitted += 1
        elif isinstance(effect, Finish) and effect.key in self.running:
            del self.running[effect.key]
            self.ended.append(effect.status)
        elif isinstance(effect, Lease):
            self.leased += 1
        elif isinstance(effect, Release):
            self.leased -= 1


WAITING = Waiting(request(), ())
SCENARIOS: dict[str, dict[str, Any]] = {
    "approved, fails, tried again": {
        "Begin": [WAITING, PROCEED],
        "Ask": YES,
        "Vote": request(status="approved"),
        "Invoke": [OSError("1"), 5],
    },
    "fails for good, another tool stands in": {"Begin": PROCEED, "Invoke": [OSError("1"), OSError("2"), 5]},
    "times out": {"Begin": PROCEED, "Invoke": [TimedOut(5, abandoned=True), TimedOut(5, abandoned=True)]},
    "lost, probed, runs": {
        "Begin": [Unresolved(lost_call(), ()), PROCEED],
        "Probe": ProbeResult("absent"),
        "ResolveCall": lost_call(),
        "Invoke": [5],
    },
}


def fresh(name: str) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, list) else value for key, value in SCENARIOS[name].items()}


def drive(world: World, k: int, fault: Any) -> tuple[Any, BaseException | None, str]:
    """Play the scenario with a fault at effect ``k``; the outcome or what came out, and where the fault was."""
    flow = govern(house(do, stand_in, policy=ASK, has_approver=True, has_sinks=True), job())
    where = ""
    number = 0
    try:
        effect = next(flow)
        while True:
            number += 1
            try:
                if number == k:
                    where = type(effect).__name__
                    raise fault(effect, world)
                answer = world.perform(effect)
            except BaseException as error:
                effect = flow.throw(error)
            else:
                effect = flow.send(answer)
    except StopIteration as stop:
        return stop.value, None, where
    except BaseException as out:
        return None, out, where


def lengths() -> Iterator[tuple[str, int]]:
    for name in SCENARIOS:
        world = Ledger(**fresh(name))
        drive(world, 0, None)
        yield from ((name, k) for k in range(1, len(world.asked) + 1))


POINTS = list(lengths())


def faults() -> dict[str, Any]:
    return {
        "bug": lambda effect, world: RuntimeError("bug"),
        "store": lambda effect, world: StoreUnavailable("down"),
        "conflict": lambda effect, world: StoreConflict("no"),
        "audit": lambda effect, world: AuditError("no"),
        "untold": lambda effect, world: Untold(),
    }


class Untold(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_the_scenarios_pass_every_kind_of_effect() -> None:
    seen: set[str] = set()
    for name in SCENARIOS:
        world = Ledger(**fresh(name))
        drive(world, 0, None)
        seen |= set(world.names)
        assert not world.running
        assert not world.leased
    assert seen >= {"Begin", "Invoke", "Finish", "Lease", "Release", "Ask", "Vote", "Probe", "Publish", "Sleep", "Tick"}


@pytest.mark.parametrize("kind", list(faults()))
@pytest.mark.parametrize(("name", "k"), POINTS)
def test_no_exception_anywhere_escapes_or_leaves_anything_open(name: str, k: int, kind: str) -> None:
    world = Ledger(**fresh(name))
    outcome, out, where = drive(world, k, faults()[kind])
    assert out is None
    assert isinstance(outcome, (Completed, Refused, Failed, Ambiguous, Suspended))
    # A Finish that the store did not take, and nothing else, leaves a call to its lease.
    assert len(world.running) == (1 if where == "Finish" else 0)
    assert world.leased == (1 if where == "Release" else 0)
    assert len(world.ended) + len(world.running) == world.admitted
    tried = "do" in world.invoked or (where == "Invoke" and not world.invoked)
    if isinstance(outcome, Refused):
        assert not tried, f"refused after the body was started, by a fault at {where}"
    if where in ("Begin", "Lease") and kind != "conflict" and not world.invoked:
        assert isinstance(outcome, Refused)


@pytest.mark.parametrize(("name", "k"), POINTS)
def test_a_cancellation_anywhere_goes_on_and_leaves_nothing_open(name: str, k: int) -> None:
    world = Ledger(**fresh(name))
    stop = Stop()
    outcome, out, where = drive(world, k, lambda effect, world: stop)
    assert (outcome, out) == (None, stop)
    assert not world.running, f"held after a cancellation at {where}"
    assert world.leased == (1 if where == "Release" else 0)
    assert len(world.ended) == world.admitted


@pytest.mark.parametrize(("name", "k"), POINTS)
def test_a_cancellation_anywhere_starts_nothing_afterwards(name: str, k: int) -> None:
    world = Ledger(**fresh(name))
    started: list[int] = []

    def fault(effect: Any, world: Ledger) -> BaseException:
        started.append(len(world.invoked))
        return Stop()

    drive(world, k, fault)
    assert len(world.invoked) == started[0]
    assert {type(effect) for effect in world.asked[k - 1 :]} <= {Finish, Release, Publish, Append, Draw, Tick}


@pytest.mark.parametrize(("name", "k"), POINTS)
def test_an_interruption_that_knows_the_answer_settles_with_it(name: str, k: int) -> None:
    """The awaiting driver waits for the answer of a store that was asked before the cancellation."""
    world = Ledger(**fresh(name))
    met: list[Any] = []

    def fault(effect: Any, world: Ledger) -> BaseException:
        if not isinstance(effect, (Begin, Finish)):
            return Stop()
        answer = world.perform(effect)
        met.append(answer)
        return Interrupted(answer)

    outcome, out, where = drive(world, k, fault)
    assert not world.running
    if where == "Finish":
        assert out is None or isinstance(out, (Interrupted, Stop))
        assert len(world.all(Finish)) == len(world.ended)
    elif where == "Begin":
        assert isinstance(out, Interrupted)
        assert outcome is None
        if met[0] is PROCEED:
            assert world.ended[-1] == "refused"


@pytest.mark.parametrize(("name", "k"), POINTS)
def test_a_flow_that_nobody_drives_any_more_closes_without_a_word(name: str, k: int) -> None:
    world = Ledger(**fresh(name))
    flow = govern(house(do, stand_in, policy=ASK, has_approver=True, has_sinks=True), job())
    effect = next(flow)
    for _ in range(k - 1):
        try:
            answer = world.perform(effect)
        except Exception as error:
            effect = flow.throw(error)
        else:
            effect = flow.send(answer)
    flow.close()


# -- what Finish says when the caller is cancelled -------------------------------------------------------------------------


def stopped(world: World, **settings: Any) -> Finish:
    with pytest.raises(Stop):
        call(house(do, stand_in, **settings), world)
    return world.one(Finish)


def test_cancelled_before_the_body_is_a_refusal_that_costs_nothing() -> None:
    finish = stopped(World(Lease=Stop()))
    assert (finish.status, finish.amounts) == ("refused", ())
    assert finish.event is not None
    assert finish.event.facts["reason"] == "cancelled"


def test_cancelled_in_the_body_is_ambiguous_and_paid_for() -> None:
    finish = stopped(World(Invoke=Stop()))
    assert (finish.status, finish.outcome) == ("ambiguous", None)
    assert finish.amounts


def test_cancelled_while_it_waited_for_a_worker_is_a_refusal() -> None:
    world = World(Invoke=Interrupted(NotStarted("cancelled")))
    with pytest.raises(Interrupted):
        call(house(do, stand_in), world)
    assert (world.one(Finish).status, world.one(Finish).amounts) == ("refused", ())


def test_cancelled_in_the_queue_of_a_second_attempt_is_ambiguous() -> None:
    world = World(Invoke=[OSError("1"), Interrupted(NotStarted("cancelled"))])
    with pytest.raises(Interrupted):
        call(house(do, stand_in), world)
    assert world.one(Finish).status == "ambiguous"


def test_cancelled_after_the_body_keeps_what_it_returned() -> None:
    finish = stopped(World(Invoke=1, Release=Stop()))
    assert (finish.status, finish.outcome) == ("succeeded", '{"value":1}')


def test_a_cancellation_is_no_verdict_on_the_tool() -> None:
    at = house(do, stand_in)
    for _ in range(9):
        with pytest.raises(Stop):
            call(at, World(Invoke=Stop()))
    assert at.breakers.state("do") == "closed"


def test_finish_is_said_again_when_it_was_interrupted() -> None:
    world = World(Finish=[Stop(), FINISHED])
    with pytest.raises(Stop):
        call(house(do, stand_in), world)
    assert len(world.all(Finish)) == 2
    assert world.all(Finish)[0] == world.all(Finish)[1]


def test_a_cancelled_call_whose_settlement_fails_is_still_cancelled() -> None:
    world = World(Invoke=Stop(), Finish=StoreUnavailable("down"))
    with pytest.raises(Stop):
        call(house(do, stand_in), world)


def test_an_interrupted_finish_with_another_answer_goes_on_interrupted() -> None:
    with pytest.raises(Interrupted):
        call(house(do, stand_in), World(Finish=Interrupted(None)))


def test_a_cancelled_admission_that_cannot_be_released_is_still_cancelled() -> None:
    world = World(Begin=Interrupted(PROCEED), Finish=StoreUnavailable("down"))
    with pytest.raises(Interrupted):
        call(house(do, stand_in), world)
    assert world.one(Finish).status == "refused"


# -- a store that does not take the outcome --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error", [StoreUnavailable("secret path"), StoreConflict("x"), AuditError("y"), RuntimeError("z")]
)
@pytest.mark.parametrize("answer", [5, OSError("no")])
def test_after_the_body_an_outcome_that_is_not_taken_is_ambiguous(error: Exception, answer: Any) -> None:
    world = World(Invoke=answer, Finish=error)

    @tool(name="do")
    def plain(x: int = 1) -> int:
        return x

    outcome = call(house(plain), world)
    assert isinstance(outcome, Ambiguous)
    assert "may have taken effect" in outcome.message
    assert "secret path" not in outcome.message


def test_before_the_body_a_settlement_that_is_not_taken_keeps_the_first_reason() -> None:
    world = World(Lease=OSError("no vault"), Finish=StoreUnavailable("down"))
    outcome = call(house(do, stand_in), world)
    assert isinstance(outcome, Refused)
    assert outcome.reason is StopReason.CREDENTIALS_UNAVAILABLE


def test_a_worker_that_was_fenced_still_says_what_it_did() -> None:
    world = World(Finish=Finished(False, (), 0))
    assert isinstance(call(house(do, stand_in), world), Completed)


def test_something_of_ours_that_fails_after_the_start_is_ambiguous_and_says_no_detail() -> None:
    world = World(Invoke=OSError("1"), Sleep=RuntimeError("internal detail"))
    outcome = call(house(do, stand_in), world)
    assert isinstance(outcome, Ambiguous)
    assert "internal detail" not in outcome.message
    finish = world.one(Finish)
    assert finish.event is not None
    assert (finish.status, finish.event.facts["error"]) == ("ambiguous", "RuntimeError")


def test_a_body_that_ends_without_an_outcome_is_ambiguous(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute._Work, "succeed", lambda self, value: None)
    assert isinstance(call(house(do, stand_in)), Ambiguous)


# -- fallbacks ----------------------------------------------------------------------------------------------------------------


@tool(name="first", effect="irreversible", fallback="second")
def first(x: int = 1) -> int:
    return x


@tool(name="second", effect="irreversible", fallback="third")
def second(x: int = 1) -> int:
    return x


@tool(name="third", effect="irreversible")
def third(x: int = 1) -> int:
    return x


def by_tool(**answers: Any) -> Any:
    def answer(effect: Invoke) -> Any:
        given = answers[effect.tool.spec.name]
        if isinstance(given, BaseException):
            raise given
        return given

    return answer


def chain(world: World, **settings: Any) -> Any:
    return call(house(first, second, third, **settings), world, tool="first", arguments={"x": 4})


def test_a_fallback_is_a_governed_call_of_its_own() -> None:
    world = World(Invoke=by_tool(first=OSError("no"), second=7))
    outcome = chain(world)
    assert isinstance(outcome, Completed)
    assert outcome.value == 7
    assert outcome.warnings == ("first failed; second answered in its place",)
    assert [(b.tool, b.call_id) for b in world.all(Begin)] == [("first", "c1"), ("second", "c1/fallback/second")]
    assert [f.status for f in world.all(Finish)] == ["failed", "succeeded"]


def test_a_fallback_has_a_fallback() -> None:
    world = World(Invoke=by_tool(first=OSError("no"), second=OSError("no"), third=9))
    outcome = chain(world)
    assert isinstance(outcome, Completed)
    assert outcome.value == 9
    assert len(outcome.warnings) == 2


@pytest.mark.parametrize("answer", [5, TimedOut(1, abandoned=True), NotStarted("busy"), "no integer"])
def test_nothing_stands_in_for_a_tool_that_may_have_delivered_or_never_began(answer: Any) -> None:
    world = World(Invoke=answer)
    chain(world)
    assert len(world.all(Begin)) == 1


def test_a_fallback_that_is_refused_leaves_the_first_failure() -> None:
    policy = "version: 1\nrules:\n  - allow: first\n"
    outcome = chain(World(Invoke=OSError("no")), policy=policy)
    assert isinstance(outcome, Failed)
    assert outcome.call_id == "c1"


def test_a_fallback_that_waits_for_a_person_is_seen() -> None:
    policy = "version: 1\nrules:\n  - allow: first\n  - require_approval: second\n"
    world = World(Invoke=OSError("no"), Begin=[PROCEED, WAITING])
    assert isinstance(chain(world, policy=policy), Suspended)


@pytest.mark.parametrize("error", [StoreUnavailable("down"), RuntimeError("bug")])
def test_a_fallback_that_cannot_be_checked_does_not_turn_a_failure_into_a_refusal(error: Exception) -> None:
    world = World(Invoke=OSError("no"), Begin=[PROCEED, error])
    outcome = chain(world)
    assert isinstance(outcome, Failed)
    assert isinstance(outcome.error, OSError)


def test_an_open_circuit_falls_back_too() -> None:
    @tool(name="first", effect="irreversible", fallback="second", breaker={"failures": 1, "reset": "1h"})
    def breaking(x: int = 1) -> int:
        return x

    at = house(breaking, second, third)
    call(at, World(Invoke=by_tool(first=OSError("no"), second=7)), tool="first")
    world = World(Invoke=by_tool(second=8))
    outcome = call(at, world, tool="first")
    assert isinstance(outcome, Completed)
    assert outcome.value == 8
    assert [f.status for f in world.all(Finish)] == ["refused", "succeeded"]


@pytest.mark.parametrize("before", [("second",), ("zero", "second")])
def test_no_circle_of_fallbacks_runs_twice(before: tuple[str, ...]) -> None:
    world = World(Invoke=OSError("no"))
    call(house(first, second, third), world, tool="first", fallback_of=before)
    assert len(world.all(Begin)) == 1


def test_a_remembered_failure_finds_what_the_fallback_answered() -> None:
    world = World(
        Begin=[
            Replayed(lost_call(status="failed"), ()),
            Replayed(lost_call(status="succeeded", outcome='{"value":7}'), ()),
        ]
    )
    outcome = chain(world)
    assert isinstance(outcome, Completed)
    assert (outcome.value, outcome.replayed) == (7, True)
    assert not world.all(Invoke)


def test_a_fallback_gets_what_the_approver_made_of_the_arguments() -> None:
    policy = "version: 1\nrules:\n  - require_approval: first\n  - allow: second\n"
    world = World(
        Begin=[Edited(request(edited={"x": 50})), PROCEED, PROCEED], Invoke=by_tool(first=OSError("no"), second=7)
    )
    call(house(first, second, third, policy=policy), world, tool="first", arguments={"x": 100})
    assert [i.arguments["x"] for i in world.all(Invoke)] == [50, 50]


def test_the_id_of_a_fallback_fits_and_differs_however_long_the_first_one_is() -> None:
    ids = set()
    for call_id in ("c", "c" * 128, "c" * 127 + "d"):
        world = World(Invoke=by_tool(first=OSError("no"), second=7))
        call(house(first, second, third), world, tool="first", call_id=call_id)
        ids.add(check_id("call_id", world.all(Begin)[1].call_id))
    assert len(ids) == 3


def test_an_idempotency_key_goes_along_unless_the_fallback_has_its_own() -> None:
    world = World(Invoke=by_tool(first=OSError("no"), second=7))
    call(house(first, second, third), world, tool="first", idempotency_key="k")
    assert world.all(Begin)[1].key.endswith("1:k")

    @tool(name="first", effect="idempotent", idempotency_key=["x"], fallback="second")
    def keyed(x: int = 1) -> int:
        return x

    @tool(name="second", effect="idempotent", idempotency_key=lambda a: "own")
    def own(x: int = 1) -> int:
        return x

    world = World(Invoke=by_tool(first=OSError("no"), second=7))
    call(house(keyed, second, third), world, tool="first")
    assert world.all(Begin)[1].key.startswith("3:key4:acme6:second64:")
    world = World(Invoke=by_tool(first=OSError("no"), second=7))
    call(house(keyed, own), world, tool="first")
    assert world.all(Begin)[1].key.endswith("3:own")
