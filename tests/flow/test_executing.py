"""What happens between admission and settlement: attempts, limits, secrets, sinks, results and errors."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from agentguard import CallContext, Credentials, tool
from agentguard._flow.effects import NotStarted, TimedOut
from agentguard._flow.govern import govern
from agentguard._flow.rulebook import plan
from agentguard.domain.calls import Ambiguous, Completed, Failed, Refused
from agentguard.domain.decisions import Decision, Obligations, StopReason
from agentguard.domain.runs import Switch
from agentguard.domain.usage import NANO, BudgetWarning
from agentguard.errors import SinkError, StoreUnavailable
from agentguard.resilience.breaking import Ticket
from tests.flow.playing import (
    FINISHED,
    NOW,
    PROCEED,
    Finish,
    Invoke,
    Lease,
    ListSwitches,
    Publish,
    Release,
    Sleep,
    World,
    call,
    decided,
    house,
    job,
    leased,
    play,
)

CLASSES = ("pure", "read", "idempotent", "irreversible")


def tried(effect: str = "read", attempts: int = 3, **settings: Any) -> Any:
    """A tool that may be tried several times, with a price of a dollar each."""

    @tool(
        name="do", effect=effect, cost_usd=1, **({"retry": {"attempts": attempts}} if attempts > 1 else {}), **settings
    )
    def do(x: int = 1) -> int:
        return x

    return do


def costs(world: World) -> int:
    return dict(world.one(Finish).amounts).get("cost_usd", 0) // NANO


LATE = TimedOut(1.0, abandoned=True)


# -- attempts ---------------------------------------------------------------------------------------------------------------


def test_a_failure_is_tried_again_after_a_pause_and_the_success_counts() -> None:
    world = World(Invoke=[OSError("1"), OSError("2"), 5])
    outcome = call(house(tried()), world)
    assert isinstance(outcome, Completed)
    assert (outcome.value, outcome.attempts) == (5, 3)
    assert len(world.all(Sleep)) == 2
    assert [i.context.attempt for i in world.all(Invoke)] == [1, 2, 3]
    assert [event.facts["attempt"] for event in world.one(Finish).more] == [1, 2]
    assert costs(world) == 3


def test_when_every_attempt_fails_the_last_error_is_the_outcome() -> None:
    world = World(Invoke=[OSError("1"), OSError("2"), OSError("3")])
    outcome = call(house(tried()), world)
    assert isinstance(outcome, Failed)
    assert (str(outcome.error), outcome.attempts) == ("3", 3)
    assert outcome.message == "The tool failed."
    assert world.one(Finish).status == "failed"


def test_only_the_attempts_that_were_made_are_paid_for() -> None:
    world = World(Invoke=[OSError("1"), 5])
    call(house(tried()), world)
    assert costs(world) == 2


def test_an_error_that_is_not_worth_it_is_not_tried_again() -> None:
    world = World(Invoke=ValueError("bad"))

    @tool(name="do", effect="read", retry={"attempts": 3, "on": [OSError]})
    def picky() -> int:
        return 1

    assert isinstance(call(house(picky), world), Failed)
    assert len(world.all(Invoke)) == 1


def test_what_runs_again_is_what_was_decided_whatever_the_first_attempt_did_to_it() -> None:
    seen: list[Any] = []

    def spoil(effect: Invoke) -> Any:
        seen.append(list(effect.arguments["items"]))
        effect.arguments["items"].clear()
        raise OSError("no")

    @tool(name="do", effect="read", retry=3)
    def do(items: list[int]) -> int:
        return 1

    call(house(do), World(Invoke=spoil), arguments={"items": [1, 2]})
    assert seen == [[1, 2]] * 3


def test_an_irreversible_tool_cannot_even_be_declared_to_be_tried_again() -> None:
    at = house(tried("read"))
    at.plans["do"].tool.spec = replace(at.plans["do"].tool.spec, effect="irreversible")  # as if a check had a hole
    at.plans = {"do": plan(at.plans["do"].tool)}
    world = World(Invoke=OSError("no"))
    call(at, world)
    assert len(world.all(Invoke)) == 1


@pytest.mark.parametrize(
    "switch",
    [
        Switch("everything", "", "", "r", "op", NOW),
        Switch("tenant", "acme", "", "r", "op", NOW),
        Switch("agent", "acme", "bot", "r", "op", NOW),
        Switch("user", "", "ann", "r", "op", NOW),
        Switch("tool", "acme", "do", "r", "op", NOW),
        Switch("run", "acme", "r1", "r", "op", NOW),
        Switch("run", "acme", "r0", "r", "op", NOW),
    ],
)
def test_a_kill_switch_ends_the_attempts(switch: Switch) -> None:
    world = World(Invoke=OSError("no"), ListSwitches=(switch,))
    assert isinstance(call(house(tried()), world), Failed)
    assert len(world.all(Invoke)) == 1


def test_kill_switches_of_others_do_not_end_the_attempts() -> None:
    others = (Switch("agent", "acme", "other", "r", "op", NOW), Switch("tool", "acme", "bot", "r", "op", NOW))
    world = World(Invoke=OSError("no"), ListSwitches=others)
    call(house(tried()), world)
    assert len(world.all(Invoke)) == 3


def test_a_store_that_cannot_say_whether_a_switch_is_on_ends_the_attempts() -> None:
    world = World(Invoke=OSError("no"), ListSwitches=StoreUnavailable("down"))
    call(house(tried()), world)
    assert len(world.all(Invoke)) == 1
    assert len(world.all(ListSwitches)) == 1


# -- limits -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("effect", CLASSES)
def test_a_timeout_is_a_failure_where_nothing_changes_and_ambiguous_elsewhere(effect: str) -> None:
    world = World(Invoke=LATE)
    outcome = call(house(tried(effect, 1, timeout=1)), world)
    finish = world.one(Finish)
    if effect in ("pure", "read"):
        assert isinstance(outcome, Failed)
        assert outcome.reason is StopReason.TOOL_TIMEOUT
        assert finish.status == "failed"
    else:
        assert isinstance(outcome, Ambiguous)
        assert "may have taken effect" in outcome.message
        assert (finish.status, finish.outcome) == ("ambiguous", None)
    assert costs(world) == 1


def test_an_idempotent_call_that_timed_out_once_stays_uncertain_when_the_retries_fail_otherwise() -> None:
    world = World(Invoke=[LATE, OSError("2"), OSError("3")])
    outcome = call(house(tried("idempotent", timeout=1)), world)
    assert isinstance(outcome, Ambiguous)
    assert len(world.all(Invoke)) == 3
    assert world.one(Finish).status == "ambiguous"


def test_an_idempotent_call_that_timed_out_once_and_then_succeeded_has_succeeded() -> None:
    world = World(Invoke=[LATE, 5])
    assert isinstance(call(house(tried("idempotent", timeout=1)), world), Completed)


def test_an_uncertain_call_that_gets_no_worker_again_stays_uncertain() -> None:
    world = World(Invoke=[LATE, NotStarted("busy")])
    assert isinstance(call(house(tried("idempotent", timeout=1)), world), Ambiguous)
    assert costs(world) == 1


def test_a_body_that_got_no_worker_was_not_started() -> None:
    world = World(Invoke=NotStarted("no worker was free"))
    outcome = call(house(tried("irreversible", 1, timeout=1)), world)
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.retryable) == (StopReason.CONCURRENCY, True)
    assert (world.one(Finish).status, world.one(Finish).amounts) == ("refused", ())


def test_a_second_attempt_without_a_worker_is_a_failure_of_the_call() -> None:
    world = World(Invoke=[OSError("1"), NotStarted("busy")])
    assert isinstance(call(house(tried()), world), Failed)
    assert costs(world) == 1


def test_the_tools_own_timeout_error_is_an_error_of_the_tool() -> None:
    outcome = call(house(tried("irreversible", 1, timeout=1)), World(Invoke=TimeoutError("mine")))
    assert isinstance(outcome, Failed)
    assert outcome.reason is StopReason.TOOL_ERROR


@pytest.mark.parametrize(
    ("own", "obliged", "left", "limit"),
    [
        (5, None, None, 5),
        (5, 3, None, 3),
        (None, 3, None, 3),
        (5, 9, 2, 2),
        (None, None, 2, 2),
        (None, None, None, None),
    ],
)
def test_the_caller_waits_no_longer_than_the_shortest_limit(
    own: float | None, obliged: float | None, left: float | None, limit: float | None
) -> None:
    at = house(tried("read", 1, **({"timeout": own} if own else {})))
    decided(at, Decision("allow", obligations=Obligations(timeout_s=obliged)))
    deadline = None if left is None else NOW + int(left * NANO)
    world = World(Begin=replace(PROCEED, deadline_ns=deadline))
    call(at, world)
    invoke = world.one(Invoke)
    assert invoke.timeout_s == limit
    assert invoke.context.deadline_ns == (None if limit is None else NOW + int(limit * NANO))


def test_a_run_without_time_starts_nothing() -> None:
    world = World(Begin=replace(PROCEED, deadline_ns=NOW))
    outcome = call(house(tried()), world)
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.code) == (StopReason.BUDGET_TIME, "AG629")
    assert (world.one(Finish).status, world.one(Finish).amounts) == ("refused", ())


def test_time_that_sinks_and_secrets_took_is_gone() -> None:
    @tool(name="do", effect="read", credentials=["k"])
    def do(keys: Credentials) -> int:
        return 1

    world = World(Begin=replace(PROCEED, deadline_ns=NOW + 3 * NANO), Tick=[0.0, 2.0], Invoke=1)
    call(house(do), world)
    assert world.one(Invoke).timeout_s == 1
    world = World(Begin=replace(PROCEED, deadline_ns=NOW + 3 * NANO), Tick=[0.0, 4.0])
    assert isinstance(call(house(do), world), Refused)
    assert world.one(Release)


def test_a_run_that_ends_between_attempts_makes_no_further_one() -> None:
    world = World(Begin=replace(PROCEED, deadline_ns=NOW + 3 * NANO), Invoke=OSError("1"), Tick=[0.0, 9.0])
    outcome = call(house(tried()), world)
    assert isinstance(outcome, Failed)
    assert outcome.reason is StopReason.TOOL_TIMEOUT
    assert len(world.all(Invoke)) == 1


def test_a_run_that_ends_after_an_uncertain_attempt_leaves_an_ambiguous_call() -> None:
    world = World(Begin=replace(PROCEED, deadline_ns=NOW + 3 * NANO), Invoke=LATE, Tick=[0.0, 9.0])
    assert isinstance(call(house(tried("idempotent", timeout=1)), world), Ambiguous)


# -- late ends ----------------------------------------------------------------------------------------------------------------


def late_of(world: World, value: Any, error: Exception | None) -> World:
    late = world.all(Invoke)[0].late
    assert late is not None
    after = World()
    play(late(value, error), after)
    return after


def test_a_late_result_resolves_the_ambiguous_call_and_pays_for_it() -> None:
    world = World(Invoke=LATE)
    call(house(tried("irreversible", 1, timeout=1), has_sinks=True), world)
    after = late_of(world, 5, None)
    finish = after.one(Finish)
    assert (finish.status, finish.outcome, dict(finish.amounts)["cost_usd"]) == ("succeeded", '{"value":5}', NANO)
    assert finish.key == world.one(Finish).key
    assert after.names == ["Finish", "Publish"]


def test_a_late_error_resolves_a_call_of_one_attempt() -> None:
    world = World(Invoke=LATE)
    call(house(tried("irreversible", 1, timeout=1)), world)
    assert late_of(world, None, OSError("no")).one(Finish).status == "failed"


def test_a_late_error_of_one_of_several_attempts_says_nothing() -> None:
    world = World(Invoke=[LATE, LATE, LATE])
    assert isinstance(call(house(tried("idempotent", timeout=1)), world), Ambiguous)
    assert late_of(world, None, OSError("no")).asked == []
    assert late_of(world, 5, None).one(Finish).status == "succeeded"


def test_an_async_body_is_never_left_running() -> None:
    @tool(name="do")
    async def ado() -> int:
        return 1

    world = World(Invoke=1)
    call(house(ado), world, colour="awaiting")
    assert world.one(Invoke).late is None


# -- breakers ---------------------------------------------------------------------------------------------------------------


def breaking(effect: str = "read", failures: int = 1, **settings: Any) -> Any:
    return house(tried(effect, 1, breaker={"failures": failures, "reset": "1h"}, **settings))


def test_a_circuit_that_is_open_refuses_without_starting_anything() -> None:
    at = breaking()
    call(at, World(Invoke=OSError("no")))
    world = World()
    outcome = call(at, world)
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.retryable) == (StopReason.CIRCUIT_OPEN, True)
    assert "next try in" in outcome.detail
    assert world.names == ["Begin", "Finish"]
    assert (world.one(Finish).status, world.one(Finish).amounts) == ("refused", ())


def test_a_half_open_circuit_does_not_say_when() -> None:
    at = house(tried("read", 1, breaker={"failures": 1, "reset": "0.001s"}))
    at.breakers.admit("do", at.plans["do"].tool.spec.breaker).failure(OSError())  # type: ignore[arg-type, union-attr]
    at.breakers._circuits["do"].probing = True
    at.breakers._circuits["do"].breaker.half_open()
    outcome = call(at)
    assert isinstance(outcome, Refused)
    assert outcome.detail.endswith("repeated failures.")


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        (OSError("no"), "open"),
        (LATE, "open"),
        (object(), "open"),  # a result that is none
        (5, "closed"),
        (NotStarted("busy"), "closed"),
    ],
)
def test_only_what_the_tool_did_opens_its_circuit(answer: Any, state: str) -> None:
    at = breaking(timeout=1)
    call(at, World(Invoke=answer))
    assert at.breakers.state("do") == state


def test_a_run_with_little_time_does_not_open_the_circuit_for_all() -> None:
    at = breaking(timeout=9)
    call(at, World(Begin=replace(PROCEED, deadline_ns=NOW + NANO), Invoke=LATE))
    assert at.breakers.state("do") == "closed"


def test_a_policy_with_little_patience_does_not_open_the_circuit_for_all() -> None:
    at = breaking(timeout=9)
    decided(at, Decision("allow", obligations=Obligations(timeout_s=1)))
    call(at, World(Invoke=LATE))
    assert at.breakers.state("do") == "closed"


def test_a_breaker_that_breaks_itself_does_not_keep_the_call_from_being_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bug(*_: Any) -> None:
        raise RuntimeError("bug")

    at = breaking()
    monkeypatch.setattr(Ticket, "success", bug)
    world = World()
    assert isinstance(call(at, world), Completed)
    assert world.one(Finish).status == "succeeded"


def test_a_breaker_that_cannot_be_asked_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    at = breaking()
    monkeypatch.setattr(type(at.breakers), "admit", lambda *_: 1 // 0)
    world = World()
    outcome = call(at, world)
    assert isinstance(outcome, Refused)
    assert outcome.reason is StopReason.INTERNAL_ERROR
    assert world.one(Finish).status == "refused"


# -- secrets ----------------------------------------------------------------------------------------------------------------


@tool(name="do", effect="read", credentials=["stripe", "crm"])
def keyed(keys: Credentials, context: CallContext) -> str:
    return keys["stripe"]


def test_secrets_are_leased_after_admission_and_given_back_after_the_body() -> None:
    world = World(Invoke=1)
    call(house(keyed), world)
    assert world.names == ["Begin", "Lease", "Invoke", "Release", "Finish"]
    assert sorted((r.name, r.tool, r.tenant, r.run_id) for r in world.one(Lease).requests) == [
        ("crm", "do", "acme", "r1"),
        ("stripe", "do", "acme", "r1"),
    ]


@pytest.mark.parametrize("answer", [OSError("no"), LATE, NotStarted("busy"), object(), KeyboardInterrupt()])
def test_secrets_are_given_back_whatever_becomes_of_the_body(answer: Any) -> None:
    world = World(Invoke=answer)
    try:
        call(house(keyed), world)
    except KeyboardInterrupt:
        pass
    assert world.names == ["Begin", "Lease", "Invoke", "Release", "Finish"]


def test_without_secrets_nothing_runs() -> None:
    world = World(Lease=RuntimeError("no vault hunter22"))
    outcome = call(house(keyed, secrets=["hunter22"]), world)
    assert isinstance(outcome, Refused)
    assert (outcome.reason, outcome.retryable) == (StopReason.CREDENTIALS_UNAVAILABLE, True)
    assert "hunter22" not in outcome.detail
    assert world.names == ["Begin", "Lease", "Finish"]


def test_secrets_are_of_no_use_after_a_flow_that_nobody_drives_any_more() -> None:
    held = leased(stripe="abcd", crm="efgh")
    flow = govern(house(keyed), job())
    world = World(Lease=held)
    effect = next(flow)
    while not isinstance(effect, Invoke):
        effect = flow.send(world.perform(effect))
    flow.close()  # must not say "generator ignored GeneratorExit"
    assert repr(held.credentials) == "Credentials(closed)"


# -- sinks ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SinkError("full"), RuntimeError("can't start new thread")])
def test_without_its_required_record_nothing_runs(error: Exception) -> None:
    world = World(Publish=[error, None])
    outcome = call(house(tried(), has_sinks=True), world)
    assert isinstance(outcome, Refused)
    assert outcome.reason is StopReason.AUDIT_UNAVAILABLE
    assert world.names == ["Begin", "Tick", "Publish", "Finish", "Publish"]


@pytest.mark.parametrize("error", [SinkError("full"), RuntimeError("can't start new thread")])
def test_what_happened_is_not_refused_because_a_sink_fails_afterwards(error: Exception) -> None:
    world = World(Publish=[None, error])
    assert isinstance(call(house(tried("read", 1), has_sinks=True), world), Completed)
    assert [p.records[0].seq for p in world.all(Publish)] == [5, 6]


# -- results ----------------------------------------------------------------------------------------------------------------


@tool(name="do", effect="irreversible", deprecated=True, replaced_by="did")
def typed(x: int = 1) -> dict[str, str]:
    return {}


def test_a_result_that_does_not_fit_is_a_failure_and_shows_the_model_nothing() -> None:
    world = World(Invoke={"k": 5})
    outcome = call(house(typed), world)
    assert isinstance(outcome, Failed)
    assert outcome.reason is StopReason.INVALID_OUTPUT
    assert outcome.message == "The tool ran, and its answer was not usable."
    assert world.one(Finish).status == "failed"


def test_a_result_whose_serializer_fails_is_invalid_output_not_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise RuntimeError("bug")

    at = house(typed)
    monkeypatch.setattr(type(at.plans["do"].tool), "check_output", bug)
    outcome = call(at)
    assert isinstance(outcome, Failed)
    assert outcome.reason is StopReason.INVALID_OUTPUT


def test_a_result_is_redacted_for_everybody() -> None:
    at = house(typed, secrets=["hunter22"])
    decided(at, Decision("allow", obligations=Obligations(redact_output=("ssn",))))
    world = World(Invoke={"ssn": "123-45", "note": "key hunter22"})
    made = job()
    outcome = play(govern(at, made), world)
    assert outcome.value == {"ssn": "[redacted]", "note": "key [redacted]"}
    finish = world.one(Finish)
    for text in (finish.outcome, finish.event.body.decode(), made.result_json.decode()):  # type: ignore[union-attr]
        assert "hunter22" not in str(text)
        assert "123-45" not in str(text)
    assert str(finish.outcome).startswith('{"redacted":true')


def test_a_result_that_cannot_be_redacted_is_withheld() -> None:
    at = house(typed)
    decided(at, Decision("allow", obligations=Obligations(redact_output=(None,))))  # type: ignore[arg-type]
    at.plans["do"].tool.check_output(dict[str, str]())

    class Odd(tuple):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            raise RuntimeError("bug")

    decided(at, Decision("allow", obligations=Obligations(redact_output=Odd(("ssn",)))))
    outcome = call(at, World(Invoke={"ssn": "123-45"}))
    assert isinstance(outcome, Completed)
    assert outcome.value == "[redacted]"


class Broken:
    def redact(self, value: Any) -> Any:
        if "result" in str(value) or value in ({"k": "v"}, "no"):
            raise RuntimeError("no")
        return value


def test_a_redactor_that_fails_after_the_call_withholds_the_record_not_the_result() -> None:
    world = World(Invoke={"k": "v"})
    outcome = call(house(typed, redactor=Broken()), world)
    assert isinstance(outcome, Completed)
    assert outcome.value == {"k": "v"}
    assert world.one(Finish).event.body == b'{"result":"[withheld: the redactor failed with RuntimeError]"}'  # type: ignore[union-attr]


def test_a_redactor_that_fails_on_an_error_withholds_its_text() -> None:
    world = World(Invoke=OSError("no"))
    call(house(typed, redactor=Broken()), world)
    assert b"withheld" in world.one(Finish).event.body  # type: ignore[union-attr]


class Stars:
    def redact(self, value: Any) -> Any:
        return "***" if isinstance(value, str) else value


def test_the_hosts_redactor_sees_error_texts() -> None:
    world = World(Invoke=OSError("private"))
    call(house(typed, redactor=Stars()), world)
    assert world.one(Finish).event.body == b'{"error":"OSError: ***"}'  # type: ignore[union-attr]


@pytest.mark.parametrize("answer", [{"k": "v"}, OSError("no")])
def test_no_bodies_are_kept_where_no_bodies_are(answer: Any) -> None:
    world = World(Invoke=answer)
    call(house(typed, keep_bodies=False), world)
    assert world.one(Finish).event.body == b""  # type: ignore[union-attr]


def test_a_tool_without_audit_leaves_no_record_but_is_settled() -> None:
    @tool(name="do", effect="pure", audit=False)
    def quiet() -> int:
        return 1

    world = World()
    call(house(quiet), world)
    assert world.one(Finish).event is None


def test_warnings_of_budgets_policy_and_tool_come_with_the_result() -> None:
    at = house(typed)
    decided(at, Decision("allow", obligations=Obligations(messages=("be brief",))))
    low, zero = BudgetWarning("steps", "run", 9, 10), BudgetWarning("cost_usd", "run", 0, 0)
    world = World(Begin=replace(PROCEED, warnings=(low,)), Finish=replace(FINISHED, warnings=(zero,)))
    outcome = call(at, world)
    assert isinstance(outcome, Completed)
    assert outcome.warnings == (
        "be brief",
        "do is deprecated; use did",
        "budget of run: 90 % of steps used",
        "budget of run: all of cost_usd used",
    )


# -- errors -----------------------------------------------------------------------------------------------------------------


def with_cause(cause: BaseException) -> Exception:
    error = RuntimeError("harmless")
    error.__cause__ = cause
    return error


def with_note(note: str) -> Exception:
    error = RuntimeError("harmless")
    error.add_note(note)
    return error


class Untold(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def deep() -> Exception:
    error: Exception = RuntimeError("0")
    for number in range(20):
        outer = RuntimeError(str(number))
        outer.__cause__ = error
        error = outer
    return error


def loop() -> Exception:
    error = RuntimeError("harmless")
    error.__context__ = error.__cause__ = other = RuntimeError("too")
    other.__cause__ = error
    return error


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("token hunter22"),
        with_cause(RuntimeError("token hunter22")),
        with_note("token hunter22"),
        ExceptionGroup("harmless", [RuntimeError("hunter22")]),
        type("Odd", (Exception,), {"__repr__": lambda self: "hunter22"})("harmless"),
        with_cause(Untold()),
        deep(),
    ],
)
def test_an_exception_that_carries_a_secret_anywhere_does_not_leave(error: Exception) -> None:
    world = World(Invoke=error)
    outcome = call(house(typed, secrets=["hunter22"]), world)
    assert isinstance(outcome, Failed)
    assert outcome.error is not error
    assert outcome.error.__cause__ is None
    assert "hunter22" not in repr(outcome.error) + str(world.one(Finish))


@pytest.mark.parametrize("error", [RuntimeError("harmless"), loop()])
def test_an_exception_without_a_secret_is_the_tools_own(error: Exception) -> None:
    outcome = call(house(typed, secrets=["hunter22"]), World(Invoke=error))
    assert isinstance(outcome, Failed)
    assert outcome.error is error


def test_an_invalid_result_shows_no_secret() -> None:
    world = World(Invoke={"k": ["hunter22"]})
    outcome = call(house(typed, secrets=["hunter22"]), world)
    assert isinstance(outcome, Failed)
    assert outcome.reason is StopReason.INVALID_OUTPUT
    assert "hunter22" not in str(outcome.error) + str(world.one(Finish))


def test_an_invalid_result_shows_nothing_that_the_policy_hides() -> None:
    at = house(typed)
    decided(at, Decision("allow", obligations=Obligations(redact_output=("k",))))
    world = World(Invoke={"k": ["123-45"]})
    outcome = call(at, world)
    assert isinstance(outcome, Failed)
    assert "123-45" not in str(outcome.error) + str(world.one(Finish))


@pytest.mark.parametrize("error", [Untold(), ValueError("\ud800"), type("N" * 90_000, (Exception,), {})()])
def test_a_strange_exception_is_a_failure_that_can_be_recorded(error: Exception) -> None:
    world = World(Invoke=error)
    assert isinstance(call(house(typed), world), Failed)
    finish = world.one(Finish)
    assert len(str(finish.event.facts["error"])) <= 128  # type: ignore[union-attr]
    assert str(finish.outcome).encode()


def test_a_body_that_ends_an_iteration_by_mistake_has_failed() -> None:
    assert isinstance(call(house(typed), World(Invoke=StopIteration(5))), Failed)
