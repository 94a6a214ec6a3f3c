"""``import agentguard`` takes little time, and no name of it loads what only some programs need."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

FRAMEWORKS = ("openai", "anthropic", "langchain_core", "langgraph", "pydantic_ai", "mcp", "agents", "crewai")
DRIVERS = ("sqlite3", "_sqlite3", "psycopg", "psycopg_pool", "redis", "aiosqlite")
COMMAND_LINE = ("typer", "rich", "click")
LATER = ("jsonschema", "jsonschema_rs", "tenacity", "pybreaker", "yaml", "httpx", "requests", "opentelemetry.sdk")

BAR = 1.5
BAR_OF_ALL = 3
ROUNDS = 15

TIMED = "import time; start = time.process_time(); {statement}; print(time.process_time() - start)"


def clean() -> dict[str, str]:
    """The environment without whatever would measure, or keep byte code from being kept."""
    unwanted = (
        "COV",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONPROFILE",
        "PYTHONDEVMODE",
        "PYTHONWARNINGS",
        "PYTHONASYNCIODEBUG",
    )
    return {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}


def python(program: str, env: dict[str, str]) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", program]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.fixture(scope="module")
def loaded() -> frozenset[str]:
    """Modules that are loaded when every public name has been used."""
    program = (
        "import sys; before = set(sys.modules); from agentguard import *; print(*sorted(set(sys.modules) - before))"
    )
    return frozenset(python(program, clean()).split())


@pytest.mark.parametrize("unwanted", [*FRAMEWORKS, *DRIVERS, *COMMAND_LINE, *LATER])
def test_no_public_name_loads(loaded: frozenset[str], unwanted: str) -> None:
    assert "agentguard.gateway.door" in loaded
    assert unwanted not in loaded


def measured(tmp_path: Path, *statements: str) -> list[float]:
    """Median CPU seconds of each statement in a fresh interpreter.

    CPU time, so that what else the machine does is not measured; interleaved, so that all see the same machine.
    """
    env = {**clean(), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    times: dict[str, list[float]] = {statement: [] for statement in statements}
    for statement in statements:
        python(TIMED.format(statement=statement), env)  # compiles
    for _ in range(ROUNDS):
        for statement, series in times.items():
            series.append(float(python(TIMED.format(statement=statement), env)))
    return [statistics.median(series) for series in times.values()]


def test_import_takes_at_most_one_and_a_half_times_its_dependencies(tmp_path: Path) -> None:
    dependencies, ours = measured(tmp_path, "import pydantic, opentelemetry.trace", "import agentguard")
    assert ours <= BAR * dependencies, f"{ours * 1000:.1f} ms against {dependencies * 1000:.1f} ms"


def test_using_every_name_takes_a_few_times_its_dependencies(tmp_path: Path) -> None:
    loaded = "from pydantic import TypeAdapter; import opentelemetry.trace, asyncio"
    dependencies, ours = measured(tmp_path, loaded, "from agentguard import *")
    assert ours <= BAR_OF_ALL * dependencies, f"{ours * 1000:.1f} ms against {dependencies * 1000:.1f} ms"
