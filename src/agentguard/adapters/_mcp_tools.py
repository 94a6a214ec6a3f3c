"""What an MCP server says about its tools: registered once, pinned, and compared with what it says later.

What must stay true: a server's word about effects counts only where somebody trusts it; whatever a model or a person
reads of a tool is part of its pin; a tool that has changed, or that cannot be governed, is neither shown nor called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pydantic_core import from_json, to_jsonable_python

from agentguard.adapters._continuing import Definition, is_continued, registry_of
from agentguard.canonical import NotCanonical, sha256, tagged
from agentguard.documents import Document
from agentguard.domain.decisions import Finding
from agentguard.errors import PolicyError, ToolDefinitionError
from agentguard.tools.given import GivenResult
from agentguard.tools.registry import ToolRegistry
from agentguard.tools.schema import Output, OutputInvalid, did_you_mean
from agentguard.tools.signature import written
from agentguard.tools.tool import Tool

_UNPINNED: Final = frozenset({"_meta", "icons"})
"""Parts of a definition that no model decides by, and that servers change at will."""


@dataclass(frozen=True, slots=True, eq=False)
class Pin:
    """What a server said about a tool, as one digest; told apart by identity, see :class:`Watch`."""

    digest: str


class StructuredResult:
    """Checks ``structuredContent`` of a tool's results against the output schema that its server announced."""

    __slots__ = ("_given", "schema")

    def __init__(self, schema: Mapping[str, Any] | None, where: str) -> None:
        self._given = GivenResult(schema, where) if schema is not None else None
        self.schema: dict[str, Any] | None = self._given.schema if self._given is not None else None

    def check(self, value: Any) -> Output:
        """Check a result and write it as JSON.

        Raises:
            OutputInvalid: It does not fit, or has no JSON form.
        """
        if self._given is not None:
            if not isinstance(value, Mapping) or "structuredContent" not in value:
                message = "The tool returned something that its definition does not permit."
                raise OutputInvalid(message, "the result has no structuredContent, and there is an output schema")
            self._given.check(value["structuredContent"])
        return Output(value, written(value))

    def revive(self, text: str | bytes) -> Any:
        """The value out of a stored JSON text."""
        return from_json(text)


def wire_form(tool: Any) -> dict[str, Any]:
    """A tool definition as it goes over the wire: from a mapping, or from a model of the SDK."""
    if hasattr(tool, "model_dump"):
        dumped: dict[str, Any] = tool.model_dump(by_alias=True, exclude_none=True, mode="json")
        return dumped
    return dict(tool)


def _claimed(annotations: Any) -> dict[str, Any]:
    """Settings out of a server's hints, for servers that are trusted."""
    if not isinstance(annotations, Mapping):
        return {}
    if annotations.get("readOnlyHint") is True:
        return {"effect": "read", "risk": "low"}
    return {"effect": "idempotent"} if annotations.get("idempotentHint") is True else {}


def read_tool(given: Any, prefix: str = "", *, trusted: bool = False) -> Definition:
    """A definition of a server.

    Args:
        given: The tool: a mapping, or a model of the SDK.
        prefix: Stands before the name in the registry.
        trusted: Believe what the server says about effects.

    Raises:
        ToolDefinitionError: AG229, it is no definition that could be pinned.
    """
    form = wire_form(given)
    name, schema = form.get("name"), form.get("inputSchema")
    if not isinstance(name, str) or not isinstance(schema, Mapping):
        raise ToolDefinitionError("a tool of the server has no name or no inputSchema", code="AG229")
    try:
        pin = Pin(sha256(tagged({key: value for key, value in form.items() if key not in _UNPINNED})))
    except NotCanonical as error:
        raise ToolDefinitionError(f"tool {name!r:.140}: the definition is not JSON: {error}", code="AG229") from error
    described = form.get("description")
    settings: dict[str, Any] = _claimed(form.get("annotations")) if trusted else {}
    if form.get("outputSchema") is not None:
        settings["output_schema"] = form["outputSchema"]
    return Definition(prefix + name, described if isinstance(described, str) else "", schema, pin, settings)


def _tool(definition: Definition, settings: Mapping[str, Any]) -> Tool:
    own = dict(definition.settings)
    announced = own.pop("output_schema", None)
    plain = Definition(definition.name, definition.description, definition.schema, definition.origin, own)
    made = next(iter(registry_of([plain], {definition.name: settings} if settings else None)))
    result = StructuredResult(announced, f"tool {definition.name}")
    made._output = result
    return made.with_spec(output_schema=result.schema)


