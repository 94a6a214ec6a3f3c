"""``import agentguard`` stays light: it loads nothing that only some programs need, and takes little time."""

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
ROUNDS = 15

TIMED = "import time; start = time.process_time(); import {names}; print(time.process_time() - start)"


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
    """Modules that ``import agentguard`` loads."""
    program = "import sys; before = set(sys.modules); import agentguard; print(*sorted(set(sys.modules) - before))"
    return frozenset(python(program, clean()).split())


@pytest.mark.parametrize("unwanted", [*FRAMEWORKS, *DRIVERS, *COMMAND_LINE, *LATER])
def test_import_does_not_load(loaded: frozenset[str], unwanted: str) -> None:
    assert "agentguard" in loaded
    assert unwanted not in loaded


def test_import_takes_at_most_one_and_a_half_times_its_dependencies(tmp_path: Path) -> None:
    # CPU time, so that what else the machine does is not measured; interleaved, so that both see the same machine.
    env = {**clean(), "PYTHONPYCACHEPREFIX": str(tmp_path)}
    times: dict[str, list[float]] = {"pydantic, opentelemetry.trace": [], "agentguard": []}
    for names in times:
        python(TIMED.format(names=names), env)  # compiles
    for _ in range(ROUNDS):
        for names, series in times.items():
            series.append(float(python(TIMED.format(names=names), env)))
    dependencies, ours = (statistics.median(series) for series in times.values())
    assert ours <= BAR * dependencies, f"{ours * 1000:.1f} ms against {dependencies * 1000:.1f} ms"
