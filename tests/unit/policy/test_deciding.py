"""Decisions: layers, observation, obligations, explanations, totality."""

from __future__ import annotations

from typing import Any

import pytest

from agentguard.domain.context import RunContext
from agentguard.domain.decisions import ApprovalTerms, EscalationStep
from agentguard.policy import Policy, Rulebook, deciding
from agentguard.policy.planning import Plan
from tests.unit.policy.support import FakeRegistry, book, context, decide, ids, shape, spec

TOOLS = FakeRegistry(
    spec("a", shape(x={"type": "integer"}, y={"type": "string"}), permissions=("p",)),
    spec("b", shape(x={"type": "integer"})),
)
ALLOW_A = "rules: [{id: yes, allow: a}]"


def verdict(*layers: str, arguments: dict[str, Any] | None = None, **facts: Any) -> tuple[str, str, list[str]]:
    decision = decide(book(*layers, tools=TOOLS), "a", arguments or {"x": 1, "y": "t"}, **facts)
    return decision.verdict, decision.mode, ids(decision)


# -- layers ------------------------------------------------------------------------------------------------------------


def test_a_deny_in_any_layer_denies() -> None:
    assert verdict(ALLOW_A, "rules: [{id: no, deny: a}]") == ("deny", "enforce", ["no"])
    assert verdict("default: abstain\nrules: [{id: no, deny: a}]", ALLOW_A) == ("deny", "enforce", ["no"])


def test_an_approval_in_any_layer_needs_approval() -> None:
    assert verdict(ALLOW_A, "rules: [{id: ask, require_approval: a}]") == ("require_approval", "enforce", ["ask"])


def test_every_layer_that_defaults_to_deny_has_to_allow() -> None:
    assert verdict(ALLOW_A, "rules: [{allow: b}]")[0] == "deny"
    assert verdict(ALLOW_A, "rules: [{id: too, allow: a}]") == ("allow", "enforce", ["yes", "too"])
    assert verdict(ALLOW_A, "default: abstain\nrules: []") == ("allow", "enforce", ["yes"])


def test_an_approval_cannot_widen_what_another_layer_does_not_allow() -> None:
    assert verdict("rules: [{allow: b}]", "rules: [{id: ask, require_approval: a}]")[0] == "deny"


def test_abstaining_layers_alone_allow_nothing() -> None:
    assert verdict("default: abstain\nrules: []")[0] == "deny"
    assert verdict("default: abstain\nrules: []", "default: abstain\nrules: []")[0] == "deny"


def test_no_layer_at_all_denies() -> None:
    decision = decide(book(tools=TOOLS), "a")
    assert decision.verdict == "deny"
    assert decision.reasons == ("no policy allows a",)
    assert decision.mode == "enforce"
    assert not decision.allowed
    assert not book(tools=TOOLS).visible("a", context(), (), 0)


def test_every_refusal_blocks_unless_the_layer_only_observes() -> None:
    for layers in ((), (ALLOW_A, "rules: []"), ("default: abstain\nrules: []",), ("rules: [{deny: a}]",)):
        assert not decide(book(*layers, tools=TOOLS), "a").allowed
    assert decide(book("mode: observe\nrules: []", tools=TOOLS), "a").allowed


def test_layers_that_allow_share_one_decision_object() -> None:
    rulebook = book(ALLOW_A, "rules: [{allow: a}]", tools=TOOLS)
    assert decide(rulebook, "a") is decide(rulebook, "a")


# -- observing ---------------------------------------------------------------------------------------------------------


def test_what_only_an_observing_layer_denies_goes_through() -> None:
    assert verdict(ALLOW_A, "mode: observe\nrules: [{id: no, deny: a}]") == ("deny", "observe", ["no"])


def test_an_observing_layer_cannot_soften_an_enforced_one() -> None:
    assert verdict("mode: observe\nrules: [{allow: a}]", "rules: [{id: no, deny: a}]") == ("deny", "enforce", ["no"])
    observed = "mode: observe\nrules: [{id: never, deny: a}]"
    decision = decide(book("rules: [{id: ask, require_approval: a}]", observed, tools=TOOLS), "a")
    assert (decision.verdict, decision.mode, ids(decision)) == ("require_approval", "enforce", ["ask"])
    assert any("never" in reason and "observes only" in reason for reason in decision.reasons)


def test_an_observing_base_with_an_enforced_restriction_blocks_only_what_is_restricted() -> None:
    base, limit = "mode: observe\nrules: [{allow: b}]", "default: abstain\nrules: [{id: no, deny: b}]"
    rulebook = book(base, limit, tools=TOOLS)
    assert decide(rulebook, "a").allowed
    assert not decide(rulebook, "b").allowed


