"""The audit trail of a run as lines that people read: when, what, which tool, what was decided, by which rule."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from agentguard.audit.records import parse
from agentguard.cli.printing import amount, compact, iso, table
from agentguard.domain.events import AuditRecord
from agentguard.domain.usage import COST
from agentguard.errors import AuditError

_LONGEST: Final = 160


@dataclass(frozen=True, slots=True)
class Entry:
    """One record, read.

    Attributes:
        seq: Place in the chain.
        at: ns since the epoch.
        kind: What happened.
        run: The run.
        tenant: Its owner.
        facts: Facts of the record.
        body: What was said and done, ``None`` when there is nothing or it was erased.
    """

    seq: int
    at: int
    kind: str
    run: str
    tenant: str
    facts: Mapping[str, Any]
    body: Any

    @property
    def tool(self) -> str:
        """Tool, model, or the name of the step."""
        return str(self.facts.get("tool") or self.facts.get("model") or self.facts.get("name") or "")

    @property
    def decision(self) -> str:
        """What was decided, or how it ended."""
        facts = self.facts
        if self.kind == "call.refused":
            return str(facts.get("reason") or "refused")
        return str(facts.get("status") or facts.get("verdict") or facts.get("decision") or facts.get("reason") or "")

    @property
    def rule(self) -> str:
        """Id of the rule, with its place where the record has it."""
        return str(self.facts.get("rule") or "")

    @property
    def detail(self) -> str:
        """Arguments, result, or reason."""
        body = self.body
        if isinstance(body, Mapping):
            for name in ("detail", "error", "note", "result", "arguments", "task"):
                if body.get(name) is not None:
                    value = body[name]
                    return value if isinstance(value, str) else compact(value)
            return ""
        if isinstance(body, str):
            return body
        names = ("approval", "by", "scope", "tokens", "cost_usd", "counter", "amount", "dimension", "label", "reason")
        told = ((name, self.facts[name]) for name in names if self.facts.get(name) is not None)
        return ", ".join(f"{name} {_money(value) if name == COST else value}" for name, value in told)

    def as_object(self) -> dict[str, Any]:
        """The entry for programs."""
        return {
            "seq": self.seq,
            "at": iso(self.at),
            "kind": self.kind,
            "tenant": self.tenant,
            "run": self.run,
            "facts": dict(self.facts),
            "body": self.body,
        }


def entries(records: Iterable[AuditRecord]) -> Iterator[Entry]:
    """Read records; one that cannot be read becomes an entry that says so."""
    for record in records:
        try:
            line = parse(record.line)
        except AuditError as error:
            yield Entry(record.seq, 0, "unreadable", record.run_id, record.tenant, {}, str(error))
            continue
        yield Entry(
            line["seq"], int(line["at"]), line["kind"], line["run"], line["tenant"], line["facts"], _body(record.body)
        )


def _money(recorded: object) -> object:
    """Dollars of an amount, which is recorded in nano-dollars; whatever is no amount is shown as it stands."""
    digits = str(recorded)
    return f"{amount(COST, int(digits))} USD" if digits.isascii() and digits.isdigit() else recorded


def _body(body: bytes | None) -> Any:
    if not body:
        return None
    text = body.decode("utf-8", "backslashreplace")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def show_entries(steps: Iterable[Entry], *, runs: bool = False) -> None:
    """Print entries as a table; ``runs`` adds the run they belong to."""
    rows = []
    for step in steps:
        detail = step.detail
        if len(detail) > _LONGEST:
            detail = detail[: _LONGEST - 3] + "..."
        row = [iso(step.at) or "", str(step.seq), step.kind, step.tool, step.decision, step.rule, detail]
        rows.append([step.run, *row] if runs else row)
    columns = ("TIME", "SEQ", "EVENT", "TOOL", "DECISION", "RULE", "DETAIL")
    table(("RUN", *columns) if runs else columns, rows, empty="Nothing is recorded.")
