"""Case files: what is read, what is refused, and when a case holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentguard import ToolRegistry, tool
from agentguard.documents import load, load_file
from agentguard.domain.plans import ToolSpec
from agentguard.errors import ConfigurationError, PolicyError
from agentguard.gateway.rehearsing import Rehearsal, rehearse, tools_of
from agentguard.policy.cases import Suite, chosen, read_cases
from tests.unit.policy.support import CASES

TOOLS = "tools: {pay: {schema: {type: object, properties: {n: {type: integer}}}, risk: high}, look: }\n"
POLICY = """\
policy: |
  rules:
    - {id: small, allow: pay, when: {args: {n: {maximum: 10}}}}
    - {id: calm, constrain: pay, limits: {timeout: 5s}}
    - {id: never, deny: look}
"""


@tool(name="pay", effect="irreversible")
def pay(n: int = 3) -> str:
    return f"paid {n}"


@tool(name="look", effect="read")
def look() -> str:
    return ""


def suites(text: str, folder: Path = Path()) -> tuple[Suite, ...]:
    return read_cases(load(text, "cases.yaml"), folder)


def tried(cases: str, policy: str = POLICY, tools: str = TOOLS) -> Rehearsal:
    (suite,) = suites(f"{tools}{policy}cases:\n{cases}")
    return rehearse(suite, tools_of(suite, ToolRegistry.of(pay, look), lambda where: ToolRegistry.of(pay, look)))


def problems(cases: str, **more: str) -> list[str]:
    (one,) = tried(cases, **more).tried
    return list(one.problems)


def findings(text: str) -> list[tuple[str, int]]:
    with pytest.raises(PolicyError) as caught:
        suites(text)
    return [(f.code, f.line) for f in caught.value.findings]


def test_the_shared_cases_of_this_project_hold() -> None:
    count = 0
    for suite in read_cases(load_file(CASES / "decisions.yaml"), CASES):
        done = rehearse(suite, tools_of(suite, None, lambda where: ToolRegistry()))
        assert done.passed, [one.problems for one in done.tried if not one.passed]
        count += len(done.tried)
    assert count >= 90


def test_a_case_that_holds_has_no_problems() -> None:
    assert problems("- {tool: pay, args: {n: 3}, verdict: allow, rules: [small], reasons: small, mode: enforce}") == []


@pytest.mark.parametrize(
    ("case", "problem"),
    [
        ("{tool: pay, args: {n: 11}, verdict: allow}", "the verdict is deny, not allow"),
        ("{tool: pay, args: {n: 3}, verdict: deny}", "the verdict is allow, not deny"),
        ("{tool: pay, args: {n: 3}, verdict: allow, rules: [never]}", "the rules are [small], not [never]"),
        ("{tool: pay, args: {n: 3}, verdict: allow, rules: []}", "the rules are [small], not []"),
        ("{tool: pay, args: {n: 3}, verdict: allow, mode: observe}", "the mode is enforce, not observe"),
        ("{tool: pay, args: {n: 3}, verdict: allow, reasons: banana}", 'no reason contains "banana"'),
        ("{tool: pay, args: {n: 11}, verdict: deny, unlock: [n at most 10, banana]}", 'no way out contains "banana"'),
        ("{tool: pay, args: {n: 3}, verdict: allow, message: x}", 'no message to the model contains "x": nothing'),
        ("{tool: pya, verdict: deny}", 'no tool pya is registered (did you mean "pay"?)'),
        ("{tool: pay, args: {n: 3}, verdict: allow, registered: false}", "pay is registered"),
    ],
)
def test_what_is_otherwise_is_a_problem(case: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems(f"- {case}")), problems(f"- {case}")


def test_a_case_may_be_about_a_tool_that_does_not_exist() -> None:
    assert problems("- {tool: pya, verdict: deny, registered: false, rules: []}") == []


def test_a_wrong_verdict_says_why_it_came() -> None:
    assert any(text.startswith("because never") for text in problems("- {tool: look, verdict: allow}"))


def test_real_tools_fill_in_defaults_and_validate() -> None:
    assert problems("- {tool: pay, verdict: allow, rules: small}", tools="") == []
    assert problems("- {tool: pay, args: {n: many}, verdict: invalid}", tools="tools: shop:TOOLS\n") == []
    assert problems("- {tool: pay, args: {n: 1}, verdict: invalid}", tools="")[0] == "the verdict is allow, not invalid"
    first, second = problems("- {tool: pay, args: {m: 1}, verdict: deny}", tools="")
    assert first.startswith("the arguments do not fit")
    assert second == "the verdict is invalid, not deny"


def test_tools_that_are_only_described_take_arguments_as_they_are() -> None:
    assert problems("- {tool: pay, args: {n: many}, verdict: deny}") == []


def test_a_suite_without_tools_says_how_to_name_them() -> None:
    (suite,) = suites(POLICY + "cases: [{tool: pay, verdict: deny}]")
    with pytest.raises(ConfigurationError, match="pass --tools module:attribute"):
        tools_of(suite, None, lambda where: ToolRegistry())


def test_rules_that_no_case_touches_are_named_and_obligations_count_as_touching() -> None:
    done = tried("- {tool: pay, args: {n: 3}, verdict: allow}")
    assert [ref.id for ref in done.untouched] == ["never"]
    assert [ref.id for ref in tried("- {tool: look, verdict: deny}").untouched] == ["small", "calm"]


def test_who_acts_when_and_with_which_labels_is_part_of_the_case() -> None:
    policy = """\
