"""The digest of an approval changes with everything that will run, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.approval.binding import WIDE_SCOPES, canonical_arguments, grant_digest, request_digest
from agentguard.canonical import NotCanonical
from agentguard.domain.decisions import ApprovalTerms, EscalationStep

REQUEST: dict[str, Any] = {
    "tenant": "acme",
    "agent": "bot",
    "user": "u",
    "environment": "prod",
    "run_id": "r",
    "call_key": "k",
    "tool": "t",
    "tool_digest": "td",
    "canonical": b"{}",
    "policy_digest": "pd",
    "nonce": "n",
    "not_after": 7,
}
GRANT: dict[str, Any] = {
    "tenant": "acme",
    "agent": "bot",
    "user": "u",
    "environment": "prod",
    "run_id": "r",
    "tool": "t",
    "tool_digest": "td",
    "canonical": b"{}",
    "policy_digest": "pd",
    "terms": ApprovalTerms(),
}


def other(value: Any) -> Any:
    if isinstance(value, ApprovalTerms):
        return ApprovalTerms(quorum=2)
    return value + 1 if isinstance(value, int) else value + (b"x" if isinstance(value, bytes) else "x")


@pytest.mark.parametrize("name", REQUEST)
def test_the_request_digest_changes_with_every_part(name: str) -> None:
    assert request_digest(**{**REQUEST, name: other(REQUEST[name])}) != request_digest(**REQUEST)


def test_the_request_digest_is_the_same_for_the_same_parts() -> None:
    assert request_digest(**REQUEST) == request_digest(**dict(REQUEST))
    assert len(request_digest(**REQUEST)) == 64


def test_no_user_differs_from_an_empty_user() -> None:
    assert request_digest(**{**REQUEST, "user": None}) != request_digest(**{**REQUEST, "user": ""})


def test_a_character_cannot_move_from_one_part_to_its_neighbour() -> None:
    one = request_digest(**{**REQUEST, "tenant": "ab", "agent": "c"})
    assert one != request_digest(**{**REQUEST, "tenant": "a", "agent": "bc"})


def test_a_part_that_looks_like_an_encoding_does_not_collide() -> None:
    one = request_digest(**{**REQUEST, "tenant": "as1:b", "agent": ""})
    assert one != request_digest(**{**REQUEST, "tenant": "a", "agent": "b"})


def test_a_part_that_holds_the_tag_of_the_next_does_not_collide() -> None:
    one = request_digest(**{**REQUEST, "tenant": "asb", "agent": "c"})
    assert one != request_digest(**{**REQUEST, "tenant": "a", "agent": "bsc"})


def test_a_lone_surrogate_in_a_name_still_has_a_digest_of_its_own() -> None:
    assert request_digest(**{**REQUEST, "tool": "\ud800"}) != request_digest(**{**REQUEST, "tool": "\ud801"})


texts = st.text(max_size=3)


@given(st.tuples(texts, texts, st.none() | texts), st.tuples(texts, texts, st.none() | texts))
def test_two_lists_of_parts_share_a_digest_only_when_equal(one: Any, two: Any) -> None:
    digests = [request_digest(**{**REQUEST, "tenant": t, "agent": a, "user": u}) for t, a, u in (one, two)]
    assert (digests[0] == digests[1]) == (one == two)


def test_values_that_look_alike_differ() -> None:
    forms = {canonical_arguments({"x": v}) for v in (1, 1.0, True, "1", "true", None, "null", [1], {"1": 1})}
    assert len(forms) == 9


def test_the_order_of_keys_does_not_matter() -> None:
    assert canonical_arguments({"a": 1, "b": 2}) == canonical_arguments({"b": 2, "a": 1})


def test_cosmetic_arguments_are_left_out_at_the_top_only() -> None:
    assert canonical_arguments({"a": 1, "note": "x"}, ("note",)) == canonical_arguments(
        {"a": 1, "note": "y"}, ("note",)
    )
    assert canonical_arguments({"a": {"note": 1}}, ("note",)) != canonical_arguments({"a": {"note": 2}}, ("note",))


def test_without_cosmetic_names_every_argument_counts() -> None:
    assert canonical_arguments({"note": "x"}) != canonical_arguments({"note": "y"})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, "\ud800"])
def test_what_has_no_canonical_form_is_refused(value: Any) -> None:
    with pytest.raises(NotCanonical):
        canonical_arguments({"x": value})


@pytest.mark.parametrize("scope", WIDE_SCOPES)
@pytest.mark.parametrize("name", GRANT)
def test_a_grant_covers_what_its_scope_says(scope: Any, name: str) -> None:
    free = {"arguments": set(), "run": {"canonical"}, "until": {"canonical", "run_id"}}[scope]
    same = grant_digest(scope, **{**GRANT, name: other(GRANT[name])}) == grant_digest(scope, **GRANT)
    assert same == (name in free)


def test_scopes_never_share_a_grant() -> None:
    assert len({grant_digest(scope, **GRANT) for scope in WIDE_SCOPES}) == 3


def test_every_term_counts_for_a_grant() -> None:
    step = EscalationStep(1.0, ("lead",))
    terms = [
        ApprovalTerms(),
        ApprovalTerms(role_sets=(("a",),)),
        ApprovalTerms(role_sets=(("a", "b"),)),
        ApprovalTerms(role_sets=(("a",), ("b",))),
        ApprovalTerms(quorum=2),
        ApprovalTerms(expires_s=1.0),
        ApprovalTerms(separate=False),
        ApprovalTerms(edit=False),
        ApprovalTerms(escalate=(step,)),
    ]
    assert len({grant_digest("run", **{**GRANT, "terms": t}) for t in terms}) == len(terms)


@pytest.mark.parametrize("scope", ["call", "", "everything"])
def test_a_scope_without_standing_approval_has_no_grant_digest(scope: Any) -> None:
    with pytest.raises(ValueError, match="no standing approval"):
        grant_digest(scope, **GRANT)
