"""The page and the example of this adapter say what is true."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/howto/pydantic_ai.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "page", "exec"), names)
    asyncio.run(names["work"]())
    asyncio.run(names["pause_and_resume"]())
    said = capsys.readouterr().out
    assert "contents of a" in said
    assert "deleted old.txt" in said


def test_the_example_says_what_it_promises(tmp_path: Path) -> None:
    main = ROOT / "examples/pydantic_ai_agent/main.py"
    done = subprocess.run(
        [sys.executable, str(main)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=dict(os.environ),
    )
    assert done.returncode == 0, done.stderr
    for line in (
        "waits for a person: refund",
        "undecided: DeferredToolRequests",
        "paid 100 for A-17",
        "call_1_1 refund: succeeded",
        "2 tool calls, audit trail: ok",
    ):
        assert line in done.stdout
    assert len(main.read_text().splitlines()) <= 100
