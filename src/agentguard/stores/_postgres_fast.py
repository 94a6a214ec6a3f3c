"""Beginning and finishing a call in one round trip: what is sent to ``begin_1`` and ``finish_1``, and their answers.

What must stay true: these procedures do what :mod:`agentguard.stores.transitions` says, for the common case only (the
run is running, nobody has called with this key before, no approval is asked for, every limit holds and no threshold is
crossed), or they change nothing and leave the answer to the transitions. The line of an audit record is put together by the server from pieces that
:func:`agentguard.audit.records.seal` made, and sealed here once more with its place in the chain: both must have the
same hash.
"""

from __future__ import annotations

import functools
import os
from typing import Any, Final

from pydantic_core import to_json

from agentguard.audit.records import seal
from agentguard.domain.events import AuditRecord, Event
from agentguard.domain.operations import Begin, Finish, Finished, Proceed
from agentguard.domain.usage import Amounts, Meter
from agentguard.errors import AuditError, StoreUnavailable
from agentguard.stores import _row_text as text
from agentguard.stores._postgres_rows import meters_text
from agentguard.stores._postgres_schema import Rows, Statement
from agentguard.stores.transitions import _hold_key

_BEGIN: Final = (
    'CALL "{s}".begin_1($1::bigint, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11::bigint, $12::text::jsonb, '
    "$13::text::jsonb, $14, $15::bigint, $16::bigint, $17::bigint, $18, $19, $20, $21, $22::bytea, $23, "
    "NULL, NULL, NULL, NULL, NULL)"
)
_FINISH: Final = (
    'CALL "{s}".finish_1($1::bigint, $2, $3, $4, $5::bigint, $6, $7::text::jsonb, $8, $9, $10::text[], $11, '
    "$12::text[], $13, $14, $15::bytea[], $16::text[], NULL, NULL, NULL, NULL, NULL, NULL)"
)
_NOWHERE: Final = "0" * 64
_KNOWN: Final = 1024


