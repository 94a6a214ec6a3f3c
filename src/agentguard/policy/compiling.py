"""From policies to a rulebook: one plan per tool, so that a decision is a look-up and not a search.

What must stay true: folding only ever finds the rules that may match sooner. Which of them do match is always
judged by the rule's own test, so a fold can cost time but never change a verdict.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, cast

from agentguard.canonical import digest
from agentguard.domain.context import RunContext
from agentguard.domain.decisions import NO_OBLIGATIONS, Obligations
from agentguard.domain.plans import ToolSpec
from agentguard.errors import PolicyError
from agentguard.globbing import any_of
from agentguard.policy.deciding import Rulebook, allowed
from agentguard.policy.explaining import demand, shown, time_demand, who_demand
from agentguard.policy.folding import fold
from agentguard.policy.matchers import build
from agentguard.policy.obliging import tightest
from agentguard.policy.planning import Candidate, Clause, Layer, Plan, Test
from agentguard.policy.policies import Policy
from agentguard.policy.recognising import PathResolver
from agentguard.policy.rules import Rule, TimeWindow, Words
from agentguard.policy.schemas import null_depths
from agentguard.policy.truth import ABSENT, Condition, Truth, WrongShape, both, either, reach
from agentguard.policy.typing import Registry, check, selects


def compile_layers(
    policies: Sequence[Policy], registry: Registry, *, resolve_path: PathResolver = os.path.realpath
) -> Rulebook:
    """Compile policies for the tools of a registry.

    Args:
        policies: Layers, outermost first. None at all denies everything.
        registry: The tools.
        resolve_path: Resolves symbolic links for ``within``; the only look at the world while deciding.

    Raises:
        PolicyError: A policy does not fit the registry (AG2xx).
    """
    errors = [
        finding for policy in policies for finding in check(policy.rules, registry) if finding.severity == "error"
    ]
    if errors:
        raise PolicyError(errors)
    whole = digest([policy.digest for policy in policies])
    layers = tuple(Layer(p.name, p.mode == "observe", p.default == "deny") for p in policies)
    exact: dict[str, list[tuple[int, int]]] = {}
    broad: list[tuple[int, int]] = []
    for layer, policy in enumerate(policies):
        for place, rule in enumerate(policy.rules):
            names = _exact_names(rule)
            if names is None:
                broad.append((layer, place))
            else:
                for name in names:
                    exact.setdefault(name, []).append((layer, place))
    plans = {}
    for tool in registry:
        spec = tool.spec
        places = sorted({*exact.get(spec.name, ()), *broad})
        rules = [(layer, policies[layer].rules[place]) for layer, place in places]
        mine = [(layer, rule) for layer, rule in rules if any(selects(s, spec) for s in rule.selectors)]
        plans[spec.name] = _plan(spec, layers, policies, mine, whole, resolve_path)
    return Rulebook(plans, whole)


def _exact_names(rule: Rule) -> set[str] | None:
    """The tools a rule can apply to, when it lists them by name."""
    names: set[str] = set()
    for selector in rule.selectors:
        if not selector.tool or any("*" in name for name in selector.tool):
            return None
        names.update(selector.tool)
    return names


def _plan(
    spec: ToolSpec,
    layers: tuple[Layer, ...],
    policies: Sequence[Policy],
    rules: Sequence[tuple[int, Rule]],
    whole: str,
    resolve: PathResolver,
) -> Plan:
    candidates: list[Candidate] = []
    written: dict[Candidate, Rule] = {}
    for layer, rule in rules:
        clauses = _clauses(rule, spec, resolve)
        candidate = Candidate(
            number=len(candidates),
            ref=rule.ref(policies[layer].name),
            verb=rule.verb,
            layer=layer,
            clauses=clauses,
            test=_conjunction([clause.test for clause in clauses]),
            obligations=_demanded(rule),
            terms=rule.approval,
            message=rule.message if rule.verb in ("deny", "require_approval") else "",
        )
        candidates.append(candidate)
        written[candidate] = rule
    watched = [c for c in candidates if c.verb != "allow"]
    guards, linear = fold([(c, written[c].when.args) for c in watched])
    plan = Plan(
        tool=spec.name,
        layers=layers,
        digest=whole,
        guards=guards,
        linear=linear,
        allows=tuple(
            tuple(c for c in candidates if c.verb == "allow" and c.layer == index) for index in range(len(layers))
        ),
        approvals=tuple(c for c in candidates if c.verb == "require_approval"),
        denials=tuple(c for c in candidates if c.verb == "deny"),
        stateful=any(rule.when.labels for _, rule in rules),
    )
    weighty = any(c.verb == "allow" and c.obligations != NO_OBLIGATIONS for c in candidates)
    plan.others = tuple(group for group in (*plan.allows, plan.approvals) if group)
    plain = not weighty and not any(layer.observe for layer in layers)
    plan.plain = plain and len(layers) > 1
    if plain and len(layers) == 1:
        plan.single = plan.allows[0]
        for candidate in plan.single:
            candidate.granted = allowed(plan, [candidate])
    return plan


def _demanded(rule: Rule) -> Obligations:
    if rule.message and rule.verb in ("allow", "constrain"):
        return tightest([rule.obligations, Obligations(messages=(rule.message,))])
    return rule.obligations


# -- conditions --------------------------------------------------------------------------------------------------------


def _conjunction(tests: Sequence[Test]) -> Test:
    if not tests:
        return lambda arguments, context, labels, now: True  # noqa: ARG005
    if len(tests) == 1:
        return tests[0]

    def judge(arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int) -> Truth:
        result: Truth = True
        for test in tests:
            truth = test(arguments, context, labels, now)
            if truth is False:
                return False
            if truth is None:
                result = None
        return result

    return judge


def _clauses(rule: Rule, spec: ToolSpec, resolve: PathResolver) -> tuple[Clause, ...]:
    when = rule.when
    clauses: list[Clause] = []
    if rule.valid_from is not None or rule.valid_until is not None:
        clauses.append(Clause(_valid(rule.valid_from, rule.valid_until), "the rule is in force", "", "valid"))
    for name, words in when.who:
        want = f"{name} {who_demand(words)}"
        clauses.append(Clause(_who(name, words), want, f"{name} {who_demand(words, opposite=True)}", "who"))
    if when.time is not None:
        clauses.append(Clause(_time(when.time), f"time {time_demand(when.time)}", "another time", "time"))
    if when.labels:
        texts = [
            f"{word} {shown(getattr(when, f'labels_{key}'))}"
            for key, word in (("any", "any of"), ("all", "all of"), ("none", "none of"))
            if getattr(when, f"labels_{key}")
        ]
        test = _labels(when.labels_any, when.labels_all, when.labels_none)
        clauses.append(Clause(test, f"run labels: {' and '.join(texts)}", "other run labels", "labels"))
    for path, fragment in when.args:
        every = rule.verb == "allow"
        judge = _argument(path, fragment, every, spec, resolve)
        want, avoid = demand(fragment), demand(fragment, opposite=True)
        clauses.append(Clause(judge, f"{path} {want}", f"{path} {avoid}", "args"))
    return tuple(clauses)


def _valid(start: int | None, end: int | None) -> Test:
    def judge(arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int) -> Truth:  # noqa: ARG001
        if type(now) is not int:
            return None
        return (start is None or now >= start) and (end is None or now < end)

    return judge


def _who(name: str, words: Words) -> Test:
    is_one = any_of(words.globs)
    wanted = not words.negated
    field = "roles" if name == "role" else name

    def judge(arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int) -> Truth:  # noqa: ARG001
        value = getattr(context, field, None)
        if field == "roles":
            # A run without any role is one whose host did not say: unknown rather than "none of them".
            if type(value) is not tuple or not value or not all(type(role) is str for role in value):
                return None
            return any(map(is_one, value)) is wanted
        if type(value) is not str:
            return None
        return is_one(value) is wanted

    return judge


def _time(window: TimeWindow) -> Test:
    from zoneinfo import ZoneInfo

    zone: tzinfo = ZoneInfo(window.zone)
    days = frozenset(window.days) or frozenset(range(7))
    epoch = datetime(1970, 1, 1, tzinfo=UTC)

    def judge(arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int) -> Truth:  # noqa: ARG001
        try:
            moment = (epoch + timedelta(microseconds=now // 1000)).astimezone(zone)
        except Exception:  # a time nobody can place is no time of day
            return None
        minute, day = moment.hour * 60 + moment.minute, moment.weekday()
        if window.start < window.end:
            return window.start <= minute < window.end and day in days
        return (minute >= window.start and day in days) or (minute < window.end and (day - 1) % 7 in days)

    return judge


def _labels(some: tuple[str, ...], every: tuple[str, ...], none: tuple[str, ...]) -> Test:
    def judge(arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int) -> Truth:  # noqa: ARG001
        try:
            have = {*labels, *context.labels}
        except Exception:
            return None
        if some and have.isdisjoint(some):
            return False
        return have.issuperset(every) and have.isdisjoint(none)

    return judge


def _argument(path: str, fragment: Mapping[str, Any], every: bool, spec: ToolSpec, resolve: PathResolver) -> Test:
    """Judge the argument at ``path``.

    ``*`` means every element for an allow rule and any element for the others. An allow rule does not hold for no
    elements at all, unless the condition is optional; the others do not match then.
    """
    steps = path.split(".")
    nullable = null_depths(spec.input_schema, steps)
    condition: Condition = build(fragment, resolve, null_is_absent=len(steps) in nullable)
    if len(steps) == 1 and "*" not in steps:

        def one(arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int) -> Truth:  # noqa: ARG001
            try:
                return condition(arguments.get(path, ABSENT))
            except Exception:  # an error in a condition is the third truth value
                return None

        return one
    join = cast("Callable[[Any], Truth]", both if every else either)
    many = "*" in steps
    nothing: Truth = (True if fragment.get("optional") else None) if every else False

    def judge(arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int) -> Truth:  # noqa: ARG001
        try:
            values = reach(arguments, steps, nullable)
            if many and not values:
                return nothing
            return join(map(condition, values))
        except WrongShape:
            return None
        except Exception:
            return None

    return judge
