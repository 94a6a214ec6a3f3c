"""What tests of agents, and of new stores, need; free of any test framework.

``FakeClock`` is a clock that stands still until it is told to move; ``run_conformance`` proves that a store keeps
the contract of :mod:`agentguard.domain.operations`.
"""

from agentguard.testing.clocks import FakeClock
from agentguard.testing.conformance import CONFORMANCE, Check, MakeStore, awaiting, blocking, run_conformance

__all__ = ["CONFORMANCE", "Check", "FakeClock", "MakeStore", "awaiting", "blocking", "run_conformance"]
