"""The front door is a list: explicit, sorted, documented, and without side effects."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import get_origin

import pytest

import agentguard

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "agentguard"
REFERENCE = ROOT / "docs" / "reference" / "api.md"

CONTRACT = {
    "Ambiguous",
    "ApproverIdentity",
    "Budget",
    "CallContext",
    "CallbackApprover",
    "Completed",
    "ConsoleApprover",
    "Credentials",
    "Decision",
    "Failed",
    "Outcome",
    "Policy",
    "Refused",
    "Run",
    "RunContext",
    "RunReport",
    "StopReason",
    "Suspended",
    "ToolGateway",
    "ToolRegistry",
    "ToolSpec",
    "Verdict",
    "open_store",
    "tool",
    # the tree of errors
    "AgentGuardError",
    "AmbiguousCall",
    "ApprovalError",
    "ApprovalExpired",
    "ApprovalPending",
    "ApprovalRejected",
    "BudgetExceeded",
    "CallFailed",
    "CallRefused",
    "CircuitOpen",
    "ConfigurationError",
    "InvalidArguments",
    "InvalidOutput",
    "MissingExtra",
    "NoActiveRun",
    "PolicyDenied",
    "PolicyError",
    "RetriesExhausted",
    "RunKilled",
    "StoreConflict",
    "StoreError",
    "ToolDefinitionError",
    "ToolRaised",
    "ToolTimedOut",
    "UnknownTool",
}


def test_the_list_is_sorted_and_without_repetition() -> None:
    assert list(agentguard.__all__) == sorted(set(agentguard.__all__))


def test_every_promised_name_is_exported() -> None:
    assert sorted(CONTRACT - set(agentguard.__all__)) == []


def test_nothing_public_is_left_out_of_the_list() -> None:
    public = {
        name
        for name, value in vars(agentguard).items()
        if not name.startswith("_")
        and not isinstance(value, types.ModuleType)
        and name not in ("annotations", "TYPE_CHECKING")
    }
    assert sorted(public - set(agentguard.__all__)) == []


def test_type_checkers_and_programs_find_the_same_names_in_the_same_places() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    checked = {alias.name: node.module for node in imports for alias in node.names if node.module != "typing"}
    for unlisted in ("annotations", "__version__", "import_module"):
        checked.pop(unlisted, None)
    assert checked == vars(agentguard)["_HOMES"]
    assert {*checked, "__version__"} == set(agentguard.__all__)


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'ToolGatway'"):
        _ = agentguard.ToolGatway
    with pytest.raises(ImportError):
        exec("from agentguard import ToolGatway")


def test_names_are_listed_before_they_are_used() -> None:
    program = "import agentguard; assert set(agentguard.__all__) <= set(dir(agentguard))"
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


def test_the_front_door_only_imports_and_lists() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    kinds = {type(node) for node in tree.body}
    assert kinds <= {ast.Expr, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.FunctionDef, ast.If}, kinds
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.Try)]
    assert not [a for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names if a.name == "*"]


@pytest.mark.parametrize("name", agentguard.__all__)
def test_every_exported_name_explains_itself(name: str) -> None:
    value = getattr(agentguard, name)
    if name == "__version__" or get_origin(value) is not None or isinstance(value, types.UnionType):
        return  # an alias has no docstring of its own; the reference shows what it stands for
    text = inspect.getdoc(value)
    assert text, f"{name} has no docstring"
    first = text.split("\n\n")[0].replace("\n", " ")
    assert first.endswith((".", ":", "?")), f"{name}: the first paragraph is no sentence: {first}"
    inherited = value.__doc__ is None
    assert not inherited, f"{name} has the docstring of something else"


@pytest.mark.parametrize("name", agentguard.__all__)
def test_every_public_method_explains_itself(name: str) -> None:
    value = getattr(agentguard, name)
    if not inspect.isclass(value):
        return
    silent = [
        member
        for member, what in vars(value).items()
        if not member.startswith("_")
        and (inspect.isfunction(what) or isinstance(what, (property, classmethod, staticmethod)))
        and not inspect.getdoc(getattr(value, member))
    ]
    assert not silent


@pytest.mark.parametrize("name", agentguard.__all__)
def test_every_exported_name_is_in_the_reference(name: str) -> None:
    assert re.search(rf"^### `{re.escape(name)}`", REFERENCE.read_text(), re.MULTILINE)


def test_import_configures_nothing() -> None:
    program = """
import asyncio, logging, signal, sys, threading, warnings
before = (
    list(logging.getLogger().handlers), logging.getLogger().level, threading.active_count(), len(warnings.filters),
    [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], sys.excepthook, list(sys.path),
    asyncio.get_event_loop_policy.__module__,
)
from agentguard import *
after = (
    list(logging.getLogger().handlers), logging.getLogger().level, threading.active_count(), len(warnings.filters),
    [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)], sys.excepthook, list(sys.path),
    asyncio.get_event_loop_policy.__module__,
)
assert before == after, (before, after)
assert logging.getLogger("agentguard").level == logging.NOTSET
assert all(type(h) is logging.NullHandler for h in logging.getLogger("agentguard").handlers)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert result.stderr == ""


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent


def test_the_package_is_typed() -> None:
    assert (SOURCE / "py.typed").exists()
