"""Everything the documentation shows is true: its code runs, its policies load, its commands answer as printed.

A page is one story: its blocks run in order, in one namespace and one empty directory. A comment on the line before
a block says more about it:

* ``<!-- file: agentguard.yaml -->`` the block is written to that file first;
* ``<!-- output -->`` this ``text`` block is what the ``python`` block before it prints (``...`` stands for anything);
* ``<!-- exits: 1 -->`` the last command of this ``console`` block ends with that code;
* ``<!-- raises: PolicyDenied -->`` this ``python`` block ends with that exception;
* ``<!-- not run: reason -->`` the block is not run. ``NOT_RUN`` counts those, so that none appears unseen.

Several may be joined with ``;``.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib.util
import inspect
import io
import os
import re
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agentguard import Policy

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [page.relative_to(ROOT).as_posix() for page in PAGES]

NOT_RUN: dict[str, int] = {
    "README.md": 3,  # the two commands and the line that installs
    "docs/tutorial.md": 1,  # the line that installs
    "CONTRIBUTING.md": 2,  # commands for a checkout
    "docs/explanation/performance.md": 1,  # the benchmark
    "docs/howto/mcp.md": 3,  # tests/adapters/mcp/test_page.py runs them where mcp is installed
    "docs/howto/langgraph.md": 2,  # run in the session of its framework
    "docs/howto/pydantic_ai.md": 2,
}

RUN = {"python", "yaml", "console"}
SHOWN = {"text", "json", "mermaid"}
NEEDS_REASON = {"bash", "toml", "sh"}


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int
    language: str
    text: str
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def where(self) -> str:
        """Page and line, for messages."""
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    comment, start, language = "", 0, ""
    for number, line in enumerate(lines, 1):
        stripped = line.strip()
        if start:
            if stripped == "```":
                text = "\n".join(lines[start : number - 1]) + "\n"
                yield Block(page, start, language, inspect.cleandoc("\n" + text) + "\n", _settings(comment))
                comment, start = "", 0
        elif stripped.startswith("```"):
            start, language = number, stripped.removeprefix("```").strip()
        elif stripped:
            comment = stripped if stripped.startswith("<!--") else ""
    assert not start, f"{page}:{start}: this block does not end"


def _settings(comment: str) -> dict[str, str]:
    inner = comment.removeprefix("<!--").removesuffix("-->")
    pairs = (part.partition(":") for part in inner.split(";") if part.strip())
    return {key.strip(): value.strip() for key, _, value in pairs}


def matches(expected: str, got: str) -> bool:
    """Whether ``got`` is ``expected``, with ``...`` for anything; white space at the ends of lines is ignored."""
    clean = ["\n".join(line.rstrip() for line in text.strip().splitlines()) for text in (expected, got)]
    pattern = ".*".join(re.escape(part) for part in clean[0].split("..."))
    return re.fullmatch(pattern, clean[1], re.DOTALL) is not None


def run_python(block: Block, module: types.ModuleType) -> str:
    """Run a block in the page's namespace and return what it prints; ``await`` works at the top level."""
    source = "\n" * block.line + block.text
    code = compile(source, str(block.page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, module.__dict__)
        if inspect.iscoroutine(result):
            asyncio.run(result)
    return printed.getvalue()


def run_console(block: Block) -> None:
    """Run every ``$ agentguard ...`` line and compare what follows it, where something follows."""
    commands: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            commands.append((line[2:], []))
        elif commands:
            commands[-1][1].append(line)
    assert commands, f"{block.where}: no line begins with '$ '"
    for number, (command, expected) in enumerate(commands, 1):
        assert command.startswith("agentguard "), f"{block.where}: only agentguard commands are run: {command}"
        env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
        result = subprocess.run(
            ["/bin/sh", "-c", command],
            env={**env, "COLUMNS": "120", "TERM": "dumb"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        wanted = int(block.settings.get("exits", "0")) if number == len(commands) else 0
        said = result.stdout + result.stderr
        assert result.returncode == wanted, f"{block.where}: {command}\nended with {result.returncode}:\n{said}"
        shown = "\n".join(expected)
        assert not shown.strip() or matches(shown, said), f"{block.where}: {command}\nprints\n{said}"


@pytest.mark.parametrize("name", NAMES)
def test_what_a_page_shows_is_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("docs_page")
    monkeypatch.setitem(sys.modules, "docs_page", module)
    printed = ""
    for block in blocks(ROOT / name):
        if "file" in block.settings:
            Path(block.settings["file"]).write_text(block.text, encoding="utf-8")
        if "not run" in block.settings:
            continue
        if block.language == "python" and "raises" in block.settings:
            with pytest.raises(Exception) as caught:
                run_python(block, module)
            assert caught.type.__name__ == block.settings["raises"], f"{block.where}: {caught.value!r}"
        elif block.language == "python":
            printed = run_python(block, module)
        elif block.language == "yaml":
            Policy.from_string(block.text)
        elif block.language == "console":
            run_console(block)
        elif "output" in block.settings:
            assert matches(block.text, printed), f"{block.where}: the block before it prints\n{printed}"


def test_every_block_has_a_language_that_is_run_or_shown() -> None:
    odd = [b.where for page in PAGES for b in blocks(page) if b.language not in RUN | SHOWN | NEEDS_REASON]
    assert odd == []


def test_blocks_that_are_not_run_say_why_and_are_known() -> None:
    silent = [
        b.where
        for page in PAGES
        for b in blocks(page)
        if (b.language in NEEDS_REASON and "not run" not in b.settings) or b.settings.get("not run") == ""
    ]
    assert silent == []
    opted_out = Counter(
        page.relative_to(ROOT).as_posix() for page in PAGES for b in blocks(page) if "not run" in b.settings
    )
    assert dict(opted_out) == NOT_RUN


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    page = ROOT / name
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken: list[str] = []
    for target in re.findall(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        where = (page.parent / path).resolve() if path else page
        if not where.exists() or (anchor and where.suffix == ".md" and anchor not in anchors(where)):
            broken.append(target)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("#"):
            title = line.lstrip("#").strip().lower()
            found.add(re.sub(r"[^\w\- ]", "", title).replace(" ", "-"))
    return found


def generator() -> types.ModuleType:
    """The script that writes the reference."""
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    stale = [
        name
        for name, text in generator().pages().items()
        if not (ROOT / "docs" / "reference" / name).exists()
        or (ROOT / "docs" / "reference" / name).read_text(encoding="utf-8") != text
    ]
    assert stale == [], "run: python docs/generate.py"


def test_the_reference_holds_nothing_that_no_script_wrote() -> None:
    written = set(generator().pages())
    present = {p.relative_to(ROOT / "docs" / "reference").as_posix() for p in (ROOT / "docs/reference").rglob("*.md")}
    assert present == written


def test_the_build_runs_the_test_command_of_the_readme() -> None:
    commands = [b.text.strip() for b in blocks(ROOT / "README.md") if "nox" in b.text and b.language in NEEDS_REASON]
    assert len(commands) == 1
    steps = [step.strip() for step in commands[0].split("&&")]
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert [step for step in steps if step not in script] == []


def guarantees(page: str) -> dict[str, str]:
    """Id to wording, as a page states them."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.findall(r"^\| (G\d+) \| (.*?)(?: \[test\]\(.*\))? \|$", text, re.MULTILINE)
    return dict(found)


def test_guarantees_are_worded_alike_everywhere() -> None:
    assert guarantees("README.md") == guarantees("docs/explanation/guarantees.md") != {}


@pytest.mark.parametrize("guarantee", guarantees("README.md"))
def test_every_guarantee_names_tests_that_exist(guarantee: str) -> None:
    text = (ROOT / "docs" / "explanation" / "guarantees.md").read_text(encoding="utf-8")
    line = next(row for row in text.splitlines() if row.startswith(f"**{guarantee}**: "))
    named = re.findall(r"\[([^\]]+)\]\(\.\./\.\./(tests/[^)]+)\)", line)
    assert named
    for sentence, path in named:
        test = "def test_" + sentence.replace(" ", "_") + "("
        assert test in (ROOT / path).read_text(encoding="utf-8"), f"{path} has no {test}"


def test_a_wrong_output_would_be_noticed() -> None:
    assert matches("run r-... refused\n", "run r-17 refused")
    assert not matches("run r-... refused\n", "run r-17 allowed")
    assert not matches("one\n", "one\ntwo")
