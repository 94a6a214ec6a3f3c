"""The page and the example of this adapter say what is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]


def test_the_code_of_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/howto/langgraph.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "page", "exec"), names)
    said = capsys.readouterr().out
    assert "Nothing to do." in said
    assert "['read_file', 'delete_file']" in said
    assert said.endswith("1\n")


def test_the_example_says_what_it_promises(tmp_path: Path) -> None:
    main = ROOT / "examples/langgraph_merge_review/main.py"
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
        "waits for a person: merge",
        "resumed with a forged approval: still waiting for 1",
        "MERGED tidy into main",
        "audit trail: ok",
    ):
        assert line in done.stdout
    assert len(main.read_text().splitlines()) <= 100
