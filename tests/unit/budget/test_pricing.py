"""A price list: exact, rounded up, and silent about what it does not know."""

from __future__ import annotations

import decimal
from decimal import Decimal
from fractions import Fraction
from math import ceil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import Price, Prices
from agentguard.errors import ConfigurationError
from tests.naming import shown as shown_id


def test_an_exact_name_beats_a_glob_and_a_longer_glob_a_shorter_one() -> None:
    prices = Prices(
        {"*": ("9", "9"), "gpt-*": ("2", "0"), "gpt-5*": ("3", "0"), "gpt-5": Price(Decimal(4), Decimal(0))}
    )
    found = [prices.price_nano(model, 1_000_000, 0) for model in ("gpt-5", "gpt-5-mini", "gpt-4", "claude")]
    assert found == [4 * 10**9, 3 * 10**9, 2 * 10**9, 9 * 10**9]


def test_an_unknown_model_has_no_price() -> None:
    assert Prices({"gpt-5": ("1", "1")}).price_nano("gpt-6", 1, 1) is None


@given(
    st.decimals(0, 1000, places=9), st.decimals(0, 1000, places=9), st.integers(0, 10**9), st.integers(0, 10**9),
    st.integers(1, 30),
)  # fmt: skip
def test_a_price_is_exact_and_rounded_up(one: Decimal, two: Decimal, sent: int, received: int, precision: int) -> None:
    with decimal.localcontext(prec=precision):
        found = Prices({"m": (one, two)}).price_nano("m", sent, received)
    assert found == ceil((Fraction(one) * sent + Fraction(two) * received) * 1000)


@pytest.mark.parametrize(
    "table",
    [
        {"m": ("1.25", 10.0)},
        {"m": (True, "1")},
        {"m": ("-1", "1")},
        {"m": ("NaN", "1")},
        {"m": ("1", "Infinity")},
        {"m": ("x", "1")},
        {"m": (None, "1")},
        {"m": "10"},
        {"m": ("1",)},
        {"m": ("1", "2", "3")},
        {"m": 5},
        {"": ("1", "1")},
        {5: ("1", "1")},
        {"m": Price(1.5, Decimal(1))},  # type: ignore[arg-type]
    ],
    ids=shown_id,
)
def test_what_is_no_price_is_refused(table: Any) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Prices(table)
    assert caught.value.code == "AG405"
