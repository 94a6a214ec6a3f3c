"""``tools lock``, ``verify`` and ``diff``: the definitions that were reviewed, and what has changed since."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from agentguard.cli.options import Format, FormatOption, NeededToolsOption
from agentguard.cli.printing import document, note, out
from agentguard.cli.toolbox import SettingsOption, registry_of
from agentguard.tools.locking import Change, Lock

LockOption = Annotated[Path, typer.Option("--lock", metavar="FILE", help="The lock file.", show_default=True)]

_DEFAULT = Path("agentguard.lock")


def lock(
    tools: NeededToolsOption,
    config: SettingsOption = None,
    path: LockOption = _DEFAULT,
    form: FormatOption = Format.TEXT,
) -> None:
    """Write agentguard.lock: the definitions of the tools as they are now, each with its SHA-256.

    What has changed since the last lock is shown: read it before you commit the file.
    """
    registry = registry_of(tools, config)
    before = Lock.read(path) if path.exists() else Lock({})
    changes = before.changes(registry)
    Lock.of(registry).write(path)
    _show(changes, form, path)
    note(f"wrote {path}: {len(registry)} tool{'' if len(registry) == 1 else 's'}, {len(changes)} changed")


def verify(
    tools: NeededToolsOption,
    config: SettingsOption = None,
    path: LockOption = _DEFAULT,
    form: FormatOption = Format.TEXT,
) -> None:
    """Compare the tools with agentguard.lock. Exit code 1 when one has changed or is new; a gateway refuses those."""
    changes = Lock.read(path).changes(registry_of(tools, config))
    _show(changes, form, path)
    refused = sum(change.refused for change in changes)
    note(f"{path}: {refused} changed or new" if refused else f"{path}: every tool is as it was locked")
    raise typer.Exit(1 if refused else 0)


def diff(
    tools: NeededToolsOption,
    config: SettingsOption = None,
    path: LockOption = _DEFAULT,
    form: FormatOption = Format.TEXT,
) -> None:
    """Show what has changed since agentguard.lock was written, tools that are gone included; exit code 0."""
    _show(Lock.read(path).changes(registry_of(tools, config)), form, path)


def _show(changes: Sequence[Change], form: Format, path: Path) -> None:
    if form is Format.JSON:
        document({"lock": str(path), "changes": [_object(change) for change in changes]})
        return
    for change in changes:
        out(f"{change.kind} {change.tool}")
        if change.kind != "removed":
            for place, before, after in change.differences():
                if before is not None:
                    out(f"  - {place}: {_value(before)}")
                if after is not None:
                    out(f"  + {place}: {_value(after)}")
                if before is None and after is None:
                    out(f"  ~ {place}: null")


def _value(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _object(change: Change) -> dict[str, Any]:
    return {
        "tool": change.tool,
        "kind": change.kind,
        "refused": change.refused,
        "differences": [
            {"path": place, "locked": before, "found": after} for place, before, after in change.differences()
        ],
    }
