"""Collected only where the mcp package is installed: its adapter has a session of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.adapters.mcp.far import Far

collect_ignore_glob: list[str] = [] if find_spec("mcp") is not None else ["*.py"]


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def far(tmp_path: Path) -> Far:
    return Far(tmp_path)
