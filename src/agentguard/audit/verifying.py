"""Checks an audit trail without the store that wrote it, and says what is wrong and where.

What must stay true: every single change of any field of any record is found; so is a record that was
removed, added, repeated or moved, and, against a known head or anchor, one that was cut off the end. Nothing
here raises for what it reads: whatever is wrong is a finding. Memory does not grow with the number of records.

Codes: ``AG703`` line unreadable, ``AG710`` hash, ``AG711`` field against line, ``AG712`` link to the previous
record, ``AG713`` missing, repeated or moved, ``AG714`` body or salt, ``AG715`` end of the chain, ``AG716`` no
terminal record, ``AG717`` new work after the end, ``AG719`` more findings than are listed, ``AG720`` line of an
export, ``AG721`` structure of an export, ``AG722`` anchor.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from agentguard.audit.anchoring import Head, anchor
from agentguard.audit.exporting import Anchor, read_line
from agentguard.audit.records import body_matches, parse
from agentguard.domain.events import AuditRecord
from agentguard.errors import AuditError

__all__ = ["AuditProblem", "ChainReport", "ExportReport", "anchor", "verify_chain", "verify_export"]

MAX_PROBLEMS: Final = 1000
"""Findings that one report lists; a last one (``AG719``) says that there are more."""

_TERMINAL: Final = frozenset(("run.completed", "run.failed", "run.stopped"))
_NEW_WORK: Final = frozenset(
    ("run.opened", "run.waiting", "run.resumed", "call.intent", "approval.requested", "llm.reserved")
)


@dataclass(frozen=True, slots=True)
class AuditProblem:
    """One thing that is wrong with an audit trail.

    Attributes:
        code: Stable code, ``AG7xx``.
        message: What is wrong.
        tenant: Owner of the chain, as far as known.
        run: Run of the chain, as far as known.
        seq: Place in the chain where it shows, 0 when there is none.
        line: 1-based line of the export, 0 when there is none.
    """

    code: str
    message: str
    tenant: str = ""
    run: str = ""
    seq: int = 0
    line: int = 0

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        chain = f" (tenant {self.tenant!r}, run {self.run!r}, record {self.seq})" if self.run else ""
        return f"{self.code} {where}{self.message}{chain}"


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What the check of one chain found.

    Attributes:
        tenant: Owner.
        run: Run the chain belongs to.
        records: Number of records read.
        head: Hash of the last record as recomputed, ``""`` when there was none.
        erased: Number of records whose body was erased; that is no fault.
        problems: What is wrong, in the order found.
        runs: Always 1.
    """

    tenant: str
    run: str
    records: int
    head: str
    erased: int
    problems: tuple[AuditProblem, ...]
    runs: int = 1

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What the check of an exported audit trail found.

    Attributes:
        records: Number of records read.
        runs: Number of chains read.
        anchor: Digest over the heads as recomputed, to be compared with one that was kept.
        erased: Number of records whose body was erased; that is no fault.
        problems: What is wrong, in the order found.
    """

    records: int
    runs: int
    anchor: str
    erased: int
    problems: tuple[AuditProblem, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class _Findings(list[AuditProblem]):
    # A file of rubbish must not fill the memory.
    def add(self, problem: AuditProblem) -> None:
        if len(self) < MAX_PROBLEMS:
            self.append(problem)
        elif len(self) == MAX_PROBLEMS:
            self.append(AuditProblem("AG719", f"there are more than {MAX_PROBLEMS} findings; only these are listed"))


class _Chain:
    # The state of walking one chain.
    def __init__(self, tenant: str, run: str, findings: _Findings) -> None:
        self.tenant = tenant
        self.run = run
        self.findings = findings
        self.records = 0
        self.erased = 0
        self.seq = 0
        self.head = ""
        self.ended = False

    def find(self, code: str, message: str, line: int = 0) -> None:
        self.findings.add(AuditProblem(code, message, self.tenant, self.run, self.seq, line))

    def take(self, record: AuditRecord, line: int = 0) -> None:
        self.records += 1
        expected, self.seq = self.seq + 1, self.seq + 1
        head, self.head = self.head, hashlib.sha256(record.line).hexdigest()
        if record.body is None:
            self.erased += 1
        if record.hash != self.head:
            self.find("AG710", "the hash is not that of the line", line)
        try:
            parsed = parse(record.line)
        except AuditError as error:
            self.find("AG703", str(error), line)
            return
        place: int = parsed["seq"]
        self.seq = place
        for name, value in (("tenant", self.tenant), ("run", self.run)):
            if parsed[name] != value:
                self.find("AG711", f"the line names another {name} than the chain it stands in", line)
        if (record.tenant, record.run_id) != (parsed["tenant"], parsed["run"]):
            self.find("AG711", "the record names another tenant or run than its line", line)
        if type(record.seq) is not int or record.seq != place:
            self.find("AG711", "the record has another number than its line", line)
        if place > expected:
            self.find("AG713", f"record {expected} is missing; next comes {place}", line)
        elif place < expected:
            self.find("AG713", f"record {place} is repeated or moved; expected is {expected}", line)
        elif parsed["prev"] != head:
            self.find("AG712", "it does not follow from the record before it", line)
        if not body_matches(record, parsed["body"]):
            self.find("AG714", "body and salt are not those that were recorded", line)
        kind = parsed["kind"]
        if self.ended and (kind in _NEW_WORK or kind in _TERMINAL):
            self.find("AG717", f"{kind} stands after the end of the run", line)
        self.ended = self.ended or kind in _TERMINAL

    def close(self, head: str | None, count: int | None, ended: bool, line: int = 0) -> None:
        if count is not None and count != self.records:
            self.find("AG715", f"the chain has {self.records} records and should have {count}", line)
        if head is not None and head != self.head:
            self.find("AG715", "the last record is not the one the chain should end with", line)
        if ended and not self.ended:
            self.find("AG716", "the run has ended and its chain has no run.completed, run.failed or run.stopped", line)


def verify_chain(
    records: Iterable[AuditRecord],
    *,
    head: str | None,
    count: int | None,
    tenant: str | None = None,
    run: str | None = None,
    ended: bool = False,
) -> ChainReport:
    """Check the chain of one run.

    Args:
        records: All records of the run, in order, from the first.
        head: Hash that the last record must have (run record: ``audit_head``), ``None`` when unknown; then
            records cut off the end are not found.
        count: Number of records there must be (run record: ``audit_seq``), ``None`` when unknown.
        tenant: Owner that the chain must have; by default that of the first record.
        run: Run that the chain must belong to; by default that of the first record.
        ended: The run has ended, so that the chain must hold its terminal record (``run.completed``,
            ``run.failed``, ``run.stopped``) and no new work after it; what was in flight may still report.

    Returns:
        The findings; it raises nothing for what the records contain.
    """
    findings = _Findings()
    chain: _Chain | None = None
    for record in records:
        if chain is None:
            chain = _Chain(record.tenant if tenant is None else tenant, record.run_id if run is None else run, findings)
        chain.take(record)
    chain = chain or _Chain(tenant or "", run or "", findings)
    chain.close(head, count, ended)
    return ChainReport(chain.tenant, chain.run, chain.records, chain.head, chain.erased, tuple(findings))


class _Export:
    # The state of walking one file.
    def __init__(self) -> None:
        self.findings = _Findings()
        self.chain: _Chain | None = None
        self.heads: dict[tuple[str, str], Head] = {}
        self.records = 0
        self.erased = 0
        self.anchor: Anchor | None = None

    def find(self, code: str, message: str, line: int) -> None:
        self.findings.add(AuditProblem(code, message, line=line))

    def close_chain(self, line: int) -> None:
        # A chain whose head never came.
        if self.chain is not None:
            self.chain.find("AG721", "the records of the run are not followed by its head", line)
            self.end(Head(self.chain.tenant, self.chain.run, self.chain.records, self.chain.head), line)

    def end(self, head: Head, line: int) -> None:
        chain = self.chain or _Chain(head.tenant, head.run_id, self.findings)
        self.chain = None
        chain.close(head.hash, head.records, False, line)
        self.records += chain.records
        self.erased += chain.erased
        if (head.tenant, head.run_id) in self.heads:
            chain.find("AG721", "the run stands twice in the file", line)
        else:
            # What was read, not what the head claims: the anchor then speaks about the records themselves.
            self.heads[head.tenant, head.run_id] = Head(head.tenant, head.run_id, chain.records, chain.head)

    def take(self, item: AuditRecord | Head | Anchor, line: int) -> None:
        if self.anchor is not None:
            self.find("AG721", "something stands after the anchor", line)
        if isinstance(item, Anchor):
            self.close_chain(line)
            self.anchor = item
            return
        if self.chain is not None and (item.tenant, item.run_id) != (self.chain.tenant, self.chain.run):
            self.close_chain(line)
        if isinstance(item, Head):
            self.end(item, line)
            return
        if self.chain is None:
            self.chain = _Chain(item.tenant, item.run_id, self.findings)
        self.chain.take(item, line)


def verify_export(lines: Iterable[bytes | str], *, anchor: str | None = None) -> ExportReport:
    """Check an exported audit trail: every chain, every head and the anchor.

    Args:
        lines: The lines of the file, with or without line feeds.
        anchor: Digest that somebody kept. Without it, the file is only compared with itself: whoever can
            write a new file can leave whole runs out.

    Returns:
        The findings, with line numbers; it raises nothing for what the lines contain.
    """
    walk = _Export()
    number = 0
    for number, raw in enumerate(lines, 1):
        try:
            item = read_line(raw)
        except AuditError as error:
            walk.find(error.code, str(error), number)
            continue
        walk.take(item, number)
    walk.close_chain(number)
    found = _anchor(walk.heads.values())
    stated = walk.anchor
    if stated is None:
        walk.find("AG721", "the file does not end with its anchor; it is cut off", number)
    elif stated != Anchor(found, walk.records, len(walk.heads)):
        walk.find("AG722", "the anchor of the file is not that of the chains in it", number)
    if anchor is not None and anchor != found:
        walk.find("AG722", "the chains in the file are not those of the anchor that was kept", number)
    return ExportReport(walk.records, len(walk.heads), found, walk.erased, tuple(walk.findings))


_anchor = anchor
