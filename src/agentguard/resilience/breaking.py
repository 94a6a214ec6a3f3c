"""Circuit breakers, one per tool of a gateway, on pybreaker.

What must stay true: no lock is held while a tool runs; a cancelled call is no verdict on the tool; a half-open
circuit lets exactly one probe through; a verdict that comes after the circuit has changed its state counts for
nothing.

pybreaker's ``call`` holds its lock during the call, and ``calling()`` takes a cancellation, and even an abandoned
context, for a failure. So its context is only ever entered and left at once, under a lock of our own: to record a
verdict, and to ask an open circuit whether its time has come.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from agentguard.domain.plans import Breaker

if TYPE_CHECKING:
    import pybreaker

CLOSED = "closed"
OPEN = "open"
HALF_OPEN = "half-open"


class _Failed(Exception):
    """Stands in for the tool's exception, whose traceback must not grow by our frames."""


class _Circuit:
    """A pybreaker breaker with the lock, the probe and the count of its state changes."""

    __slots__ = ("breaker", "generation", "lock", "plan", "probing", "storage")

    def __init__(self, tool: str, plan: Breaker) -> None:
        import pybreaker

        self.lock = threading.RLock()  # reentrant: a lost ticket may be collected while this thread holds it
        self.plan = plan
        self.storage = pybreaker.CircuitMemoryStorage(CLOSED)
        self.breaker: pybreaker.CircuitBreaker = pybreaker.CircuitBreaker(
            fail_max=plan.failures, reset_timeout=plan.reset_s, state_storage=self.storage, name=tool
        )
        self.generation = 0
        self.probing = False

    def adopt(self, plan: Breaker) -> None:
        self.plan = plan
        self.breaker.fail_max = plan.failures
        self.breaker.reset_timeout = plan.reset_s

    def record(self, failed: bool) -> None:
        from pybreaker import CircuitBreakerError

        try:
            with self.breaker.calling():
                if failed:
                    raise _Failed
        except (_Failed, CircuitBreakerError):
            pass  # the second one says that this failure opened the circuit

    def due(self) -> bool:
        """Whether an open circuit may be probed; if so it is half-open afterwards."""
        from pybreaker import CircuitBreakerError

        try:
            with self.breaker.calling():
                pass
        except CircuitBreakerError:
            return False
        self.breaker.half_open()  # leaving the context closed the circuit; only the probe may do that
        return True


class Ticket:
    """Permission for one attempt of a tool. Give one verdict; the first counts.

    Attributes:
        probe: The attempt decides whether an open circuit closes again.
    """

    __slots__ = ("_circuit", "_done", "_generation", "probe")

    def __init__(self, circuit: _Circuit, probe: bool) -> None:
        self._done = False
        self._circuit = circuit
        self._generation = circuit.generation
        self.probe = probe

    def success(self) -> None:
        """The attempt succeeded: failures in a row end, and a probe closes the circuit."""
        self._verdict(failed=False)

    def failure(self, exc: BaseException) -> None:
        """The attempt failed with ``exc``; a cancellation or an interrupt is no verdict on the tool."""
        if isinstance(exc, Exception):
            self._verdict(failed=True)
        else:
            self.abandon()

    def abandon(self) -> None:
        """The attempt ended without a verdict, for example by cancellation; a probe opens the circuit again."""
        circuit = self._circuit
        with circuit.lock:
            if self._take() and self.probe:
                circuit.probing = False
                circuit.breaker.open()
                circuit.generation += 1

    def _take(self) -> bool:
        first = not self._done
        self._done = True
        return first and self._generation == self._circuit.generation

    def _verdict(self, failed: bool) -> None:
        circuit = self._circuit
        with circuit.lock:
            if not self._take():
                return
            if not failed and not self.probe and circuit.breaker.fail_counter == 0:
                return
            circuit.record(failed)
            if self.probe:
                circuit.probing = False
            if self.probe or circuit.breaker.current_state != CLOSED:
                circuit.generation += 1

    def __del__(self) -> None:
        # A probe that nobody answers for would keep the circuit shut off for ever.
        if self.probe and not self._done:
            self.abandon()


class Breakers:
    """The circuit breakers of one gateway, made when a tool first needs one. Safe to use from any thread."""

    __slots__ = ("_circuits", "_lock")

    def __init__(self) -> None:
        self._circuits: dict[str, _Circuit] = {}
        self._lock = threading.Lock()

    def admit(self, tool: str, plan: Breaker) -> Ticket | None:
        """Ask for one attempt of ``tool``.

        Args:
            tool: Name of the tool.
            plan: When its circuit opens and for how long; a changed plan takes effect at once.

        Returns:
            A ticket on which the verdict must be given, or ``None`` when the circuit is open or half-open with
            its probe under way.
        """
        circuit = self._circuits.get(tool)
        if circuit is None:
            with self._lock:
                circuit = self._circuits.setdefault(tool, _Circuit(tool, plan))
        with circuit.lock:
            if plan != circuit.plan:
                circuit.adopt(plan)
            if circuit.breaker.current_state == CLOSED:
                return Ticket(circuit, probe=False)
            if circuit.probing or not circuit.due():
                return None
            circuit.probing = True
            circuit.generation += 1
            return Ticket(circuit, probe=True)

    def state(self, tool: str) -> str:
        """``closed``, ``open`` or ``half-open``; a tool that was never called is ``closed``."""
        circuit = self._circuits.get(tool)
        return circuit.breaker.current_state if circuit else CLOSED

    def retry_after(self, tool: str) -> float | None:
        """Seconds until an open circuit lets a probe through (0.0 when it is due), or ``None`` when not open."""
        circuit = self._circuits.get(tool)
        if circuit is None:
            return None
        with circuit.lock:
            opened_at = circuit.storage.opened_at
            if circuit.breaker.current_state != OPEN or opened_at is None:
                return None
            return max(circuit.plan.reset_s - (datetime.now(UTC) - opened_at).total_seconds(), 0.0)
