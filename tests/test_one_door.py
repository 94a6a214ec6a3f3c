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
    """Whether the node reads ``<something>.body``, or the async one beside it."""
    return isinstance(node, ast.Attribute) and node.attr in ("body", "abody") and isinstance(node.ctx, ast.Load)


def invocations(root: Path) -> list[str]:
    """Where ``<something>.body`` is called: module and function."""
    found: list[str] = []
    for name, tree in trees(root):
        inside: dict[ast.AST, str] = {}
        for node in ast.walk(tree):  # breadth first, so the innermost function is written last
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inside.update(dict.fromkeys(ast.walk(node), getattr(node, "name", "lambda")))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and body_of(node.func)]
        found.extend(f"{name}:{inside.get(node, '')}" for node in calls)
    return found


def of_a_tool(node: ast.AST) -> bool:
    """Whether the node reads the ``body`` of something that is called a tool."""
    if not isinstance(node, ast.Attribute) or not body_of(node):
        return False
    owner = node.value
    name = owner.id if isinstance(owner, ast.Name) else owner.attr if isinstance(owner, ast.Attribute) else ""
    return "tool" in name.lower()


def readers(root: Path) -> set[str]:
    """Modules that get hold of a tool's body: handing ``tool.body`` on is as good as calling it.

    Outside of the modules that know audit records, whose ``body`` is bytes, every ``.body`` counts.
    """
    return {
        name
        for name, tree in trees(root)
        for node in ast.walk(tree)
        if of_a_tool(node) or (body_of(node) and not name.startswith(READS_RECORD_BODIES))
    }


READS_RECORD_BODIES = (
    "audit/",
    "stores/",
    "cli/",
    "domain/",
    "runs/",
    "testing/",
    "_flow/execute.py",
    "gateway/messaging.py",
)
"""Where ``body`` is that of an audit record or of a message."""

READS_TOOL_BODIES = ("tools/", DOOR)
"""Where ``body`` is a function: the decorator that made it, and the one place that calls it."""


def test_the_body_is_called_in_one_function_of_one_module() -> None:
    assert set(invocations(SOURCE)) == {f"{DOOR}:invoke"}


def test_nobody_else_gets_hold_of_a_body() -> None:
    assert {name for name in readers(SOURCE) if not name.startswith(READS_TOOL_BODIES)} == set()


def test_nothing_in_the_library_uses_the_way_round_for_unit_tests() -> None:
    users = [
        f"{name}:{node.lineno}"
        for name, tree in trees(SOURCE)
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and node.attr == "ungoverned" and not name.startswith("tools/")
    ]
    assert users == []


@pytest.mark.parametrize("module", ["_drive/blocking.py", "_flow/execute.py", "stores/memory.py"])
@pytest.mark.parametrize("line", ["tool.body(1)", "await_(self.tool.body)", "x = effect.tool.body", "y = tool.abody"])
def test_a_second_door_would_be_noticed(tmp_path: Path, module: str, line: str) -> None:
    root = tmp_path / "agentguard"
    shutil.copytree(SOURCE, root, ignore=shutil.ignore_patterns("__pycache__"))
    target = root / module
    target.write_text(f"{target.read_text()}\n\ndef planted(self, tool, effect, await_):\n    {line}\n")
    assert module in readers(root)
    assert line != "tool.body(1)" or f"{module}:planted" in invocations(root)
