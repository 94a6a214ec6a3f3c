"""Folding finds rules sooner and never changes a verdict."""

from __future__ import annotations

import random
from typing import Any

import pytest

from agentguard.documents import Document
from agentguard.policy import Policy, compile_layers, compiling, folding
from agentguard.policy.matchers import NotLinear
from tests.unit.policy.support import FakeRegistry, context, spec

TOOLS = FakeRegistry(spec("t", {"type": "object"}))
WORDS = ["a", "ab", "abc", "b", "bc", "a.b", "", "zz", "/srv/x", "/srv/y/z"]


def fragment(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-5, 5)
    choices: list[dict[str, Any]] = [
        {"const": rng.choice(WORDS)},
        {"enum": rng.sample(WORDS, 3)},
        {"enum": [1, 2.0, 5]},
        {"const": rng.randint(-3, 3)},
        {"enum": ["a", 1]},
        {"pattern": "^" + rng.choice(["a", "b", "/srv/", "abc", "a\\.b", ""])},
        {"pattern": "^" + rng.choice(["a", "b", "a\\.b", ""]) + "$"},
        {"pattern": rng.choice(["b$", "[ab]c", "^(?:a|b)+$", "(?i)A", "z{2}", "a|b", "x"])},
        {"minimum": low, "maximum": low + rng.randint(0, 4)},
        {"exclusiveMinimum": low, "exclusiveMaximum": low + rng.randint(0, 4)},
        {"minimum": low, "exclusiveMinimum": low},
        {"maximum": low},
        {"not": {"const": "a"}},
        {"minimum": low, "optional": True},
    ]
    return rng.choice(choices)


def rules(rng: random.Random, count: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"id": "yes", "allow": "t"}]
    for number in range(count):
        paths = rng.sample(["p", "q", "n.x", "l.*"], rng.choice([1, 1, 2]))
        when: dict[str, Any] = {"args": {path: fragment(rng) for path in paths}}
        if rng.random() < 0.2:
            when["agent"] = rng.choice(["bot", "other"])
        found.append({"id": f"r{number}", rng.choice(["deny", "require_approval"]): "t", "when": when})
    return found


def value(rng: random.Random) -> Any:
    return rng.choice(
        [*WORDS, *range(-6, 7), 0.5, 2.0, float("inf"), float("nan"), True, None, [1], {"x": 1}, "\ud800"]
    )


def arguments(rng: random.Random) -> dict[str, Any]:
    found = {name: value(rng) for name in ("p", "q") if rng.random() < 0.9}
    if rng.random() < 0.9:
        found["n"] = rng.choice([{"x": value(rng)}, {}, None, 3])
    if rng.random() < 0.9:
        found["l"] = [value(rng) for _ in range(rng.randint(0, 2))]
    return found


def test_folded_and_unfolded_rules_decide_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(11)
    for _ in range(60):
        policy = Policy.from_document(Document({"rules": rules(rng, rng.choice([1, 4, 30]))}, "f", ""))
        folded = compile_layers([policy], TOOLS)
        with monkeypatch.context() as patch:
            patch.setattr(compiling, "fold", lambda rules: ((), tuple(rule for rule, _ in rules)))
            straight = compile_layers([policy], TOOLS)
        for _ in range(40):
            call = arguments(rng)
            one, other = (b.decide("t", call, context(), (), 0) for b in (folded, straight))
            assert one == other, call


def test_a_guard_that_leaves_a_rule_out_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_numbers", lambda ranges: folding._Numbers((), ((),), ()))
    with pytest.raises(AssertionError):
        test_folded_and_unfolded_rules_decide_alike(pytest.MonkeyPatch())


def plan(found: list[dict[str, Any]]) -> Any:
    policy = Policy.from_document(Document({"rules": found}, "f", ""))
    return compile_layers([policy], TOOLS)._plans["t"]


def deny(**args: Any) -> dict[str, Any]:
    return {"deny": "t", "when": {"args": args}}


def test_rules_on_one_argument_share_one_guard() -> None:
    found = plan([deny(p={"pattern": f"^x{n}[0-9]+y$"}) for n in range(50)])
    assert len(found.guards) == 1
    assert not found.linear
    named = found.guards[0]({"p": "x170y"})
    assert {1, 17} <= {c.number for c in named}
    assert len(named) < 10
    assert not found.guards[0]({"p": "nothing"})
    assert len(found.guards[0]({})) == 50


def test_ranges_that_overlap_too_much_are_judged_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "_CELLS", 100)
    found = plan([deny(p={"minimum": n}) for n in range(50)] + [deny(p="word")])
    assert not found.guards
    assert len(found.linear) == 51


def test_patterns_that_do_not_fit_together_are_searched_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    search = folding.pattern_search

    def limited(pattern: str) -> Any:
        if "|" in pattern:
            raise NotLinear("too large")
        return search(pattern)

    monkeypatch.setattr(folding, "pattern_search", limited)
    for count in (3, 20):
        found = plan([deny(p={"pattern": f"[x]{n}$"}) for n in range(count)])
        assert [c.number for c in found.guards[0]({"p": "x2"})] == [2]


def test_many_lengths_of_prefixes_become_patterns() -> None:
    found = plan([deny(p={"pattern": "^" + "/" * n}) for n in range(1, 9)] + [deny(p="word")])
    assert 0 in [c.number for c in found.guards[0]({"p": "/x"})]
    assert [c.number for c in found.guards[0]({"p": "word"})] == [8]
    assert not found.guards[0]({"p": "x"})
