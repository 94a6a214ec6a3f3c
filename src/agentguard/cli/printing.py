"""What goes to the terminal: data to stdout, messages to stderr.

What must stay true: no text that somebody else wrote can move the cursor, colour, hide or begin a line of its own
(control, bidi and invisible characters are written as escapes); stdout is the same whether anybody watches or not,
apart from colour and table lines; colour only on a terminal and never with ``NO_COLOR``.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Protocol, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from agentguard.approval.describing import visible
from agentguard.domain.usage import COST, NANO

PATIENCE_S = 1.0
"""Work that takes longer than this, in seconds, shows a progress bar on a terminal."""

STYLES: Mapping[str, str] = {
    "allow": "green",
    "allowed": "green",
    "approved": "green",
    "completed": "green",
    "consumed": "green",
    "ok": "green",
    "succeeded": "green",
    "deny": "red",
    "denied": "red",
    "error": "red",
    "expired": "red",
    "fail": "red",
    "failed": "red",
    "policy_denied": "red",
    "refused": "red",
    "rejected": "red",
    "terminated": "red",
    "ambiguous": "yellow",
    "budget_cost": "yellow",
    "budget_steps": "yellow",
    "budget_tool_calls": "yellow",
    "pending": "yellow",
    "require_approval": "yellow",
    "stopped": "yellow",
    "waiting": "yellow",
    "warning": "yellow",
    "warn": "yellow",
}
"""Words that stand for a state, and how a terminal shows them."""


def safe(text: str) -> str:
    r"""``text`` on one line, with every character that is not plainly visible as an escape such as ``\x1b``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c == "\\" else visible(c) for c in text)


def safe_lines(text: str) -> str:
    """The same for a text of several lines of our own."""
    return "\n".join(map(safe, text.split("\n")))


def out(text: str = "") -> None:
    """Print data: one or several lines."""
    sys.stdout.write(safe_lines(text) + "\n")


def note(text: str) -> None:
    """Print a message for people to stderr."""
    sys.stderr.write(safe_lines(text) + "\n")


def console(stream: TextIO | None = None) -> Console:
    """A rich console that takes text as it is; plain when it is no terminal or ``NO_COLOR`` is set."""
    return Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)


def watched(stream: TextIO | None = None) -> bool:
    """Whether a person looks at the stream."""
    return (stream or sys.stdout).isatty()


def _cell(text: str) -> Text:
    return Text(text, style=STYLES.get(text, ""), overflow="fold")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, empty: str = "") -> None:
    """Print rows under columns; on a terminal with colour, elsewhere aligned with spaces, never cut off.

    Args:
        columns: Headings.
        rows: One text per column.
        empty: Message (to stderr) when there are no rows.
    """
    cells = [[safe(cell) for cell in row] for row in rows]
    if not cells:
        if empty:
            note(empty)
        return
    if watched():
        shown = Table(*columns, box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for row in cells:
            shown.add_row(*map(_cell, row))
        console().print(shown)
        return
    widths = [max(map(len, column)) for column in zip(columns, *cells, strict=True)]
    for row in [list(columns), *cells]:
        sys.stdout.write("  ".join(map(str.ljust, row, widths)).rstrip() + "\n")


def fields(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names with their values, one per line; empty values are left out."""
    known = [(name, value) for name, value in pairs if value]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        if watched():
            console().print(Text.assemble((f"{name:<{width}}  ", "bold"), _cell(safe(value))), soft_wrap=True)
        else:
            out(f"{name:<{width}}  {value}")


def plain(value: Any) -> Any:
    """A value as JSON can hold it: dataclasses as objects, money as text, enumerations as their word."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return f"<{type(value).__name__}>"


def document(value: Any) -> None:
    """Print a value as JSON, ASCII only, for programs."""
    sys.stdout.write(json.dumps(plain(value), indent=2) + "\n")


def compact(value: Any) -> str:
    """A value as JSON on one line, ASCII only."""
    return json.dumps(plain(value), separators=(", ", ": "))


def iso(ns: int | None) -> str | None:
    """A time (ns since the epoch) as ISO 8601 in UTC with milliseconds, or ``None``."""
    if ns is None:
        return None
    moment = datetime.fromtimestamp(ns // NANO, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{ns % NANO // 1_000_000:03d}Z"


def short_time(ns: int | None) -> str:
    """The same to the second, ``""`` for ``None``."""
    return f"{datetime.fromtimestamp(ns // NANO, UTC):%Y-%m-%dT%H:%M:%SZ}" if ns is not None else ""


def amount(dimension: str, value: int | None) -> str:
    """An amount of a budget as people read it: money in dollars, everything else as it is counted."""
    if value is None:
        return ""
    if dimension == COST:
        return f"{Decimal(value) / NANO:f}"
    return str(value)


class Step(Protocol):
    """Says that one more piece of work is done."""

    def __call__(self) -> None:
        """One more."""


@contextmanager
def progress(title: str, total: int | None = None) -> Generator[Step, None, None]:
    """Show how far work has come, on stderr, if it is a terminal and the work takes longer than a second.

    Args:
        title: What is being done.
        total: How many pieces there are, if known.
    """
    if not watched(sys.stderr):
        yield lambda: None
        return
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=console(sys.stderr), transient=True
    )
    task = bar.add_task(title, total=total)
    begun = time.monotonic()
    running = False

    def step() -> None:
        nonlocal running
        bar.advance(task)
        if not running and time.monotonic() - begun > PATIENCE_S:
            bar.start()
            running = True

    try:
        yield step
    finally:
        if running:
            bar.stop()
