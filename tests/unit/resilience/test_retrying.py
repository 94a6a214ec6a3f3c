"""Retries as steps: when again, when never."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentguard.domain.plans import Retry
from agentguard.resilience.retrying import Attempts

STEADY = Retry(attempts=4, wait_s=0.5, max_wait_s=10.0, jitter_s=0.0, on=(OSError, TimeoutError))


def test_waits_double_from_one_retry_to_the_next() -> None:
    attempts = Attempts(STEADY)
    assert [attempts.after_failure(OSError(), n, 1.0) for n in (1, 2, 3)] == [0.5, 1.0, 2.0]


def test_the_last_attempt_is_the_last() -> None:
    assert Attempts(STEADY).after_failure(OSError(), 4, 1.0) is None
    assert Attempts(STEADY).after_failure(OSError(), 5, 1.0) is None


def test_no_plan_means_one_attempt() -> None:
    assert Attempts(None).after_failure(OSError(), 1, 0.0) is None


@pytest.mark.parametrize("attempts", [1, 0, -1])
def test_a_plan_of_one_attempt_never_retries(attempts: int) -> None:
    assert Attempts(Retry(attempts=attempts)).after_failure(OSError(), 1, 0.0) is None


def test_only_the_named_exceptions_are_tried_again() -> None:
    assert Attempts(STEADY).after_failure(ValueError(), 1, 0.0) is None
    assert Attempts(STEADY).after_failure(ConnectionError(), 1, 0.0) is not None
    assert Attempts(STEADY).after_failure(TimeoutError(), 1, 0.0) is not None


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(), GeneratorExit()])
def test_a_cancellation_is_never_tried_again_even_when_named(error: BaseException) -> None:
    wide = Retry(on=(BaseException,))  # type: ignore[arg-type]
    assert Attempts(wide).after_failure(error, 1, 0.0) is None
    assert Attempts(wide).after_failure(OSError(), 1, 0.0) is not None


@given(
    st.integers(1, 5000),
    st.floats(0, 1e6),
    st.floats(0, 100),
    st.floats(0, 1e6),
)
def test_no_wait_is_negative_or_longer_than_the_longest(
    attempt: int, wait: float, longest: float, jitter: float
) -> None:
    plan = Retry(attempts=attempt + 1, wait_s=wait, max_wait_s=longest, jitter_s=jitter)
    pause = Attempts(plan).after_failure(OSError(), attempt, 0.0)
    assert pause is not None
    assert 0.0 <= pause <= longest


def test_jitter_adds_up_to_its_amount() -> None:
    attempts = Attempts(Retry(wait_s=1.0, jitter_s=0.5))
    pauses = {attempts.after_failure(OSError(), 1, 0.0) for _ in range(50)}
    assert all(pause is not None and 1.0 <= pause <= 1.5 for pause in pauses)
    assert len(pauses) > 1


def test_without_jitter_the_wait_is_exact() -> None:
    attempts = Attempts(STEADY)
    assert {attempts.after_failure(OSError(), 1, 0.0) for _ in range(5)} == {0.5}


def test_a_call_that_succeeds_at_once_never_loads_tenacity() -> None:
    code = (
        "import sys\n"
        "from agentguard.domain.plans import Retry\n"
        "from agentguard.resilience import breaking, credentials, keys, retrying, sandboxing\n"
        "retrying.Attempts(Retry())\n"
        "breaking.Breakers().state('t')\n"
        "assert not {'tenacity', 'pybreaker'} & set(sys.modules), 'loaded'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
