"""What happened, as the audit trail keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from agentguard.domain.constructing import quick

EventKind: TypeAlias = Literal[
    "run.opened",
    "run.waiting",
    "run.completed",
    "run.failed",
    "run.stopped",
    "run.resumed",
    "step",
    "state.written",
    "call.refused",
    "call.intent",
    "call.outcome",
    "call.replayed",
    "call.late",
    "call.resolved",
    "approval.requested",
    "approval.voted",
    "approval.decided",
    "approval.expired",
    "approval.consumed",
    "approval.superseded",
    "llm.reserved",
    "llm.charged",
    "budget.warning",
    "switch.killed",
    "switch.restored",
    "sink.gap",
]


Facts: TypeAlias = Mapping[str, str | int | bool | None]
"""Flat facts of an event."""


@quick
@dataclass(frozen=True, slots=True)
class Event:
    """Something to be recorded; the store gives it a place in the chain.

    Attributes:
        kind: What happened.
        facts: Flat facts that are hashed and kept for ever: ids, digests, verdicts, amounts. No personal
            data, no argument values. Values are strings, integers, booleans or ``None``.
        body: What was said and done (arguments, results, reasons) as JSON bytes, kept beside the chain and
            erasable; the chain holds its salted digest.
        also: Further facts, of this event alone; ``facts`` may be shared by many.
    """

    kind: EventKind
    facts: Facts
    body: bytes = b""
    also: tuple[tuple[str, str | int | bool | None], ...] = ()


@quick
@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One link of a run's chain.

    Attributes:
        tenant: Owner.
        run_id: Run the chain belongs to.
        seq: 1 for the first record of the run, without gaps.
        line: The record as canonical JSON (RFC 8785), UTF-8; includes ``prev`` and the body's digest.
        hash: SHA-256 (hex) over ``line``.
        salt: Hex; makes the body's digest unguessable after the body was erased.
        body: The body, or ``None`` when it was erased.
    """

    tenant: str
    run_id: str
    seq: int
    line: bytes
    hash: str
    salt: str
    body: bytes | None
