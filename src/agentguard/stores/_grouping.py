"""Group commit: callers that come at the same time share one transaction, and so one sync of the disk.

What must stay true: whoever finds nobody at work leads: it takes everything that is queued, has it carried out,
wakes the others and hands the lead to the next in the queue; so a lone caller pays for no other thread. Callers
on an event loop never lead: a thread of the queue does it for them. An operation that was taken is carried out
whatever becomes of its caller, and every ticket gets exactly one answer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from agentguard.domain.operations import Operation
from agentguard.errors import StoreUnavailable

_GATHER_S: Final = 0.0002
"""How long a leader waits for more after a group of several: about as long as a fast disk takes to sync."""

_IDLE_S: Final = 2.0
"""How long the thread for event loops waits for more before it ends."""


class Ticket:
    """One operation on its way.

    Attributes:
        operation: What to carry out.
        answer: Its answer, once ``done``.
        error: What it raised instead, once ``done``.
        done: The answer or the error is final.
        lead: Its caller has been told to lead.
        wake: Released when the caller has to look, ``None`` while nobody waits.
        future: Where the answer goes on an event loop, with ``loop``.
    """

    __slots__ = ("answer", "done", "error", "future", "lead", "loop", "operation", "wake")

    def __init__(self, operation: Operation[Any]) -> None:
        self.operation = operation
        self.answer: Any = None
        self.error: BaseException | None = None
        self.done = False
        self.lead = False
        self.wake: threading.Lock | None = None
        self.future: asyncio.Future[Any] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None


class GroupQueue:
    """Callers in, groups out.

    Args:
        carry_out: Carries a group out and sets ``done`` and ``answer`` or ``error`` of every ticket; called by
            one thread at a time.
        closed: Message for whoever comes after :meth:`close`.
    """

    def __init__(self, carry_out: Callable[[list[Ticket]], None], closed: str) -> None:
        self._carry_out = carry_out
        self._message = closed
        self._gate = threading.Lock()
        self._queue: deque[Ticket] = deque()
        self._last = 0  # operations in the last group
        self._led = False  # somebody leads, or has been told to
        self._closed = False
        self._idle = threading.Condition(self._gate)
        self._work = threading.Condition(self._gate)
        self._thread_lives = False
        self._thread_leads = False

    def perform(self, operation: Operation[Any]) -> Any:
        """Carry out one operation from a thread; returns or raises its answer."""
        ticket = Ticket(operation)
        try:
            with self._gate:
                if self._closed:
                    raise StoreUnavailable(self._message)
                self._queue.append(ticket)
                if self._led:
                    ticket.wake = threading.Lock()
                    ticket.wake.acquire()
                else:
                    self._led = ticket.lead = True
            if ticket.wake is not None:
                ticket.wake.acquire()
            if ticket.lead:
                self._lead()
        finally:
            # Also when the caller was interrupted: neither the lead nor a ticket may be left behind by it.
            if ticket.lead or not ticket.done:
                self._leave(ticket)
        if ticket.error is not None:
            raise ticket.error
        return ticket.answer

    async def aperform(self, operation: Operation[Any]) -> Any:
        """Carry out one operation from an event loop; returns or raises its answer.

        Cancelling the caller does not stop the operation.
        """
        ticket = Ticket(operation)
        ticket.loop = asyncio.get_running_loop()
        ticket.future = future = ticket.loop.create_future()
        with self._gate:
            if self._closed:
                raise StoreUnavailable(self._message)
            self._queue.append(ticket)
            if not self._led:
                self._led = True
                self._call_thread()
        return await future

    def close(self, timeout: float) -> bool:
        """Take nothing more, and wait (seconds) until what was taken is done; ``False`` when it is not."""
        with self._gate:
            self._closed = True
            self._work.notify_all()
            return self._idle.wait_for(lambda: not self._led and not self._queue, timeout)

    def forked(self) -> None:
        """Begin anew in a child process, where the other threads do not exist."""
        carry_out, closed = self._carry_out, self._closed
        self.__init__(carry_out, self._message)  # type: ignore[misc]  # the locks may be held by threads that are gone
        self._closed = closed

    # --- leading ---------------------------------------------------------------------------------

    def _lead(self) -> None:
        if len(self._queue) < self._last:
            # Those whom the last group has just answered are on their way back; without this pause every second
            # group would hold one operation, and cost as much as a full one.
            time.sleep(_GATHER_S)
        with self._gate:
            group = list(self._queue)
            self._queue.clear()
            self._last = len(group) if len(group) > 1 else 0
        try:
            self._carry_out(group)
        finally:
            self._hand_out(group)

    def _hand_out(self, group: list[Ticket]) -> None:
        loops: dict[asyncio.AbstractEventLoop, list[Ticket]] = {}
        for ticket in group:
            if not ticket.done:
                ticket.error = StoreUnavailable("The store was interrupted; the operation was not carried out.")
                ticket.done = True
            if ticket.loop is not None:
                loops.setdefault(ticket.loop, []).append(ticket)
            elif ticket.wake is not None and not ticket.lead:
                ticket.wake.release()
        for loop, tickets in loops.items():
            try:
                loop.call_soon_threadsafe(_answer_all, tickets)
            except RuntimeError:
                pass  # the loop was closed while its caller waited; nobody is left to be told

    def _leave(self, ticket: Ticket) -> None:
        with self._gate:
            if ticket in self._queue:
                self._queue.remove(ticket)
            lead = ticket.lead
        if lead:
            self._pass_on()

    def _pass_on(self) -> None:
        with self._gate:
            if not self._queue:
                self._led = False
                self._idle.notify_all()
                return
            heir = self._queue[0]
            if heir.wake is not None:
                heir.lead = True
                heir.wake.release()
            else:
                self._call_thread()

    # --- the thread for event loops --------------------------------------------------------------

    def _call_thread(self) -> None:
        # Under the gate.
        self._thread_leads = True
        if self._thread_lives:
            self._work.notify()
        else:
            self._thread_lives = True
            threading.Thread(target=self._serve, name="agentguard-store", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._gate:
                if not self._work.wait_for(lambda: self._thread_leads, _IDLE_S):
                    self._thread_lives = False
                    return
                self._thread_leads = False
            try:
                self._lead()
            except BaseException:  # noqa: S110  # the callers of the group have it; the thread serves the next one
                pass
            finally:
                self._pass_on()


def _answer_all(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        future = ticket.future
        if future is None or future.done():
            continue  # the caller was cancelled; the operation was carried out all the same
        if ticket.error is not None:
            future.set_exception(ticket.error)
        else:
            future.set_result(ticket.answer)