def test_obligations_of_observing_layers_do_not_touch_the_call() -> None:
    observed = "mode: observe\nrules: [{constrain: a, clamp: {args.x: {maximum: 0}}}, {allow: a}]"
    assert not decide(book(ALLOW_A, observed, tools=TOOLS), "a", {"x": 1}).obligations.changes_arguments
    assert not decide(book(observed, tools=TOOLS), "a", {"x": 1}).obligations.changes_arguments


# -- approvals ---------------------------------------------------------------------------------------------------------


def test_the_terms_of_several_approvals_add_up() -> None:
    text = """
rules:
  - {require_approval: a, approval: {roles: [x, w], quorum: 2, expires: 2h, edit: false, escalate: [{after: 20m, roles: [boss]}]}}
  - {require_approval: {permission: p}, approval: {roles: [z], expires: 30m, separate: false, escalate: [{after: 10m, roles: [lead]}]}}
  - {require_approval: "a*"}
"""
    decision = decide(book(text, tools=TOOLS), "a")
    assert decision.approval == ApprovalTerms(
        role_sets=(("w", "x"), ("z",)),
        quorum=2,
        expires_s=1800,
        separate=True,
        edit=False,
        escalate=(EscalationStep(600, ("lead",)), EscalationStep(1200, ("boss",))),
    )
    assert decision.unlock[0] == "approval by 2 people with role w or x and z"


def test_terms_have_safe_defaults() -> None:
    decision = decide(book(Policy(require_approval="a"), tools=TOOLS), "a")
    assert decision.approval == ApprovalTerms((), 1, 3600, True, True, ())


# -- obligations -------------------------------------------------------------------------------------------------------


def test_obligations_of_all_matching_rules_merge_whatever_their_order() -> None:
    rules = [
        "{allow: a}",
        "{allow: a, when: {args: {x: {minimum: 0}}}, redact: output.secret, message: be brief}",
        "{constrain: a, clamp: {args.x: {maximum: 9}}, limits: {timeout: 5s}}",
        "{constrain: {permission: p}, clamp: {args.x: {maximum: 3}}, limits: {timeout: 9s}}",
        "{constrain: b, limits: {timeout: 1s}}",
    ]
    found = set()
    for order in (rules, rules[::-1]):
        decision = decide(book("rules: [" + ", ".join(order) + "]", tools=TOOLS), "a", {"x": 5})
        assert decision.verdict == "allow"
        found.add(decision.obligations)
    (obligations,) = found
    assert obligations.clamp == (("x", (None, 3)),)
    assert obligations.timeout_s == 5
    assert obligations.redact_output == ("secret",)
    assert obligations.messages == ("be brief",)


def test_a_constraint_in_doubt_applies() -> None:
    text = "rules: [{allow: a}, {constrain: a, when: {args: {y: bad}}, limits: {timeout: 5s}}]"
    rulebook = book(text, tools=TOOLS)
    assert decide(rulebook, "a", {"y": "good"}).obligations.timeout_s is None
    assert decide(rulebook, "a", {"y": "bad"}).obligations.timeout_s == 5
    assert decide(rulebook, "a", {}).obligations.timeout_s == 5


def test_contradicting_obligations_deny() -> None:
    text = "rules: [{allow: a}, {constrain: a, rewrite: {args.x: 1}}, {constrain: a, rewrite: {args.x: 2}}]"
    decision = decide(book(text, tools=TOOLS), "a", {"x": 5})
    assert decision.verdict == "deny"
    assert "contradict" in decision.reasons[0]


def test_a_denied_call_carries_no_obligations() -> None:
    text = "rules: [{deny: a}, {constrain: a, rewrite: {args.x: 1}}, {constrain: a, rewrite: {args.x: 2}}]"
    decision = decide(book(text, tools=TOOLS), "a")
    assert decision.rules
    assert not decision.obligations.changes_arguments


# -- explaining --------------------------------------------------------------------------------------------------------


def test_a_denial_names_rule_file_line_and_way_out_but_no_value() -> None:
    text = "rules:\n  - {id: yes, allow: a}\n  - id: small\n    deny: a\n    when: {args: {y: {pattern: '^zz'}, x: {minimum: 10}}}\n"
    decision = decide(book(text, tools=TOOLS), "a", {"x": 987654, "y": "zz-top-secret"})
    assert str(decision.rules[0]) == "small (p0.yaml:3)"
    assert decision.reasons == ("small (p0.yaml:3) denies it: y matching ^zz and x at least 10",)
    assert decision.unlock == ("y not matching ^zz or x below 10",)
    everything = repr(decision)
    assert "987654" not in everything
    assert "top-secret" not in everything


def test_a_rule_that_matches_in_doubt_says_so() -> None:
    text = "rules: [{allow: a}, {id: n, deny: a, when: {args: {x: {minimum: 10}}}}]"
    decision = decide(book(text, tools=TOOLS), "a", {})
    assert "in doubt" in decision.reasons[0]


