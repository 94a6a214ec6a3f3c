"""A request survives being text, and text that is no request becomes none."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.approval.text import from_json, own, to_json
from agentguard.domain.approvals import Vote
from agentguard.errors import StoreError
from tests.unit.approval.asking import LADDER, NOW, opened

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)
objects = st.dictionaries(st.text(), values, max_size=4)


@given(arguments=objects, proposed=objects, edited=st.none() | objects, reason=st.none() | st.text(), user=st.text())
def test_a_request_comes_back_exactly(arguments: Any, proposed: Any, edited: Any, reason: Any, user: str) -> None:
    request = opened(
        LADDER,
        arguments=arguments,
        proposed=proposed,
        edited=edited,
        user=user,
        votes=(Vote("ann", ("finance",), "approve", NOW, reason), Vote("bob", (), "escalate", NOW + 1)),
        until_ns=NOW + 5,
        decided_at=NOW,
    )
    again = from_json(to_json(request))
    assert again == request
    assert repr(again) == repr(request)  # == takes 1, 1.0 and True for the same


def test_the_type_of_a_number_of_seconds_comes_back_too() -> None:
    request = opened(replace(LADDER, expires_s=1800))
    assert repr(from_json(to_json(request)).terms.expires_s) == "1800"


def test_tuples_become_lists_when_a_value_is_copied() -> None:
    assert own({"a": (1, [2, {"b": ()}])}) == {"a": [1, [2, {"b": []}]]}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object(), {1: 2}, b"x"])
def test_what_is_no_json_value_is_not_written(value: Any) -> None:
    with pytest.raises(ValueError):
        to_json(opened(arguments={"x": value}))


def changed(**changes: Any) -> str:
    return json.dumps({**json.loads(to_json(opened(LADDER, votes=(Vote("ann", (), "approve", 1),)))), **changes})


def terms(**changes: Any) -> Any:
    return {**json.loads(changed())["terms"], **changes}


VOTE = {"by": "ann", "roles": [], "kind": "approve", "at": 1, "reason": None}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "{" * 100_000,
        "[" * 100_000,
        changed(more=1),
        json.dumps({k: v for k, v in json.loads(changed()).items() if k != "status"}),
        changed(id=1),
        changed(tenant=None),
        changed(user=7),
        changed(status="granted"),
        changed(status=["approved"]),
        changed(scope="forever"),
        changed(created_at="1"),
        changed(expires_at=1.5),
        changed(expires_at=True),
        changed(until_ns="1"),
        changed(decided_at=1.0),
        changed(arguments=[]),
        changed(proposed=None),
        changed(extra=[]),
        changed(edited=[]),
        changed(budget_effect={"steps": 1.5}),
        changed(budget_effect=[]),
        changed(rules="x"),
        changed(reasons=[1]),
        changed(votes={}),
        changed(votes=[1]),
        changed(votes=[{**VOTE, "kind": "maybe"}]),
        changed(votes=[{**VOTE, "by": None}]),
        changed(votes=[{**VOTE, "reason": 1}]),
        changed(votes=[{**VOTE, "at": "now"}]),
        changed(votes=[{**VOTE, "roles": "finance"}]),
        changed(votes=[{**VOTE, "more": 1}]),
        changed(terms=None),
        changed(terms=terms(more=1)),
        changed(terms=terms(quorum="1")),
        changed(terms=terms(quorum=True)),
        changed(terms=terms(separate=0)),
        changed(terms=terms(edit=None)),
        changed(terms=terms(expires_s=-1)),
        changed(terms=terms(expires_s=True)),
        changed(terms=terms(role_sets="finance")),
        changed(terms=terms(role_sets=["finance"])),
        changed(terms=terms(escalate=[{"after_s": 1}])),
        changed(terms=terms(escalate={})),
        changed(arguments={"x": float("nan")}),
    ],
)
def test_text_that_is_not_exactly_a_request_is_refused(text: str) -> None:
    with pytest.raises(StoreError, match="it grants nothing"):
        from_json(text)


def test_the_text_that_the_refusals_start_from_is_itself_fine() -> None:
    assert from_json(changed()).votes[0].by == "ann"
