"""Deciding one call: pure, total, constant in the number of rules about other tools.

What must stay true: :meth:`Rulebook.decide` never raises and never allows by accident; whatever goes wrong is a deny. It
reads no clock, no file and no global: time, labels and the look at the file system come in from outside. The same
inputs give the same answer, and the order of rules never matters.

Allowed calls without obligations get a decision that was built at load. Everything else is a function of which
conditions held, so it is built once per combination and remembered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from agentguard.domain.context import RunContext
from agentguard.domain.decisions import (
    NO_OBLIGATIONS,
    ApprovalTerms,
    Decision,
    VerdictName,
)
from agentguard.globbing import matches
from agentguard.policy.explaining import because, changes_for, holds, model_message, not_said, said, terms_text
from agentguard.policy.obliging import Unenforceable, tightest
from agentguard.policy.planning import Candidate, LayerVerdict, Plan, Vector
from agentguard.policy.truth import Truth

_REMEMBERED = 1024


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
        reasons=tuple(because(rule, "allows it", ()) for rule in rules),
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
    key: list[Any] = []  # of each hit its number and how its conditions came out, then the latter of all others
    for rule, truth in hits:
        key += (rule.number, truth if len(rule.clauses) == 1 else rule.vector(arguments, context, labels, now))
    for group in plan.others:
        for rule in group:
            test = rule.test if len(rule.clauses) == 1 else rule.vector
            key.append(test(arguments, context, labels, now))
    remembered = (len(hits), *key)
    decision = plan.remembered.get(remembered)
    if decision is None:
        rules = [*(rule for rule, _ in hits), *(rule for group in plan.others for rule in group)]
        found = [*key[1 : 2 * len(hits) : 2], *key[2 * len(hits) :]]
        outcomes: list[tuple[Candidate, Vector]] = [
            (rule, (truth,) if len(rule.clauses) == 1 else truth) for rule, truth in zip(rules, found, strict=True)
        ]
        matched = dict(sorted(outcomes[: len(hits)], key=lambda outcome: outcome[0].number))
        grants = {rule: vector for rule, vector in outcomes[len(hits) :] if rule.verb == "allow"}
        near = {r: v for r, v in outcomes[len(hits) :] if r.verb != "allow" and r not in matched}
        decision = _compose(plan, matched, grants, near)
        if len(plan.remembered) >= _REMEMBERED:
            plan.remembered.clear()
        plan.remembered[remembered] = decision
    return decision


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
    holding = [rule for rule, vector in grants.items() if holds(vector)]
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
    stated = _combined(verdicts)
    # A layer that only observes can never block, so for what is enforced it counts as one that allows.
    enforced = _combined(["allow" if layer.observe else v for layer, v in zip(plan.layers, verdicts, strict=True)])
    # No layer at all is not a layer that observes: "all of none" must not let anything through.
    observing = bool(plan.layers) and all(layer.observe for layer in plan.layers)
    observed = observing or (enforced == "allow" and stated != "allow")
    verdict = stated if observed else enforced

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
    reasons = [*said(decisive, matched), *not_said(plan, verdict, verdicts, grants, observed)]
    reasons += [because(rule, "adds obligations", matched[rule]) for rule in matched if rule.verb == "constrain"]
    reasons += [
        f"{rule.ref} observes only: it would say {rule.verb}"
        for rule in matched
        if not counts(rule) and rule.verb != "constrain"
    ]
    changes = [] if verdict == "allow" else changes_for(plan, decisive, verdicts, grants, near, observed)
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
