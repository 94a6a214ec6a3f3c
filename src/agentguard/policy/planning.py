"""The nouns of a compiled policy: conditions, rules and layers as deciding sees them, one plan per tool."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from agentguard.domain.context import RunContext
from agentguard.domain.decisions import NO_OBLIGATIONS, ApprovalTerms, Decision, Obligations, RuleRef
from agentguard.policy.rules import Verb
from agentguard.policy.truth import Truth

Test: TypeAlias = Callable[[Mapping[str, Any], RunContext, Collection[str], int], Truth]
"""Judges a call: arguments, context, labels of the run, time in ns since the epoch. Never raises."""

Vector: TypeAlias = tuple[Truth, ...]
"""How each condition of a rule came out."""

LayerVerdict: TypeAlias = Literal["allow", "deny", "require_approval", "abstain"]

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
