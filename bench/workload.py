"""The work: one tool with five typed arguments, and rule sets of N rules about arguments.

``spread`` gives ten rules to each of N/10 tools; ``dense`` gives all N rules to one tool. Of each tool's rules
one allows and the others deny by a path's prefix, a recipient's pattern, a range of amounts or a set of modes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from pydantic_core import SchemaValidator, core_schema

from agentguard import Policy, Tool, tool

GROUP = 10
LIMIT = 100_000

ARGUMENTS: dict[str, Any] = {
    "path": "/data/reports/q3.csv",
    "recipient": "ana@corp.example",
    "amount": 420,
    "mode": "read",
    "dry_run": False,
}
"""Arguments that no deny rule matches."""


def body(path: str, recipient: str, amount: int, mode: str, dry_run: bool) -> int:
    """The tool: nothing to do."""
    return amount


async def abody(path: str, recipient: str, amount: int, mode: str, dry_run: bool) -> int:
    """The same, async."""
    return amount


def _rule(number: int, name: str, allows: bool) -> Iterator[str]:
    if allows:
        yield f"  - {{id: r{number}, allow: {name}, when: {{args: {{amount: {{maximum: {LIMIT}}}}}}}}}"
        return
    match number % 4:
        case 0:
            test = f'path: {{pattern: "^/secret/{number}/"}}'
        case 1:
            test = f'recipient: {{pattern: "^[a-z0-9.]+@blocked{number}[.]example$"}}'
        case 2:
            test = f"amount: {{minimum: {LIMIT + number * 10}, maximum: {LIMIT + number * 10 + 9}}}"
        case _:
            test = f"mode: {{enum: [m{number}a, m{number}b, m{number}c]}}"
    yield f"  - {{id: r{number}, deny: {name}, when: {{args: {{{test}}}}}}}"


def policies(rules: int, shape: str) -> tuple[list[Policy], list[str]]:
    """The rule set as layers of at most 2,000 rules (one file is capped at 256 KiB), and the tools it is about.

    Layers of one rule set must all allow, so each layer abstains by default and holds whole tools.
    """
    per = GROUP if shape == "spread" else rules
    names: list[str] = []
    lines: list[str] = []
    layers: list[Policy] = []

    def flush() -> None:
        if lines:
            text = "version: 1\ndefault: abstain\nrules:\n" + "\n".join(lines)
            layers.append(Policy.from_string(text, f"layer{len(layers)}"))
            lines.clear()

    for number in range(rules):
        name = f"tool_{number // per}"
        if number % per == 0:
            names.append(name)
            if len(lines) >= 2_000:
                flush()
        lines.extend(_rule(number, name, number % per == 0))
    flush()
    return layers, names


def target(rules: int, shape: str) -> str:
    """The tool that is called: in the middle of the rule set."""
    return f"tool_{(rules // GROUP) // 2}" if shape == "spread" else "tool_0"


def arguments(rules: int, shape: str, case: str) -> dict[str, Any]:
    """Arguments that the rule set allows, or that the last pattern rule of the tool denies."""
    if case == "allow":
        return dict(ARGUMENTS)
    per = GROUP if shape == "spread" else rules
    first = int(target(rules, shape)[5:]) * per
    last = max(number for number in range(first, first + per) if number % 4 == 1 and number % per)
    return {**ARGUMENTS, "recipient": f"bob@blocked{last}.example"}


def tools(names: list[str], function: Callable[..., Any] = body) -> list[Tool]:
    """The tool under every name of the rule set."""
    made = tool(function, name=names[0], effect="read").tool
    return [made if name == names[0] else made.with_spec(name=name) for name in names]


def validator() -> Callable[[Any], dict[str, Any]]:
    """pydantic-core validation of the five arguments."""
    field = core_schema.typed_dict_field
    return SchemaValidator(
        core_schema.typed_dict_schema(
            {
                "path": field(core_schema.str_schema(min_length=1, max_length=256)),
                "recipient": field(core_schema.str_schema(max_length=128)),
                "amount": field(core_schema.int_schema(ge=0, le=1_000_000)),
                "mode": field(core_schema.str_schema(max_length=32)),
                "dry_run": field(core_schema.bool_schema()),
            },
            extra_behavior="forbid",
        )
    ).validate_python


def bare() -> Callable[[dict[str, Any]], int]:
    """The baseline: validation, then the function."""
    validate = validator()

    def bare_validated_call(given: dict[str, Any]) -> int:
        return body(**validate(given))

    return bare_validated_call


def abare() -> Callable[[dict[str, Any]], Any]:
    """The baseline of the other colour."""
    validate = validator()

    async def bare_validated_call(given: dict[str, Any]) -> int:
        return await abody(**validate(given))

    return bare_validated_call