policy: |
  rules:
    - id: hours
      allow: pay
      when: {agent: bot, role: boss, time: {between: ["08:00", "09:00"]}, run: {labels: {all: [a, b]}}}
"""
    full = "context: {agent: bot, roles: [boss], labels: a, scope: [p*], task: Pay., user: u@example.com}, labels: [b]"
    assert problems(f"- {{tool: pay, {full}, now: '2026-01-01T08:30:00Z', verdict: allow}}", policy=policy) == []
    assert problems(f"- {{tool: pay, {full}, verdict: deny}}", policy=policy) == []
    assert problems(f"- {{tool: pay, {full.replace('[p*]', '[[p*], [x]]')}, verdict: deny}}", policy=policy) == []


def test_policies_come_from_files_too_as_layers_with_their_tools(tmp_path: Path) -> None:
    (tmp_path / "org.yaml").write_text("name: org\nrules: [{allow: {risk: critical}}, {deny: look}]\n")
    (tmp_path / "team.yaml").write_text("name: team\ndefault: abstain\ntools: {pay: {risk: critical}}\nrules: []\n")
    (suite,) = suites("file: [org.yaml, team.yaml]\ncases: [{tool: pay, verdict: allow, rules: ['allow#1']}]", tmp_path)
    done = rehearse(suite, tools_of(suite, ToolRegistry.of(pay, look), lambda where: ToolRegistry()))
    assert done.passed
    assert [layer.name for layer in suite.layers] == ["org", "team"]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("cases: [{tool: pay, verdict: deny}]", [("AG112", 1)]),
        ("policy: |\n  rules: []\nfile: x.yaml\ncases: [{tool: pay, verdict: deny}]", [("AG112", 1)]),
        ("policy: 7\ncases: [{tool: pay, verdict: deny}]", [("AG111", 1)]),
        (POLICY, [("AG112", 1)]),
        (POLICY + "cases: []", [("AG112", 6)]),
        (POLICY + "csaes: []", [("AG110", 6), ("AG112", 1)]),
        ("tools: shop\n" + POLICY + "cases: [{tool: pay, verdict: deny}]", [("AG111", 1)]),
        ("tools: {pay: {risky: high}}\n" + POLICY + "cases: [{tool: pay, verdict: deny}]", [("AG110", 1)]),
        ("tools: {pay: {risk: hihg, owner: ''}}\n" + POLICY + "cases: [{tool: a, verdict: deny}]",
         [("AG115", 1), ("AG111", 1)]),
        ("tools: {pay: {schema: 7}}\n" + POLICY + "cases: [{tool: pay, verdict: deny}]", [("AG111", 1)]),
        ("groups: []", [("AG111", 1)]),
        ("groups:\n - cases: 7\n", [("AG112", 2), ("AG112", 2)]),
        ("groups: [{}]\ncases: []", [("AG119", 2), ("AG112", 1), ("AG112", 1)]),
        ("file: missing.yaml\ncases: [{tool: pay, verdict: deny}]", [("AG100", 1)]),
        ("policy: |\n  rulse: []\ncases: [{tool: pay, verdict: deny}]", [("AG110", 1)]),
        (POLICY + "cases:\n - {tool: pay}", [("AG112", 7)]),
        (POLICY + "cases:\n - 7", [("AG111", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: alow}", [("AG115", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: deny, rule: x}", [("AG110", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: allow, rules: [smal]}", [("AG115", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: deny, args: [1]}", [("AG111", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: deny, now: 12:00}", [("AG113", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: deny, now: '2026-01-01T12:00:00'}", [("AG113", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: deny, context: {agnet: x}}", [("AG110", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: deny, context: {agent: 'a b', roles: []}}", [("AG111", 7)]),
        (POLICY + "cases:\n - {tool: pay, verdict: deny, registered: no}", [("AG111", 7)]),
    ],
)  # fmt: skip
def test_a_case_file_that_is_not_understood_does_not_load(text: str, found: list[tuple[str, int]]) -> None:
    assert findings(text) == found


def test_a_walk_that_finds_too_much_stops() -> None:
    assert len(findings(POLICY + "cases:\n" + " - {tool: pay, verdict: x}\n" * 80)) == 50


def test_cases_are_chosen_by_sentence_or_tool() -> None:
    (suite,) = suites(POLICY + "cases: [{tool: pay, verdict: deny, say: Big sums}, {tool: look, verdict: deny}]")
    assert [case.say for case in chosen(suite.cases, "big")] == ["Big sums"]
    assert [case.tool for case in chosen(suite.cases, "LOOK")] == ["look"]
    assert chosen(suite.cases, "banana") == []


def test_a_described_tool_has_the_facts_it_was_given() -> None:
    (suite,) = suites(
        "tools: {pay: {permissions: p, labels: [l], effect: read, risk: low, owner: me}}\n"
        + POLICY
        + "cases: [{tool: pay, verdict: deny}]"
    )
    expected: dict[str, Any] = {"permissions": ("p",), "output_labels": ("l",), "effect": "read", "risk": "low"}
    (described,) = suite.described or ()
    assert described.spec == ToolSpec("pay", "", {"type": "object"}, owner="me", **expected)
