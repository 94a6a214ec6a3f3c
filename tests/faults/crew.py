"""Processes for an experiment: started together, let go together, never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
SCALE = float(os.environ.get("AGENTGUARD_FAULT_SCALE", "1"))
"""Multiplies the size of the experiments; the large forms run with 10."""


class Crew:
    """Workers that do one job each; a context, so that none survives the test."""

    def __init__(self, script: Path = WORKER) -> None:
        self.script = script
        self.workers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            # The whole group: children that a worker forked hold its pipes open.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(worker.pid, signal.SIGKILL)
            worker.communicate(timeout=30)

    def add(self, job: str, **settings: Any) -> subprocess.Popen[str]:
        worker = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", str(self.script), job, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.workers.append(worker)
        return worker

    def go(self) -> None:
        """Wait until all are ready, then let them work."""
        for worker in self.workers:
            assert worker.stdout is not None
            line = worker.stdout.readline()
            assert line == "ready\n", worker.stderr.read() if worker.stderr else line
        for worker in self.workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()

    def results(self, timeout: float = 120) -> list[dict[str, Any]]:
        """What each reports; a worker that fails or hangs fails the test."""
        found = []
        for worker in self.workers:
            out, err = worker.communicate(timeout=timeout)
            assert worker.returncode == 0, f"a worker ended with {worker.returncode}: {err}"
            found.append(json.loads(out))
        return found