def test_a_missing_allow_explains_each_near_rule() -> None:
    text = "rules: [{id: n, allow: a, when: {user: ann, args: {x: {maximum: 10}}}}]"
    decision = decide(book(text, tools=TOOLS), "a", {"x": 11})
    assert decision.reasons == (
        "n (p0.yaml:1) would allow it, but cannot tell: user ann (missing or odd)",
        "n (p0.yaml:1) would allow it, but not: x at most 10",
    )
    assert decision.unlock == ("user ann and x at most 10",)
    assert "ann" not in decision.message


def test_a_deny_of_other_arguments_and_a_missing_allow_both_show_in_the_way_out() -> None:
    text = "rules: [{allow: a, when: {args: {x: {maximum: 10}}}}, {deny: a, when: {args: {y: bad}}}]"
    assert decide(book(text, tools=TOOLS), "a", {"x": 11, "y": "bad"}).unlock == ("y other than bad, and x at most 10",)


def test_an_ended_grant_is_no_way_out() -> None:
    text = "rules: [{allow: a, valid: {until: 1969-01-01}}]"
    assert decide(book(text, tools=TOOLS), "a").unlock == ()


def test_messages_of_rules_reach_the_model_and_stay_short() -> None:
    text = "rules: [{deny: a, message: " + "m" * 400 + "}, {deny: {permission: p}, message: " + "n" * 400 + "}]"
    assert len(decide(book(text, tools=TOOLS), "a").message) == 500


# -- context -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("condition", "facts", "labels", "allowed"),
    [
        ("user: [ann, 'b*']", {"user": "bob"}, (), True),
        ("user: ann", {}, (), False),
        ("user: {not: ann}", {"user": "bob"}, (), True),
        ("user: {not: ann}", {"user": "ann"}, (), False),
        ("user: {not: ann}", {}, (), False),
        ("role: admin", {"roles": ("admin", "x")}, (), True),
        ("role: {not: admin}", {"roles": ("x",)}, (), True),
        ("role: {not: admin}", {"roles": ("admin", "x")}, (), False),
        ("role: {not: admin}", {}, (), False),
        ("role: admin", {"roles": ("admin", 7)}, (), False),
        ("tenant: acme", {"tenant": "acme"}, (), True),
        ("tenant: acme", {"tenant": "acme2"}, (), False),
        ("session: s", {"session": "s"}, (), True),
        ("team: t", {"team": "t"}, (), True),
        ("run: {labels: secret}", {}, ("secret",), True),
        ("run: {labels: [secret, pii]}", {}, ("pii",), True),
        ("run: {labels: {all: [secret, pii]}}", {}, ("pii",), False),
        ("run: {labels: {all: [secret, pii]}}", {"labels": ("secret",)}, ("pii",), True),
        ("run: {labels: {none: secret}}", {}, (), True),
        ("run: {labels: {none: secret}}", {"labels": ("secret",)}, (), False),
        ("run: {labels: {any: [a], none: [b]}}", {}, ("a", "b"), False),
    ],
)
def test_conditions_on_the_run(condition: str, facts: dict[str, Any], labels: tuple[str, ...], allowed: bool) -> None:
    rulebook = book(f"rules: [{{allow: a, when: {{{condition}}}}}]", tools=TOOLS)
    assert rulebook.decide("a", {}, context(**facts), labels, 0).allowed is allowed
    assert rulebook.visible("a", context(**facts), labels, 0) is allowed


def test_a_window_past_midnight_belongs_to_the_day_it_began() -> None:
    text = "rules: [{allow: a, when: {time: {between: ['22:00', '06:00'], days: fri}}}]"
    rulebook = book(text, tools=TOOLS)
    hour = 3_600_000_000_000
    friday = 24 * hour  # 1970-01-02
    assert [decide(rulebook, "a", now=friday + h * hour).allowed for h in (21, 22, 29, 30)] == [
        False,
        True,
        True,
        False,
    ]
    assert not decide(rulebook, "a", now=friday + 2 * hour).allowed


def test_a_rule_on_labels_makes_the_decision_stateful() -> None:
    text = "rules: [{allow: a}, {allow: b}, {deny: b, when: {run: {labels: x}}}]"
    rulebook = book(text, tools=TOOLS)
    assert not decide(rulebook, "a").stateful
    assert decide(rulebook, "b").stateful


# -- visibility --------------------------------------------------------------------------------------------------------


