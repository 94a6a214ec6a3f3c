"""What model calls use: their tokens and cost as amounts, and the hold of one that has not been made yet.

What must stay true: an unknown price is counted as unknown, never as 0; what was used is recorded even when a
price list fails; a hold is settled or released once, and a settlement that could not be stored is not forgotten.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from decimal import Decimal
from types import TracebackType
from typing import TYPE_CHECKING, Self

from agentguard.domain.events import Event, EventKind
from agentguard.domain.operations import Settle
from agentguard.domain.usage import COST, COUNTER_PREFIX, INPUT_TOKENS, OUTPUT_TOKENS, STEPS, TOKENS, Amounts
from agentguard.errors import ConfigurationError, RunError
from agentguard.units import nano_usd

if TYPE_CHECKING:
    from agentguard.gateway.door import Steps
    from agentguard.gateway.running import Run
    from agentguard.protocols import PriceList

log = logging.getLogger("agentguard")

UNPRICED = COUNTER_PREFIX + "unpriced_model_calls"
"""Counts the model calls whose price is unknown; nobody else may count here."""

MODEL_LEASE_S = 900.0
"""Lease of a model call's hold: after that it returns by itself."""

_MOST_TOKENS = 10**12


def shown(text: object, length: int) -> str:
    """Text that may stand in a record: printable, cut to ``length`` characters."""
    return "".join(c if c.isprintable() else "?" for c in str(text)[:length])


def model_usage(
    prices: PriceList | None,
    model: str,
    input_tokens: int,
    output_tokens: int,
    cost_usd: Decimal | str | int | None = None,
) -> Amounts:
    """What a model call counts as, in every dimension.

    Raises:
        ConfigurationError: A number is no number of tokens, or the cost is not exact.
    """
    if not isinstance(model, str) or not model:
        raise ConfigurationError("AG406 model must be the name of the model.", code="AG406")
    for name, value in (("input_tokens", input_tokens), ("output_tokens", output_tokens)):
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_TOKENS:
            raise ConfigurationError(f"AG406 {name}: {value!r:.40} is not a number of tokens.", code="AG406")
    if cost_usd is None:
        cost = _listed(prices, model, input_tokens, output_tokens)
    elif isinstance(cost_usd, (bool, float)):
        raise ConfigurationError(
            f'AG406 cost_usd: write {cost_usd!r:.40} as an exact decimal such as "0.0012".', code="AG406"
        )
    else:
        try:
            cost = nano_usd(cost_usd)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"AG406 cost_usd: {error}", code="AG406") from error
    return (
        (STEPS, 1),
        (INPUT_TOKENS, input_tokens),
        (OUTPUT_TOKENS, output_tokens),
        (TOKENS, input_tokens + output_tokens),
        (UNPRICED, 1) if cost is None else (COST, cost),
    )


def _listed(prices: PriceList | None, model: str, input_tokens: int, output_tokens: int) -> int | None:
    """The price by the list; a list that fails or answers nonsense does not know it."""
    if prices is None:
        return None
    try:
        price = prices.price_nano(model, input_tokens, output_tokens)
    except Exception as error:  # the tokens were used all the same and must be recorded
        log.error("price list %s failed: %s", type(prices).__name__, type(error).__name__)
        return None
    if price is None:
        return None
    if isinstance(price, bool) or not isinstance(price, int) or not 0 <= price < 2**62:
        log.error("price list %s answered no price in nano-dollars", type(prices).__name__)
        return None
    return price


def charged(kind: EventKind, model: str, amounts: Amounts) -> Event:
    """The record of a model call."""
    facts: dict[str, str | int | bool | None] = {"model": shown(model, 200)}
    facts.update({name.replace(":", "."): str(amount) for name, amount in amounts})
    return Event(kind, facts)


@dataclass(slots=True)
class LlmReservation:
    """Tokens and cost held for one model call; settle it with what was used, or release it.

    As a context manager it releases what was not settled, and settles again what could not be stored.
    """

    run: Run
    model: str
    key: str
    done: bool = False
    _owed: Settle | None = None

    def _settling(self, amounts: Amounts) -> Settle:
        if self.done:
            raise RunError("This reservation was settled or released before.")
        self.done = True
        run = self.run
        context = run.context
        event = charged("llm.charged", self.model, amounts)
        return Settle(context.tenant, context.run_id, self.key, run._view.meters, amounts, event)

    def _resolve(self, amounts: Amounts) -> Steps[tuple[str, ...]]:
        operation = self._settling(amounts)
        try:
            answer = yield from operation
        except Exception:
            self.done, self._owed = False, operation
            raise
        return self.run._settled(answer, self.model, amounts)

    def _leave(self, error: BaseException | None) -> Steps[None]:
        if self.done:
            return
        owed = self._owed
        try:
            yield from self._resolve(owed.amounts if owed is not None else ())
        except Exception as failure:
            if error is None:
                raise
            # The caller's own exception says more; the lease gives the hold back.
            log.error("a model call could not be settled: %s", type(failure).__name__)

    def _used(self, input_tokens: int, output_tokens: int, cost_usd: Decimal | str | int | None) -> Amounts:
        return model_usage(self.run._gateway.prices, self.model, input_tokens, output_tokens, cost_usd)

    def settle(
        self, *, input_tokens: int, output_tokens: int, cost_usd: Decimal | str | int | None = None
    ) -> tuple[str, ...]:
        """Replace the hold by what the call used; see :meth:`Run.charge_llm`.

        Raises:
            RunError: It was settled or released before.
        """
        amounts = self._used(input_tokens, output_tokens, cost_usd)
        return self.run._gateway._through(self._resolve(amounts))

    async def asettle(
        self, *, input_tokens: int, output_tokens: int, cost_usd: Decimal | str | int | None = None
    ) -> tuple[str, ...]:
        """The same for async code."""
        amounts = self._used(input_tokens, output_tokens, cost_usd)
        return await self.run._gateway._athrough(self._resolve(amounts))

    def release(self) -> None:
        """Give the hold back: the call was not made."""
        self.run._gateway._through(self._resolve(()))

    async def arelease(self) -> None:
        """The same for async code."""
        await self.run._gateway._athrough(self._resolve(()))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.run._gateway._through(self._leave(error))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.run._gateway._athrough(self._leave(error))
