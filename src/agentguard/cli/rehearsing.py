"""``test``: policy cases from YAML files, with the rules that no case has touched. Nothing runs.

What must stay true: exit code 0 means that at least one case was tried and that all of them hold.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from agentguard.cli.opening import load_tools, wrong
from agentguard.cli.options import ToolsOption
from agentguard.cli.printing import document, note, out, safe
from agentguard.documents import load_file
from agentguard.domain.decisions import RuleRef
from agentguard.gateway.rehearsing import Rehearsal, Tried, rehearse, tools_of
from agentguard.policy.cases import chosen, read_cases

PATTERN: Final = "*.agentguard_test.yaml"
"""Case files that are found in directories."""


class TestFormat(StrEnum):
    """Forms of the results."""

    TEXT = "text"
    JSON = "json"
    JUNIT = "junit"


def try_cases(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FILE]...", help=f"Case files, or directories with {PATTERN} [default: .]."),
    ] = None,
    tools: ToolsOption = None,
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="Show the cases that hold, too.")] = False,
    run: Annotated[
        str | None, typer.Option("--run", metavar="TEXT", help="Only cases whose sentence or tool contains this text.")
    ] = None,
    every_rule: Annotated[
        bool, typer.Option("--every-rule", help="Fail when there are rules that no case touches.")
    ] = False,
    form: Annotated[TestFormat, typer.Option("--format", help="Form of the results.")] = TestFormat.TEXT,
) -> None:
    """Try policy cases: calls, and what the policy must say about them. Nothing runs.

    Exit code 1 when a case does not hold, 2 when there are no cases or a file cannot be read. Rules that no case
    touches are listed; with --every-rule they fail the test.
    """
    if run is not None and every_rule:
        wrong("--every-rule looks at all cases; leave --run out.")
    registry = load_tools(tools) if tools is not None else None
    done: list[Rehearsal] = []
    for path in _files(paths or [Path()]):
        for suite in read_cases(load_file(path), path.parent):
            cases = suite.cases if run is None else chosen(suite.cases, run)
            if cases:
                done.append(rehearse(suite, tools_of(suite, registry, load_tools), cases))
    if not done:
        wrong(f"There is no case{f' with {run!r} in it' if run is not None else ''}; nothing was tried.")
    untouched = [ref for one in done for ref in one.untouched] if run is None else []
    if form is TestFormat.JSON:
        document(_report(done, untouched, run is None))
    elif form is TestFormat.JUNIT:
        out(_junit(done))
    else:
        _print(done, untouched, verbose)
    if form is not TestFormat.JSON:
        _summary(done, untouched, run is None)
    failed = not all(one.passed for one in done) or (every_rule and untouched)
    raise typer.Exit(1 if failed else 0)


def _files(paths: Iterable[Path]) -> list[Path]:
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            below = sorted(path.rglob(PATTERN))
            if not below:
                wrong(f"There is no case file ({PATTERN}) in {path}.")
            found += below
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _all(done: Iterable[Rehearsal]) -> list[tuple[Rehearsal, Tried]]:
    return [(one, tried) for one in done for tried in one.tried]


def _print(done: Sequence[Rehearsal], untouched: Sequence[RuleRef], verbose: bool) -> None:
    for one, tried in _all(done):
        if tried.passed and verbose:
            out(f"ok    {one.suite.source}:{tried.case.line}: {tried.case.say}")
        elif not tried.passed:
            out(f"FAIL  {one.suite.source}:{tried.case.line}: {tried.case.say}")
            for problem in tried.problems:
                out(f"      {problem}")
    for ref in untouched:
        out(f"untouched: no case touches {ref}")


def _summary(done: Sequence[Rehearsal], untouched: Sequence[RuleRef], whole: bool) -> None:
    tried = _all(done)
    failed = sum(not one.passed for _, one in tried)
    text = f"{len(tried)} case{'' if len(tried) == 1 else 's'}, {failed} failed"
    if whole:
        rules = sum(len(list(one.suite.rules())) for one in done)
        text += f"; {rules - len(untouched)} of {rules} rules touched"
    note(text)


def _rule(ref: RuleRef) -> dict[str, Any]:
    return {"id": ref.id, "file": ref.file, "line": ref.line, "verb": ref.verb, "layer": ref.layer}


def _report(done: Sequence[Rehearsal], untouched: Sequence[RuleRef], whole: bool) -> dict[str, Any]:
    cases = [
        {
            "file": one.suite.source,
            "line": tried.case.line,
            "say": tried.case.say,
            "tool": tried.case.tool,
            "passed": tried.passed,
            "problems": list(tried.problems),
            "expected": tried.case.verdict,
            "verdict": "invalid" if tried.decision is None else tried.decision.verdict,
            "rules": [] if tried.decision is None else [_rule(ref) for ref in tried.decision.rules],
        }
        for one, tried in _all(done)
    ]
    rules = sum(len(list(one.suite.rules())) for one in done)
    return {
        "passed": all(one.passed for one in done),
        "cases": cases,
        "rules": rules if whole else None,
        "untouched": [_rule(ref) for ref in untouched] if whole else None,
    }


def _junit(done: Sequence[Rehearsal]) -> str:
    """The results as JUnit XML, as build servers read it (the schema of Ant's junit task, as Jenkins extends it)."""
    from xml.etree.ElementTree import Element, SubElement, indent, tostring

    root = Element("testsuites")
    for file in dict.fromkeys(one.suite.source for one in done):
        tried = [one for rehearsal, one in _all(done) if rehearsal.suite.source == file]
        failed = sum(not one.passed for one in tried)
        counts = {"tests": str(len(tried)), "failures": str(failed), "errors": "0", "skipped": "0"}
        suite = SubElement(root, "testsuite", {"name": safe(file), **counts})
        for one in tried:
            about = {"classname": safe(file), "name": safe(one.case.say), "file": safe(file)}
            case = SubElement(suite, "testcase", {**about, "line": str(one.case.line)})
            if not one.passed:
                failure = SubElement(case, "failure", {"message": safe(one.problems[0])})
                failure.text = "\n".join(map(safe, one.problems))
    indent(root)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(root, encoding="unicode")
