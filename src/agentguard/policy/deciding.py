"""Deciding one call: pure, total, constant in the number of rules about other tools.

What must stay true: :meth:`Rulebook.decide` never raises and never allows by accident; whatever goes wrong is a deny. It
reads no clock, no file and no global: time, labels and the look at the file system come in from outside. The same
inputs give the same answer, and the order of rules never matters.

Allowed calls without obligations get a decision that was built at load. Everything else is a function of which
conditions held, so it is built once per combination and remembered.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from agentguard.domain.context import RunContext
from agentguard.domain.decisions import (
    NO_OBLIGATIONS,
    ApprovalTerms,
    Decision,
    Obligations,
    RuleRef,
    VerdictName,
)
from agentguard.policy.explaining import model_message, terms_text
from agentguard.policy.globbing import matches
from agentguard.policy.matchers import Truth
from agentguard.policy.obliging import Unenforceable, tightest
from agentguard.policy.rules import Verb

Test: TypeAlias = Callable[[Mapping[str, Any], RunContext, Collection[str], int], Truth]
"""Judges a call: arguments, context, labels of the run, time in ns since the epoch. Never raises."""

Vector: TypeAlias = tuple[Truth, ...]
"""How each condition of a rule came out."""

LayerVerdict: TypeAlias = Literal["allow", "deny", "require_approval", "abstain"]

_REMEMBERED = 1024

UNDECIDED = Decision("deny", reasons=("nothing was decided",))
"""Stands where a decision has not been built; denies, should it ever be returned."""


@dataclass(frozen=True, slots=True)
class Clause:
    """One condition of a rule.

    Attributes:
        test: Judges a call.
        want: What the condition demands, in words.
        avoid: What its opposite demands.
        kind: ``args``, ``who``, ``time``, ``labels`` or ``valid``.
    """

    test: Test
    want: str
    avoid: str
    kind: Literal["args", "who", "time", "labels", "valid"]


@dataclass(slots=True, eq=False)
class Candidate:
    """A rule of one layer, compiled for one tool.

    Attributes:
        number: Place among the candidates of the tool.
        ref: Reference for decisions.
        verb: Verb of the rule.
        layer: Index of the layer.
        clauses: Its conditions; all are required.
        test: All conditions at once.
        obligations: What it demands.
        terms: Terms of the approval.
        message: What the model is told.
        granted: The decision when this rule alone allows the call.
    """

    number: int
    ref: RuleRef
    verb: Verb
    layer: int
    clauses: tuple[Clause, ...]
    test: Test
    obligations: Obligations = NO_OBLIGATIONS
    terms: ApprovalTerms | None = None
    message: str = ""
    granted: Decision = UNDECIDED

    def vector(self, arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int) -> Vector:
        """How each condition comes out."""
        return tuple([clause.test(arguments, context, labels, now) for clause in self.clauses])


Guard: TypeAlias = Callable[[Mapping[str, Any]], Sequence[Candidate]]
"""Names the candidates that could match, by looking at one argument; never leaves one out that does match."""


@dataclass(frozen=True, slots=True)
class Layer:
    """What deciding needs to know of a policy besides its rules."""

    name: str
    observe: bool
    closed: bool


@dataclass(slots=True, eq=False)
class Plan:
    """Everything about one tool.

    Attributes:
        tool: Its name.
        layers: The layers, outermost first.
        digest: Digest of all layers.
        guards: Find the rules that may match by one argument.
        linear: Rules (other than plain allows) that are judged on every call.
        allows: Allow rules per layer.
        approvals: Rules that require approval, for explanations.
        others: ``allows`` and ``approvals`` that are not empty: what a decision other than a plain grant depends on.
        denials: Rules that deny, for visibility.
        stateful: Some rule looks at labels of the run.
        single: The allow rules, when there is one layer and a granted call needs no more than a look-up.
        plain: The same for several layers: no allow rule carries obligations and no layer observes.
        grants: Decisions for calls that several layers allow together.
        remembered: Decisions per combination of outcomes.
    """

    tool: str
    layers: tuple[Layer, ...]
    digest: str
    guards: tuple[Guard, ...] = ()
    linear: tuple[Candidate, ...] = ()
    allows: tuple[tuple[Candidate, ...], ...] = ()
    approvals: tuple[Candidate, ...] = ()
    others: tuple[tuple[Candidate, ...], ...] = ()
    denials: tuple[Candidate, ...] = ()
    stateful: bool = False
    single: tuple[Candidate, ...] = ()
    plain: bool = False
    grants: dict[tuple[int, ...], Decision] = field(default_factory=dict)
    remembered: dict[Any, Decision] = field(default_factory=dict)


class Rulebook:
    """All layers, compiled for one registry. A value: deciding does not change what it says.

    Attributes:
        digest: SHA-256 (hex) over the canonical form of all layers, outermost first.
    """

    __slots__ = ("_plans", "digest")

    def __init__(self, plans: Mapping[str, Plan], digest: str) -> None:
        self._plans = dict(plans)
        self.digest = digest

    def decide(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        context: RunContext,
        labels: Collection[str],
        now_ns: int,
    ) -> Decision:
        """Decide one call; never raises, an error inside is a decision to deny.

        Args:
            tool: Name of the tool.
            arguments: Effective arguments: validated, defaults filled, JSON values.
            context: Identity of the run.
            labels: Data labels that the run carries now, besides those of ``context``.
            now_ns: Time in ns since the epoch.
        """
        try:
            plan = self._plans.get(tool)
            if plan is None:
                return refusal("this tool", self.digest, "no tool of this name is registered; unknown tools are denied")
            if context.scope is not None and not in_scope(tool, context.scope):
                return refusal(tool, self.digest, f"the run is narrowed to other tools than {tool}")
            hits: list[tuple[Candidate, Truth]] | None = None
            for guard in plan.guards:
                suspects = guard(arguments)
                if suspects:
                    for rule in suspects:
                        truth = rule.test(arguments, context, labels, now_ns)
                        if truth is not False:
                            hits = [(rule, truth)] if hits is None else [*hits, (rule, truth)]
            for rule in plan.linear:
                truth = rule.test(arguments, context, labels, now_ns)
                if truth is not False:
                    hits = [(rule, truth)] if hits is None else [*hits, (rule, truth)]
            if hits is None:
                for rule in plan.single:
                    if rule.test(arguments, context, labels, now_ns) is True:
                        return rule.granted
                if plan.plain:
                    granted = _granted(plan, arguments, context, labels, now_ns)
                    if granted is not None:
                        return granted
            return _judge(plan, hits or (), arguments, context, labels, now_ns)
        except Exception as error:
            return refusal("this tool", self.digest, f"the policy could not be evaluated ({type(error).__name__})")

    def visible(self, tool: str, context: RunContext, labels: Collection[str], now_ns: int) -> bool:
        """Whether some arguments exist with which the call could be allowed or approved; never raises.

        Conditions on arguments count as possible; every other condition is judged.
        """
        try:
            plan = self._plans.get(tool)
            if plan is None or (context.scope is not None and not in_scope(tool, context.scope)):
                return False
            return _visible(plan, context, labels, now_ns)
        except Exception:
            return False


def refusal(tool: str, digest: str, reason: str) -> Decision:
    """A deny that no rule asked for."""
    return Decision("deny", reasons=(reason,), policy_digest=digest, message=model_message("deny", tool, (), ()))


def in_scope(tool: str, scope: tuple[tuple[str, ...], ...]) -> bool:
    """Whether a tool matches a name or glob of every narrowing."""
    return all(any(matches(glob, tool) for glob in narrowing) for narrowing in scope)


def _granted(
    plan: Plan, arguments: Mapping[str, Any], context: RunContext, labels: Collection[str], now: int
) -> Decision | None:
    """The decision when every layer that defaults to deny allows, and nothing else matched."""
    found: list[int] = []
    rules: list[Candidate] = []
    for layer, allows in zip(plan.layers, plan.allows, strict=True):
        for rule in allows:
            if rule.test(arguments, context, labels, now) is True:
                found.append(rule.number)
                rules.append(rule)
                break
        else:
            if layer.closed:
                return None
    if not found:
        return None
    key = tuple(found)
    decision = plan.grants.get(key)
    if decision is None:
        decision = allowed(plan, rules)
        plan.grants[key] = decision
    return decision


def allowed(plan: Plan, rules: Sequence[Candidate]) -> Decision:
    """A plain yes by these rules."""
    return Decision(
        "allow",
        rules=tuple(rule.ref for rule in rules),
        reasons=tuple(_because(rule, "allows it", ()) for rule in rules),
        policy_digest=plan.digest,
        stateful=plan.stateful,
    )


def _judge(
    plan: Plan,
    hits: Sequence[tuple[Candidate, Truth]],
    arguments: Mapping[str, Any],
    context: RunContext,
    labels: Collection[str],
    now: int,
) -> Decision:
    outcomes: list[tuple[Candidate, Vector]] = []
    key: list[Any] = [len(hits)]
    for rule, truth in hits:
        vector = (truth,) if len(rule.clauses) == 1 else rule.vector(arguments, context, labels, now)
        outcomes.append((rule, vector))
        key += (rule.number, vector)
    for group in plan.others:
        for rule in group:
            if len(rule.clauses) == 1:
                vector = (rule.test(arguments, context, labels, now),)
            else:
                vector = rule.vector(arguments, context, labels, now)
            outcomes.append((rule, vector))
            key.append(vector)
    remembered = tuple(key)
    decision = plan.remembered.get(remembered)
    if decision is None:
        matched = dict(sorted(outcomes[: len(hits)], key=lambda outcome: outcome[0].number))
        grants = {rule: vector for rule, vector in outcomes[len(hits) :] if rule.verb == "allow"}
        near = {r: v for r, v in outcomes[len(hits) :] if r.verb != "allow" and r not in matched}
        decision = _compose(plan, matched, grants, near)
        if len(plan.remembered) >= _REMEMBERED:
            plan.remembered.clear()
        plan.remembered[remembered] = decision
    return decision


def _holds(vector: Vector) -> bool:
    return all(truth is True for truth in vector)


def _combined(verdicts: Sequence[LayerVerdict]) -> VerdictName:
    for verdict in ("deny", "require_approval", "allow"):
        if verdict in verdicts:
            return verdict
    return "deny"


def _compose(
    plan: Plan,
    matched: Mapping[Candidate, Vector],
    grants: Mapping[Candidate, Vector],
    near: Mapping[Candidate, Vector],
) -> Decision:
    holding = [rule for rule, vector in grants.items() if _holds(vector)]
    verdicts: list[LayerVerdict] = []
    for index, layer in enumerate(plan.layers):
        verbs = {rule.verb for rule in matched if rule.layer == index}
        if "deny" in verbs:
            verdicts.append("deny")
        elif "require_approval" in verbs:
            verdicts.append("require_approval")
        elif any(rule.layer == index for rule in holding):
            verdicts.append("allow")
        else:
            verdicts.append("deny" if layer.closed else "abstain")
    said = _combined(verdicts)
    # A layer that only observes can never block, so for what is enforced it counts as one that allows.
    enforced = _combined(["allow" if layer.observe else v for layer, v in zip(plan.layers, verdicts, strict=True)])
    observing = enforced == "allow" and said != "allow"
    verdict = said if observing or all(layer.observe for layer in plan.layers) else enforced
    observed = observing or all(layer.observe for layer in plan.layers)

    def counts(rule: Candidate) -> bool:
        return observed or not plan.layers[rule.layer].observe

    binding = [rule for rule in (*matched, *holding) if not plan.layers[rule.layer].observe]
    try:
        refused = verdict == "deny" and not observed
        obligations = NO_OBLIGATIONS if refused else tightest(rule.obligations for rule in binding)
    except Unenforceable as error:
        return replace(refusal(plan.tool, plan.digest, f"obligations contradict: {error}"), stateful=plan.stateful)
    decisive = [rule for rule in matched if rule.verb == verdict and counts(rule)]
    if verdict == "allow":
        decisive = list({rule.layer: rule for rule in reversed(holding)}.values())[::-1]
    reasons = [*_said(decisive, matched), *_not_said(plan, verdict, verdicts, grants, observed)]
    reasons += [_because(rule, "adds obligations", matched[rule]) for rule in matched if rule.verb == "constrain"]
    reasons += [
        f"{rule.ref} observes only: it would say {rule.verb}"
        for rule in matched
        if not counts(rule) and rule.verb != "constrain"
    ]
    changes = [] if verdict == "allow" else _changes(plan, decisive, verdicts, grants, near, observed)
    terms = _added(rule.terms for rule in decisive if rule.terms) if verdict == "require_approval" else None
    unlock = ([terms_text(terms)] if terms else []) + [text for text, _ in changes]
    message = ""
    if verdict != "allow":
        told = [text for text, safe in changes if safe]
        message = model_message(verdict, plan.tool, (rule.message for rule in decisive if rule.message), told[:3])
    return Decision(
        verdict,
        rules=tuple(rule.ref for rule in decisive),
        reasons=tuple(reasons),
        obligations=obligations,
        policy_digest=plan.digest,
        unlock=tuple(unlock),
        approval=terms,
        mode="observe" if observed else "enforce",
        message=message,
        stateful=plan.stateful,
    )


def _because(rule: Candidate, does: str, vector: Vector) -> str:
    if not rule.clauses:
        return f"{rule.ref} {does}"
    doubts = [c.want for c, truth in zip(rule.clauses, vector, strict=False) if truth is None]
    text = f"{rule.ref} {does}: {' and '.join(clause.want for clause in rule.clauses)}"
    if doubts:
        text += f" (in doubt, so it applies: whether {' and '.join(doubts)} cannot be told)"
    return text


_DOES = {"deny": "denies it", "require_approval": "requires approval", "allow": "allows it"}


def _said(decisive: Sequence[Candidate], matched: Mapping[Candidate, Vector]) -> list[str]:
    return [_because(rule, _DOES[rule.verb], matched.get(rule, ())) for rule in decisive]


def _not_said(
    plan: Plan,
    verdict: VerdictName,
    verdicts: Sequence[LayerVerdict],
    grants: Mapping[Candidate, Vector],
    observed: bool,
) -> list[str]:
    """Why no layer or not every layer allows, when no rule denied."""
    if verdict != "deny":
        return []
    reasons = []
    silent = [
        index
        for index, layer in enumerate(plan.layers)
        if verdicts[index] in ("deny", "abstain") and (observed or not layer.observe)
    ]
    for index in silent:
        rules = {rule: vector for rule, vector in grants.items() if rule.layer == index}
        for rule, vector in rules.items():
            for clause, truth in zip(rule.clauses, vector, strict=True):
                if truth is False:
                    reasons.append(f"{rule.ref} would allow it, but not: {clause.want}")
                elif truth is None:
                    reasons.append(f"{rule.ref} would allow it, but cannot tell: {clause.want} (missing or odd)")
        if not rules and plan.layers[index].closed:
            reasons.append(f"no rule of {plan.layers[index].name} allows {plan.tool}; the default is deny")
    if not reasons and "deny" not in verdicts:
        reasons.append(f"no policy allows {plan.tool}")
    return reasons


Change: TypeAlias = tuple[str, bool]
"""What to do differently, and whether it is about arguments alone, so that the model may be told."""


def _changes(
    plan: Plan,
    decisive: Sequence[Candidate],
    verdicts: Sequence[LayerVerdict],
    grants: Mapping[Candidate, Vector],
    near: Mapping[Candidate, Vector],
    observed: bool,
) -> list[Change]:
    """The smallest changes after which the call would be allowed, nearest first."""
    needed: list[str] = []
    for rule in decisive:
        flips = [clause for clause in rule.clauses if clause.kind == "args"]
        if not flips:
            return []
        needed.append(" or ".join(clause.avoid for clause in flips))
    options: list[tuple[int, Change]] = []
    missing = False
    for index, layer in enumerate(plan.layers):
        if verdicts[index] == "allow" or (layer.observe and not observed):
            continue
        rules = {r: v for r, v in (*grants.items(), *near.items()) if r.layer == index}
        if any(r.verb == "allow" and _holds(v) for r, v in rules.items()):
            continue
        missing = missing or layer.closed
        for rule, vector in rules.items():
            failing = [c for c, truth in zip(rule.clauses, vector, strict=True) if truth is not True]
            text = " and ".join(clause.want for clause in failing)
            if rule.verb == "require_approval" and rule.terms:
                text += f" (with {terms_text(rule.terms)})"
            if failing and all(clause.kind != "valid" for clause in failing):
                options.append((len(failing), (text, all(clause.kind == "args" for clause in failing))))
    options.sort(key=lambda option: (option[0], option[1]))
    if not missing:
        return [(", and ".join(needed), True)] if needed else [change for _, change in options[:5]]
    denied = any(rule.verb == "deny" for rule in decisive)
    prefix = "".join(f"{text}, and " for text in needed) if denied else ""
    return list(dict.fromkeys((prefix + text, safe) for _, (text, safe) in options[:5]))


def _added(several: Any) -> ApprovalTerms:
    """Terms that satisfy all of several terms at once."""
    terms: list[ApprovalTerms] = list(several)
    if len(terms) == 1:
        return terms[0]
    return ApprovalTerms(
        role_sets=tuple(sorted({roles for t in terms for roles in t.role_sets})),
        quorum=max(t.quorum for t in terms),
        expires_s=min(t.expires_s for t in terms),
        separate=any(t.separate for t in terms),
        edit=all(t.edit for t in terms),
        escalate=tuple(
            sorted({step for t in terms for step in t.escalate}, key=lambda step: (step.after_s, step.roles))
        ),
    )


def _visible(plan: Plan, context: RunContext, labels: Collection[str], now_ns: int) -> bool:
    granted = False
    everyone = {rule for allows in plan.allows for rule in allows} | {*plan.approvals, *plan.denials}
    for index, layer in enumerate(plan.layers):
        if layer.observe:
            granted = True
            continue
        possible = False
        for rule in everyone:
            if rule.layer != index or rule.verb == "constrain":
                continue
            outcomes = [c.test({}, context, labels, now_ns) for c in rule.clauses if c.kind != "args"]
            if rule.verb == "deny":
                if False not in outcomes and all(clause.kind != "args" for clause in rule.clauses):
                    return False
            elif rule.verb == "allow":
                possible = possible or all(truth is True for truth in outcomes)
            else:
                possible = possible or False not in outcomes
        if layer.closed and not possible:
            return False
        granted = granted or possible
    return granted
