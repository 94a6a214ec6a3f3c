"""``check`` and ``eval``: what is wrong with a policy, and what it says about one call. Nothing runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from agentguard.cli.findings import FindingFormat, print_findings
from agentguard.cli.opening import load_tools, read_config, wrong
from agentguard.cli.options import Format, FormatOption, NeededToolsOption, ToolsOption
from agentguard.cli.printing import compact, document, fields, note
from agentguard.domain.context import RunContext
from agentguard.domain.decisions import Decision, Finding, Obligations
from agentguard.errors import PolicyError
from agentguard.gateway import ToolGateway
from agentguard.naming import check_id
from agentguard.policy.linting import lint

FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="Policy or configuration file.", show_default=True)]


def check(
    file: FileArgument = Path("agentguard.yaml"),
    tools: ToolsOption = None,
    form: Annotated[FindingFormat, typer.Option("--format", help="Form of the findings.")] = FindingFormat.TEXT,
) -> None:
    """Check a policy or configuration file, and with --tools also against the tools it is about.

    Exit code 1 when there is a finding of severity error, 2 when the file cannot be read.
    """
    found = _findings(file, tools)
    print_findings(found, form, str(file))
    errors = sum(f.severity == "error" for f in found)
    if form is FindingFormat.TEXT:
        against = f" against {tools}" if tools else " (not against tools; pass --tools)"
        others = len(found) - errors
        note(f"{file}: {_count(errors, 'error')}, {_count(others, 'warning')}{against}")
    if any(f.code == "AG100" for f in found):
        raise typer.Exit(2)
    raise typer.Exit(1 if errors else 0)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _findings(file: Path, tools: str | None) -> list[Finding]:
    try:
        settings = read_config(file)
        if tools is None:
            return lint(settings.policy.rules, settings.policy.name, settings.policy.default)
        registry = load_tools(tools)
        if settings.has_tools:
            registry = registry.with_document(settings.document)
    except PolicyError as error:
        return list(error.findings)
    return settings.policy.check(registry)


def evaluate(
    tools: NeededToolsOption,
    tool: Annotated[str, typer.Option("--tool", metavar="NAME", help="Name of the tool that would be called.")],
    file: FileArgument = Path("agentguard.yaml"),
    args: Annotated[
        str, typer.Option("--args", metavar="JSON", help="Arguments as a JSON object; @FILE reads a file, - stdin.")
    ] = "{}",
    agent: Annotated[str, typer.Option("--agent", help="Name of the agent.")] = "agent",
    tenant: Annotated[str, typer.Option("--tenant", help="Tenant of the run.")] = "default",
    environment: Annotated[str, typer.Option("--environment", help="Environment of the run.")] = "default",
    user: Annotated[str | None, typer.Option("--user", help="Person the agent acts for.")] = None,
    role: Annotated[list[str] | None, typer.Option("--role", help="Role of that person; repeat for more.")] = None,
    label: Annotated[list[str] | None, typer.Option("--label", help="Data label of the run; repeat for more.")] = None,
    form: FormatOption = Format.TEXT,
) -> None:
    """Say what the policy decides about one call, by which rules, and what would be allowed instead.

    Nothing runs and nothing is recorded. Exit code 0 when the call would run now, 1 when it is denied or needs
    approval.
    """
    registry = load_tools(tools)
    arguments = read_object(args, "--args")
    for kind, value in (("agent", agent), ("tenant", tenant), ("environment", environment), ("user", user)):
        if value is not None:
            check_id(kind, value)
    roles, labels = tuple(role or ()), tuple(label or ())
    for kind, names in (("role", roles), ("label", labels)):
        for name in names:
            check_id(kind, name)
    context = RunContext(
        run_id="eval",
        agent=agent,
        tenant=tenant,
        environment=environment,
        user=user,
        roles=tuple(sorted(set(roles))),
        labels=tuple(sorted(set(labels))),
    )
    settings = read_config(file)
    if settings.has_tools:
        registry = registry.with_document(settings.document)
    gateway = ToolGateway(registry, settings.policy)
    try:
        if registry.get(tool) is None:
            hint = registry.did_you_mean(tool)
            wrong(f"--tool {tool!r}: no such tool among those of {tools}{f' ({hint})' if hint else ''}")
        decision = gateway.decide(tool, arguments, context)
    finally:
        gateway.close()
    if form is Format.JSON:
        document(decision_object(tool, decision))
    else:
        _print(tool, decision)
    raise typer.Exit(0 if decision.allowed else 1)


def read_object(text: str, option: str) -> dict[str, Any]:
    """A JSON object given on the command line, in a file (``@path``) or on stdin (``-``).

    Raises:
        ConfigurationError: It is no JSON object, or the file cannot be read.
    """
    if text == "-":
        text = sys.stdin.read()
    elif text.startswith("@"):
        try:
            text = Path(text[1:]).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            wrong(f"{option}: {text[1:]} cannot be read: {error}")
    try:
        value = json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        wrong(f"{option} is not JSON: {error}")
    if not isinstance(value, dict):
        wrong(f'{option} must be a JSON object such as {{"order_id": "A-17"}}')
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON value")


def decision_object(tool: str, decision: Decision) -> dict[str, Any]:
    """A decision for programs."""
    terms = decision.approval
    return {
        "tool": tool,
        "verdict": decision.verdict,
        "allowed": decision.allowed,
        "mode": decision.mode,
        "rules": [
            {"id": r.id, "file": r.file, "line": r.line, "verb": r.verb, "layer": r.layer} for r in decision.rules
        ],
        "reasons": list(decision.reasons),
        "unlock": list(decision.unlock),
        "obligations": _obligations(decision.obligations),
        "approval": None
        if terms is None
        else {
            "roles": [list(roles) for roles in terms.role_sets],
            "quorum": terms.quorum,
            "expires_s": terms.expires_s,
            "separate": terms.separate,
            "edit": terms.edit,
        },
        "message": decision.message,
        "policy_digest": decision.policy_digest,
    }


def _obligations(obligations: Obligations) -> Mapping[str, Any]:
    names = Obligations.__dataclass_fields__
    return {name: value for name in names if (value := getattr(obligations, name)) not in ((), None)}


def _print(tool: str, decision: Decision) -> None:
    verdict = {"allow": "allowed", "deny": "denied", "require_approval": "needs approval"}[decision.verdict]
    observed = " (observe mode: recorded, not acted on)" if decision.mode == "observe" else ""
    obligations = _obligations(decision.obligations)
    fields(
        [
            ("tool", tool),
            ("decision", verdict + observed),
            *(("rule", f"{rule.verb} {rule}") for rule in decision.rules),
            *(("rule", "default") for _ in range(not decision.rules)),
            *(("reason", reason) for reason in decision.reasons),
            *(("unlock", text) for text in decision.unlock),
            *((name, compact(value)) for name, value in obligations.items()),
            ("to the model", decision.message),
            ("policy", decision.policy_digest),
        ]
    )
