"""Three processes and one call: it is asked for in the first, decided from the command line, and made in the third."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.servers import postgres_schema, postgres_url

__all__ = ["postgres_schema", "postgres_url"]

TOOLS = """
import sys, time
from agentguard import Budget, Policy, ToolGateway, tool

@tool(name="pay", effect="irreversible")
def pay(amount: int) -> str:
    with open(sys.argv[2], "a") as file:
        file.write(f"{amount}\\n")
    return "paid"

gateway = ToolGateway([pay], Policy(require_approval={"pay"}), store=sys.argv[1])
"""
ASK = """
run = gateway.run(agent="bot", tenant="acme", run_id="r1", task="Pay", budget=Budget(max_tool_calls=1)).open()
print(run.attempt("pay", {"amount": 5}, call_id="c1").request.id, flush=True)
time.sleep(60)
"""
GO_ON = """
run = gateway.resume("r1")
print(run.resume_calls()["c1"].value, run.resume_calls(), gateway.audit.verify("r1").ok)
run.complete("done")
gateway.close()
"""


@pytest.mark.parametrize("verdict", ["approve", "reject"])
def test_a_call_asked_for_decided_and_made_in_three_processes(
    postgres_url: str, postgres_schema: Callable[[], str], tmp_path: Path, verdict: str
) -> None:
    url = f"{postgres_url}?schema={postgres_schema()}"
    done = tmp_path / "done.txt"
    asker = subprocess.Popen([sys.executable, "-c", TOOLS + ASK, url, str(done)], stdout=subprocess.PIPE, text=True)
    assert asker.stdout is not None
    with asker.stdout:
        approval = asker.stdout.readline().strip()
    os.kill(asker.pid, signal.SIGKILL)
    asker.wait(10)
    assert approval.startswith("ap_")

    decide = [sys.executable, "-m", "agentguard.cli", "approvals", verdict, approval, "--by", "ana", "--store", url]
    if verdict == "reject":
        decide += ["--reason", "no"]
    decided = subprocess.run(decide, capture_output=True, text=True, timeout=60, check=False)
    assert decided.returncode == 0, decided.stderr
    assert approval in decided.stdout

    third = [sys.executable, "-c", TOOLS + GO_ON, url, str(done)]
    said = subprocess.run(third, capture_output=True, text=True, timeout=60, check=False)
    if verdict == "approve":
        assert (said.stdout, said.stderr) == ("paid {} True\n", "")
        assert done.read_text() == "5\n"
    else:
        assert "paid" not in said.stdout
        assert not done.exists()
