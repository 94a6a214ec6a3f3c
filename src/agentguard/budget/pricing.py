"""What model calls cost: a price list as a value. An unknown price is unknown, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from math import ceil

from agentguard.domain.usage import NANO
from agentguard.errors import ConfigurationError
from agentguard.globbing import is_glob, matches

_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens, exact.

    Attributes:
        input: For tokens sent.
        output: For tokens received.
    """

    input: Decimal
    output: Decimal


class Prices:
    """A price list: model name or glob to :class:`Price`; an exact name beats a glob, a longer glob a shorter one.

    Args:
        table: ``{"gpt-5": ("1.25", "10"), "claude-*": Price(...)}``; pairs are input and output price in US
            dollars per million tokens, as strings or ``Decimal``.

    Raises:
        ConfigurationError: A price is negative, not exact or not a number.
    """

    def __init__(self, table: Mapping[str, Price | tuple[str | Decimal, str | Decimal]]) -> None:
        self._exact: dict[str, Price] = {}
        globs: list[tuple[str, Price]] = []
        for model, entry in table.items():
            price = _price(model, entry)
            if is_glob(model):
                globs.append((model, price))
            else:
                self._exact[model] = price
        self._globs = sorted(globs, key=lambda pair: (-len(pair[0]), pair[0]))

    def price_nano(self, model: str, input_tokens: int, output_tokens: int) -> int | None:
        """Price of one model call in nano-dollars, rounded up to the next one; ``None`` when the model is not listed."""
        price = self._exact.get(model) or next((p for g, p in self._globs if matches(g, model)), None)
        if price is None:
            return None
        # Fractions: the decimal context of the host could round.
        return ceil((Fraction(price.input) * input_tokens + Fraction(price.output) * output_tokens) * NANO / _MILLION)


def _price(model: str, entry: object) -> Price:
    if not isinstance(model, str) or not model:
        raise ConfigurationError(f"AG405 {model!r:.40} is no name of a model.", code="AG405")
    if isinstance(entry, Price):
        return Price(_amount(model, entry.input), _amount(model, entry.output))
    if not isinstance(entry, (tuple, list)) or len(entry) != 2:
        raise ConfigurationError(
            f'AG405 price of {model}: write a pair of input and output price, such as ("1.25", "10").', code="AG405"
        )
    return Price(_amount(model, entry[0]), _amount(model, entry[1]))


def _amount(model: str, value: object) -> Decimal:
    if isinstance(value, (bool, float)) or not isinstance(value, (str, int, Decimal)):
        raise ConfigurationError(f"AG405 price of {model}: write {value!r} as a quoted decimal.", code="AG405")
    try:
        amount = Decimal(value)
    except ArithmeticError as error:
        raise ConfigurationError(f"AG405 price of {model}: {value!r:.40} is not a number.", code="AG405") from error
    if not amount.is_finite() or amount < 0:
        raise ConfigurationError(f"AG405 price of {model}: {value!r:.40} is not a price.", code="AG405")
    return amount
