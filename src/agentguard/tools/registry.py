"""The registry: which tools there are. A value; adding a tool gives a new one.

What must stay true: one name, one tool; an entry in a file completes or tightens what the decorator declares
and never loosens it; fallbacks exist and lead nowhere twice; a name that is not understood is an error.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MethodType
from typing import Any, Literal, NoReturn

from agentguard import documents
from agentguard.errors import PolicyError, ToolDefinitionError
from agentguard.tools import export
from agentguard.tools.schema import did_you_mean, shown
from agentguard.tools.settings import check_name, fail, read_settings, tightened
from agentguard.tools.tool import Tool, define

Bodies = Mapping[str, Any]
"""Tool name to its function: plain, or decorated. ``Any``, because checkers join the two kinds to ``object``."""

_ONLY_NEW = ("input_schema", "output_schema")


def tool_of(item: Any) -> Tool:
    """The tool behind a ``Tool``, a decorated function or a bound method of one.

    Raises:
        ToolDefinitionError: AG226, it is none of these, or a method without its instance.
    """
    made = item if isinstance(item, Tool) else getattr(item, "tool", None)
    if not isinstance(made, Tool):
        raise ToolDefinitionError(
            f"{shown(item)} is not a tool; decorate the function with @tool, or pass tool(function, name=...)",
            code="AG226",
        )
    if isinstance(item, MethodType):
        if not made.method:
            raise ToolDefinitionError(
                f"tool {made.spec.name}: the method has no self parameter, so it cannot be called on an instance; add "
                "self, or make it a staticmethod (@staticmethod above @tool)",
                code="AG226",
            )
        return made.bound_to(item.__self__)
    if made.method:
        raise ToolDefinitionError(
            f"tool {made.spec.name} is a method; register it on an instance, as in "
            f"ToolRegistry.of(service.{made.spec.name.rsplit('.', 1)[-1]})",
            code="AG226",
        )
    return made


class ToolRegistry:
    """Tools by name, in name order. Immutable, comparable, hashable."""

    __slots__ = ("_by_wire", "_tools", "_wire")

    def __init__(self, tools: Iterable[Any] = ()) -> None:
        """Make a registry; the same as :meth:`of`, from one iterable.

        Raises:
            ToolDefinitionError: AG226, a name is there twice; AG227, a fallback does not exist or goes in a circle.
        """
        self._fill((tool_of(item) for item in tools), None)
        self._check_fallbacks()

    def _fill(self, tools: Iterable[Tool], wire: Mapping[str, str] | None) -> None:
        found: dict[str, Tool] = {}
        for item in tools:
            name = item.spec.name
            if name in found:
                raise ToolDefinitionError(
                    f"tool {name} is registered twice; names are unique. Give one of them another name=, for methods of "
                    "several instances with .tool.with_spec(name=...)",
                    code="AG226",
                )
            found[name] = item
        self._tools = dict(sorted(found.items()))
        self._wire = {name: wire[name] for name in self._tools} if wire is not None else export.wire_names(self._tools)
        self._by_wire = {on_wire: name for name, on_wire in self._wire.items()}

    def _check_fallbacks(self) -> None:
        for name, first in self._tools.items():
            seen, current = [name], first
            while (following := current.spec.fallback) is not None:
                if following not in self._tools:
                    hint = did_you_mean(following, self._tools)
                    fail(
                        f"tool {seen[-1]}",
                        "AG227",
                        f"fallback {following} is not registered{f' ({hint})' if hint else ''}",
                    )
                if following in seen:
                    fail(f"tool {name}", "AG227", f"fallbacks go in a circle: {' -> '.join([*seen, following])}")
                seen.append(following)
                current = self._tools[following]

    @classmethod
    def of(cls, *tools: Any) -> ToolRegistry:
        """A registry of decorated functions, bound methods and ``Tool`` objects.

        Raises:
            ToolDefinitionError: AG226 or AG227.
        """
        return cls(tools)

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any], *, bodies: Bodies | None = None) -> ToolRegistry:
        """A registry out of a ``tools:`` section, name to settings.

        Args:
            mapping: Tool name to settings as in ``@tool``.
            bodies: Tool name to its function: plain, or decorated (then the entry completes or tightens it).
                Decorated functions without an entry are registered as they are.

        Raises:
            ToolDefinitionError: AG210 to AG229.
        """
        return cls().with_settings(mapping, bodies=bodies)

    @classmethod
    def from_yaml(cls, source: str | os.PathLike[str], *, bodies: Bodies | None = None) -> ToolRegistry:
        """A registry out of the ``tools:`` section of a file.

        Args:
            source: A path; text with a line break in it is taken for the document itself.
            bodies: As in :meth:`from_mapping`.

        Raises:
            PolicyError: The file does not load; the findings carry line and column.
        """
        if isinstance(source, str) and "\n" in source:
            document = documents.load(source)
        else:
            document = documents.load_file(source)
        return cls().with_document(document, bodies=bodies)

    @classmethod
    def from_json_schema(
        cls,
        definitions: Iterable[Any] | Mapping[str, Mapping[str, Any]],
        *,
        bodies: Bodies | Callable[[str], Callable[..., Any]],
        settings: Mapping[str, Any] | None = None,
    ) -> ToolRegistry:
        """A registry out of tool definitions of OpenAI, Anthropic or MCP, or of plain JSON Schemas.

        What a definition claims about effects is not believed: a tool is irreversible and of medium risk until
        ``settings`` says otherwise.

        Args:
            definitions: Definitions (mappings, or objects with ``model_dump``), or name to JSON Schema.
            bodies: Tool name to its function, or a function that makes one for a name. Bodies get the
                validated arguments as keywords.
            settings: Tool name to further settings as in ``@tool``.

        Raises:
            ToolDefinitionError: AG210 to AG229.
        """
        entries: list[dict[str, Any]] = []
        if isinstance(definitions, Mapping):
            entries = [{"name": name, "input_schema": schema} for name, schema in definitions.items()]
            for entry in entries:
                if isinstance(entry["input_schema"], Mapping) and isinstance(
                    entry["input_schema"].get("description"), str
                ):
                    entry["description"] = entry["input_schema"]["description"]
        else:
            for given in definitions:
                form = given.model_dump(by_alias=True, exclude_none=True) if hasattr(given, "model_dump") else given
                try:
                    if not isinstance(form, Mapping):
                        raise ValueError("it is not a mapping")
                    entries.append(export.read_definition(form))
                except ValueError as error:
                    fail(f"definition {shown(form)}", "AG229", str(error))
        more = dict(settings or {})
        made: list[Tool] = []
        for entry in entries:
            name = check_name("tool definition", entry.pop("name"))
            extra = more.pop(name, {})
            if not isinstance(extra, Mapping):
                fail(f"tool {name}", "AG229", f"settings must be a mapping, not {shown(extra)}")
            body = bodies(name) if callable(bodies) else bodies.get(name)
            if body is None:
                fail(f"tool {name}", "AG229", "has no function; name one in bodies=")
            made.append(define(body, {"description": "", **entry, **extra}, name=name))
        if more:
            names = [entry.spec.name for entry in made]
            _no_such("settings", next(iter(more)), names)
        return cls(made)

    def with_tool(self, item: Any) -> ToolRegistry:
        """The registry with one more tool.

        Raises:
            ToolDefinitionError: AG226 or AG227.
        """
        return ToolRegistry((*self, item))

    def without(self, name: str) -> ToolRegistry:
        """The registry without a tool.

        Raises:
            ToolDefinitionError: AG226, there is no such tool; AG227, it is another one's fallback.
        """
        if name not in self._tools:
            _no_such("without()", name, self._tools)
        return ToolRegistry(item for item in self if item.spec.name != name)

    def only(self, names: Iterable[str]) -> ToolRegistry:
        """The tools with these names, for showing: wire names stay those of the whole registry."""
        wanted = frozenset(names)
        for name in wanted - self._tools.keys():
            _no_such("only()", name, self._tools)
        narrowed = ToolRegistry.__new__(ToolRegistry)
        narrowed._fill((item for name, item in self._tools.items() if name in wanted), self._wire)
        return narrowed

    def with_settings(self, mapping: Mapping[str, Any], *, bodies: Bodies | None = None) -> ToolRegistry:
        """The registry after a ``tools:`` section: entries complete, tighten, or describe further tools.

        Args:
            mapping: Tool name to settings.
            bodies: Functions of tools that are not registered yet.

        Raises:
            ToolDefinitionError: AG210 to AG229.
        """
        if not isinstance(mapping, Mapping):
            raise ToolDefinitionError(f"tools: must map names to settings, not {shown(mapping)}", code="AG229")
        rest = self._joined(bodies)
        made = {name: self._entry(name, entry, bodies or {}) for name, entry in mapping.items()}
        return ToolRegistry({**rest, **made}.values())

    def with_document(
        self, document: documents.Document, path: documents.Path = ("tools",), *, bodies: Bodies | None = None
    ) -> ToolRegistry:
        """The same from a parsed file: every entry is checked, and every finding has its line and column.

        Raises:
            PolicyError: Something in the section is wrong.
        """
        section: Any = document.value
        for step in path:
            if not isinstance(section, Mapping) or step not in section:
                message = f"the file has no section {'.'.join(map(str, path))}"
                raise PolicyError([document.finding("AG229", message, ())])
            section = section[step]
        if not isinstance(section, Mapping):
            raise PolicyError([document.finding("AG229", "tools: must map names to settings", path)])
        rest = self._joined(bodies)
        made: dict[str, Tool] = {}
        findings = []
        for name, entry in section.items():
            try:
                made[name] = self._entry(name, entry, bodies or {})
            except ToolDefinitionError as error:
                setting = getattr(error, "setting", None)
                known = isinstance(entry, Mapping) and setting in entry
                place = (*path, name, setting) if known else (*path, name)
                findings.append(document.finding(error.code, str(error), place, key=not known or error.code == "AG229"))
        if findings:
            raise PolicyError(findings)
        try:
            return ToolRegistry({**rest, **made}.values())
        except ToolDefinitionError as error:
            raise PolicyError([document.finding(error.code, str(error), path, key=True)]) from error

    def _joined(self, bodies: Bodies | None) -> dict[str, Tool]:
        """The tools there are, with the decorated functions among ``bodies``."""
        rest = dict(self._tools)
        for name, body in (bodies or {}).items():
            if not isinstance(body, Tool) and not isinstance(getattr(body, "tool", None), Tool):
                continue
            made = tool_of(body)
            if made.spec.name != name:
                fail(f"tool {made.spec.name}", "AG229", f"bodies= calls it {shown(name)}; use its own name")
            if name in self._tools:
                fail(f"tool {name}", "AG226", "is registered already and in bodies= too")
            rest[name] = made
        return rest

    def _entry(self, name: Any, entry: Any, bodies: Bodies) -> Tool:
        where = f"tool {name}" if isinstance(name, str) else "tool"
        if not isinstance(entry, Mapping):
            fail(where, "AG229", f"settings must be a mapping, not {shown(entry)}")
        declared = self._joined(bodies).get(name)
        if declared is not None:
            for key in _ONLY_NEW:
                if key in entry:
                    fail(where, "AG228", f"{key} comes from the decorator and cannot be replaced here", key)
            return declared.with_spec(**tightened(where, declared.spec, read_settings(where, entry)))
        body = bodies.get(name)
        if body is None:
            hint = did_you_mean(name, {*self._tools, *bodies}) if isinstance(name, str) else ""
            fail(
                where,
                "AG229",
                f"no function is registered under this name{f' ({hint})' if hint else ''}; pass it in tools=",
            )
        return define(body, entry, name=name)

    def get(self, name: str) -> Tool | None:
        """The tool of this name, or ``None``."""
        return self._tools.get(name)

    def __getitem__(self, name: str) -> Tool:
        return self._tools[name]

    def __contains__(self, name: object) -> bool:
        return name in self._tools

    def __iter__(self) -> Iterator[Tool]:
        return iter(self._tools.values())

    def __len__(self) -> int:
        return len(self._tools)

    def __eq__(self, other: object) -> bool:
        return self._tools == other._tools if isinstance(other, ToolRegistry) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._tools.values()))

    def __repr__(self) -> str:
        return f"<ToolRegistry {', '.join(self._tools) or 'empty'}>"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all tools, sorted."""
        return tuple(self._tools)

    def did_you_mean(self, name: str) -> str:
        """``did you mean "x"?`` for the closest name, or ``""``."""
        return did_you_mean(name, self._tools)

    def wire_name(self, name: str) -> str:
        """The name of a tool in exports and on the wire: ``[a-zA-Z0-9_-]{1,64}``.

        Raises:
            KeyError: There is no such tool.
        """
        return self._wire[name]

    def by_wire_name(self, name: str) -> Tool | None:
        """The tool that this wire name stands for, or ``None``."""
        found = self._by_wire.get(name)
        return None if found is None else self._tools[found]

    def to_openai(self, api: Literal["chat", "responses"] = "chat") -> list[dict[str, Any]]:
        """Function tools for OpenAI's chat completions or responses interface."""
        if api not in ("chat", "responses"):
            raise ValueError(f'api must be "chat" or "responses", not {shown(api)}')
        return [export.to_openai(item.spec, self._wire[item.spec.name], api) for item in self]

    def to_anthropic(self) -> list[dict[str, Any]]:
        """Tools for Anthropic's messages interface."""
        return [export.to_anthropic(item.spec, self._wire[item.spec.name]) for item in self]

    def to_mcp(self) -> list[dict[str, Any]]:
        """Tools of the Model Context Protocol."""
        return [export.to_mcp(item.spec, self._wire[item.spec.name]) for item in self]

    def lock(self) -> dict[str, str]:
        """Tool name to the digest of its definition, in name order."""
        return {name: item.spec.digest for name, item in self._tools.items()}


def _no_such(where: str, name: Any, known: Iterable[str]) -> NoReturn:
    hint = did_you_mean(name, list(known)) if isinstance(name, str) else ""
    fail(where, "AG226", f"no tool is called {shown(name)}{f' ({hint})' if hint else ''}")
