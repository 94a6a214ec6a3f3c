"""What all tests share: one event loop library, and property tests that say the same thing on every machine."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

# Derandomised, so that a red build is red again when it is run again; AGENTGUARD_HYPOTHESIS=search explores.
settings.register_profile(
    "steady", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("search", deadline=None, max_examples=2000, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("AGENTGUARD_HYPOTHESIS", "steady"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """The loop that ``@pytest.mark.anyio`` tests run on."""
    return "asyncio"
