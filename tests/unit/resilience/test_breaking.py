"""Circuit breakers: what opens them, what closes them, and what is no verdict.

No test waits: a plan with ``reset_s=0`` makes an open circuit due at once, one with an hour keeps it open.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Generator
from typing import Any

import pytest

from agentguard.domain.plans import Breaker
from agentguard.resilience.breaking import Breakers, Ticket

HOUR = Breaker(failures=3, reset_s=3600.0)
DUE = Breaker(failures=3, reset_s=0.0)


def admitted(breakers: Breakers, plan: Breaker = HOUR, tool: str = "t") -> Ticket:
    ticket = breakers.admit(tool, plan)
    assert ticket is not None
    return ticket


def opened(failures: int = 3) -> Breakers:
    breakers = Breakers()
    for _ in range(failures):
        admitted(breakers, Breaker(failures, 3600.0)).failure(OSError())
    assert breakers.state("t") == "open"
    return breakers


def test_a_tool_that_was_never_called_is_closed() -> None:
    assert Breakers().state("t") == "closed"
    assert Breakers().retry_after("t") is None


def test_failures_in_a_row_open_the_circuit() -> None:
    breakers = Breakers()
    states = []
    for _ in range(3):
        admitted(breakers).failure(OSError())
        states.append(breakers.state("t"))
    assert states == ["closed", "closed", "open"]
    assert breakers.admit("t", HOUR) is None


def test_a_success_ends_the_row() -> None:
    breakers = Breakers()
    for _ in range(5):
        admitted(breakers).failure(OSError())
        admitted(breakers).failure(OSError())
        admitted(breakers).success()
    assert breakers.state("t") == "closed"


def test_tools_and_gateways_do_not_share_a_circuit() -> None:
    breakers = opened()
    assert admitted(breakers, tool="other") is not None
    assert admitted(Breakers()) is not None


def test_an_open_circuit_says_when_it_can_be_tried_again() -> None:
    left = opened().retry_after("t")
    assert left is not None
    assert 3590 < left <= 3600


def test_a_closed_circuit_has_no_such_time() -> None:
    breakers = Breakers()
    admitted(breakers)
    assert breakers.retry_after("t") is None


def test_a_due_circuit_can_be_tried_now() -> None:
    breakers = Breakers()
    admitted(breakers, Breaker(1, 0.0)).failure(OSError())
    assert breakers.retry_after("t") == 0.0


def test_a_due_circuit_lets_exactly_one_probe_through() -> None:
    breakers = opened()
    probe = admitted(breakers, DUE)
    assert probe.probe
    assert breakers.state("t") == "half-open"
    assert [breakers.admit("t", DUE) for _ in range(5)] == [None] * 5
    assert breakers.retry_after("t") is None


def test_a_probe_that_succeeds_closes_the_circuit() -> None:
    breakers = opened()
    admitted(breakers, DUE).success()
    assert breakers.state("t") == "closed"
    assert not admitted(breakers, DUE).probe


def test_after_closing_the_row_begins_anew() -> None:
    breakers = opened()
    admitted(breakers, DUE).success()
    admitted(breakers).failure(OSError())
    admitted(breakers).failure(OSError())
    assert breakers.state("t") == "closed"


def test_a_probe_that_fails_opens_it_again() -> None:
    breakers = opened()
    admitted(breakers, DUE).failure(OSError())
    assert breakers.state("t") == "open"
    assert breakers.admit("t", HOUR) is None


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), GeneratorExit()])
def test_a_cancelled_call_is_no_verdict_even_when_one_failure_opens(error: BaseException) -> None:
    breakers = Breakers()
    admitted(breakers, Breaker(1, 3600.0)).failure(error)
    admitted(breakers, Breaker(1, 3600.0)).abandon()
    assert breakers.state("t") == "closed"


def test_a_cancelled_call_does_not_end_a_row_of_failures_either() -> None:
    breakers = Breakers()
    admitted(breakers).failure(OSError())
    admitted(breakers).failure(OSError())
    admitted(breakers).abandon()
    admitted(breakers).failure(OSError())
    assert breakers.state("t") == "open"


def test_a_cancelled_probe_opens_the_circuit_and_the_next_one_may_probe() -> None:
    breakers = opened()
    admitted(breakers, DUE).abandon()
    assert breakers.state("t") == "open"
    assert breakers.admit("t", HOUR) is None
    assert admitted(breakers, DUE).probe


def test_a_probe_that_got_lost_does_not_shut_the_circuit_for_ever() -> None:
    breakers = opened()
    assert breakers.admit("t", DUE) is not None  # nobody keeps it
    gc.collect()
    assert breakers.state("t") == "open"
    assert admitted(breakers, DUE).probe


def test_only_the_first_verdict_counts() -> None:
    breakers = Breakers()
    ticket = admitted(breakers)
    for _ in range(10):
        ticket.failure(OSError())
    assert breakers.state("t") == "closed"
    probe = admitted(opened(), DUE)
    probe.success()
    probe.failure(OSError())
    probe.abandon()
    assert probe._circuit.breaker.current_state == "closed"


@pytest.mark.parametrize("late", ["success", "failure", "abandon"])
def test_a_verdict_from_before_the_circuit_opened_does_not_disturb_the_probe(late: str) -> None:
    breakers = Breakers()
    slow = admitted(breakers)
    for _ in range(3):
        admitted(breakers).failure(OSError())
    probe = admitted(breakers, DUE)
    slow.failure(OSError()) if late == "failure" else getattr(slow, late)()
    assert breakers.state("t") == "half-open"
    assert breakers.admit("t", DUE) is None
    probe.success()
    assert breakers.state("t") == "closed"


def test_late_failures_do_not_count_against_a_circuit_that_has_closed_again() -> None:
    breakers = Breakers()
    slow = [admitted(breakers) for _ in range(10)]
    for _ in range(3):
        admitted(breakers).failure(OSError())
    admitted(breakers, DUE).success()
    for ticket in slow:
        ticket.failure(OSError())
    assert breakers.state("t") == "closed"


def test_a_changed_plan_takes_effect_at_once() -> None:
    breakers = Breakers()
    admitted(breakers).failure(OSError())
    admitted(breakers, Breaker(1, 3600.0)).failure(OSError())
    assert breakers.state("t") == "open"


def test_the_tool_s_exception_is_left_alone() -> None:
    breakers, error = Breakers(), OSError("x")
    admitted(breakers, Breaker(1, 3600.0)).failure(error)
    assert (error.__traceback__, error.__context__, error.__cause__) == (None, None, None)


def test_a_ticket_survives_an_await_that_is_cancelled() -> None:
    breakers = opened(1)

    async def call() -> None:
        ticket = admitted(breakers, Breaker(1, 0.0))
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            ticket.failure(error)
            raise

    async def main() -> None:
        task = asyncio.create_task(call())
        await asyncio.sleep(0)
        assert breakers.state("t") == "half-open"
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert breakers.state("t") == "open"


def test_a_ticket_survives_a_generator_that_is_closed() -> None:
    breakers = Breakers()

    def flow() -> Generator[None, None, None]:
        ticket = admitted(breakers, Breaker(1, 3600.0))
        try:
            yield
        except BaseException as error:
            ticket.failure(error)
            raise

    steps = flow()
    next(steps)
    steps.close()
    assert breakers.state("t") == "closed"


def test_tools_of_32_threads_run_at_the_same_time() -> None:
    breakers = Breakers()
    together = threading.Barrier(32, timeout=30)  # breaks when a lock is held during the calls

    def call() -> None:
        ticket = admitted(breakers)
        together.wait()
        ticket.success()

    run(call, 32)
    assert breakers.state("t") == "closed"


def test_no_failure_of_32_threads_is_lost() -> None:
    breakers = Breakers()
    plan = Breaker(32 * 50 + 1, 3600.0)

    def call() -> None:
        for _ in range(50):
            admitted(breakers, plan).failure(OSError())

    run(call, 32)
    assert breakers.state("t") == "closed"
    admitted(breakers, plan).failure(OSError())
    assert breakers.state("t") == "open"


class Recorded:
    """A lock that knows whether it is held, to tell a verdict given under it from one that is not."""

    def __init__(self) -> None:
        self.depth = 0
        self.taken = 0

    def __enter__(self) -> None:
        self.depth += 1
        self.taken += 1

    def __exit__(self, *exc: object) -> None:
        self.depth -= 1


@pytest.mark.parametrize("verdict", ["success", "failure", "abandon"])
def test_every_verdict_is_given_under_the_lock_and_none_keeps_it(verdict: str) -> None:
    breakers = Breakers()
    ticket = admitted(breakers)
    lock: Any = Recorded()
    ticket._circuit.lock = lock
    ticket.failure(OSError()) if verdict == "failure" else getattr(ticket, verdict)()
    assert (lock.taken, lock.depth) == (1, 0)


def test_no_lock_is_held_between_admission_and_verdict() -> None:
    breakers = Breakers()
    admitted(breakers)
    lock: Any = Recorded()
    breakers._circuits["t"].lock = lock
    ticket = admitted(breakers)
    assert (lock.taken, lock.depth) == (1, 0)
    ticket.success()


def test_32_threads_get_one_probe() -> None:
    breakers, probes = opened(), []
    together = threading.Barrier(32, timeout=30)

    def call() -> None:
        together.wait()
        ticket = breakers.admit("t", DUE)
        if ticket is not None:
            probes.append(ticket)

    run(call, 32)
    assert len(probes) == 1


def run(call: object, count: int) -> None:
    errors: list[BaseException] = []

    def guarded() -> None:
        try:
            call()  # type: ignore[operator]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert not any(thread.is_alive() for thread in threads)
