"""Durations, sizes and money as people write them, as the numbers the library computes with.

Every function either returns an exact, finite, non-negative number or raises ``ValueError`` with a message
that says how to write the value. Nothing is rounded to fit, nothing is guessed: a number in quotes without a
unit, a truth value, NaN, infinity and anything negative are refused.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from decimal import Decimal
from typing import Any

NANO = 1_000_000_000
"""Nano-dollars in one US dollar."""

MAX_NANO = 2**63 - 1
"""Largest amount in nano-dollars (about 9.2 billion dollars): what a signed 64-bit column holds."""

MAX_BYTES = 2**63 - 1
"""Largest size in bytes."""

MAX_SECONDS = 100 * 365 * 86_400.0
"""Longest duration, 100 years: later sums with a clock in ns still fit a signed 64-bit column."""

_DURATION = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)", re.ASCII)
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86_400)}

_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?(B|kB|KB|MB|GB|TB|KiB|MiB|GiB|TiB)", re.ASCII)
_BYTES = {
    "B": 1,
    "kB": 1000,
    "KB": 1000,
    "MB": 1000**2,
    "GB": 1000**3,
    "TB": 1000**4,
    "KiB": 1024,
    "MiB": 1024**2,
    "GiB": 1024**3,
    "TiB": 1024**4,
}

_MONEY = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,40})?", re.ASCII)

_MONEY_HELP = 'write a decimal in quotes such as "0.50"'
_DURATION_HELP = 'write a number of seconds, or a number with a unit such as "500ms", "5s", "10m", "1h", "2d"'
_SIZE_HELP = 'write a whole number of bytes, or a number with a unit such as "512MB" or "4GiB"'


def _shown(value: Any) -> str:
    if isinstance(value, int) and value.bit_length() > 128:  # str() of a huge int raises
        return "a number of more than 38 digits"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def seconds(value: Any) -> float:
    """Read a duration in seconds.

    Args:
        value: An ``int`` or ``float`` (seconds), a ``timedelta``, or text with a unit: ``ms``, ``s``, ``m``
            (minutes), ``h``, ``d``.

    Returns:
        Seconds, finite, at least 0.

    Raises:
        ValueError: The value is of another type, has no unit, is negative, not finite or over 100 years.
    """
    if isinstance(value, bool):
        raise ValueError(f"a truth value is not a duration; {_DURATION_HELP}")
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise ValueError(f"{_shown(value)} is not a duration; {_DURATION_HELP}")
        result = float(Decimal(match[1]) * _SECONDS[match[2]])
    elif isinstance(value, timedelta):
        result = value.total_seconds()
    elif isinstance(value, int):
        # float() of a huge int raises; what is out of range anyway need not be converted
        result = float(min(max(value, -1), int(MAX_SECONDS) + 1))
    elif isinstance(value, float):
        result = value
    else:
        raise ValueError(f"{type(value).__name__} is not a duration; {_DURATION_HELP}")
    if math.isnan(result):
        raise ValueError(f"NaN is not a duration; {_DURATION_HELP}")
    if result < 0:
        raise ValueError(f"a duration cannot be negative, got {_shown(value)}")
    if result > MAX_SECONDS:
        raise ValueError(f"{_shown(value)} is longer than 100 years; leave the setting out for no limit")
    return result


def size(value: Any) -> int:
    """Read a size in bytes.

    Args:
        value: An ``int`` (bytes) or text with a unit. ``kB``, ``MB``, ``GB``, ``TB`` are powers of 1000 and
            ``KiB``, ``MiB``, ``GiB``, ``TiB`` powers of 1024.

    Returns:
        Whole bytes, at least 0.

    Raises:
        ValueError: The value is of another type, has no unit, is negative, or is no whole number of bytes.
    """
    if isinstance(value, bool):
        raise ValueError(f"a truth value is not a size; {_SIZE_HELP}")
    if isinstance(value, int):
        result = value
    elif isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None:
            raise ValueError(f"{_shown(value)} is not a size; {_SIZE_HELP}")
        exact = Decimal(match[1]) * _BYTES[match[2]]
        result = int(exact)
        if result != exact:
            raise ValueError(f"{_shown(value)} is no whole number of bytes; {_SIZE_HELP}")
    else:
        raise ValueError(f"{type(value).__name__} is not a size; {_SIZE_HELP}")
    if result < 0:
        raise ValueError(f"a size cannot be negative, got {_shown(value)}")
    if result > MAX_BYTES:
        raise ValueError(f"{_shown(value)} is more than 64 bits can count; leave the setting out for no limit")
    return result


def nano_usd(value: Any) -> int:
    """Read an amount of US dollars as nano-dollars, exactly.

    Args:
        value: Text such as ``"0.50"``, a ``Decimal``, or an ``int`` (whole dollars). Never a ``float``: 0.1
            has no exact binary form.

    Returns:
        Nano-dollars (10**-9 USD), at least 0.

    Raises:
        ValueError: The value is of another type, not finite, negative, finer than a nano-dollar, or too big.
    """
    if isinstance(value, bool):
        raise ValueError(f"a truth value is not an amount of money; {_MONEY_HELP}")
    if isinstance(value, float):
        raise ValueError(f"a float is not an exact amount of money; {_MONEY_HELP}")
    if isinstance(value, int):
        if value > MAX_NANO:
            raise ValueError(f"more than {MAX_NANO // NANO} dollars; leave the setting out for no limit")
        amount = Decimal(value)
    elif isinstance(value, Decimal):
        amount = value
    elif isinstance(value, str):
        if value.startswith("-") and _MONEY.fullmatch(value[1:]):
            raise ValueError(f"an amount of money cannot be negative, got {_shown(value)}")
        if _MONEY.fullmatch(value) is None:
            raise ValueError(f"{_shown(value)} is not an amount of money; {_MONEY_HELP}")
        amount = Decimal(value)
    else:
        raise ValueError(f"{type(value).__name__} is not an amount of money; {_MONEY_HELP}")
    if not amount.is_finite():
        raise ValueError(f"NaN and infinity are not amounts of money; {_MONEY_HELP}")
    if amount < 0:
        raise ValueError(f"an amount of money cannot be negative, got {_shown(str(amount))}")
    _, digits, exponent = amount.as_tuple()
    power = int(exponent) + 9
    # Decided on the exponent before any power is taken: Decimal("1e999999") must not be expanded.
    if amount and amount.adjusted() > 10:
        raise ValueError(f"more than {MAX_NANO // NANO} dollars; leave the setting out for no limit")
    if not amount:
        return 0
    whole = int("".join(map(str, digits)))
    if power >= 0:
        result: int = whole * 10**power
    else:
        result, rest = divmod(whole, 10**-power) if -power <= len(digits) else (0, 1)
        if rest:
            raise ValueError(f"{_shown(str(amount))} is finer than a nano-dollar (9 decimals); {_MONEY_HELP}")
    if result > MAX_NANO:
        raise ValueError(f"more than {MAX_NANO // NANO} dollars; leave the setting out for no limit")
    return result
