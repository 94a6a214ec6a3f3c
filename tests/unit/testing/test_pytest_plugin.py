"""The pytest plugin, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

TOOLS = """\
from agentguard import tool, ToolRegistry

@tool(name="pay", effect="irreversible")
def pay(n: int) -> str:
    return f"paid {n}"

TOOLS = [pay]
REGISTRY = ToolRegistry.of(pay)
"""
POLICY = """\
store: sqlite:///never.db
sinks: [{jsonl: never.jsonl}]
rules:
  - {id: small, allow: pay, when: {args: {n: {maximum: 10}}}}
  - {id: big, require_approval: pay, when: {args: {n: {exclusiveMinimum: 10}}}, approval: {roles: [boss]}}
"""
CASES = """\
file: agentguard.yaml
cases:
  - {say: small sums are paid, tool: pay, args: {n: 3}, verdict: allow}
  - {say: big sums wait, tool: pay, args: {n: 30}, verdict: require_approval}
"""
TESTS = """\
from agentguard import Completed, PolicyDenied, Refused, Suspended

def test_a_person_says_yes(gateway, approver):
    approver.approve("ann", roles=["boss"], arguments={"n": 11})
    with gateway.run(agent="bot") as run:
        outcome = run.attempt("pay", {"n": 12})
    assert isinstance(outcome, Completed), outcome
    assert outcome.value == "paid 11"
    assert approver.requests[0].tool == "pay"

def test_a_person_says_no(gateway, approver):
    approver.reject("too much", "ann", roles=["boss"])
    with gateway.run(agent="bot") as run:
        outcome = run.attempt("pay", {"n": 12})
    assert isinstance(outcome, Refused) and "too much" in outcome.message

def test_a_person_says_nothing(gateway):
    with gateway.run(agent="bot") as run:
        assert isinstance(run.attempt("pay", {"n": 12}), Suspended)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(TOOLS)
    (tmp_path / "agentguard.yaml").write_text(POLICY)
    (tmp_path / "shop.agentguard_test.yaml").write_text(CASES)
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\nagentguard_tools = shop:TOOLS\n")
    return tmp_path


def run(project: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:agentguard", "-p", "agentguard.testing.pytest_plugin",
         "-p", "no:cacheprovider", "-p", "no:xdist", *args],
        cwd=project, env={**os.environ, "PYTEST_ADDOPTS": "", "COLUMNS": "200"}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_every_case_of_a_case_file_is_a_test(project: Path) -> None:
    done = run(project, "-v")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "shop.agentguard_test.yaml::small sums are paid PASSED" in done.stdout
    assert "2 passed" in done.stdout


def test_a_case_that_does_not_hold_fails_with_its_place_and_no_traceback(project: Path) -> None:
    (project / "shop.agentguard_test.yaml").write_text(CASES.replace("n: 30", "n: 3"))
    done = run(project)
    assert done.returncode == 1
    assert "shop.agentguard_test.yaml:4: big sums wait\nthe verdict is allow, not require_approval" in done.stdout
    assert "pytest_plugin.py" not in done.stdout


@pytest.mark.parametrize(
    ("where", "code", "text"),
    [
        ("shop:REGISTRY", 0, "2 passed"),
        ("shop:pay", 0, "2 passed"),
        ("shop:nothing", 2, "'shop:nothing' cannot be found"),
        ("", 2, "does not say which tools it is about"),
    ],
)
def test_the_settings_name_the_tools(project: Path, where: str, code: int, text: str) -> None:
    done = run(project, "-o", f"agentguard_tools={where}")
    assert text in done.stdout + done.stderr
    assert done.returncode == code


def test_a_file_that_does_not_load_is_a_collection_error_with_its_place(project: Path) -> None:
    (project / "shop.agentguard_test.yaml").write_text(CASES.replace("verdict", "verdikt"))
    done = run(project)
    assert done.returncode == 2
    assert 'AG110 unknown key "verdikt" in a case' in done.stdout


def test_a_policy_that_does_not_fit_the_tools_fails_its_cases(project: Path) -> None:
    (project / "agentguard.yaml").write_text("rules: [{allow: pya}]\n")
    done = run(project)
    assert done.returncode == 1
    assert "AG201" in done.stdout


def test_tests_get_the_gateway_and_a_person_who_approves(project: Path) -> None:
    (project / "test_shop.py").write_text(TESTS)
    done = run(project, "test_shop.py")
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
    assert not list(project.glob("never*"))


def test_the_gateway_needs_to_know_the_tools(project: Path) -> None:
    (project / "test_shop.py").write_text(TESTS)
    done = run(project, "test_shop.py", "-o", "agentguard_tools=")
    assert done.returncode == 1
    assert "set agentguard_tools" in done.stdout


def test_pytest_finds_the_plugin_by_itself_and_our_own_run_leaves_it_out() -> None:
    settings = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())
    assert settings["project"]["entry-points"]["pytest11"] == {"agentguard": "agentguard.testing.pytest_plugin"}
    addopts = settings["tool"]["pytest"]["ini_options"]["addopts"]
    assert addopts[addopts.index("-p") + 1] == "no:agentguard"
    assert not any("pytest" in line for line in settings["project"]["dependencies"])


def test_the_plugin_alone_imports_nothing_of_a_gateway(project: Path) -> None:
    program = (
        "import sys, agentguard.testing.pytest_plugin; "
        "print([m for m in sys.modules if m.startswith('agentguard.gateway') or m in ('yaml', 'jsonschema')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
