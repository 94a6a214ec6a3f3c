"""The clock for tests moves when told to, and only forwards."""

from __future__ import annotations

import pytest

from agentguard.testing import FakeClock


def test_it_stands_still_until_it_is_moved() -> None:
    clock = FakeClock(5)
    assert (clock.now_ns(), clock.monotonic()) == (5, 0.0)
    clock.advance(1.5)
    assert (clock.now_ns(), clock.monotonic()) == (1_500_000_005, 1.5)


def test_the_wall_clock_can_be_put_back_and_the_other_does_not_notice() -> None:
    clock = FakeClock()
    clock.advance(2)
    clock.set(7)
    assert (clock.now_ns(), clock.monotonic()) == (7, 2.0)


def test_it_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="backwards"):
        FakeClock().advance(-1)
