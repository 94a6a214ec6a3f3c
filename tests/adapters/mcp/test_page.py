"""What docs/howto/mcp.md shows is true."""

from __future__ import annotations

import types
from pathlib import Path

import mcp
import pytest

from tests.test_docs import ROOT, blocks, matches, run_python


def test_the_blocks_of_the_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("docs_page")
    printed, compared = "", 0
    for block in blocks(ROOT / "docs/howto/mcp.md"):
        if block.language == "python" and (
            "MCPServer" not in block.text or hasattr(mcp, "Client") or "'''" in block.text
        ):
            printed = run_python(block, module)
        elif block.language == "text":
            assert matches(block.text, printed), printed
            compared += 1
    assert compared == 1
