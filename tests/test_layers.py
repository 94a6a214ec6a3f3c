"""The floors of the house hold, and the check that says so can fail."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def lint(project: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on ``project/src`` with the contracts of ``project/pyproject.toml``."""
    program = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", "--config", str(project / "pyproject.toml")],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project / "src"), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the source that may be spoiled."""
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def plant(project: Path, module: str, line: str) -> None:
    """Add an import inside a function, where it is easiest to overlook."""
    path = project / "src" / "agentguard" / module
    path.write_text(f"{path.read_text()}\n\ndef planted() -> None:\n    {line}\n")


def test_every_contract_holds() -> None:
    result = lint(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " 0 broken" in result.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("domain/calls.py", "from agentguard import errors", "Floors"),
        ("policy/deciding.py", "from agentguard.budget import Budget", "Floors"),
        ("policy/deciding.py", "import time", "What decides is free"),
        ("_flow/govern.py", "import asyncio", "What decides is free"),
        ("stores/memory.py", "from agentguard.stores import sqlite", "Stores do not know each other"),
        ("gateway.py", "import tenacity", "tenacity and pybreaker only in resilience"),
        ("config.py", "import yaml", "yaml only in documents"),
        ("audit/__init__.py", "import jsonschema_rs", "pydantic and JSON Schema only in"),
        ("gateway.py", "from opentelemetry import trace", "opentelemetry only in tracing"),
        ("gateway.py", "import sqlite3", "databases only in stores"),
        ("gateway.py", "import openai", "frameworks only in adapters"),
        ("gateway.py", "import rich", "typer and rich only in the command line"),
        ("config.py", "from agentguard import _flow", "Floors"),
    ],
)
def test_a_planted_violation_is_caught(copy: Path, module: str, line: str, contract: str) -> None:
    if not (copy / "src" / "agentguard" / module).exists():
        module = module.replace(".py", "/__init__.py")
    plant(copy, module, line)
    result = lint(copy)
    assert result.returncode == 1, result.stdout + result.stderr
    assert any(contract in row and "BROKEN" in row for row in result.stdout.splitlines()), result.stdout


def test_a_module_that_no_floor_names_is_caught(copy: Path) -> None:
    (copy / "src" / "agentguard" / "helpers.py").write_text('"""Something that nobody placed."""\n')
    result = lint(copy)
    assert result.returncode == 1
    assert "agentguard.helpers" in result.stdout
