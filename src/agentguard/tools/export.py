"""Tool definitions as models and protocols want them, and the names tools have on the wire.

What must stay true: a wire name leads back to exactly one tool; a narrowed registry uses the names of the
whole one, so that a name never changes its meaning when other tools are hidden; every export is a copy.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from agentguard.canonical import sha256
from agentguard.domain.plans import ToolSpec

WIRE_LENGTH = 64
"""Longest function name that OpenAI and Anthropic accept: ``^[a-zA-Z0-9_-]{1,64}$``."""

_FOREIGN = re.compile(r"[^a-zA-Z0-9_-]", re.ASCII)


def wire_names(names: Iterable[str]) -> dict[str, str]:
    """Tool name to wire name: foreign characters become ``_``; where two would be the same, both but the one that
    needs no change get a suffix made from the name, whatever the order."""
    plain: dict[str, list[str]] = {}
    for name in names:
        plain.setdefault(_FOREIGN.sub("_", name), []).append(name)
    taken = {name for name in plain if name in plain[name] and len(name) <= WIRE_LENGTH}
    wire: dict[str, str] = {}
    for base, group in sorted(plain.items()):
        for name in sorted(group):
            if name in taken or (len(group) == 1 and base not in taken and len(base) <= WIRE_LENGTH):
                wire[name] = base
                taken.add(base)
    for name in sorted({name for group in plain.values() for name in group} - wire.keys()):
        length = 8
        while True:
            suffix = "_" + sha256(name.encode())[:length]
            candidate = _FOREIGN.sub("_", name)[: WIRE_LENGTH - len(suffix)] + suffix
            if candidate not in taken:
                break
            length += 1
        wire[name] = candidate
        taken.add(candidate)
    return wire


def description_of(spec: ToolSpec) -> str:
    """The description for the model, with a note on deprecated tools."""
    if not spec.deprecated:
        return spec.description
    note = f"Deprecated: use {spec.replaced_by} instead." if spec.replaced_by else "Deprecated."
    return f"{spec.description} {note}".strip()


def to_openai(spec: ToolSpec, wire: str, api: Literal["chat", "responses"]) -> dict[str, Any]:
    """A function tool of OpenAI's chat completions or responses interface."""
    function = {
        "name": wire,
        "description": description_of(spec),
        "parameters": copy.deepcopy(dict(spec.input_schema)),
        # The responses interface rewrites schemas unless told not to; what is validated must be what is shown.
        "strict": False,
    }
    return {"type": "function", "function": function} if api == "chat" else {"type": "function", **function}


def to_anthropic(spec: ToolSpec, wire: str) -> dict[str, Any]:
    """A client tool of Anthropic's messages interface."""
    return {
        "name": wire,
        "description": description_of(spec),
        "input_schema": copy.deepcopy(dict(spec.input_schema)),
    }


def to_mcp(spec: ToolSpec, wire: str) -> dict[str, Any]:
    """A tool of the Model Context Protocol, annotations from the effect class."""
    quiet = spec.effect in ("pure", "read")
    definition: dict[str, Any] = {
        "name": wire,
        "description": description_of(spec),
        "inputSchema": copy.deepcopy(dict(spec.input_schema)),
        "annotations": {
            "readOnlyHint": quiet,
            "destructiveHint": not quiet,
            "idempotentHint": spec.effect != "irreversible",
            "openWorldHint": spec.effect != "pure",
        },
    }
    if spec.output_schema is not None and spec.output_schema.get("type") == "object":  # MCP knows no other results
        definition["outputSchema"] = copy.deepcopy(dict(spec.output_schema))
    return definition


def read_definition(given: Mapping[str, Any]) -> dict[str, Any]:
    """A foreign definition as settings of ``@tool``: ``name, description, input_schema, output_schema``.

    Understands OpenAI (chat completions and responses), Anthropic, MCP, and a JSON Schema whose ``title`` is
    the name. Hints about effects are left out: they are claims of whoever wrote the definition.

    Raises:
        ValueError: It is none of these.
    """
    entry: Any = given
    if entry.get("type") == "function" and isinstance(entry.get("function"), Mapping):
        entry = entry["function"]
    for key in ("parameters", "input_schema", "inputSchema"):
        if isinstance(entry.get(key), Mapping):
            found = {"name": entry.get("name"), "input_schema": entry[key]}
            break
    else:
        if not isinstance(entry.get("title"), str) or "properties" not in entry:
            raise ValueError(
                "it is no tool definition: expected the form of OpenAI, Anthropic or MCP, or a JSON Schema with a title"
            )
        found = {"name": entry["title"], "input_schema": {k: v for k, v in entry.items() if k != "title"}}
    if isinstance(entry.get("description"), str):
        found["description"] = entry["description"]
    if isinstance(entry.get("outputSchema"), Mapping):
        found["output_schema"] = entry["outputSchema"]
    return found