class Meters:
    """Meters as text, made once for the runs that are under way."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[tuple[Meter, ...], str | None]] = {}

    def text(self, meters: tuple[Meter, ...]) -> str | None:
        """The text, or ``None`` when two of the meters are one account."""
        found = self._known.get(id(meters))
        if found is not None and found[0] is meters:
            return found[1]
        if len(self._known) >= _KNOWN:
            self._known.clear()
        made = meters_text(meters) if len({(m.account, m.per) for m in meters}) == len(meters) else None
        self._known[id(meters)] = (meters, made)
        return made


@functools.lru_cache(maxsize=_KNOWN)
def _amounts(amounts: Amounts) -> tuple[str, str] | None:
    """Amounts as an object and as pairs; ``None`` when they are not the usual ones."""
    if len(dict(amounts)) < len(amounts) or any(amount < 0 for _, amount in amounts):
        return None
    return text.json_text(dict(amounts)), text.json_text(amounts)


@functools.lru_cache(maxsize=_KNOWN)
def _after_prev(tenant: str, run_id: str) -> tuple[str, str]:
    """What stands in a line after the previous hash: before and behind its number."""
    return f'","run":{to_json(run_id).decode()},"seq":', f',"tenant":{to_json(tenant).decode()},"v":1}}'


def _between(tenant: str, run_id: str, event: Event, salt: str) -> tuple[str, AuditRecord]:
    """What stands in a line between its time and the previous hash, and the record it was taken from."""
    draft = seal(tenant, run_id, 2, _NOWHERE, 0, event, salt)
    mid, post = _after_prev(tenant, run_id)
    line = draft.line.decode()
    start, end = '{"at":"0', f"{_NOWHERE}{mid}2{post}"
    if not (line.startswith(start) and line.endswith(end)):
        raise AuditError("the line of a record does not have its usual form", code="AG701")
    return line[len(start) : -len(end)], draft


class Beginning:
    """One call that begins.

    Attributes:
        statement: What is sent.
    """

    def __init__(self, op: Begin, statement: Statement, salt: str) -> None:
        self.statement = statement
        self._op = op
        self._salt = salt

    @classmethod
    def of(cls, op: Begin, schema: str, now: int | None, meters: Meters) -> Beginning | None:
        """Prepare it, or ``None`` when it is no common case."""
        amounts = _amounts(op.amounts)
        accounts = meters.text(op.meters)
        if op.approval is not None or amounts is None or accounts is None:
            return None
        salt, pieces = "", (None, None, None, None, "")
        if op.event is not None:
            salt = os.urandom(16).hex()
            try:
                between, draft = _between(op.tenant, op.run_id, op.event, salt)
            except AuditError:
                return None
            pieces = (between, *_after_prev(op.tenant, op.run_id), draft.body, draft.salt)  # type: ignore[assignment]
        values = (
            now,
            op.tenant,
            op.run_id,
            op.agent,
            op.user,
            op.key,
            op.call_id,
            op.tool,
            op.effect,
            op.fingerprint,
            op.run_version,
            accounts,
            *amounts,
            op.lease_ns,
            op.concurrency,
            op.max_repeats,
            _hold_key(op.tenant, op.key),
            *pieces,
        )
        return cls(op, (_BEGIN.format(s=schema), values), salt)

    def answer(self, rows: Rows) -> Proceed | None:
        """What came of it; ``None``: nothing was changed, ask the transitions."""
        now, seq, prev, head, deadline = rows[0]
        if now is None:
            return None
        op = self._op
        if op.event is None:
            return Proceed(1, now, deadline)
        record = seal(op.tenant, op.run_id, seq, prev, now, op.event, self._salt)
        _same(record, head)
        return Proceed(1, now, deadline, None, (), (record,), seq)


class Finishing:
    """One call that ends.

    Attributes:
        statement: What is sent.
    """

    def __init__(self, op: Finish, statement: Statement, events: tuple[Event, ...], salts: list[str]) -> None:
        self.statement = statement
        self._op = op
        self._events = events
        self._salts = salts

    @classmethod
    def of(cls, op: Finish, schema: str, now: int | None) -> Finishing | None:
        """Prepare it, or ``None`` when it is no common case."""
        amounts = _amounts(op.amounts)
        if op.status == "refused" or amounts is None:
            return None
        events = op.more if op.event is None else (*op.more, op.event)
        salts = [os.urandom(16).hex() for _ in events]
        try:
            drafts = [_between(op.tenant, op.run_id, event, salt) for event, salt in zip(events, salts, strict=True)]
        except AuditError:
            return None
        values: tuple[Any, ...] = (
            now,
            op.tenant,
            op.run_id,
            op.key,
            op.fence,
            op.status,
            *amounts,
            op.outcome,
            list(op.labels),
            _hold_key(op.tenant, op.key),
            [between for between, _ in drafts],
            *_after_prev(op.tenant, op.run_id),
            [draft.body for _, draft in drafts],
            [draft.salt for _, draft in drafts],
        )
        return cls(op, (_FINISH.format(s=schema), values), events, salts)

    def answer(self, rows: Rows) -> Finished | None:
        """What came of it; ``None``: nothing was changed, ask the transitions."""
        now, seq, prev, head, labels, version = rows[0]
        if now is None:
            return None
        op = self._op
        records: list[AuditRecord] = []
        first = seq - len(self._events) + 1
        for number, (event, salt) in enumerate(zip(self._events, self._salts, strict=True), first):
            record = seal(op.tenant, op.run_id, number, prev, now, event, salt)
            prev = record.hash
            records.append(record)
        _same(records[-1] if records else None, head)
        return Finished(True, tuple(labels), version, (), tuple(records), (), seq if op.event is not None else 0)


def _same(record: AuditRecord | None, head: str) -> None:
    if record is not None and record.hash != head:
        raise StoreUnavailable(
            "The PostgreSQL server sealed an audit record otherwise than this program would have; its functions were "
            "changed, or its encoding is not UTF-8."
        )
