"""One policy: a layer of rules with a name, a default and a mode. A value; it decides nothing by itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, cast

from agentguard.canonical import digest, dumps
from agentguard.documents import Document, load, load_file, printable
from agentguard.domain.decisions import ApprovalTerms, Finding, Mode
from agentguard.errors import PolicyError
from agentguard.globbing import NAME
from agentguard.policy.rules import Default, Rule, Selector, Verb

if TYPE_CHECKING:
    from agentguard.policy.typing import Registry


class Policy:
    """Rules about tool calls: what is allowed, what is denied, what a person has to approve.

    Deny beats require_approval beats allow; the order of rules never matters; what no rule mentions is denied.

    Args:
        allow: Names or globs of tools that may be called.
        require_approval: Names or globs of tools whose calls a person has to approve.
        deny: Names or globs of tools that may not be called.
        name: Name of the layer in decisions.
        default: ``deny``, or ``abstain`` for a layer that only restricts others.
        mode: ``enforce``, or ``observe`` to decide and record without blocking.

    Raises:
        PolicyError: A name is malformed.
    """

    __slots__ = ("_digest", "default", "mode", "name", "rules")

    rules: tuple[Rule, ...]
    """The rules, in file order."""
    name: str
    """Name of the layer."""
    default: Default
    """What the layer says about a call that no rule of it matches."""
    _digest: str
    mode: Mode
    """Whether the layer blocks or only observes."""

    def __init__(
        self,
        allow: str | Iterable[str] = (),
        require_approval: str | Iterable[str] = (),
        deny: str | Iterable[str] = (),
        *,
        name: str = "policy",
        default: Default = "deny",
        mode: Mode = "enforce",
    ) -> None:
        findings: list[Finding] = []
        rules: list[Rule] = []
        given: tuple[tuple[Verb, str | Iterable[str]], ...] = (
            ("allow", allow),
            ("require_approval", require_approval),
            ("deny", deny),
        )
        for verb, names in given:
            tools = _names(verb, names, findings)
            if tools:
                terms = ApprovalTerms() if verb == "require_approval" else None
                selectors = tuple(Selector(tool=(tool,)) for tool in tools)
                rules.append(Rule(id=verb, verb=verb, selectors=selectors, approval=terms, generated=True))
        if default not in ("deny", "abstain"):
            findings.append(Finding("AG115", f'default must be "deny" or "abstain", not {printable(repr(default))}'))
        if mode not in ("enforce", "observe"):
            findings.append(Finding("AG115", f'mode must be "enforce" or "observe", not {printable(repr(mode))}'))
        if not isinstance(name, str) or not name:
            findings.append(Finding("AG111", "name must be text"))
        if findings:
            raise PolicyError(findings)
        self._fill(name, default, mode, tuple(rules))

    def _fill(self, name: str, default: Default, mode: Mode, rules: tuple[Rule, ...]) -> None:
        for slot, value in (("name", name), ("default", default), ("mode", mode), ("rules", rules)):
            object.__setattr__(self, slot, value)
        forms = sorted((rule.canonical() for rule in rules), key=dumps)
        meaning = {"language": 1, "name": name, "default": default, "mode": mode, "rules": forms}
        object.__setattr__(self, "_digest", digest(meaning))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError("a Policy is a value and cannot be changed")

    def __delattr__(self, name: str) -> None:
        raise AttributeError("a Policy is a value and cannot be changed")

    @classmethod
    def from_document(cls, document: Document) -> Policy:
        """Read the policy part of a document; sections of the gateway are known and skipped.

        Raises:
            PolicyError: Something is not what the policy language permits (AG110 to AG120).
        """
        from agentguard.policy.loading import read

        name, default, mode, rules = read(document)
        policy = cls.__new__(cls)
        policy._fill(name, default, cast(Mode, mode), rules)
        return policy

    @classmethod
    def from_yaml(cls, path: str | os.PathLike[str]) -> Policy:
        """Load a policy file, or the policy part of a full ``agentguard.yaml``.

        Raises:
            PolicyError: The file cannot be read, is not strict YAML, or is not a policy; with line and column.
        """
        return cls.from_document(load_file(path))

    @classmethod
    def from_string(cls, text: str, source: str = "<string>") -> Policy:
        """Load a policy from text; ``source`` names it in messages.

        Raises:
            PolicyError: The text is not strict YAML or not a policy; with line and column.
        """
        return cls.from_document(load(text, source))

    @property
    def digest(self) -> str:
        """SHA-256 (hex) over the meaning: layout, comments and the order of rules do not matter."""
        return self._digest

    def check(self, registry: Registry) -> list[Finding]:
        """Check the rules against the tools they are about.

        Returns:
            Errors (AG2xx: compiling would fail) and warnings (AG3xx, AG4xx), in file order.
        """
        from agentguard.policy.linting import lint
        from agentguard.policy.typing import check

        findings = [*check(self.rules, registry), *lint(self.rules, self.name, self.default)]
        return sorted(findings, key=lambda f: (f.line, f.column, f.code))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and other._digest == self._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        return f"<Policy {self.name}: {len(self.rules)} rules, {self._digest[:12]}>"


def _names(verb: str, names: str | Iterable[str], findings: list[Finding]) -> list[str]:
    if isinstance(names, str):
        names = [names]
    try:
        found = list(names)
    except TypeError:
        findings.append(Finding("AG111", f"{verb} must be a name or an iterable of names"))
        return []
    findings.extend(
        Finding("AG120", f"{verb}: {printable(ascii(tool))} is no tool name or glob", hint='for example "kb.*"')
        for tool in found
        if not isinstance(tool, str) or not NAME.fullmatch(tool)
    )
    return [] if findings else sorted(set(found))
