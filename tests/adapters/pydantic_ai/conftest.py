"""Collected only where PydanticAI is installed: its adapter has a session of its own."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

collect_ignore_glob: list[str] = []
if find_spec("pydantic_ai") is None:
    collect_ignore_glob.append("*.py")
elif find_spec("mcp") is None:
    collect_ignore_glob.append("test_mcp.py")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
