"""Tools, registries and contexts for the tests of policies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agentguard.documents import load_file
from agentguard.domain.context import RunContext
from agentguard.domain.decisions import Decision
from agentguard.domain.plans import ToolSpec
from agentguard.policy import Policy, Rulebook, compile_layers

CASES = Path(__file__).parents[2] / "cases"


@dataclass(frozen=True)
class FakeTool:
    spec: ToolSpec


class FakeRegistry:
    def __init__(self, *specs: ToolSpec) -> None:
        self.tools = {spec.name: FakeTool(spec) for spec in specs}

    def __iter__(self) -> Iterator[FakeTool]:
        return iter(self.tools.values())

    def __contains__(self, name: object) -> bool:
        return name in self.tools


def shape(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def spec(name: str, schema: Mapping[str, Any] | None = None, **facts: Any) -> ToolSpec:
    return ToolSpec(name, "", shape() if schema is None else schema, **facts)


def case_registry() -> FakeRegistry:
    tools = load_file(CASES / "decisions.yaml").value["tools"]
    return FakeRegistry(
        *(
            spec(
                name,
                entry["schema"],
                permissions=tuple(entry.get("permissions", ())),
                effect=entry.get("effect", "irreversible"),
                risk=entry.get("risk", "medium"),
                owner=entry.get("owner"),
                output_labels=tuple(entry.get("labels", ())),
            )
            for name, entry in tools.items()
        )
    )


def context(**facts: Any) -> RunContext:
    return RunContext(**{"run_id": "r1", "agent": "bot", **facts})


def book(*texts: str | Policy, tools: FakeRegistry | None = None, **options: Any) -> Rulebook:
    policies = [Policy.from_string(t, f"p{i}.yaml") if isinstance(t, str) else t for i, t in enumerate(texts)]
    return compile_layers(policies, tools or case_registry(), **options)


def decide(
    rulebook: Rulebook,
    tool: str,
    arguments: Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    now: int = 0,
    **facts: Any,
) -> Decision:
    return rulebook.decide(tool, arguments or {}, context(**facts), labels, now)


def ids(decision: Decision) -> list[str]:
    return [rule.id for rule in decision.rules]
