"""How audit records reach a sink: in order, without gaps, and never silently not at all.

Records of one run may be published by several threads at once, and some are written by other processes (an
operator's approval). What must stay true: a sink gets the records of a run in the order of the chain; what is
missing before a record is read from the store first; what could not be delivered is tried again with the next
record and counted.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict

from agentguard.domain.events import AuditRecord
from agentguard.domain.operations import ReadAudit
from agentguard.errors import SinkError
from agentguard.protocols import Sink, Store

log = logging.getLogger("agentguard")

SINK_DEADLINE_S = 2.0
"""A sink that has not answered by then has failed (a hanging sink must not hang the service)."""

_RUNS = 10_000


class Delivery:
    """One sink, and how far it has come with each run.

    Attributes:
        gaps: Records that could not be delivered when they were due.
    """

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.gaps = 0
        self._lock = threading.Lock()
        self._last: OrderedDict[tuple[str, str], int] = OrderedDict()

    def bring(self, records: tuple[AuditRecord, ...], store: Store) -> None:
        """Deliver ``records`` (of one run, in order), and before them what the sink has missed of the run."""
        first = records[0]
        key = (first.tenant, first.run_id)
        # A sink that hangs holds the lock; whoever waits for it must not keep a worker for ever.
        if not self._lock.acquire(timeout=SINK_DEADLINE_S):
            raise TimeoutError(f"{type(self.sink).__name__} is still busy with earlier records")
        try:
            # A run that another process has begun comes from its first record: twice is better than never.
            last = self._last.get(key, 0)
            due = [record for record in records if record.seq > last]
            if not due:
                return
            while last + 1 < due[0].seq:
                missed = store.perform(ReadAudit(first.tenant, first.run_id, last, min(due[0].seq - 1 - last, 1000)))
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

    def lost(self, count: int, error: Exception) -> None:
        """Count what did not arrive.

        Raises:
            SinkError: The sink is required.
        """
        self.gaps += count
        name = type(self.sink).__name__
        what = f"{name} did not take {count} record(s): {type(error).__name__}: {error}"
        log.error("audit sink: %s", what, extra={"sink": name, "lost": self.gaps})
        if self.sink.required:
            raise SinkError(what) from error
