"""Model calls in the budgets of a run: held before the request, settled with what the provider reports.

What must stay true: a request whose hold is refused is not sent; a hold is settled or released once. A call of
which the provider reports no tokens (a stream that was broken off, a provider that never says) is not free: the
tokens that were held stay charged, and the call counts as unpriced, so that the cost is known to be a lower bound.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from agentguard.domain.usage import INPUT_TOKENS, OUTPUT_TOKENS, STEPS, TOKENS, Amounts
from agentguard.gateway.running import UNPRICED

if TYPE_CHECKING:
    from agentguard.gateway import LlmReservation, Run


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a model call is expected to use at most: model, tokens sent, tokens received."""

    model: str
    input_tokens: int
    output_tokens: int


@dataclass(slots=True)
class Metered:
    """One model call in flight.

    Attributes:
        run: Run that pays.
        estimate: What was held.
        reservation: The hold.
        input_tokens: Tokens sent, as reported so far.
        output_tokens: Tokens received, as reported at the end.
    """

    run: Run
    estimate: Estimate
    reservation: LlmReservation
    input_tokens: int | None = None
    output_tokens: int | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _done: bool = False

    def report(self, input_tokens: int | None, output_tokens: int | None) -> None:
        """Note what the provider says; the last word counts."""
        if input_tokens is not None:
            self.input_tokens = input_tokens
        if output_tokens is not None:
            self.output_tokens = output_tokens

    def _first(self) -> bool:
        with self._lock:
            first, self._done = not self._done, True
        return first

    @property
    def _reported(self) -> bool:
        return self.input_tokens is not None and self.output_tokens is not None

    def _unreported(self) -> Amounts:
        sent = self.estimate.input_tokens if self.input_tokens is None else self.input_tokens
        received = self.estimate.output_tokens if self.output_tokens is None else self.output_tokens
        return (
            (STEPS, 1),
            (INPUT_TOKENS, sent),
            (OUTPUT_TOKENS, received),
            (TOKENS, sent + received),
            (UNPRICED, 1),
        )

    def settle(self) -> None:
        """Replace the hold by what was used. Only the first of settling and releasing counts."""
        if not self._first():
            return
        if self._reported:
            self.reservation.settle(input_tokens=self.input_tokens or 0, output_tokens=self.output_tokens or 0)
        else:
            operation = self.reservation._settling(self._unreported())
            self.run._settled(self.run._gateway._perform(operation))

    def release(self) -> None:
        """Give the hold back: the provider did not do the work."""
        if self._first():
            self.reservation.release()

    async def asettle(self) -> None:
        """The same as :meth:`settle` for async code; completes even when the caller is cancelled."""
        if self._first():
            await _uninterrupted(self.run, self._asettle())

    async def _asettle(self) -> None:
        if self._reported:
            await self.reservation.asettle(input_tokens=self.input_tokens or 0, output_tokens=self.output_tokens or 0)
        else:
            operation = self.reservation._settling(self._unreported())
            self.run._settled(await self.run._gateway._aperform(operation))

    async def arelease(self) -> None:
        """The same as :meth:`release` for async code; completes even when the caller is cancelled."""
        if self._first():
            await _uninterrupted(self.run, self.reservation.arelease())


async def _uninterrupted(run: Run, work: Coroutine[Any, Any, None]) -> None:
    await asyncio.shield(run._gateway._detach(work))


def hold(run: Run, estimate: Estimate) -> Metered:
    """Hold the budget of a model call.

    Raises:
        BudgetExceeded: A limit is in the way; the request must not be sent.
        RunKilled: A kill switch is on, or the run has ended.
    """
    kept = run.reserve_llm(
        model=estimate.model, input_tokens=estimate.input_tokens, max_output_tokens=estimate.output_tokens
    )
    return Metered(run, estimate, kept)


async def ahold(run: Run, estimate: Estimate) -> Metered:
    """The same for async code."""
    kept = await run.areserve_llm(
        model=estimate.model, input_tokens=estimate.input_tokens, max_output_tokens=estimate.output_tokens
    )
    return Metered(run, estimate, kept)


def watch(stream: Any, meter: Metered, usage_of_event: Callable[[Any], tuple[int | None, int | None]]) -> None:
    """Settle a model call when its stream ends, is closed or is dropped, whatever comes first.

    Args:
        stream: ``Stream`` of an SDK generated by Stainless: its events come from ``_iterator``, its connection is
            ``response``.
        meter: The model call.
        usage_of_event: Tokens sent and received according to an event.
    """
    events = stream._iterator

    def watched() -> Iterator[Any]:
        try:
            for event in events:
                meter.report(*usage_of_event(event))
                yield event
        finally:
            meter.settle()

    stream._iterator = watched()
    response, close = stream.response, stream.response.close

    def closed() -> None:
        try:
            close()
        finally:
            meter.settle()

    response.close = closed


def awatch(stream: Any, meter: Metered, usage_of_event: Callable[[Any], tuple[int | None, int | None]]) -> None:
    """The same for async streams."""
    events = stream._iterator

    async def watched() -> AsyncIterator[Any]:
        try:
            async for event in events:
                meter.report(*usage_of_event(event))
                yield event
        finally:
            await meter.asettle()

    stream._iterator = watched()
    response, close = stream.response, stream.response.aclose

    async def closed() -> None:
        try:
            await close()
        finally:
            await meter.asettle()

    response.aclose = closed
