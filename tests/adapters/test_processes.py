"""Pausing in one process and going on in another, over a SQLite file."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentguard.testing.model_server import ModelServer
from tests.adapters.support import BO, Shop

ROOT = Path(__file__).resolve().parents[2]
REFUND = ("refunds_create", {"order_id": "A", "amount": 5})
GET = ("orders_get", {"order_id": "A"})

ASKING = """
import os, signal, sys
from tests.adapters.support import Shop, Talk
api, colour, store, url, out = sys.argv[1:]
class Server:
    openai_url = url + "/v1"
Server.url = url
shop = Shop(store=store)
talk = Talk(api, colour)
with shop.run(run_id="run-1") as run:
    result = talk.loop(talk.client(Server), run)
    assert result.status == "waiting", result
    open(out, "w").write(result.to_json())
    os.kill(os.getpid(), signal.SIGKILL)
"""

GOING_ON = """
import json, sys
from tests.adapters.support import Shop, Talk
api, colour, store, url, out = sys.argv[1:]
class Server:
    openai_url = url + "/v1"
Server.url = url
shop = Shop(store=store)
talk = Talk(api, colour)
run = shop.gateway.resume("run-1")
with run:
    result = talk.resume(talk.client(Server), run, open(out).read())
print(json.dumps([result.status, result.text, shop.ran, run.report.status]))
talk.close()
shop.gateway.close()
"""


def process(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )


@pytest.mark.parametrize("api", ["chat", "responses", "messages"])
@pytest.mark.parametrize("colour", ["sync", "async"])
@pytest.mark.parametrize("decision", ["approve", "edit", "reject"])
def test_a_loop_goes_on_after_its_process_was_killed(tmp_path: Path, api: str, colour: str, decision: str) -> None:
    store = f"sqlite:///{tmp_path / 'guard.db'}"
    saved = str(tmp_path / "loop.json")
    with ModelServer([[GET, REFUND, ("orders_get", "not JSON" if api != "messages" else {})], "done"]) as server:
        asked = process(ASKING, api, colour, store, server.url, saved)
        assert asked.returncode == -signal.SIGKILL, asked.stderr
        assert len(server.requests) == 1
        with Shop(store=store).gateway as gateway:
            [request] = gateway.approvals.list(status="pending")
            if decision == "reject":
                gateway.approvals.reject(request.id, by=BO, reason="no")
            else:
                edited: Any = {"order_id": "A", "amount": 2} if decision == "edit" else None
                gateway.approvals.approve(request.id, by=BO, arguments=edited)
        done = process(GOING_ON, api, colour, store, server.url, saved)
        assert done.returncode == 0, done.stderr
        assert len(server.requests) == 2
    status, text, ran, report = json.loads(done.stdout)
    assert (status, text, report) == ("completed", "done", "completed")
    assert ran == {"approve": [["refund", "A", 5]], "edit": [["refund", "A", 2]], "reject": []}[decision]
