"""``demo``: what it tells is what the store has, and what it leaves behind works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from agentguard.cli import demonstrating
from agentguard.cli.timeline import Entry
from agentguard.testing.model_server import ModelServer
from tests.cli.conftest import Cli, Done


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Done]:
    """One demo, in a process of its own."""
    folder = tmp_path_factory.mktemp("demo")
    env = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "AGENTGUARD_"))}
    command = [sys.executable, "-m", "agentguard.cli", "demo"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=120, check=False)
    return folder, Done(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def played(cli: Cli, first: tuple[Path, Done], tmp_path: Path) -> Done:
    """What it said, and what it left behind, here."""
    for path in first[0].iterdir():
        shutil.copy(path, tmp_path)
    return first[1]


def rows(done: Done) -> list[list[str]]:
    return [re.split(r"  +", line) for line in done.out.splitlines()]


def test_the_whole_story(cli: Cli, played: Done, tmp_path: Path) -> None:
    assert played.code == 0, played.err
    out = played.out
    told = {(row[1], row[2]) for row in rows(played) if len(row) > 2}
    assert {
        ("orders.get", "allowed"),
        ("refunds.create", "policy_denied"),
        ("customers.export", "policy_denied"),
        ("email.send", "policy_denied"),
        ("refunds.create", "pending"),
        ("approval of refunds.create", "approved"),
        ("refunds.create", "approved"),
        ("email.send", "allowed"),
        ("run stopped", "budget_cost"),
    } <= told
    assert 'the model is told: "Refunds above 500 are not made in this chat."' in out
    assert "nothing-leaves-after-foreign-text (agentguard.yaml:" in out
    assert "audit@collector.example" in out
    assert re.search(r"stop reason +budget_cost", out)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.endswith(".lock")) == ["agentguard-demo.db"]

    # Rules stand where the timeline says.
    policy = Path(re.findall(r"^policy +(.+)$", out, re.M)[0]).read_text().splitlines()
    for rule, line in re.findall(r"([a-z-]+) \(agentguard\.yaml:(\d+)\)", out):
        assert f"id: {rule}" in policy[int(line) - 1]

    # The database that is left behind works with every command, without naming it.
    assert cli("audit", "verify").code == 0
    run = re.findall(r"runs show (\S+)", out)[0]
    shown = cli("runs", "show", run, "--timeline", "--format", "json").json
    assert shown["stop_reason"] == "budget_cost"
    used = [int(step["facts"]["cost_usd"]) for step in shown["timeline"] if step["kind"] == "llm.charged"]
    assert Decimal(shown["usage"]["cost_usd"]) == Decimal(sum(used)) / 10**9 + Decimal("0.001")
    (waiting,) = cli("approvals", "list", "--format", "json").json

    # The last suggestions work as they are printed.
    approve = re.findall(r"^agentguard (approvals approve .+)$", out, re.M)[-1].split()
    assert waiting["id"] in approve
    assert cli(*approve).code == 0
    resume = re.findall(r"^agentguard (demo --resume .+)$", out, re.M)[0].split()
    resumed = cli(*resume)
    assert resumed.code == 0
    assert "refunded 450" in resumed.out
    assert re.search(r"status +completed", resumed.out)
    again = cli(*resume)
    assert again.code == 2
    assert "has ended (completed)" in again.err


def test_a_second_demo_adds_to_the_file(cli: Cli, played: Done) -> None:
    assert cli("demo").code == 0
    assert len(cli("runs", "list", "--format", "json").json) == 4


def test_resuming_too_early_waits_again(cli: Cli, played: Done) -> None:
    resume = re.findall(r"^agentguard (demo --resume .+)$", played.out, re.M)[0].split()
    early = cli(*resume)
    assert early.code == 0
    assert "It waits for ap_" in early.err
    assert re.search(r"stop reason +approval_pending", early.out)


def test_another_file_is_named_in_the_suggestions(cli: Cli, tmp_path: Path) -> None:
    done = cli("demo", "--file", "other.db", tty=True)
    assert "--store other.db" in done.out
    assert "--file other.db" in done.out
    assert (tmp_path / "other.db").exists()


def test_an_endpoint_of_the_environment_is_used_unless_told_otherwise(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ModelServer(["Hello from somewhere else."]) as server:
        monkeypatch.setenv("OPENAI_API_KEY", "k")
        monkeypatch.setenv("OPENAI_BASE_URL", server.openai_url)
        done = cli("demo")
        assert done.code == 0
        assert f"with the endpoint {server.openai_url}" in done.out
        assert "Hello from somewhere else." in done.out
        assert "2. A person decides" not in done.out
        asked = len(server.requests)
        assert asked == 2
        assert "a scripted model" in cli("demo", "--scripted", "--resume", "run_x").out
        assert len(server.requests) == asked


def test_resuming_without_a_demo_is_a_usage_error(cli: Cli) -> None:
    done = cli("demo", "--resume", "run_x")
    assert done.code == 2
    assert "There is no agentguard-demo.db" in done.err


def test_without_the_sdk_the_pip_line_is_printed(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demonstrating.importlib.util, "find_spec", lambda name: None)
    done = cli("demo")
    assert (done.code, done.out) == (2, "")
    assert "pip install 'agentguard[openai]'" in done.err


@pytest.mark.parametrize(
    ("program", "text"),
    [
        ("raise SystemExit('no key\\x1b')", "no key\\x1b"),
        (None, "took over 300 s"),
        ("pass", "The agent opened no run."),
    ],
)
def test_an_agent_that_fails_is_an_error(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, program: str | None, text: str
) -> None:
    there: Any = subprocess.run

    def run(command: list[str], **settings: Any) -> Any:
        if program is None:
            raise subprocess.TimeoutExpired(command, settings["timeout"])
        return there([sys.executable, "-c", program], **settings)

    monkeypatch.setattr(demonstrating.subprocess, "run", run)
    done = cli("demo")
    assert done.code == 2
    assert text in done.err


def entry(kind: str, body: object = None, **facts: object) -> Entry:
    return Entry(1, 0, kind, "r", "t", facts, body)


@pytest.mark.parametrize(
    ("found", "row"),
    [
        (entry("llm.charged", model="m"), ("model m", "", "", "?", "0 tokens in, 0 out")),
        (
            entry("call.outcome", {"error": "ValueError: x"}, call="c", tool="a", status="failed"),
            ("a", "failed", "", "", "ValueError: x"),
        ),
        (
            entry("call.refused", {"detail": "no"}, call="c", tool="a", reason="budget_cost", rule="r"),
            ("a", "budget_cost", "", "", "no"),
        ),
        (
            entry("call.refused", {"detail": "no"}, call="c", tool="a", reason="policy_denied", rule="r"),
            ("a", "policy_denied", "r (p.yaml:3)", "", 'the model is told: "Never."'),
        ),
        (entry("approval.expired", tool="a"), ("approval of a", "", "", "", "")),
        (
            entry("approval.decided", tool="a", status="rejected", by="x", roles="y"),
            ("approval of a", "rejected", "", "", "by x (y)"),
        ),
        (entry("run.waiting"), ("run waiting", "", "", "", "")),
        (
            entry("budget.warning", dimension="cost_usd", label="run r"),
            ("budget", "warning", "", "", "dimension cost_usd, label run r"),
        ),
    ],
)
def test_what_a_record_is_told_as(found: Entry, row: tuple[str, ...]) -> None:
    telling = demonstrating.Telling({"r": "p.yaml:3"}, {"r": "Never."}, {"a": Decimal("0.5")})
    (told,) = telling.rows([found])
    assert (*told[:3], "" if found.kind == "call.outcome" else told[3], told[4]) == row


def test_records_that_nobody_asks_for_are_left_out() -> None:
    telling = demonstrating.Telling({}, {}, {})
    assert list(telling.rows([entry("llm.reserved"), entry("call.intent"), entry("state.written")])) == []
