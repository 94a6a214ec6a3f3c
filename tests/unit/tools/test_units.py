"""Durations, sizes and money are read exactly or refused."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard import units


def label(value: Any) -> str:
    """A test id: huge integers cannot be printed."""
    return type(value).__name__ if isinstance(value, int) else ascii(value)[:30]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("5s", 5.0),
        ("500ms", 0.5),
        ("10m", 600.0),
        ("1h", 3600.0),
        ("2d", 172_800.0),
        ("1.5h", 5400.0),
        ("0s", 0.0),
        (5, 5.0),
        (0.25, 0.25),
        (timedelta(minutes=2), 120.0),
    ],
)
def test_durations_are_read_in_seconds(value: Any, expected: float) -> None:
    assert units.seconds(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *("5", "", "5S", "5 s", "-5s", "1e3s", "\u0665s", "5s\n", "5.s", "s", "nans", "1" * 30 + "s"),
        *(-1, -0.5, True, None, float("nan"), float("inf"), 10**400, -(10**400), timedelta(seconds=-1), "100000d"),
        *(b"5s", [5], Decimal(5)),
    ],
    ids=label,
)
def test_other_durations_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"duration|100 years"):
        units.seconds(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [("512MB", 512_000_000), ("4GiB", 4 * 1024**3), ("1kB", 1000), ("0.5KiB", 512), ("7 B", 7), (9, 9), (0, 0)],
)
def test_sizes_are_read_in_bytes(value: Any, expected: int) -> None:
    assert units.size(value) == expected


@pytest.mark.parametrize(
    "value", ["512", "1 XB", "0.5B", "-1MB", -1, 1.0, True, None, 2**63, 10**5000, "9999999TB"], ids=label
)
def test_other_sizes_are_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"size|64 bits|bytes"):
        units.size(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0.50", 500_000_000),
        ("0.000000001", 1),
        ("0.1000000000000", 100_000_000),
        (3, 3_000_000_000),
        (Decimal("1E+1"), 10_000_000_000),
        (Decimal("0E+500"), 0),
        ("9223372036.854775807", 2**63 - 1),
        (0, 0),
    ],
)
def test_money_is_read_exactly_in_nano_dollars(value: Any, expected: int) -> None:
    assert units.nano_usd(value) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(0.1, True, None, "1e3", "", "-1", "+1", ".5", "1.", "1,5", "$1", "NaN", -1, Decimal(-1)),
        *(Decimal("nan"), Decimal("sNaN"), Decimal("inf"), Decimal("1e999999"), Decimal("1e-10"), Decimal("1e-999999")),
        *("9223372036.854775808", 10**30, 10**5000, -(10**5000), "0.0000000001", Decimal("1.0000000001")),
    ],
    ids=label,
)
def test_other_money_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"money|dollar"):
        units.nano_usd(value)


@given(st.integers(0, 2**63 - 1))
def test_nano_dollars_survive_a_round_trip_through_text(nano: int) -> None:
    assert units.nano_usd(f"{nano // units.NANO}.{nano % units.NANO:09d}") == nano
