"""Every answer that the store can give to a call that was decided."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest

from agentguard import ProbeResult, tool
from agentguard._flow.govern import govern
from agentguard._flow.rulebook import RunView
from agentguard.domain.approvals import Vote as Cast
from agentguard.domain.calls import Ambiguous, Completed, Failed, Refused, Suspended
from agentguard.domain.decisions import ApprovalTerms, Decision, Obligations, StopReason
from agentguard.domain.operations import (
    Edited,
    Moved,
    Proceed,
    Replayed,
    Turned,
    Unresolved,
    Waiting,
)
from agentguard.domain.usage import NANO
from agentguard.errors import ApprovalError, StoreConflict, StoreUnavailable
from tests.flow.playing import (
    ALLOW_ALL,
    CONTEXT,
    NOW,
    PROCEED,
    YES,
    Append,
    Ask,
    Begin,
    Finish,
    Invoke,
    Probe,
    Publish,
    ResolveCall,
    Vote,
    World,
    call,
    decided,
    house,
    job,
    lost_call,
    play,
    record,
    request,
)


@tool(name="do", effect="irreversible", output_labels=["pii"])
def do(x: int = 1, note: str = "") -> dict[str, Any]:
    return {"x": x, "note": note}


ASK = "version: 1\nrules:\n  - require_approval: do\n"


def refusal(outcome: Any, reason: StopReason) -> Refused:
    assert isinstance(outcome, Refused), outcome
    assert outcome.reason is reason
    return outcome


def test_an_allowed_call_takes_three_effects() -> None:
    world = World()
    outcome = call(house(do), world, arguments={"x": 2})
    assert isinstance(outcome, Completed)
    assert outcome.value == {"x": 2, "note": ""}
    assert world.names == ["Begin", "Invoke", "Finish"]
    assert world.one(Finish).status == "succeeded"
    assert world.one(Finish).labels == ("pii",)


def test_the_run_learns_the_labels_that_the_store_says() -> None:
    made = job()
    play(govern(house(do), made), World())
    assert made.run.seen == (("seen",), 3)


def test_a_run_never_unlearns_what_another_thread_has_learned() -> None:
    view = RunView(CONTEXT, (), "p", (("new",), 9))
    view.learn(("old",), 8)
    assert view.seen == (("new",), 9)
    view.learn(("newer",), 9)
    assert view.labels == ("newer",)


def test_decision_and_version_come_from_one_look_at_the_labels() -> None:
    """Another thread learns labels between the decision and ``Begin``: the old version must be sent."""
    at = house(do)
    made = job(run=RunView(CONTEXT, (), "p", ((), 1)))

    class Meanwhile:
        def decide(self, *_: Any) -> Decision:
            made.run.learn(("secret",), 2)
            return Decision("allow", stateful=True)

    at.rules = Meanwhile()  # type: ignore[assignment]
    world = World()
    play(govern(at, made), world)
    assert world.one(Begin).run_version == 1


def test_labels_that_moved_are_decided_on_again() -> None:
    at = house(do)
    rules = decided(at, Decision("allow", stateful=True))
    world = World(Begin=[Moved(("pii",), 4), PROCEED])
    assert isinstance(call(at, world), Completed)
    assert rules.shown == [(), ("pii",)]
    assert [begin.run_version for begin in world.all(Begin)] == [0, 4]


def test_a_run_that_keeps_moving_is_refused_in_the_end() -> None:
    world = World(Begin=Moved(("pii",), 4))
    outcome = refusal(call(house(do), world), StopReason.INTERNAL_ERROR)
    assert (outcome.code, outcome.retryable) == ("AG678", True)
    assert len(world.all(Begin)) == 8
    assert not world.all(Invoke)


@pytest.mark.parametrize("reason", list(StopReason))
def test_whatever_the_store_turns_away_is_refused_for_that_reason_and_recorded(reason: StopReason) -> None:
    world = World(Begin=Turned(reason, "because", retryable=True, records=(record(3),)))
    outcome = refusal(call(house(do, has_sinks=True), world), reason)
    assert outcome.detail == "because"
    assert outcome.retryable
    assert outcome.code.startswith("AG62")
    assert not world.all(Invoke)
    assert world.names == ["Begin", "Publish", "Append", "Publish"]


def test_the_reason_of_a_rejection_reaches_the_model_on_one_line() -> None:
    rejected = request(votes=())
    turned = Turned(StopReason.APPROVAL_REJECTED, "d", approval=rejected)
    assert "declined" in refusal(call(house(do), World(Begin=turned)), StopReason.APPROVAL_REJECTED).message
    said = replace(rejected, votes=(Cast("ann", (), "reject", NOW, "too\nmuch\x1b[2J" + "!" * 900),))
    outcome = refusal(call(house(do), World(Begin=replace(turned, approval=said))), StopReason.APPROVAL_REJECTED)
    assert outcome.message.startswith("A person declined this action: too much [2J!!")
    assert len(outcome.message) == 500


# -- replays --------------------------------------------------------------------------------------------------------------


def replayed(outcome: str | None, status: Any = "succeeded") -> World:
    return World(Begin=Replayed(lost_call(status=status, outcome=outcome), (record(4),)))


def test_a_remembered_result_comes_back_without_running_again() -> None:
    world = replayed('{"value":{"x":5,"note":"n"}}')
    outcome = call(house(do, has_sinks=True), world)
    assert outcome == Completed({"x": 5, "note": "n"}, True, None, "c1", 0)
    assert world.names == ["Begin", "Publish"]


def test_a_remembered_result_is_shown_as_the_policy_of_now_shows_it() -> None:
    at = house(do, secrets=["hunter22"])
    decided(at, Decision("allow", obligations=Obligations(redact_output=("x",))))
    outcome = call(at, replayed('{"value":{"x":5,"note":"hunter22"}}'))
    assert isinstance(outcome, Completed)
    assert outcome.value == {"x": "[redacted]", "note": "[redacted]"}


def test_a_run_that_sees_a_remembered_result_gains_its_labels() -> None:
    made = job()
    world = replayed('{"value":{"x":5}}')
    play(govern(house(do), made), world)
    assert world.one(Begin).labels == ("pii",)
    assert made.run.seen == (("pii",), 0)


def test_a_redacted_result_comes_back_as_it_was_stored() -> None:
    outcome = call(house(do), replayed('{"redacted":true,"value":"[redacted]"}'))
    assert isinstance(outcome, Completed)
    assert outcome.value == "[redacted]"


@pytest.mark.parametrize("stored", [None, "", "{}", "not json", "[1]"])
def test_a_result_that_was_not_kept_is_said_to_have_happened(stored: str | None) -> None:
    outcome = refusal(call(house(do), replayed(stored)), StopReason.IDEMPOTENCY_CONFLICT)
    assert "has been carried out before" in outcome.message


def test_a_remembered_failure_comes_back_as_one() -> None:
    stored = '{"message":"boom","model":"The tool failed.","reason":"tool_timeout","type":"OSError"}'
    outcome = call(house(do), replayed(stored, "failed"))
    assert isinstance(outcome, Failed)
    assert (outcome.reason, outcome.replayed, str(outcome.error)) == (StopReason.TOOL_TIMEOUT, True, "OSError: boom")


@pytest.mark.parametrize("stored", [None, '{"reason":"odd"}', "garbage"])
def test_a_failure_of_which_nothing_was_kept_is_still_a_failure(stored: str | None) -> None:
    outcome = call(house(do), replayed(stored, "failed"))
    assert isinstance(outcome, Failed)
    assert outcome.reason is StopReason.TOOL_ERROR


def test_a_replay_of_something_that_has_not_ended_is_refused() -> None:
    refusal(call(house(do), replayed(None, "running")), StopReason.INTERNAL_ERROR)


# -- approvals --------------------------------------------------------------------------------------------------------------


WAITING = Waiting(request(), (record(8),), created=True)


def test_without_an_approver_the_call_is_suspended() -> None:
    world = World(Begin=WAITING)
    outcome = call(house(do, policy=ASK, has_sinks=True), world)
    assert isinstance(outcome, Suspended)
    assert outcome.request.id == "ap_1"
    assert world.names == ["Draw", "Draw", "Begin", "Publish"]
    assert world.all(Publish)[0].records == (record(8),)


def test_the_request_shows_what_runs_and_what_was_asked() -> None:
    at = house(do)
    decided(
        at,
        Decision(
            "require_approval", approval=ApprovalTerms(quorum=2), obligations=Obligations(clamp=(("x", (None, 3)),))
        ),
    )
    world = World(Begin=WAITING)
    call(at, world, arguments={"x": 50})
    demand = world.one(Begin).approval
    assert demand is not None
    assert (demand.arguments, demand.proposed) == ({"x": 3, "note": ""}, {"x": 50})
    assert demand.terms.quorum == 2


def test_what_a_python_caller_asked_for_is_shown_in_a_form_that_can_be_stored() -> None:
    @tool(name="do")
    def typed(key: uuid.UUID) -> int:
        return 1

    world = World(Begin=WAITING)
    call(house(typed, policy=ASK), world, arguments={"key": uuid.UUID(int=1)})
    demand = world.one(Begin).approval
    assert demand is not None
    assert demand.proposed == {"key": str(uuid.UUID(int=1))}


def test_an_approval_that_somebody_gave_lets_the_call_run() -> None:
    world = World(Begin=[WAITING, replace(PROCEED, approval_id="ap_1")], Ask=YES, Vote=request(status="approved"))
    made = job()
    outcome = play(govern(house(do, policy=ASK, has_approver=True), made), world)
    assert isinstance(outcome, Completed)
    assert world.one(Invoke).context.approval_id == made.approval_id == "ap_1"
    assert world.names == ["Draw", "Draw", "Begin", "Ask", "Vote", "Draw", "Draw", "Begin", "Invoke", "Finish"]


def test_an_approver_that_does_not_know_yet_suspends() -> None:
    world = World(Begin=WAITING, Ask=None)
    assert isinstance(call(house(do, policy=ASK, has_approver=True), world), Suspended)
    assert not world.all(Vote)


def test_a_quorum_that_is_not_reached_suspends() -> None:
    world = World(Begin=WAITING, Ask=YES, Vote=request())
    assert isinstance(call(house(do, policy=ASK, has_approver=True), world), Suspended)
    assert len(world.all(Ask)) == 1


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ({"Ask": RuntimeError("secret hunter22")}, "AG682"),
        ({"Ask": YES, "Vote": ApprovalError("requester", code="AG633")}, "AG633"),
        ({"Ask": ApprovalError("cannot")}, "AG631"),
        ({"Ask": True, "Vote": AttributeError("kind")}, "AG682"),
    ],
)
def test_an_approver_whose_answer_does_not_count_refuses_and_leaves_the_request(
    answers: dict[str, Any], code: str
) -> None:
    world = World(Begin=WAITING, **answers)
    outcome = refusal(
        call(house(do, policy=ASK, has_approver=True, secrets=["hunter22"]), world), StopReason.APPROVAL_PENDING
    )
    assert (outcome.code, outcome.retryable) == (code, True)
    assert "hunter22" not in outcome.detail
    assert not world.all(Invoke)


def test_a_vote_that_the_store_does_not_take_is_a_store_failure() -> None:
    world = World(Begin=WAITING, Ask=YES, Vote=StoreUnavailable("down"))
    refusal(call(house(do, policy=ASK, has_approver=True), world), StopReason.STORE_UNAVAILABLE)


def test_after_a_person_took_their_time_the_policy_is_asked_for_the_time_of_the_answer() -> None:
    at = house(do, has_approver=True)
    rules = decided(at, Decision("require_approval", approval=ApprovalTerms()))
    later = NOW + 3600 * NANO
    world = World(Begin=[WAITING, PROCEED], Ask=YES, Vote=request(status="approved", decided_at=later))
    call(at, world)
    assert rules.times == [NOW, later]


def test_edited_arguments_are_validated_decided_and_bound_again() -> None:
    world = World(Begin=[Edited(request(edited={"x": 7})), PROCEED])
    outcome = call(house(do, policy=ASK), world, arguments={"x": 50})
    assert isinstance(outcome, Completed)
    first, second = world.all(Begin)
    assert first.edit_of is None
    assert second.edit_of == "ap_1"
    assert second.approval is not None
    assert second.approval.arguments == {"x": 7, "note": ""}
    assert world.one(Invoke).arguments == {"x": 7, "note": ""}
    assert first.key == second.key
    assert first.fingerprint == second.fingerprint


def test_an_edit_that_needs_no_approval_itself_is_still_bound_to_the_one_it_came_with() -> None:
    policy = "version: 1\nrules:\n  - allow: do\n  - require_approval: do\n    when: {args: {x: {minimum: 10}}}\n"
    world = World(Begin=[Edited(request(edited={"x": 7})), PROCEED])
    call(house(do, policy=policy), world, arguments={"x": 50})
    assert world.all(Begin)[1].approval is not None


def test_an_edit_that_the_policy_denies_does_not_run() -> None:
    policy = ASK + "  - deny: do\n    when: {args: {x: 7}}\n"
    world = World(Begin=Edited(request(edited={"x": 7})))
    refusal(call(house(do, policy=policy), world), StopReason.POLICY_DENIED)
    assert len(world.all(Begin)) == 1


@pytest.mark.parametrize("edited", [{"x": "seven"}, {"y": 1}])
def test_an_edit_that_does_not_fit_the_schema_does_not_run(edited: dict[str, Any]) -> None:
    world = World(Begin=Edited(request(edited=edited)))
    refusal(call(house(do, policy=ASK), world), StopReason.INVALID_ARGUMENTS)
    assert len(world.all(Begin)) == 1


def test_arguments_that_change_after_the_approval_do_not_run() -> None:
    def change(begin: Begin) -> Proceed:
        begin.approval.arguments["x"] = 99  # type: ignore[index, union-attr]
        return PROCEED

    world = World(Begin=change)
    outcome = refusal(call(house(do, policy=ASK), world), StopReason.INTERNAL_ERROR)
    assert outcome.code == "AG681"
    assert world.one(Finish).status == "refused"
    assert not world.all(Invoke)


def test_arguments_that_cannot_be_compared_any_more_do_not_run_and_hold_nothing() -> None:
    def change(begin: Begin) -> Proceed:
        begin.approval.arguments["x"] = object()  # type: ignore[index, union-attr]
        return PROCEED

    world = World(Begin=change)
    refusal(call(house(do, policy=ASK), world), StopReason.INTERNAL_ERROR)
    assert world.one(Finish).status == "refused"
    assert world.one(Finish).amounts == ()


# -- lost calls -------------------------------------------------------------------------------------------------------------

LOST = Unresolved(lost_call(), (record(2),))


def probed(**answers: Any) -> tuple[Any, World]:
    @tool(name="do", effect="irreversible", probe=lambda items, context: None, output_labels=["pii"])
    def with_probe(items: list[int] | None = None) -> dict[str, Any]:
        return {"ran": items}

    return house(with_probe, has_sinks=True, secrets=["hunter22"]), World(
        **{"Begin": LOST, "ResolveCall": lost_call(), **answers}
    )


def test_a_lost_call_without_a_probe_stays_ambiguous() -> None:
    world = World(Begin=LOST)
    outcome = call(house(do, has_sinks=True), world)
    assert isinstance(outcome, Ambiguous)
    assert outcome.call == lost_call()
    assert world.names == ["Begin", "Publish"]


@pytest.mark.parametrize(
    "answers",
    [
        {"Probe": None},
        {"Probe": ProbeResult("unknown")},
        {"Probe": ProbeResult("odd")},  # type: ignore[arg-type]
        {"Probe": RuntimeError("no")},
        {"Probe": "yes"},
        {"Probe": ProbeResult("completed", object())},  # a value that is no result of the tool
        {"Probe": ProbeResult("absent"), "ResolveCall": StoreUnavailable("down")},
    ],
)
def test_a_probe_that_finds_out_nothing_changes_nothing(answers: dict[str, Any]) -> None:
    at, world = probed(**answers)
    assert isinstance(call(at, world), Ambiguous)
    assert not world.all(Invoke)


def test_a_call_that_never_happened_may_run() -> None:
    at, world = probed(Begin=[LOST, PROCEED], Probe=ProbeResult("absent"))
    assert isinstance(call(at, world), Completed)
    assert world.one(ResolveCall).status == "refused"


def test_a_result_that_a_probe_found_takes_the_way_of_every_remembered_one() -> None:
    at, world = probed(Probe=ProbeResult("completed", {"token": "hunter22"}))
    world.answers["Begin"] = [
        LOST,
        lambda begin: Replayed(lost_call(status="succeeded", outcome=world.one(ResolveCall).outcome), ()),
    ]
    outcome = call(at, world)
    assert isinstance(outcome, Completed)
    assert outcome.replayed
    assert outcome.value == {"token": "[redacted]"}
    assert world.one(ResolveCall).status == "succeeded"
    assert "hunter22" not in str(world.one(ResolveCall).outcome)
    assert not world.all(Invoke)


def test_when_somebody_resolves_at_the_same_time_the_store_is_asked_again() -> None:
    at, world = probed(Begin=[LOST, PROCEED], Probe=ProbeResult("absent"), ResolveCall=StoreConflict("resolved"))
    assert isinstance(call(at, world), Completed)


def test_what_a_probe_does_to_its_arguments_does_not_reach_the_body() -> None:
    def spoil(effect: Probe) -> ProbeResult:
        effect.arguments["items"].append(666)
        return ProbeResult("absent")

    at, world = probed(Begin=[LOST, PROCEED], Probe=spoil)
    outcome = call(at, world, arguments={"items": [1]})
    assert isinstance(outcome, Completed)
    assert outcome.value == {"ran": [1]}


# -- keys -------------------------------------------------------------------------------------------------------------------


def key_of(at: Any, **settings: Any) -> tuple[str, str]:
    world = World()
    call(at, world, **settings)
    begin = world.one(Begin)
    return begin.key, begin.fingerprint


def test_a_call_id_of_a_model_has_a_fingerprint_and_one_of_ours_has_none() -> None:
    at = house(do)
    assert key_of(at, explicit=True)[1]
    assert key_of(at, explicit=False)[1] == ""
    looping = RunView(CONTEXT, (), "p", max_repeats=3)
    assert key_of(at, explicit=False, run=looping)[1]


def test_an_idempotency_key_is_a_key_of_the_tenant_not_of_the_run() -> None:
    at = house(do)
    other = RunView(replace(CONTEXT, run_id="r2"), (), "other")
    assert key_of(at, idempotency_key="k")[0] == key_of(at, idempotency_key="k", run=other)[0]
    assert key_of(at)[0] != key_of(at, run=other)[0]


def test_a_tool_may_declare_what_makes_two_calls_one() -> None:
    @tool(name="do", effect="idempotent", idempotency_key=["x"])
    def by_argument(x: int, note: str = "") -> int:
        return x

    @tool(name="do", effect="idempotent", idempotency_key=lambda a: f"k{a['x']}")
    def by_function(x: int, note: str = "") -> int:
        return x

    for made in (by_argument, by_function):
        at = house(made)
        one, same, two = (key_of(at, arguments={"x": x, "note": note}) for x, note in ((1, "a"), (1, "b"), (2, "a")))
        assert one[0] == same[0] != two[0]
        assert one[1] != same[1]


@pytest.mark.parametrize("key", [lambda a: None, lambda a: "", lambda a: 1 // 0])
def test_a_key_that_cannot_be_made_refuses_the_call(key: Any) -> None:
    @tool(name="do", effect="idempotent", idempotency_key=key)
    def odd(x: int = 1) -> int:
        return x

    world = World()
    refusal(call(house(odd), world), StopReason.INTERNAL_ERROR)
    assert world.names == ["Append"]


def test_a_store_that_does_not_answer_refuses_and_is_not_asked_again() -> None:
    world = World(Begin=StoreUnavailable("down hunter22"))
    outcome = refusal(call(house(do, policy=ALLOW_ALL, secrets=["hunter22"]), world), StopReason.STORE_UNAVAILABLE)
    assert outcome.retryable
    assert "hunter22" not in outcome.detail
    assert world.names == ["Begin"]


def test_anything_unforeseen_at_admission_is_a_recorded_refusal() -> None:
    world = World(Begin=RuntimeError("bug"))
    refusal(call(house(do), world), StopReason.INTERNAL_ERROR)
    assert world.names == ["Begin", "Append"]
    assert world.one(Append).event.facts["code"] == "AG679"


def test_what_cannot_be_shown_as_it_was_asked_is_shown_as_it_will_run() -> None:
    class Spoken:
        """Read by the tool's own validation; JSON does not know it."""

    at = house(do, policy=ASK)
    effective = at.plans["do"].tool.validate({"x": 3})
    at.plans["do"].tool.validate = lambda arguments: effective
    world = World(Begin=WAITING)
    call(at, world, arguments={"x": Spoken()})
    demand = world.one(Begin).approval
    assert demand is not None
    assert demand.proposed == {"x": 3, "note": ""}
