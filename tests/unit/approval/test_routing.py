"""Who may decide, what an answer does, and what an approval then permits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.approval import routing
from agentguard.domain.approvals import ApprovalRequest, ApproverIdentity, Verdict
from agentguard.domain.decisions import ApprovalTerms, EscalationStep
from agentguard.domain.usage import NANO
from agentguard.errors import ApprovalError
from tests.unit.approval.asking import (
    ANN,
    ARGUMENTS,
    BOB,
    EVE,
    FINANCE,
    LADDER,
    LEAD,
    MINUTE,
    NOW,
    TWO,
    begin,
    demand,
    opened,
)

EDITED = {**ARGUMENTS, "amount": 100}


def refused(request: ApprovalRequest, verdict: Verdict, code: str, now: int = NOW + 1) -> str:
    with pytest.raises(ApprovalError) as caught:
        routing.vote(request, verdict, now)
    assert caught.value.code == code
    return str(caught.value)


def voted(request: ApprovalRequest, *verdicts: Verdict, now: int = NOW + 1) -> ApprovalRequest:
    for verdict in verdicts:
        request = routing.vote(request, verdict, now)
    return request


def approve(by: ApproverIdentity, **more: Any) -> Verdict:
    return Verdict("approve", by, **more)


# --- opening -------------------------------------------------------------------------------------


def test_a_new_request_is_pending_until_its_terms_end() -> None:
    request = opened()
    assert (request.status, request.created_at, request.expires_at) == ("pending", NOW, NOW + 30 * MINUTE)


def test_a_new_request_adds_up_what_the_call_would_use() -> None:
    assert opened().budget_effect == {"tool_calls": 2, "cost_usd": 1_500_000}


def test_a_new_request_keeps_its_own_copy_of_the_arguments() -> None:
    arguments: dict[str, Any] = {"items": [{"n": 1}]}
    request = routing.open_request(begin(), demand(arguments), NOW)
    arguments["items"][0]["n"] = 99
    assert request.arguments == {"items": [{"n": 1}]}


# --- time ----------------------------------------------------------------------------------------


def test_a_pending_request_expires_exactly_at_its_end() -> None:
    request = opened()
    assert routing.as_of(request, request.expires_at - 1) is request
    assert routing.as_of(request, request.expires_at).status == "expired"


def test_an_unused_approval_expires_too() -> None:
    request = voted(opened(), approve(ANN))
    assert routing.as_of(request, request.expires_at - 1).status == "approved"
    assert routing.as_of(request, request.expires_at).status == "expired"


def test_an_until_approval_lasts_as_long_as_its_approver_said() -> None:
    request = voted(opened(), approve(ANN, scope="until", until_ns=NOW + 90 * MINUTE))
    assert routing.as_of(request, NOW + 89 * MINUTE).status == "approved"
    assert routing.as_of(request, NOW + 90 * MINUTE).status == "expired"


@pytest.mark.parametrize("status", ["rejected", "consumed", "superseded", "terminated", "expired"])
def test_what_has_ended_does_not_expire(status: Any) -> None:
    request = opened(status=status)
    assert routing.as_of(request, request.expires_at * 2) is request


def test_nobody_decides_an_expired_request() -> None:
    request = opened()
    message = refused(request, approve(ANN), "AG633", request.expires_at)
    assert "2027-01-15 08:30:00 UTC" in message


def test_an_expiry_beyond_the_calendar_is_still_explained() -> None:
    request = opened(expires_at=-(10**30))
    assert f"{-(10**30)} ns" in refused(request, approve(ANN), "AG633")


# --- who -----------------------------------------------------------------------------------------


def test_an_approver_with_a_role_may_decide() -> None:
    assert routing.may_decide(opened(), ANN, NOW) is None


def test_without_role_sets_everybody_but_the_requester_may_decide() -> None:
    request = opened(ApprovalTerms())
    assert routing.eligible_roles(request, NOW) == ()
    assert routing.may_decide(request, EVE, NOW) is None
    assert "cannot decide it" in str(routing.may_decide(request, ApproverIdentity("u-17"), NOW))


def test_an_approver_without_a_role_may_not_decide() -> None:
    message = refused(opened(), approve(EVE), "AG634")
    assert "finance" in message


@pytest.mark.parametrize("name", ["u-17", "U-17", " u-17", "support-bot", "\uff55-17"])
def test_the_requester_does_not_decide_in_any_spelling(name: str) -> None:
    refused(opened(), approve(ApproverIdentity(name, ("finance",))), "AG635")


def test_the_requester_decides_where_the_policy_lets_them() -> None:
    request = voted(opened(replace(FINANCE, separate=False)), approve(ApproverIdentity("u-17", ("finance",))))
    assert request.status == "approved"


def test_a_run_without_a_user_has_only_the_agent_as_requester() -> None:
    request = routing.open_request(begin(user=None), demand(), NOW)
    assert routing.may_decide(request, ANN, NOW) is None
    assert routing.may_decide(request, ApproverIdentity("support-bot", ("finance",)), NOW) is not None


@pytest.mark.parametrize("name", ["", "  ", "a\nb", "a\u202eb", "\u200b", "x" * 257, None, 7])
def test_an_unusable_name_decides_nothing(name: Any) -> None:
    refused(opened(), approve(ApproverIdentity(name, ("finance",))), "AG639")


@pytest.mark.parametrize("roles", ["finance", (1,), ("finance", None)])
def test_roles_that_are_no_tuple_of_strings_decide_nothing(roles: Any) -> None:
    refused(opened(), approve(ApproverIdentity("ann", roles)), "AG639")


@pytest.mark.parametrize("kind", ["approve", "reject"])
def test_a_reason_that_is_no_text_decides_nothing(kind: Any) -> None:
    reason: Any = 7
    refused(opened(), Verdict(kind, ANN, reason=reason), "AG639")


def test_the_ladder_lets_further_roles_decide_when_its_time_has_come() -> None:
    request = opened(LADDER)
    refused(request, approve(LEAD), "AG634", NOW + 10 * MINUTE - 1)
    assert routing.eligible_roles(request, NOW + 10 * MINUTE) == ("finance", "finance-lead")
    assert routing.vote(request, approve(LEAD), NOW + 10 * MINUTE).status == "approved"


def test_a_vote_given_on_a_rung_still_counts_beside_a_later_one() -> None:
    request = routing.vote(opened(replace(LADDER, quorum=2)), approve(LEAD), NOW + 11 * MINUTE)
    assert request.status == "pending"
    assert routing.vote(request, approve(ANN), NOW + 12 * MINUTE).status == "approved"


def test_escalating_adds_roles_and_is_recorded() -> None:
    request = voted(opened(), Verdict("escalate", ANN, to=("cfo", "cfo"), reason="too big"))
    assert request.status == "pending"
    assert request.extra["escalated"] == [{"by": "ann", "at": NOW + 1, "to": ["cfo"]}]
    assert [(v.kind, v.by, v.reason) for v in request.votes] == [("escalate", "ann", "too big")]
    assert request.decided_by == ()
    assert voted(request, approve(ApproverIdentity("kim", ("cfo",)))).status == "approved"


def test_who_has_escalated_may_still_decide() -> None:
    assert voted(opened(), Verdict("escalate", ANN, to=("cfo",)), approve(ANN)).status == "approved"


@pytest.mark.parametrize("to", [(), ("",), ("  ",), ("finance",)])
def test_escalating_needs_roles_that_are_new(to: tuple[str, ...]) -> None:
    refused(opened(), Verdict("escalate", ANN, to=to), "AG639")


def test_who_may_not_decide_may_not_escalate_either() -> None:
    refused(opened(), Verdict("escalate", EVE, to=("guest",)), "AG634")


# --- answers -------------------------------------------------------------------------------------


def test_one_approver_approves_where_one_is_enough() -> None:
    request = voted(opened(), approve(ANN, reason="fine"))
    assert (request.status, request.decided_at, request.decided_by) == ("approved", NOW + 1, ("ann",))
    assert request.votes[0].roles == ("finance",)


def test_a_rejection_is_final_and_says_why() -> None:
    request = voted(opened(TWO), Verdict("reject", ANN, reason="no receipt"))
    assert (request.status, request.rejection) == ("rejected", "no receipt")
    message = refused(request, approve(BOB), "AG632")
    assert "already rejected by ann at 2027-01-15 08:00:00 UTC" in message


def test_one_rejection_beats_an_approval_of_a_quorum() -> None:
    request = voted(opened(TWO), approve(ANN), Verdict("reject", BOB))
    assert request.status == "rejected"


def test_an_approval_is_final_too() -> None:
    refused(voted(opened(), approve(ANN)), Verdict("reject", BOB), "AG632")


def test_terminating_ends_the_request() -> None:
    request = voted(opened(), Verdict("terminate", ANN, reason="runaway"))
    assert (request.status, request.decided_at, request.rejection) == ("terminated", NOW + 1, "runaway")


def test_a_request_that_was_superseded_has_no_decider_to_name() -> None:
    assert "already superseded;" in refused(opened(status="superseded"), approve(ANN), "AG632")


def test_a_quorum_needs_distinct_approvers() -> None:
    request = voted(opened(TWO), approve(ANN))
    assert request.status == "pending"
    refused(request, approve(ANN), "AG636")
    refused(request, approve(ApproverIdentity("ANN", ("finance",))), "AG636")
    assert voted(request, approve(BOB)).status == "approved"


def test_every_role_set_needs_an_approver() -> None:
    request = voted(opened(replace(FINANCE, role_sets=(("finance",), ("legal",)))), approve(ANN))
    assert request.status == "pending"
    assert voted(request, approve(BOB)).status == "approved"


def test_one_person_can_fill_two_role_sets() -> None:
    assert voted(opened(replace(FINANCE, role_sets=(("finance",), ("legal",)))), approve(BOB)).status == "approved"


def test_a_quorum_of_nothing_still_needs_one_approver() -> None:
    request = opened(ApprovalTerms(quorum=0))
    assert request.status == "pending"
    assert voted(request, approve(EVE)).status == "approved"


def test_an_unknown_answer_decides_nothing() -> None:
    kind: Any = "approved"
    refused(opened(), Verdict(kind, ANN), "AG639")


# --- scope ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "until_ns"),
    [
        ("forever", None),
        ("until", None),
        ("until", True),
        ("until", 1.5),
        ("until", NOW),
        ("until", 2**63),
        ("run", NOW + MINUTE),
        ("call", NOW + MINUTE),
    ],
)
def test_an_impossible_scope_is_refused(scope: Any, until_ns: Any) -> None:
    refused(opened(), approve(ANN, scope=scope, until_ns=until_ns), "AG638")


def test_two_approvers_give_no_more_than_the_narrower_scope() -> None:
    request = voted(opened(TWO), approve(ANN, scope="run"), approve(BOB, scope="arguments"))
    assert (request.status, request.scope) == ("approved", "arguments")


def test_the_earlier_of_two_ends_holds() -> None:
    request = voted(
        opened(TWO),
        approve(ANN, scope="until", until_ns=NOW + 90 * MINUTE),
        approve(BOB, scope="until", until_ns=NOW + 60 * MINUTE),
    )
    assert (request.scope, request.until_ns) == ("until", NOW + 60 * MINUTE)


def test_an_end_that_one_approver_named_holds_for_the_narrower_scope_of_another() -> None:
    request = voted(opened(TWO), approve(ANN, scope="until", until_ns=NOW + 5 * MINUTE), approve(BOB, scope="run"))
    assert (request.scope, routing.ends_at(request)) == ("run", NOW + 5 * MINUTE)


def test_an_approval_for_the_call_gives_no_standing_grant() -> None:
    assert routing.grants(voted(opened(), approve(ANN))) is None


def test_a_pending_request_gives_no_standing_grant() -> None:
    assert routing.grants(voted(opened(TWO), approve(ANN, scope="run"))) is None


def test_an_edited_request_gives_no_standing_grant_even_when_its_record_says_so() -> None:
    request = voted(opened(), approve(ANN, arguments=EDITED))
    assert routing.grants(replace(request, scope="run")) is None


def test_a_request_without_its_grant_digests_gives_none() -> None:
    assert routing.grants(replace(voted(opened(), approve(ANN, scope="run")), extra={})) is None


@pytest.mark.parametrize(("scope", "until_ns"), [("arguments", None), ("run", None), ("until", NOW + 90 * MINUTE)])
def test_a_wider_scope_gives_a_grant_that_the_next_call_finds(scope: Any, until_ns: int | None) -> None:
    request = voted(opened(), approve(ANN, scope=scope, until_ns=until_ns))
    grant = routing.grants(request)
    assert grant is not None
    assert (grant.id, grant.tenant, grant.expires_at) == (request.id, "acme", until_ns or request.expires_at)
    assert grant.digest in routing.grant_keys(begin(call_id="c2", key="other"), demand(nonce="other"))


def found(scope: Any, call: Any, wanted: Any) -> bool:
    until = NOW + MINUTE if scope == "until" else None
    grant = routing.grants(voted(opened(), approve(ANN, scope=scope, until_ns=until)))
    assert grant is not None
    return grant.digest in routing.grant_keys(call, wanted)


def test_a_grant_for_arguments_does_not_cover_others() -> None:
    assert not found("arguments", begin(), demand(EDITED))
    assert found("run", begin(), demand(EDITED))


def test_a_grant_for_a_run_does_not_cover_another_run() -> None:
    assert not found("run", begin(run_id="run-2"), demand())
    assert found("until", begin(run_id="run-2"), demand())


@pytest.mark.parametrize("scope", ["arguments", "run", "until"])
@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"},
        {"agent": "other"},
        {"user": None},
        {"environment": "staging"},
        {"tool": "other"},
        {"policy_digest": "other"},
    ],
)
def test_no_grant_covers_another_principal_tool_or_policy(scope: Any, change: dict[str, Any]) -> None:
    assert not found(scope, begin(**change), demand())


@pytest.mark.parametrize("scope", ["arguments", "run", "until"])
def test_no_grant_covers_a_call_with_stricter_terms(scope: Any) -> None:
    assert not found(scope, begin(), demand(terms=TWO))


# --- edits ---------------------------------------------------------------------------------------


def test_an_edit_is_recorded_with_the_approval() -> None:
    request = voted(opened(), approve(ANN, arguments=EDITED))
    assert (request.status, request.edited, request.arguments) == ("approved", EDITED, ARGUMENTS)


def test_an_edit_is_copied() -> None:
    arguments: dict[str, Any] = {"items": [1]}
    request = voted(opened(), approve(ANN, arguments=arguments))
    arguments["items"].append(2)
    assert request.edited == {"items": [1]}


def test_repeating_the_shown_arguments_is_no_edit() -> None:
    request = voted(opened(replace(FINANCE, edit=False)), approve(ANN, arguments=dict(ARGUMENTS)))
    assert (request.status, request.edited) == ("approved", None)


def test_a_changed_type_is_an_edit() -> None:
    assert voted(opened(), approve(ANN, arguments={**ARGUMENTS, "amount": 250.0})).edited is not None


def test_an_edit_is_refused_where_the_policy_forbids_it() -> None:
    refused(opened(replace(FINANCE, edit=False)), approve(ANN, arguments=EDITED), "AG637")


@pytest.mark.parametrize("scope", ["arguments", "run"])
def test_an_edit_reaches_no_further_than_its_call(scope: Any) -> None:
    refused(opened(), approve(ANN, arguments=EDITED, scope=scope), "AG637")


def test_an_approval_beside_an_edit_reaches_no_further_either() -> None:
    request = voted(opened(TWO), approve(ANN, arguments=EDITED))
    refused(request, approve(BOB, arguments=EDITED, scope="run"), "AG637")


@pytest.mark.parametrize("arguments", [{"x": float("nan")}, {"x": object()}, {1: 2}, [1], "x"])
def test_an_edit_that_is_no_json_object_is_refused(arguments: Any) -> None:
    refused(opened(), approve(ANN, arguments=arguments), "AG637")


@pytest.mark.parametrize("kind", ["reject", "terminate", "escalate"])
def test_only_an_approval_edits(kind: Any) -> None:
    refused(opened(), Verdict(kind, ANN, arguments=EDITED, to=("cfo",)), "AG637")


def test_an_edit_voids_approvals_of_the_unedited_arguments() -> None:
    request = voted(opened(TWO), approve(ANN, scope="run"), approve(BOB, arguments=EDITED))
    assert (request.status, request.decided_by, request.scope) == ("pending", ("bob",), "call")
    assert [w["by"] for w in request.extra["withdrawn"]] == ["ann"]
    assert voted(request, approve(ANN, arguments=EDITED)).status == "approved"


def test_two_editors_must_agree() -> None:
    request = voted(opened(TWO), approve(ANN, arguments=EDITED))
    refused(request, approve(BOB, arguments={**EDITED, "amount": 99}), "AG637")
    refused(request, approve(BOB, arguments={**EDITED, "amount": 100.0}), "AG637")
    agreed = voted(request, approve(BOB, arguments=EDITED))
    assert (agreed.status, agreed.edited) == ("approved", EDITED)


def test_nobody_approves_an_edit_without_naming_it() -> None:
    request = voted(opened(TWO), approve(ANN, arguments=EDITED))
    assert "ann changed the arguments" in refused(request, approve(BOB), "AG637")


def test_an_edit_without_a_vote_on_record_is_still_not_approved_blindly() -> None:
    assert "somebody changed" in refused(opened(TWO, edited=EDITED), approve(BOB), "AG637")


def test_an_edited_request_can_be_rejected() -> None:
    assert voted(opened(TWO), approve(ANN, arguments=EDITED), Verdict("reject", BOB)).status == "rejected"


# --- use -----------------------------------------------------------------------------------------


def test_an_approval_matches_the_call_it_was_given_for() -> None:
    request = voted(opened(), approve(ANN))
    assert routing.matches(request, begin(), demand(nonce="fresh", id="ap_fresh"))


def test_a_cosmetic_argument_may_change() -> None:
    assert routing.matches(voted(opened(), approve(ANN)), begin(), demand({**ARGUMENTS, "note": "thank you"}))


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"},
        {"agent": "other"},
        {"user": None},
        {"user": ""},
        {"environment": "staging"},
        {"run_id": "run-2"},
        {"key": "other"},
        {"tool": "other"},
        {"policy_digest": "other"},
    ],
)
def test_an_approval_dies_with_any_change_of_the_call(change: dict[str, Any]) -> None:
    assert not routing.matches(voted(opened(), approve(ANN)), begin(**change), demand())


@pytest.mark.parametrize(
    "wanted",
    [
        demand({**ARGUMENTS, "amount": 251}),
        demand({**ARGUMENTS, "amount": 250.0}),
        demand({**ARGUMENTS, "amount": "250"}),
        demand({**ARGUMENTS, "more": None}),
        demand(tool_digest="other"),
    ],
)
def test_an_approval_dies_with_any_change_of_what_would_run(wanted: Any) -> None:
    assert not routing.matches(voted(opened(), approve(ANN)), begin(), wanted)


@pytest.mark.parametrize("field", ["nonce", "expires_at"])
def test_an_approval_dies_when_its_own_record_was_changed(field: str) -> None:
    request = voted(opened(), approve(ANN))
    changed: Any = {"nonce": "other", "expires_at": request.expires_at + 1}[field]
    assert not routing.matches(replace(request, **{field: changed}), begin(), demand())


def test_after_an_edit_only_the_edited_arguments_match() -> None:
    request = voted(opened(), approve(ANN, arguments=EDITED))
    assert not routing.matches(request, begin(), demand())
    assert routing.concerns(request, begin(), demand())
    assert routing.matches(request, begin(), demand(EDITED))
    assert not routing.concerns(request, begin(), demand(EDITED))


def test_after_an_edit_cosmetic_arguments_count_too() -> None:
    request = voted(opened(), approve(ANN, arguments=EDITED))
    assert not routing.matches(request, begin(), demand({**EDITED, "note": "other"}))


def test_an_undecided_edit_leaves_the_request_with_its_call() -> None:
    request = voted(opened(TWO), approve(ANN, arguments=EDITED))
    assert routing.matches(request, begin(), demand(terms=TWO))


def test_edited_arguments_without_their_digest_match_nothing() -> None:
    request = replace(voted(opened(), approve(ANN, arguments=EDITED)), extra={})
    assert not routing.matches(request, begin(), demand(EDITED))


def test_edited_arguments_that_were_swapped_in_the_store_match_nothing() -> None:
    request = replace(voted(opened(), approve(ANN, arguments=EDITED)), edited={"amount": 9999})
    assert not routing.matches(request, begin(), demand({"amount": 9999}))


def test_arguments_without_canonical_form_match_no_edit() -> None:
    request = voted(opened(), approve(ANN, arguments=EDITED))
    assert not routing.matches(request, begin(), replace(demand(EDITED), arguments={"x": float("nan")}))


RICH = ApprovalTerms(
    role_sets=(("finance", "cfo"),), quorum=2, expires_s=600.0, edit=True, escalate=(EscalationStep(60.0, ("lead",)),)
)


@pytest.mark.parametrize(
    "change",
    [
        {"quorum": 3},
        {"role_sets": (("finance",),)},
        {"role_sets": (("finance", "cfo"), ("legal",))},
        {"expires_s": 599.0},
        {"edit": False},
        {"escalate": ()},
        {"escalate": (EscalationStep(61.0, ("lead",)),)},
        {"escalate": (EscalationStep(60.0, ("boss",)),)},
    ],
)
def test_an_approval_under_lenient_terms_does_not_serve_stricter_ones(change: dict[str, Any]) -> None:
    request = opened(RICH)
    assert not routing.matches(request, begin(), demand(terms=replace(RICH, **change)))


def test_an_approval_of_the_requester_does_not_serve_where_it_must_be_another() -> None:
    request = opened(replace(RICH, separate=False))
    assert not routing.matches(request, begin(), demand(terms=RICH))


@pytest.mark.parametrize(
    "change",
    [
        {"quorum": 1},
        {"role_sets": ()},
        {"role_sets": (("finance", "cfo", "legal"),)},
        {"expires_s": 601.0},
        {"separate": False},
        {"escalate": (EscalationStep(59.0, ("lead", "boss")),)},
    ],
)
def test_an_approval_under_strict_terms_serves_lenient_ones(change: dict[str, Any]) -> None:
    assert routing.matches(opened(RICH), begin(), demand(terms=replace(RICH, **change)))


# --- any sequence --------------------------------------------------------------------------------

PEOPLE = [ANN, BOB, EVE, LEAD, ApproverIdentity("u-17", ("finance",)), ApproverIdentity("kim", ("legal", "cfo"))]
TERMS = [FINANCE, TWO, LADDER, replace(TWO, role_sets=(("finance",), ("legal",))), replace(TWO, edit=False)]

verdicts = st.builds(
    Verdict,
    st.sampled_from(["approve", "approve", "approve", "reject", "escalate", "terminate"]),
    st.sampled_from(PEOPLE),
    arguments=st.sampled_from([None, None, dict(ARGUMENTS), EDITED, {**EDITED, "amount": 99}]),
    scope=st.sampled_from(["call", "call", "arguments", "run", "until"]),
    until_ns=st.sampled_from([None, None, NOW + 40 * MINUTE]),
    to=st.sampled_from([(), ("cfo",)]),
)


@given(st.sampled_from(TERMS), st.lists(st.tuples(verdicts, st.integers(0, 400)), max_size=12))
def test_no_sequence_of_answers_breaks_a_promise(terms: ApprovalTerms, steps: list[tuple[Verdict, int]]) -> None:
    request, now, ended = opened(terms), NOW, None
    codes: set[str] = set()
    for verdict, seconds in steps:
        now += seconds * NANO
        before = request
        try:
            request = routing.vote(request, verdict, now)
        except ApprovalError as error:
            codes.add(error.code)
            continue
        assert ended is None, "a decided request was decided again"
        assert now < before.expires_at, "an answer counted after the expiry"
        assert verdict.by.name != "u-17", "the requester decided"
        assert routing.from_json(routing.to_json(request)) == request
        if request.status != "pending":
            ended = request.status
        if request.status == "approved":
            names = [v.by for v in request.votes if v.kind == "approve"]
            held = {role for v in request.votes if v.kind == "approve" for role in v.roles}
            rungs = set(routing.eligible_roles(request, now)) - {r for s in terms.role_sets for r in s}
            assert len(names) == len(set(names)) >= terms.quorum
            assert all(held & (set(roles) | rungs) for roles in terms.role_sets)
            assert not any(v.kind in ("reject", "terminate") for v in request.votes)
            ran = request.edited if request.edited is not None else ARGUMENTS
            assert routing.matches(request, begin(), demand(ran, terms))
            assert request.edited is None or (terms.edit and request.scope == "call")
        if "reject" in [v.kind for v in request.votes]:
            assert request.status == "rejected"
    assert codes <= {f"AG63{n}" for n in range(2, 10)}