def registry_from(
    tools: Iterable[Any],
    *,
    prefix: str = "",
    settings: Mapping[str, Any] | None = None,
    document: Document | None = None,
    trusted: bool = False,
) -> tuple[ToolRegistry, dict[str, str]]:
    """The tools of a server, for a gateway.

    Args:
        tools: What the server lists.
        prefix: Stands before every name in the registry.
        settings: Tool name (with prefix) to settings as in ``@tool``; they come before what the server says.
        document: A configuration file, whose ``tools`` section does the same.
        trusted: Believe what the server says about effects.

    Returns:
        The registry, and the tools that cannot be governed with the reason.

    Raises:
        PolicyError: The ``tools`` section names a tool that does not exist, or cannot be read.
        ToolDefinitionError: The same of ``settings``.
    """
    value: Any = document.value if document is not None else {}
    section = value.get("tools", {}) if isinstance(value, Mapping) else {}
    written_down: Mapping[str, Any] = section if isinstance(section, Mapping) else {}
    more = dict(settings or {})
    made: list[Tool] = []
    left_out: dict[str, str] = {}
    findings: list[Finding] = []
    for given in tools:
        try:
            one = read_tool(given, prefix, trusted=trusted)
        except ToolDefinitionError as error:
            left_out[f"a tool ({len(left_out) + 1})"] = str(error)
            continue
        if one.name in left_out or any(one.name == known.spec.name for known in made):
            left_out[one.name] = f"tool {one.name}: the server has two tools of this name"
            made = [known for known in made if known.spec.name != one.name]
            continue
        entry = written_down.get(one.name, {})
        by_hand = more.pop(one.name, {})
        try:
            made.append(_tool(one, {**entry, **by_hand} if isinstance(entry, Mapping) else by_hand))
        except ToolDefinitionError as error:
            if by_hand:
                raise
            if entry and document is not None:
                findings.append(document.finding(error.code, str(error), ("tools", one.name), key=True))
            left_out[one.name] = str(error)
    registry = ToolRegistry(made)
    for name in more:
        hint = did_you_mean(name, registry.names)
        raise ToolDefinitionError(
            f"settings: the server has no tool {name!r:.140}{f'; {hint}' if hint else ''}.", code="AG229"
        )
    if findings:
        raise PolicyError(findings)
    return registry, left_out


class Watch:
    """The tools of one server that a gateway knows, and what the server says about them now.

    Args:
        registry: The gateway's tools.
        prefix: Stands before the server's names in it.
    """

    def __init__(self, registry: ToolRegistry, prefix: str = "") -> None:
        self.prefix = prefix
        self._registered: dict[str, Definition] = {}
        for tool in registry:
            found = getattr(tool._function, "definition", None)
            if is_continued(tool) and isinstance(found, Definition) and isinstance(found.origin, Pin):
                if found.name.startswith(prefix):
                    self._registered[found.name] = found
        self._latest: dict[str, Definition] = dict(self._registered)

    def __contains__(self, name: object) -> bool:
        return name in self._registered

    def learn(self, tools: Iterable[Any], *, whole: bool = False) -> tuple[str, ...]:
        """Take in what the server lists.

        Args:
            tools: Definitions.
            whole: These are all it has, so what is not among them is gone.

        Returns:
            Names of registered tools that are not, or no longer, what was registered.
        """
        if whole:
            self._latest = {}
        for given in tools:
            try:
                one = read_tool(given, self.prefix)
            except ToolDefinitionError:
                name = to_jsonable_python(wire_form(given).get("name"), fallback=repr)
                self._latest.pop(f"{self.prefix}{name}", None)
                continue
            registered = self._registered.get(one.name)
            if registered is not None and _digest(registered) == _digest(one):
                one = registered
            self._latest[one.name] = one
        return tuple(name for name in self._registered if not self.is_same(name))

    def latest(self, name: str) -> Definition:
        """What the server says about a tool now; something unlike every tool when it says nothing."""
        return self._latest.get(name) or Definition(name, "", {}, Pin(""))

    def is_same(self, name: str) -> bool:
        """Whether a tool is registered, and is still what was registered."""
        registered = self._registered.get(name)
        return registered is not None and self._latest.get(name) is registered


def _digest(definition: Definition) -> str:
    assert isinstance(definition.origin, Pin)
    return definition.origin.digest
