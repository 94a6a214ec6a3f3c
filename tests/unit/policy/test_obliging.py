"""Obligations: merged to the tightest, applied exactly or refused."""

from __future__ import annotations

import pytest

from agentguard.domain.decisions import NO_OBLIGATIONS, Obligations
from agentguard.policy import Unenforceable, apply, redact_output
from agentguard.policy.obliging import tightest


def test_arguments_are_rewritten_then_clamped_then_redacted() -> None:
    obligations = Obligations(
        redact_arguments=("key",),
        clamp=(("limit", (None, 50)), ("n", (1, None))),
        rewrite=(("limit", 99), ("dry", True)),
    )
    given = {"limit": 7, "n": 0, "key": "s3cret", "x": [1]}
    assert apply(obligations, given) == {"limit": 50, "n": 1, "key": "[redacted]", "x": [1], "dry": True}
    assert given == {"limit": 7, "n": 0, "key": "s3cret", "x": [1]}


def test_paths_reach_into_lists_and_objects_without_changing_what_was_given() -> None:
    given = {"items": [{"n": 5}, {"n": 500}], "o": {"a": 9, "b": 1}}
    obligations = Obligations(clamp=(("items.*.n", (None, 10)), ("o.*", (2, None)), ("items.0.n", (6, None))))
    assert apply(obligations, given) == {"items": [{"n": 6}, {"n": 10}], "o": {"a": 9, "b": 2}}
    assert given["items"] == [{"n": 5}, {"n": 500}]


def test_what_is_not_there_is_left_alone() -> None:
    obligations = Obligations(redact_arguments=("a", "b.c", "l.3"), clamp=(("z", (0, 1)),))
    assert apply(obligations, {"b": {}, "l": []}) == {"b": {}, "l": []}
    assert apply(Obligations(redact_arguments=("b.c",)), {"b": None}) == {"b": None}


@pytest.mark.parametrize(
    ("obligations", "arguments"),
    [
        (Obligations(clamp=(("a", (0, 1)),)), {"a": "5"}),
        (Obligations(clamp=(("a", (0, 1)),)), {"a": True}),
        (Obligations(clamp=(("a", (0, 1)),)), {"a": None}),
        (Obligations(clamp=(("a", (0, 1)),)), {"a": float("nan")}),
        (Obligations(redact_arguments=("a.b",)), {"a": "text"}),
        (Obligations(redact_arguments=("a.b",)), {"a": [1]}),
        (Obligations(rewrite=(("a.b", 1),)), {}),
        (Obligations(rewrite=(("a.b", 1),)), {"a": None}),
        (Obligations(rewrite=(("a.3", 1),)), {"a": []}),
    ],
)
def test_what_cannot_be_done_exactly_is_refused(obligations: Obligations, arguments: dict[str, object]) -> None:
    with pytest.raises(Unenforceable):
        apply(obligations, arguments)


def test_output_is_redacted_and_withheld_where_it_is_not_as_expected() -> None:
    value = {"rows": [{"ssn": "1", "n": 2}, {"n": 3}], "token": "t"}
    assert redact_output(("rows.*.ssn", "token"), value) == {
        "rows": [{"ssn": "[redacted]", "n": 2}, {"n": 3}],
        "token": "[redacted]",
    }
    assert redact_output(("",), value) == "[redacted]"
    assert redact_output(("a.b",), {"a": "ssn: 1"}) == {"a": "[redacted]"}
    assert redact_output(("a",), "just text") == "[redacted]"
    assert redact_output(("a",), None) is None
    assert redact_output((), value) is value


def test_the_tighter_of_two_wins() -> None:
    one = Obligations(
        redact_arguments=("b",),
        clamp=(("x", (0, 10)), ("y", (None, 5))),
        timeout_s=30,
        cpu=2,
        messages=("m",),
        rewrite=(("r", 1),),
    )
    two = Obligations(
        redact_arguments=("a",),
        clamp=(("x", (2, None)),),
        timeout_s=10,
        memory_bytes=5,
        network="none",
        messages=("m",),
    )
    merged = tightest([one, NO_OBLIGATIONS, two])
    assert merged == Obligations(
        redact_arguments=("a", "b"),
        clamp=(("x", (2, 10)), ("y", (None, 5))),
        rewrite=(("r", 1),),
        timeout_s=10,
        memory_bytes=5,
        cpu=2,
        network="none",
        messages=("m",),
    )
    assert tightest([two, one]) == merged
    assert tightest([one]) is one
    assert tightest([]) is NO_OBLIGATIONS


def test_contradictions_cannot_be_merged() -> None:
    for one, two in [
        (Obligations(clamp=(("x", (0, 1)),)), Obligations(clamp=(("x", (2, 3)),))),
        (Obligations(rewrite=(("x", 1),)), Obligations(rewrite=(("x", True),))),
    ]:
        with pytest.raises(Unenforceable):
            tightest([one, two])
    tightest([Obligations(rewrite=(("x", 1),)), Obligations(rewrite=(("x", 1),), cpu=1)])
