"""The conformance suite: whoever writes a store proves with it that the store keeps the contract.

A store implements :class:`agentguard.protocols.Store`: ``perform`` carries out one operation of
:mod:`agentguard.domain.operations` as one transaction, ``aperform`` does the same for the event loop. The meaning
of the operations is written once, in :mod:`agentguard.stores.transitions`; a store with real transactions
implements :class:`agentguard.stores.rows.Transaction` and calls ``transitions.perform(tx, operation)`` inside
one. Then it plugs in here, with any test framework or none::

    from agentguard.testing import run_conformance

    run_conformance(lambda clock: MyStore(fresh_address(), clock=clock))

The factory is called once per check and must return an *empty* store that tells the time with the clock it is
given; the suite closes the store. Each check is a plain function and asserts one part of the contract, so a
parametrised test names what fails::

    @pytest.mark.parametrize("check", CONFORMANCE, ids=lambda check: check.__name__)
    @pytest.mark.parametrize("colour", [blocking, awaiting])
    def test_conformance(check, colour):
        check(make_store, colour)

What a suite of one process cannot show, a store must show by itself: that acknowledged changes survive a crash,
that several processes share limits exactly, and that no operation waits without a deadline.
"""

from __future__ import annotations

from typing import Final

from agentguard.testing.conformance import approvals, audit, budgets, calls, cancelling, runs, switches, tenants
from agentguard.testing.conformance.scene import Check, MakeStore, awaiting, blocking

CONFORMANCE: Final[tuple[Check, ...]] = (
    *calls.CHECKS,
    *budgets.CHECKS,
    *approvals.CHECKS,
    *runs.CHECKS,
    *switches.CHECKS,
    *tenants.CHECKS,
    *audit.CHECKS,
    *cancelling.CHECKS,
)
"""Every check, in the order in which a new store should be made to pass them."""

__all__ = ["CONFORMANCE", "Check", "MakeStore", "awaiting", "blocking", "run_conformance"]


def run_conformance(make_store: MakeStore) -> int:
    """Run every check in both colours.

    Args:
        make_store: Makes an empty store that uses the clock it is given.

    Returns:
        How many checks were run.

    Raises:
        AssertionError: The store does not keep the contract; the message begins with the name of the check.
        RuntimeError: Python runs with ``-O``, which removes the assertions that the checks consist of.
    """
    if not __debug__:
        raise RuntimeError("the conformance suite proves nothing under python -O, which removes its assertions")
    count = 0
    for check in CONFORMANCE:
        for colour in (blocking, awaiting):
            try:
                check(make_store, colour)
            except Exception as error:
                name = f"{getattr(check, '__name__', check)} ({getattr(colour, '__name__', colour)})"
                raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
            count += 1
    return count
