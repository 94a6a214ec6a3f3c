"""Policy cases carried out: every call is checked and decided as the gateway would, and nothing runs.

What must stay true: a case passes only when the policy was really asked; a misspelt tool is a failure of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentguard.domain.decisions import Decision, RuleRef
from agentguard.errors import ConfigurationError
from agentguard.policy.cases import Case, DescribedTools, Suite
from agentguard.policy.compiling import compile_layers
from agentguard.policy.typing import Registry
from agentguard.tools.registry import ToolRegistry
from agentguard.tools.schema import ArgumentsInvalid, did_you_mean


@dataclass(frozen=True, slots=True)
class Tried:
    """A case, and what came of it.

    Attributes:
        case: The case.
        decision: The policy's answer, or ``None`` when the arguments did not fit.
        problems: What is otherwise than the case says; empty when it holds.
    """

    case: Case
    decision: Decision | None
    problems: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the case holds."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What came of the cases of one policy.

    Attributes:
        suite: Policy and cases.
        tried: Every case that was tried.
        untouched: Rules that no case touched, in file order.
    """

    suite: Suite
    tried: tuple[Tried, ...]
    untouched: tuple[RuleRef, ...]

    @property
    def passed(self) -> bool:
        """Whether all of them hold."""
        return all(one.passed for one in self.tried)


def tools_of(suite: Suite, tools: ToolRegistry | None, find: Callable[[str], ToolRegistry]) -> Registry:
    """The tools that the cases of a suite are about.

    Args:
        suite: Policy and cases.
        tools: Tools for suites that name none themselves.
        find: Finds the tools at ``module:attribute``.

    Raises:
        ConfigurationError: There are none.
        PolicyError: The ``tools:`` section of the policy's file does not fit them.
    """
    if suite.described is not None:
        return DescribedTools(suite.described)
    registry = find(suite.named) if suite.named is not None else tools
    if registry is None:
        raise ConfigurationError(
            f"{suite.source} does not say which tools it is about: describe them under tools:, name them as "
            "tools: module:attribute, or pass --tools module:attribute"
        )
    for document in suite.documents:
        if isinstance(document.value, dict) and "tools" in document.value:
            registry = registry.with_document(document)
    return registry


def rehearse(suite: Suite, registry: Registry, cases: Sequence[Case] | None = None) -> Rehearsal:
    """Try the cases of a suite.

    Args:
        suite: Policy and cases.
        registry: The tools they are about. Arguments are validated, and defaults filled in, by tools of a
            :class:`~agentguard.ToolRegistry`; tools that a file only describes take them as they are.
        cases: Only these cases of the suite.

    Raises:
        PolicyError: The policy does not fit the tools.
    """
    rulebook = compile_layers(suite.layers, registry)
    tried: list[Tried] = []
    for case in suite.cases if cases is None else cases:
        problems: list[str] = []
        if (case.tool in registry) is not case.registered:
            hint = did_you_mean(case.tool, [tool.spec.name for tool in registry])
            missing = f"no tool {case.tool} is registered{f' ({hint})' if hint else ''}; if that is the point, write "
            problems.append(missing + "registered: false" if case.registered else f"{case.tool} is registered")
        try:
            arguments = case.arguments
            known = registry.get(case.tool) if isinstance(registry, ToolRegistry) else None
            if known is not None:
                arguments = known.validate(arguments).effective
            decision = rulebook.decide(case.tool, arguments, case.context, case.labels, case.now_ns)
        except ArgumentsInvalid as error:
            decision = None
            if case.verdict != "invalid":
                problems.append(f"the arguments do not fit: {error.detail}")
        tried.append(Tried(case, decision, (*problems, *case.problems(decision))))
    untouched = suite.untouched(one.decision for one in tried if one.decision is not None)
    return Rehearsal(suite, tuple(tried), tuple(untouched))