def test_a_tool_is_visible_when_some_arguments_could_pass() -> None:
    text = """
rules:
  - {allow: a, when: {args: {x: {maximum: 1}}}}
  - {deny: a, when: {args: {y: bad}}}
  - {require_approval: b, when: {environment: prod}}
"""
    rulebook = book(text, tools=TOOLS)
    assert rulebook.visible("a", context(), (), 0)
    assert rulebook.visible("b", context(environment="prod"), (), 0)
    assert not rulebook.visible("b", context(environment="dev"), (), 0)
    assert not rulebook.visible("c", context(), (), 0)
    assert not rulebook.visible("a", context(scope=(("b",),)), (), 0)


def test_a_tool_that_is_denied_whatever_its_arguments_is_hidden() -> None:
    assert not book("rules: [{allow: a}, {deny: a}]", tools=TOOLS).visible("a", context(), (), 0)
    late = book("rules: [{allow: a}, {deny: a, when: {run: {labels: x}}}]", tools=TOOLS)
    assert late.visible("a", context(), (), 0)
    assert not late.visible("a", context(), ("x",), 0)
    assert not book(ALLOW_A, "rules: []", tools=TOOLS).visible("a", context(), (), 0)
    assert book("mode: observe\nrules: []", tools=TOOLS).visible("a", context(), (), 0)
    assert not book("default: abstain\nrules: []", tools=TOOLS).visible("a", context(), (), 0)
    constrained = "default: abstain\nrules: [{constrain: a, limits: {timeout: 1s}}]"
    assert book(ALLOW_A, constrained, tools=TOOLS).visible("a", context(), (), 0)


# -- totality ----------------------------------------------------------------------------------------------------------


def test_deciding_never_raises_and_never_allows_nonsense() -> None:
    text = """
rules:
  - {allow: a, when: {agent: bot, run: {labels: {none: q}}, time: {days: [thu]}, args: {x: {maximum: 1}}}}
  - {deny: a, when: {args: {x: {minimum: 50}}}}
"""
    rulebook = book(text, tools=TOOLS)
    good: list[Any] = ["a", {"x": 1}, context(), (), 0]
    assert rulebook.decide(*good).allowed
    nonsense: list[tuple[int, Any]] = [
        *((0, value) for value in (None, 1, [], "c", b"a")),
        *((1, value) for value in (None, 1, [], "x", {"x": object()}, {"x": [1]}, {}, {1: 2})),
        *((2, value) for value in (None, 1, "ctx", object(), RunContext(run_id="r", agent=7))),  # type: ignore[arg-type]
        (2, context(scope=(1,))),
        *((3, value) for value in (None, 1, ([],), [{}])),
        *((4, value) for value in (None, "now", 10**40, float("nan"))),
    ]
    for place, value in nonsense:
        bad = [*good]
        bad[place] = value
        decision = rulebook.decide(*bad)
        assert decision.verdict == "deny", (place, value)
        assert decision.reasons
        assert decision.policy_digest == rulebook.digest
        rulebook.visible(bad[0], bad[2], bad[3], bad[4])


def test_an_error_inside_a_guard_is_a_deny() -> None:
    def broken(arguments: object) -> tuple[()]:
        raise RuntimeError("bug")

    decision = Rulebook({"a": Plan("a", (), "d", guards=(broken,))}, "d").decide("a", {}, context(), (), 0)
    assert decision.verdict == "deny"
    assert "RuntimeError" in decision.reasons[0]


def test_text_that_no_engine_takes_is_unknown() -> None:
    text = "rules: [{allow: a}, {id: n, deny: a, when: {args: {y: {pattern: 'b+$'}}}}, {deny: a, when: {args: {y: {pattern: 'c+$'}}}}]"
    assert decide(book(text, tools=TOOLS), "a", {"y": "\ud800"}).verdict == "deny"
    assert decide(book(text, tools=TOOLS), "a", {"y": "abb"}).rules[0].id == "n"
    assert decide(book(text, tools=TOOLS), "a", {"y": "x"}).allowed


def test_infinities_are_unknown_also_where_rules_are_folded() -> None:
    text = "rules: [{allow: a}, {deny: a, when: {args: {x: {minimum: 5, maximum: 9}}}}]"
    rulebook = book(text, tools=TOOLS)
    assert decide(rulebook, "a", {"x": 4}).allowed
    for value in (float("inf"), float("-inf"), float("nan"), 5, 9.0, "5", True):
        assert decide(rulebook, "a", {"x": value}).verdict == "deny"


def test_remembered_explanations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deciding, "_REMEMBERED", 16)
    text = (
        "rules: ["
        + ", ".join(f"{{allow: a, when: {{args: {{x: {{multipleOf: {n}}}}}}}}}" for n in range(2, 14))
        + ", {deny: a}]"
    )
    rulebook = book(text, tools=TOOLS)
    for x in range(300):
        assert decide(rulebook, "a", {"x": x}).verdict == "deny"
    assert len(rulebook._plans["a"].remembered) <= 16
