"""Walking the JSON Schemas of tools: what may stand at a path of arguments, and of which types.

Pure and forgiving: whatever is not understood permits everything, so that a check built on this never refuses a rule
because of an unusual schema.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from agentguard.policy.truth import kind

Schema: TypeAlias = Mapping[str, Any]
"""A JSON Schema in its object form."""

_MAX_ALTERNATIVES = 64


def _local(reference: Any, root: Schema) -> Any:
    if not isinstance(reference, str) or not reference.startswith("#"):
        return None
    node: Any = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if not isinstance(node, Mapping) or key not in node:
            return None
        node = node[key]
    return node


def alternatives(schema: Any, root: Schema) -> list[Schema]:
    """The plain schemas that a value may follow, with references and unions resolved.

    Anything that is not understood is the empty schema, which permits everything.
    """
    found: list[Schema] = []
    todo: list[tuple[Any, int]] = [(schema, 0)]
    while todo and len(found) < _MAX_ALTERNATIVES:
        node, depth = todo.pop()
        if not isinstance(node, Mapping):
            if node is not False:
                found.append({})
            continue
        target = _local(node["$ref"], root) if "$ref" in node else None
        union = next((node[key] for key in ("anyOf", "oneOf", "allOf") if isinstance(node.get(key), list)), None)
        if depth > 16:
            found.append({})
        elif "$ref" in node:
            todo.append(({} if target is None else target, depth + 1))
        elif union is not None:
            if "allOf" in node and len(union) > 1:
                found.append({})
            else:
                todo.extend((item, depth + 1) for item in union)
        else:
            found.append(node)
    return found


def step(schemas: Iterable[Schema], name: str, root: Schema) -> list[Schema]:
    """The schemas of what lies one step below; empty when nothing can be there."""
    found: list[Schema] = []
    for schema in schemas:
        types = types_of(schema)
        if types is None or "object" in types:
            properties = schema.get("properties")
            rest = schema.get("additionalProperties")
            if isinstance(properties, Mapping) and name in properties:
                found += alternatives(properties[name], root)
            elif isinstance(rest, Mapping):
                found += alternatives(rest, root)
            elif name == "*" and isinstance(properties, Mapping):
                for item in properties.values():
                    found += alternatives(item, root)
            elif (rest is True or properties is None) and rest is not False:
                found.append({})
        if (types is None or "array" in types) and (name == "*" or (name.isascii() and name.isdigit())):
            items = schema.get("items")
            prefix = schema.get("prefixItems")
            if isinstance(prefix, list) and (name == "*" or int(name) < len(prefix)):
                for item in prefix if name == "*" else [prefix[int(name)]]:
                    found += alternatives(item, root)
            elif items is not False:
                found += alternatives({} if items is None else items, root)
    return found[:_MAX_ALTERNATIVES]


def types_of(schema: Schema) -> set[str] | None:
    """JSON types that a schema permits, or ``None`` when it does not say."""
    given = schema.get("type")
    if isinstance(given, str):
        return {given}
    if isinstance(given, list):
        return {item for item in given if isinstance(item, str)}
    values = (
        schema["enum"] if isinstance(schema.get("enum"), list) else [schema["const"]] if "const" in schema else None
    )
    if values is not None:
        return {kind(value) or "null" for value in values}
    if isinstance(schema.get("properties"), Mapping):
        return {"object"}
    return None


def null_depths(schema: Schema, steps: Sequence[str]) -> frozenset[int]:
    """Depths of a path at which ``null`` is what the tool fills in for "not given" (the schema's default)."""
    found: set[int] = set()
    level = alternatives(schema, schema)
    for depth, name in enumerate(steps, 1):
        for node in level:
            properties = node.get("properties")
            item = properties.get(name) if isinstance(properties, Mapping) else None
            if isinstance(item, Mapping) and "default" in item and item["default"] is None:
                found.add(depth)
        level = step(level, name, schema)
    return frozenset(found)
