"""A tool body is invoked at one place in the code, whatever the way there."""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "agentguard"
DOOR = "_drive/ports.py"


def trees(root: Path) -> Iterator[tuple[str, ast.Module]]:
    """Every module, by its path below the package."""
    for path in sorted(root.rglob("*.py")):
        yield path.relative_to(root).as_posix(), ast.parse(path.read_text())


def body_of(node: ast.AST) -> bool:
    """Whether the node reads ``<something>.body``."""
    return isinstance(node, ast.Attribute) and node.attr == "body" and isinstance(node.ctx, ast.Load)


def invocations(root: Path) -> list[str]:
    """Where ``<something>.body`` is called."""
    return [
        f"{name}:{node.lineno}"
        for name, tree in trees(root)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and body_of(node.func)
    ]


def readers(root: Path) -> set[str]:
    """Modules that read an attribute called ``body`` at all: handing ``tool.body`` on is as good as calling it."""
    return {name for name, tree in trees(root) for node in ast.walk(tree) if body_of(node)}


READS_RECORD_BODIES = ("audit/", "stores/", "cli/", "domain/", "runs/", "replay/")
"""Where ``body`` is the bytes of an audit record."""

READS_TOOL_BODIES = ("tools/", DOOR)
"""Where ``body`` is a function: the decorator that made it, and the one place that calls it."""


def test_the_body_is_called_in_one_expression_of_one_module() -> None:
    found = invocations(SOURCE)
    assert len(found) == 1, found
    assert found[0].startswith(DOOR), found


def test_nobody_else_gets_hold_of_a_body() -> None:
    strangers = {name for name in readers(SOURCE) if not name.startswith((*READS_RECORD_BODIES, *READS_TOOL_BODIES))}
    assert strangers == set()


def test_nothing_in_the_library_uses_the_way_round_for_unit_tests() -> None:
    users = [
        f"{name}:{node.lineno}"
        for name, tree in trees(SOURCE)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "ungoverned" and not name.startswith("tools/")
    ]
    assert users == []


@pytest.mark.parametrize("line", ["tool.body(1)", "await_(tool.body)", "again = tool.body"])
def test_a_second_door_would_be_noticed(tmp_path: Path, line: str) -> None:
    shutil.copytree(SOURCE, tmp_path / "agentguard", ignore=shutil.ignore_patterns("__pycache__"))
    target = tmp_path / "agentguard" / "_drive" / "blocking.py"
    target.write_text(f"{target.read_text()}\n\ndef planted(tool, await_):\n    {line}\n")
    root = tmp_path / "agentguard"
    assert len(invocations(root)) == 2 or "_drive/blocking.py" in readers(root)
