"""Which tool results the gateway gave in a run: everything else that calls itself one is refused.

What must stay true: a result is accepted only with an id that the gateway knows from this run, never while that
call still waits for a person, and only with the content the gateway gave wherever that is known. In the process
that ran the call the content is known. In another process the store knows the id; the content is then fixed by
its first use.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from agentguard.adapters._wire import digest_of
from agentguard.canonical import sha256, tagged
from agentguard.domain.calls import Refused
from agentguard.domain.decisions import StopReason
from agentguard.errors import CallRefused

if TYPE_CHECKING:
    from agentguard.domain.calls import CallRecord
    from agentguard.domain.events import AuditRecord
    from agentguard.gateway import Run


class UngovernedToolResult(CallRefused):
    """A request carries a tool result that the gateway did not give in this run; it was not sent."""

    def __init__(self, call_ids: Sequence[str]) -> None:
        shown = ", ".join(repr(call_id[:80]) if call_id else "one without an id" for call_id in call_ids[:5])
        super().__init__(
            Refused(
                StopReason.UNGOVERNED_RESULT,
                None,
                "A tool result did not come from the gateway. The request was not sent.",
                False,
                f"The request carries tool results that the gateway did not give in this run: {shown}. Run tool calls "
                "with run_tool_calls(run, ...), send its messages unchanged, and pass results of earlier runs of the "
                "conversation as govern(..., earlier=messages).",
                "",
                "AG650",
            )
        )
        self.call_ids: tuple[str, ...] = tuple(call_ids)


@dataclass(frozen=True, slots=True)
class Given:
    """A tool result as a request carries it: the id it claims (``""`` without one) and its content."""

    call_id: str
    content: Any


class Provenance:
    """What the gateway answered to the model calls of one run, by call id."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._digests: dict[str, set[str]] = {}
        self._waiting: set[str] = set()
        self._noted: dict[tuple[str, str], list[str]] | None = None
        self._seen: set[str] = set()

    def remember(self, call_id: str, content: Any) -> None:
        """Note an answer, or with ``None`` that the call waits for a person."""
        with self._lock:
            if content is None:
                self._waiting.add(call_id)
            else:
                self._waiting.discard(call_id)
                self._digests.setdefault(call_id, set()).add(digest_of(content))

    def note_calls(self) -> None:
        """Begin to note the calls that answers propose."""
        with self._lock:
            if self._noted is None:
                self._noted = {}

    @property
    def notes(self) -> bool:
        """Whether calls are noted."""
        return self._noted is not None

    def note(self, call_id: str, name: str, arguments: Mapping[str, Any]) -> None:
        """Note a call that an answer proposes; the same id counts once."""
        with self._lock:
            if self._noted is not None and call_id not in self._seen:
                self._seen.add(call_id)
                self._noted.setdefault(_key(name, arguments), []).append(call_id)

    def take(self, name: str, arguments: Mapping[str, Any] | None) -> str | None:
        """The id of the oldest noted call with this name and these arguments that nobody took yet."""
        if arguments is None:
            return None
        with self._lock:
            ids = (self._noted or {}).get(_key(name, arguments))
            return ids.pop(0) if ids else None

    def trust(self, results: Iterable[Given]) -> None:
        """Accept these results, exactly as they are."""
        for result in results:
            self.remember(result.call_id, result.content)

    def sort(self, results: Sequence[Given]) -> tuple[list[str], list[Given]]:
        """Ids that are refused, and results only the store can tell about."""
        refused: list[str] = []
        unknown: list[Given] = []
        with self._lock:
            for result in results:
                digests = self._digests.get(result.call_id)
                if digests is not None:
                    if digest_of(result.content) not in digests:
                        refused.append(result.call_id)
                elif not result.call_id or result.call_id in self._waiting:
                    refused.append(result.call_id)
                else:
                    unknown.append(result)
        return refused, unknown

    def settle(self, refused: list[str], unknown: Sequence[Given], issued: Iterable[str], waiting: set[str]) -> None:
        """Take what the store says about the unknown ones.

        Raises:
            UngovernedToolResult: One of the results did not come from the gateway.
        """
        known = set(issued) - waiting
        refused = [*refused, *(r.call_id for r in unknown if r.call_id not in known)]
        if refused:
            raise UngovernedToolResult(refused)
        self.trust(unknown)

    def check(self, run: Run, results: Sequence[Given]) -> None:
        """Refuse results that the gateway did not give in this run.

        Raises:
            UngovernedToolResult: There is one.
        """
        refused, unknown = self.sort(results)
        if refused:
            raise UngovernedToolResult(refused)
        if unknown:
            wanted = {result.call_id for result in unknown}
            gateway, tenant = run._gateway, run.context.tenant
            issued = _ended(gateway.runs.calls(run.run_id, tenant=tenant))
            if not wanted <= issued:
                issued |= {_answered(record) for record in gateway.audit.records(run.run_id, tenant=tenant)}
            self.settle(refused, unknown, issued, {request.call_id for request in run.pending()})

    async def acheck(self, run: Run, results: Sequence[Given]) -> None:
        """The same for async code."""
        refused, unknown = self.sort(results)
        if refused:
            raise UngovernedToolResult(refused)
        if unknown:
            wanted = {result.call_id for result in unknown}
            gateway, tenant = run._gateway, run.context.tenant
            issued = _ended(await gateway.runs.acalls(run.run_id, tenant=tenant))
            if not wanted <= issued:
                issued |= {_answered(record) async for record in gateway.audit.arecords(run.run_id, tenant=tenant)}
            self.settle(refused, unknown, issued, {request.call_id for request in await run.apending()})


_ENDS: Final = frozenset({"call.refused", "call.outcome", "call.replayed", "call.resolved"})


def _ended(calls: Iterable[CallRecord]) -> set[str]:
    """Ids of the calls that have an answer."""
    return {call.call_id for call in calls if call.status not in ("pending", "running")}


def _answered(record: AuditRecord) -> str:
    """Id of the call that a record tells the end of; ``""`` for every other record.

    Refused calls leave no row; the audit trail knows them.
    """
    line = json.loads(record.line)
    call_id = line["facts"].get("call") if line["kind"] in _ENDS else None
    return call_id if isinstance(call_id, str) else ""


def _key(name: str, arguments: Mapping[str, Any]) -> tuple[str, str]:
    return name, sha256(tagged(arguments))


_KNOWN: WeakKeyDictionary[Run, Provenance] = WeakKeyDictionary()
_LOCK = threading.Lock()


def provenance_of(run: Run) -> Provenance:
    """The record of a run handle, shared by its clients and its tool calls."""
    with _LOCK:
        return _KNOWN.setdefault(run, Provenance())
