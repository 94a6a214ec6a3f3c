"""Reading plain shapes out of a document: mappings with known keys, words, texts, numbers, values with a unit.

What must stay true: a value of the wrong shape is a finding with its place, and never a default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from agentguard.documents import Document, Path, did_you_mean, printable
from agentguard.domain.decisions import Finding

MAX_FINDINGS = 50
"""After this many findings a check stops looking for more."""


class Enough(Exception):
    """So many findings that looking on helps nobody; stops the walk."""


class Reader:
    """Walks a document, collecting findings; every method answers ``None`` (or nothing) for what it refused."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.findings: list[Finding] = []

    def report(self, code: str, message: str, path: Path, *, key: bool = False, hint: str = "") -> None:
        """Record an error."""
        self.findings.append(self.document.finding(code, message, path, key=key, hint=hint))
        if len(self.findings) >= MAX_FINDINGS:
            raise Enough

    # -- shapes --------------------------------------------------------------------------------------------------------

    def keys(
        self, value: Any, path: Path, known: Sequence[str], what: str, later: Sequence[str] = ()
    ) -> dict[str, Any]:
        """The mapping at ``path`` with its known keys; unknown ones are reported."""
        if not isinstance(value, dict):
            self.report("AG111", f"{what} must be a mapping", path, hint=f"known keys: {', '.join(known)}")
            return {}
        good = {}
        for key, item in value.items():
            if key in known:
                good[key] = item
            elif key in later:
                self.report(
                    "AG114",
                    f"{key} is not supported by this version",
                    (*path, key),
                    key=True,
                    hint="it would not be enforced, so the file does not load",
                )
            else:
                hint = did_you_mean(key, known) or f"known keys: {', '.join(known)}"
                self.report("AG110", f'unknown key "{printable(key)}" in {what}', (*path, key), key=True, hint=hint)
        return good

    def word(self, value: Any, path: Path, known: Sequence[str], what: str) -> str | None:
        """One of the known words."""
        if isinstance(value, str) and value in known:
            return value
        hint = did_you_mean(value, known) if isinstance(value, str) else ""
        self.report("AG115", f"{what} must be one of: {', '.join(known)}", path, hint=hint)
        return None

    def strings(self, value: Any, path: Path, what: str) -> list[tuple[str, Path]]:
        """A string or a list of strings, each with its path; never empty without a finding."""
        if isinstance(value, str) and value:
            return [(value, path)]
        if not isinstance(value, list) or not value:
            self.report("AG111", f"{what} must be text or a list of texts, and not empty", path)
            return []
        found = []
        for index, item in enumerate(value):
            if isinstance(item, str) and item:
                found.append((item, (*path, index)))
            else:
                self.report("AG111", f"{what} must hold texts only", (*path, index), hint="put numbers in quotes")
        return found

    def number(self, value: Any, path: Path, what: str) -> int | float | None:
        """A finite number, no truth value."""
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return value
        self.report("AG117", f"{what} must be a number", path, hint="write it without quotes")
        return None

    def flag(self, value: Any, path: Path, what: str) -> bool | None:
        """``true`` or ``false``."""
        if isinstance(value, bool):
            return value
        self.report("AG111", f"{what} must be true or false", path)
        return None

    def text(self, value: Any, path: Path, what: str, limit: int) -> str:
        """A text that is not empty."""
        if isinstance(value, str) and value.strip() and len(value) <= limit:
            return value.strip()
        self.report("AG111", f"{what} must be text of 1 to {limit} characters", path)
        return ""

    def unit(self, convert: Callable[[Any], Any], value: Any, path: Path) -> Any:
        """A value with a unit; must be above zero."""
        try:
            result = convert(value)
        except ValueError as error:
            self.report("AG113", printable(str(error), 200), path)
            return None
        if result <= 0:
            self.report("AG113", "must be above zero", path)
            return None
        return result
