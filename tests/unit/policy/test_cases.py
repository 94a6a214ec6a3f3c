"""The shared cases: policy, call, context, and what must come of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from agentguard.documents import load_file
from agentguard.errors import PolicyError
from tests.unit.policy.support import CASES, book, case_registry, context, ids

DECISIONS = load_file(CASES / "decisions.yaml").value
REFUSED = load_file(CASES / "refused.yaml").value["cases"]


def calls() -> list[Any]:
    return [
        pytest.param(group["policy"], case, id=case["say"]) for group in DECISIONS["groups"] for case in group["cases"]
    ]


@pytest.mark.parametrize(("policy", "case"), calls())
def test_a_call_is_decided_as_the_case_says(policy: str, case: dict[str, Any]) -> None:
    facts = {
        key: tuple(map(tuple, value)) if key == "scope" else tuple(value) if isinstance(value, list) else value
        for key, value in case.get("context", {}).items()
    }
    now = int(datetime.fromisoformat(case.get("now", "2026-01-01T12:00:00+00:00")).timestamp()) * 1_000_000_000
    rulebook = book(policy)
    decision = rulebook.decide(case["tool"], case.get("args", {}), context(**facts), case.get("labels", ()), now)
    assert (decision.verdict, ids(decision)) == (case["verdict"], case["rules"]), decision.reasons
    assert decision.mode == case.get("mode", "enforce")
    assert decision.reasons
    assert decision.policy_digest == rulebook.digest
    assert len(decision.message) <= 500
    if "unlock" in case:
        assert case["unlock"] in decision.unlock
    if "message" in case:
        assert case["message"] in decision.message


@pytest.mark.parametrize("case", REFUSED, ids=[case["say"] for case in REFUSED])
def test_a_mistake_in_a_policy_keeps_it_from_loading(case: dict[str, Any]) -> None:
    with pytest.raises(PolicyError) as caught:
        book(case["policy"], tools=case_registry())
    (finding,) = caught.value.findings
    assert (finding.code, f"{finding.line}:{finding.column}") == (case["code"], case["at"]), str(finding)
    assert finding.file == "p0.yaml"
    assert finding.excerpt
    assert case.get("hint", "") in finding.hint


def test_there_are_enough_cases() -> None:
    assert len(calls()) + len(REFUSED) >= 140
