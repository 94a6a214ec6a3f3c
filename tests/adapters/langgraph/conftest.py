"""Collected only where LangGraph and LangChain are installed: their adapter has a session of its own."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

collect_ignore_glob: list[str] = []
if find_spec("langgraph") is None or find_spec("langchain") is None:
    collect_ignore_glob.append("*.py")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
