"""``agentguard.lock``: which definitions of tools were reviewed, so that one that changes later is noticed.

A tool that came from elsewhere (an MCP server, a package) can change its description, its schema or its declared
effect after it was approved. The lock holds the SHA-256 of every canonical definition, and the definitions
themselves so that a difference can be shown. What must stay true: a lock that cannot be read completely is an error,
a definition that does not have the digest beside it is too, and a tool that the lock does not name counts as changed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NoReturn, TypeAlias

from agentguard import canonical
from agentguard.errors import ConfigurationError
from agentguard.tools.defining import definition_of

if TYPE_CHECKING:
    from agentguard.tools.registry import ToolRegistry

VERSION: Final = 1
"""Version of the file's form."""

MAX_BYTES: Final = 64 * 1024 * 1024
"""Size limit of a lock file in bytes."""

Kind: TypeAlias = Literal["changed", "added", "removed"]


@dataclass(frozen=True, slots=True)
class Change:
    """A tool that is otherwise than the lock says.

    Attributes:
        tool: Its name.
        kind: ``changed``; ``added``: the lock does not name it; ``removed``: it is no longer registered.
        locked: Its definition in the lock, or ``None``.
        found: Its definition now, or ``None``.
    """

    tool: str
    kind: Kind
    locked: Mapping[str, Any] | None
    found: Mapping[str, Any] | None

    @property
    def refused(self) -> bool:
        """Whether calls of the tool are refused: a tool that is gone cannot be called anyway."""
        return self.kind != "removed"

    def differences(self) -> list[tuple[str, Any, Any]]:
        """Places in the definition that differ, each with what was locked and what is there now.

        A place is a path such as ``input_schema.properties.to.type``; what is missing on one side is ``None`` there.
        """
        return list(_differences("", self.locked or {}, self.found or {}))


_MISSING: Final = object()


def _differences(path: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            place = f"{path}.{key}" if path else str(key)
            yield from _differences(place, before.get(key, _MISSING), after.get(key, _MISSING))
    elif before is _MISSING or after is _MISSING or canonical.tagged(before) != canonical.tagged(after):
        yield path, None if before is _MISSING else before, None if after is _MISSING else after


@dataclass(frozen=True, slots=True)
class Lock:
    """The definitions that were reviewed.

    Attributes:
        tools: Tool name to its definition, as JSON values, in name order.
    """

    tools: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, registry: ToolRegistry) -> Lock:
        """The lock of the tools as they are now."""
        return cls({tool.spec.name: _plain(definition_of(tool.spec, tool.probe)) for tool in registry})

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Lock:
        """Read a lock file.

        Raises:
            ConfigurationError: AG230, it is missing, is no lock, or was changed by hand.
        """
        source = os.fspath(path)
        try:
            with open(source, "rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            _wrong(source, f"it cannot be read: {error.strerror or error}; write it with: agentguard tools lock")
        if len(data) > MAX_BYTES:
            _wrong(source, f"it is larger than {MAX_BYTES >> 20} MiB")
        return cls.from_text(data, source)

    @classmethod
    def from_text(cls, text: str | bytes, source: str = "agentguard.lock") -> Lock:
        """The same from a text; ``source`` names it in messages.

        Raises:
            ConfigurationError: AG230.
        """
        try:
            value = json.loads(text, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            _wrong(source, f"it is not JSON: {error}")
        if not isinstance(value, dict) or set(value) != {"version", "tools"} or value["version"] != VERSION:
            _wrong(source, f"it must hold version: {VERSION} and tools, and nothing else")
        if not isinstance(value["tools"], dict):
            _wrong(source, "tools must map names to definitions")
        found: dict[str, Mapping[str, Any]] = {}
        for name, entry in sorted(value["tools"].items()):
            if not isinstance(entry, dict) or set(entry) != {"sha256", "definition"}:
                _wrong(source, f"{name!r:.140} must have sha256 and definition")
            definition = entry["definition"]
            if not isinstance(definition, dict) or definition.get("name") != name:
                _wrong(source, f"the definition of {name!r:.140} is that of another tool")
            try:
                actual = canonical.digest(definition)
            except canonical.NotCanonical as error:
                _wrong(source, f"the definition of {name!r:.140} is no JSON value: {error}")
            if actual != entry["sha256"]:
                _wrong(source, f"the definition of {name!r:.140} does not have the digest beside it")
            found[name] = definition
        return cls(found)

    @property
    def digests(self) -> dict[str, str]:
        """Tool name to the SHA-256 (hex) of its definition, as :meth:`ToolRegistry.lock` gives it."""
        return {name: canonical.digest(definition) for name, definition in self.tools.items()}

    def text(self) -> str:
        """The file: JSON with sorted keys, the same for the same tools on every machine."""
        tools = {
            name: {"sha256": digest, "definition": self.tools[name]} for name, digest in sorted(self.digests.items())
        }
        return json.dumps({"version": VERSION, "tools": tools}, indent=2, sort_keys=True) + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file, all of it or nothing: a reader never sees half of it."""
        target = Path(path)
        draft = target.with_name(f".{target.name}.{os.getpid()}")
        try:
            draft.write_text(self.text(), encoding="utf-8")
            draft.replace(target)
        finally:
            draft.unlink(missing_ok=True)

    def changes(self, registry: ToolRegistry) -> tuple[Change, ...]:
        """What is otherwise in ``registry``, in name order."""
        mine, theirs = self.digests, registry.lock()
        now = Lock.of(registry).tools
        found: list[Change] = []
        for name in sorted({*mine, *theirs}):
            if mine.get(name) != theirs.get(name):
                kind: Kind = "added" if name not in mine else "removed" if name not in theirs else "changed"
                found.append(Change(name, kind, self.tools.get(name), now.get(name)))
        return tuple(found)

    def refusals(self, registry: ToolRegistry) -> dict[str, str]:
        """Tools whose calls are refused, each with the reason for people."""
        reasons: dict[str, str] = {}
        for change in self.changes(registry):
            if change.kind == "added":
                reasons[change.tool] = f"The tool {change.tool} is not in the lock; nobody has reviewed it."
            elif change.kind == "changed":
                places = ", ".join(path for path, _, _ in change.differences()[:5])
                reasons[change.tool] = f"The definition of {change.tool} is not the one that was locked: {places}."
        return reasons


def _plain(value: Any) -> Any:
    """A definition as JSON values of plain Python types."""
    return json.loads(json.dumps(value, default=dict))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice")
    return found


def _wrong(source: str, problem: str) -> NoReturn:
    raise ConfigurationError(f"AG230 {source} cannot be used as a lock: {problem}", code="AG230")
