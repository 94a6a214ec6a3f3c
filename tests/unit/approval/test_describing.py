"""What an approver reads: everything that will run, and nothing that plays tricks on the reader."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.approval import routing
from agentguard.approval.describing import describe, differences, shown, visible
from agentguard.domain.approvals import Verdict
from agentguard.domain.decisions import ApprovalTerms
from tests.unit.approval.asking import ANN, ARGUMENTS, NOW, TWO, opened


def test_a_request_is_shown_whole() -> None:
    assert describe(opened()) == [
        "approval ap_00000000000000000000000000000000 (pending)",
        "tool refunds.create (risk high, irreversible)",
        "agent support-bot for u-17 in tenant acme, environment prod",
        "run run-1, call c1",
        "arguments:",
        '  order = "A-17"',
        "  amount = 250",
        '  note = "thanks"',
        '  items = [{"sku": "x", "n": 1}]',
        "differs from what the model asked:",
        "  amount: 999 -> 250",
        "because amount is over 100",
        "rules: big-refunds (policy.yaml:12)",
        "would use: tool_calls 2, cost_usd 0.0015",
        "needs 1 approver (finance), not the requester, until 2027-01-15 08:30:00 UTC",
    ]


def test_a_bare_request_is_short() -> None:
    request = opened(
        ApprovalTerms(separate=False), arguments={}, proposed={}, user=None, rules=(), reasons=(), budget_effect={}
    )
    assert describe(request)[2:] == [
        "agent support-bot in tenant acme, environment prod",
        "run run-1, call c1",
        "arguments: none",
        "needs 1 approver, until 2027-01-15 09:00:00 UTC",
    ]


def test_after_an_edit_the_edited_arguments_are_shown_and_compared_with_both() -> None:
    verdict = Verdict("approve", ANN, arguments={**ARGUMENTS, "amount": 100}, reason="half")
    lines = describe(routing.vote(opened(TWO), verdict, NOW + 1))
    assert "  amount = 100" in lines
    assert lines[lines.index("an approver changed:") + 1] == "  amount: 250 -> 100"
    assert lines[lines.index("differs from what the model asked:") + 1] == "  amount: 999 -> 100"
    assert lines[-2].startswith("needs 2 approvers (finance)")
    assert lines[-1] == "approve by ann at 2027-01-15 08:00:00 UTC: half"


def test_role_sets_and_alternatives_are_told_apart() -> None:
    request = opened(replace(TWO, role_sets=(("finance", "cfo"), ("legal",))))
    assert "needs 2 approvers (finance or cfo and legal)" in describe(request)[-1]


def test_differences_go_to_any_depth() -> None:
    before = {"a": {"b": [1, {"c": 2}]}, "gone": None, "same": 1, "type": 1}
    after = {"a": {"b": [1, {"c": 3}, 4]}, "new": True, "same": 1, "type": 1.0}
    assert list(differences(before, after)) == [
        ("a.b[1].c", "2", "3"),
        ("a.b[2]", "(absent)", "4"),
        ("gone", "null", "(absent)"),
        ("type", "1", "1.0"),
        ("new", "(absent)", "true"),
    ]


def test_a_shortened_list_is_a_difference() -> None:
    assert list(differences([1, 2], [1])) == [("[1]", "2", "(absent)")]


def test_true_is_not_one() -> None:
    assert list(differences({"x": 1}, {"x": True})) == [("x", "1", "true")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("Grüße 你好", "Grüße 你好"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\u202egnp.exe", "\\u202egnp.exe"),
        ("\u200b\u00a0\u2028", "\\u200b\\xa0\\u2028"),
        ("\x9b31m\x7f", "\\x9b31m\\x7f"),
        ("back\\slash", "back\\\\slash"),
        ("\\x1b", "\\\\x1b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_is_not_plainly_visible_is_escaped(text: str, expected: str) -> None:
    assert visible(text) == expected


def test_a_foreign_value_is_named_and_not_rendered() -> None:
    assert shown({"x": object()}) == '{"x": "<object>"}'


def plain(line: str) -> bool:
    return all(c == " " or unicodedata.category(c)[0] not in "CZ" for c in line)


values: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values, values, st.text(), st.text())
def test_no_argument_name_or_reason_writes_a_raw_control_character(a: Any, b: Any, key: str, text: str) -> None:
    request = opened(
        arguments={key: a}, proposed={key: b}, edited={"x": b, key: text}, reasons=(text,), tool=text, agent=text
    )
    voted = replace(request, votes=(*routing.vote(opened(), Verdict("reject", ANN, reason=text), NOW).votes,))
    assert all(plain(line) for line in describe(voted))


@given(st.text(), st.text())
def test_different_texts_look_different(one: str, other: str) -> None:
    assert (visible(one) == visible(other)) == (one == other)
    assert (shown(one) == shown(other)) == (one == other)
