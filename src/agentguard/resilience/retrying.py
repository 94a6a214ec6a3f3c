"""Retries as steps: tenacity says whether and when to try again, the flow does it.

What must stay true: only exceptions named in ``Retry.on`` are tried again, and of those only ``Exception``s, so
that a cancellation or an interrupt ends the call at once; a call that succeeds at the first try never touches
tenacity; nothing here sleeps.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from agentguard.domain.plans import Retry

if TYPE_CHECKING:
    import tenacity


@lru_cache(maxsize=512)  # a pure function of a frozen plan: built at the first failure of a tool, then looked up
def retrying(retry: Retry) -> tenacity.Retrying:
    """Tenacity's stop, wait and retry objects for a plan, held by a ``Retrying`` that never runs anything.

    The wait before retry ``n`` is ``wait_s * 2**(n - 1)`` plus a random part of up to ``jitter_s`` seconds.
    """
    import tenacity

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(retry.attempts),
        wait=tenacity.wait_exponential(multiplier=retry.wait_s, max=retry.max_wait_s)
        + tenacity.wait_random(0, retry.jitter_s),
        retry=tenacity.retry_if_exception_type(retry.on),
    )


class Attempts:
    """How often one call may still be tried; asked after every failure.

    Args:
        retry: The plan, or ``None`` for a single attempt.
    """

    __slots__ = ("_retry",)

    def __init__(self, retry: Retry | None) -> None:
        self._retry = retry

    def after_failure(self, exc: BaseException, attempt: int, elapsed_s: float) -> float | None:
        """Say what follows a failed attempt.

        Args:
            exc: What the attempt raised.
            attempt: Number of the failed attempt, 1 for the first.
            elapsed_s: Seconds since the first attempt began.

        Returns:
            Seconds to sleep before the next attempt, at most ``max_wait_s``, or ``None`` to stop.
        """
        retry = self._retry
        if retry is None or attempt >= retry.attempts or not isinstance(exc, Exception):
            return None
        from tenacity import RetryCallState

        rules = retrying(retry)
        state = RetryCallState(retry_object=rules, fn=None, args=(), kwargs={})
        state.attempt_number = attempt
        state.set_exception((type(exc), exc, exc.__traceback__))
        state.start_time = (state.outcome_timestamp or 0.0) - elapsed_s
        if not rules.retry(state) or rules.stop(state):
            return None
        return min(max(float(rules.wait(state)), 0.0), retry.max_wait_s)
