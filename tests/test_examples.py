"""Every example runs offline, as its reader would run it, and says what its page promises."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
ELSEWHERE = {"langgraph_merge_review", "pydantic_ai_agent"}
"""Examples of agent frameworks; the sessions of those frameworks run them."""
FOLDERS = sorted(path.name for path in EXAMPLES.iterdir() if (path / "main.py").exists() and path.name not in ELSEWHERE)

SAYS = {
    "anthropic_loop": ["Completed text of shopping", "Refused Private notes stay private.", "5 steps, 2 tool calls"],
    "approval_across_processes": [
        "asked: payments.create",
        "decided: approved by ana",
        "resumed: call_1 paid 850 EUR to DE02",
        "again: replayed",
        "audit trail: ok",
    ],
    "budgets": [
        "monday: stopped by budget_cost",
        "tuesday: warning: budget of team growth per day: 57 % of cost_usd used",
        "wednesday: stopped by budget_cost: Budget of team growth per day",
        "team growth per day: cost_usd 0.09375",
    ],
    "first_gateway": [
        "orders.get: shipped",
        "refunds.create: refunded 40 for A-17",
        "orders.delete: policy_denied",
        "refunds.create 900: policy_denied",
        "amuont: invalid_arguments",
        "refunds.create 250: waits for finance",
        "fourth call: budget_tool_calls",
        "audit trail: ok",
    ],
    "payments_idempotency": [
        "down: receipt for 40 after 2 attempts",
        "same key: receipt for 40, replayed: True, requests to the bank: 2",
        "same key, other amount: idempotency_conflict",
        "no answer: Ambiguous - again: Ambiguous - not sent twice",
        "a person looked: receipt seen by ana",
        "the probe looked: receipt for 40",
        "paid: 3 payments with 4 requests",
    ],
    "support_agent": ["waiting (approval_pending)", "waits for a person: refunds.create, approval ap_"],
}


def environment() -> dict[str, str]:
    """The tester's, without an endpoint of a model provider."""
    endpoints = ("OPENAI_", "ANTHROPIC_", "AGENTGUARD_")
    return {k: v for k, v in os.environ.items() if not k.startswith(endpoints)} | {"PYTHONDONTWRITEBYTECODE": "1"}


def run(name: str, *args: str, cwd: Path) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / name / "main.py"), *args]
    done = subprocess.run(command, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_has_a_promise() -> None:
    found = {path.name for path in EXAMPLES.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found == {*FOLDERS, *ELSEWHERE}
    assert set(FOLDERS) == set(SAYS)


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example_is_short_and_says_what_it_shows(name: str) -> None:
    text = (EXAMPLES / name / "main.py").read_text()
    assert len(text.splitlines()) < 100
    first = (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0]
    assert first.endswith(".")


@pytest.mark.parametrize("name", FOLDERS)
def test_an_example_says_what_it_promises(name: str, tmp_path: Path) -> None:
    more = ["--store", f"sqlite:///{tmp_path}/example.db"] if name == "support_agent" else []
    said = run(name, *more, cwd=tmp_path)
    for line in SAYS[name]:
        assert line in said


def test_the_support_agent_goes_on_in_another_process(tmp_path: Path) -> None:
    store = ("--store", f"sqlite:///{tmp_path}/example.db")
    asked = run("support_agent", "My parcel B-22 is lost.", *store, cwd=tmp_path)
    run_id, request = re.findall(r"run (\S+):", asked)[0], re.findall(r"ap_[0-9a-f]+", asked)[0]
    undecided = run("support_agent", "--resume", run_id, *store, cwd=tmp_path)
    assert "waiting (approval_pending)" in undecided
    approve = ("approvals", "approve", request, "--by", "ana", "--role", "finance", *store)
    subprocess.run([sys.executable, "-m", "agentguard.cli", *approve], check=True, capture_output=True, timeout=60)
    resumed = run("support_agent", "--resume", run_id, *store, cwd=tmp_path)
    assert f"run {run_id}: completed (completed)" in resumed
    assert "answer: Your refund is on its way." in resumed


def test_the_support_agent_is_the_one_of_the_demo() -> None:
    here = {path.name: path.read_text() for path in (EXAMPLES / "support_agent").iterdir() if path.is_file()}
    shipped = files("agentguard.cli") / "demo"
    assert here == {path.name: path.read_text() for path in shipped.iterdir() if path.is_file()}


def test_the_support_agent_talks_to_an_endpoint_of_the_environment(tmp_path: Path) -> None:
    from agentguard.testing.model_server import ModelServer

    with ModelServer(["Hello from somewhere else."]) as server:
        env = environment() | {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": server.openai_url, "OPENAI_MODEL": "m-1"}
        command = [sys.executable, str(EXAMPLES / "support_agent" / "main.py"), "--store", "memory:"]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=True)
        assert server.bodies[0]["model"] == "m-1"
    assert "answer: Hello from somewhere else." in done.stdout
