"""How audit records reach a sink: in order, without gaps, and never silently not at all.

Records of one run may be published by several threads at once, and some are written by other processes (an
operator's approval). What must stay true: a sink gets the records of a run in the order of the chain; what is
missing before a record is read from the store first; what could not be delivered is tried again with the next
record and counted; a sink that hangs holds up nobody twice.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections import OrderedDict
from concurrent.futures import Future
from typing import Any

from agentguard._flow.refusing import name_of, text_of
from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import ReadAudit
from agentguard.errors import SinkError
from agentguard.protocols import Sink, Store

log = logging.getLogger("agentguard")

SINK_DEADLINE_S = 2.0
"""A sink that has not answered by then has failed (a hanging sink must not hang the service)."""

_RUNS = 10_000
_PAGE = 1000


class Delivery:
    """One sink, and how far it has come with each run.

    Attributes:
        gaps: Records that could not be delivered when they were due.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.gaps = 0
        self._last: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._reset()
        if hasattr(os, "register_at_fork"):
            this = weakref.ref(self)
            os.register_at_fork(after_in_child=lambda: None if (one := this()) is None else one._reset())

    def _reset(self) -> None:
        # Also in a forked child: what a thread of the parent held there is held for ever.
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._hanging: set[Future[Any]] = set()

    @property
    def hangs(self) -> bool:
        """A delivery that was given up has not come back yet, so the next one would only wait behind it."""
        return bool(self._hanging)

    def give_up(self, future: Future[Any]) -> None:
        """Nobody waits for this delivery any more; if it has begun, the sink is not asked again until it ends."""
        if not future.cancel():
            hanging = self._hanging
            hanging.add(future)
            future.add_done_callback(hanging.discard)

    def bring(self, records: tuple[AuditRecord, ...], store: Store) -> None:
        """Deliver ``records`` (of one run, in order), and before them what the sink has missed of the run."""
        first = records[0]
        key = (first.tenant, first.run_id)
        # A sink that hangs holds the lock; whoever waits for it must not keep a worker for ever.
        if not self._lock.acquire(timeout=SINK_DEADLINE_S):
            raise TimeoutError(f"{type(self.sink).__name__} is still busy with earlier records")
        try:
            # A run that another process has begun comes from its first record: twice is better than never.
            last = self._last.setdefault(key, 0)
            due = [record for record in records if record.seq > last]
            if not due:
                return
            while last + 1 < due[0].seq:
                missed = store.perform(ReadAudit(first.tenant, first.run_id, last, min(due[0].seq - 1 - last, _PAGE)))
                if not missed:
                    break
                self.sink.write(missed)
                last = self._last[key] = missed[-1].seq
            self.sink.write(tuple(due))
            self._last[key] = due[-1].seq
            self._last.move_to_end(key)
            if len(self._last) > _RUNS:
                self._last.popitem(last=False)
        finally:
            self._lock.release()

    def lost(self, count: int, error: Exception) -> SinkError | None:
        """Count what did not arrive; the error to raise when the sink is required."""
        with self._counting:
            self.gaps += count
        name = type(self.sink).__name__
        what = f"{name} did not take {count} record(s): {name_of(error)}: {text_of(error)}"
        log.error("audit sink: %s", what, extra={"sink": name, "lost": self.gaps})
        if not self.sink.required:
            return None
        failed = SinkError(what)
        failed.__cause__ = error
        return failed
