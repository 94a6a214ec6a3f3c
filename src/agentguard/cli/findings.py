"""Findings in the forms that people and programs read: text, JSON, GitHub annotations, SARIF 2.1.0."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from agentguard._version import __version__
from agentguard.cli.printing import document, out
from agentguard.domain.decisions import Finding
from agentguard.policy.codes import FINDING_CODES


class FindingFormat(StrEnum):
    """Forms in which findings can be printed."""

    TEXT = "text"
    JSON = "json"
    GITHUB = "github"
    SARIF = "sarif"


_GITHUB: Final = {"error": "error", "warning": "warning", "info": "notice"}
_SARIF: Final = {"error": "error", "warning": "warning", "info": "note"}


def print_findings(findings: Sequence[Finding], form: FindingFormat, file: str) -> None:
    """Print all findings of a file."""
    if form is FindingFormat.TEXT:
        for finding in findings:
            mark = "" if finding.severity == "error" else f"{finding.severity}: "
            out(f"{mark}{finding}")
    elif form is FindingFormat.JSON:
        document({"file": file, "findings": [as_object(f) for f in findings]})
    elif form is FindingFormat.GITHUB:
        for finding in findings:
            out(github(finding, file))
    else:
        document(sarif(findings, file))


def as_object(finding: Finding) -> dict[str, Any]:
    """A finding for programs."""
    return {
        "code": finding.code,
        "severity": finding.severity,
        "message": finding.message,
        "hint": finding.hint,
        "file": finding.file,
        "line": finding.line,
        "column": finding.column,
    }


def _words(finding: Finding) -> str:
    return f"{finding.message} ({finding.hint})" if finding.hint else finding.message


def _escaped(text: str, *more: str) -> str:
    # Source: GitHub's actions/toolkit, packages/core/src/command.ts, escapeData and escapeProperty.
    for char in ("%", "\r", "\n", *more):
        text = text.replace(char, f"%{ord(char):02X}")
    return text


def github(finding: Finding, file: str) -> str:
    """A finding as a workflow command of GitHub Actions, shown beside the line in a pull request."""
    place = f"file={_escaped(finding.file or file, ':', ',')}"
    if finding.line:
        place += f",line={finding.line},col={finding.column}"
    return (
        f"::{_GITHUB[finding.severity]} {place},title={_escaped(finding.code, ':', ',')}::{_escaped(_words(finding))}"
    )


def sarif(findings: Sequence[Finding], file: str) -> dict[str, Any]:
    """All findings as a SARIF 2.1.0 log (OASIS standard)."""
    codes = sorted({f.code for f in findings})
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "agentguard",
                        "version": __version__,
                        "rules": [
                            {"id": code, "shortDescription": {"text": FINDING_CODES.get(code, code)}} for code in codes
                        ],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [
                    {
                        "ruleId": f.code,
                        "ruleIndex": codes.index(f.code),
                        "level": _SARIF[f.severity],
                        "message": {"text": _words(f)},
                        "locations": [{"physicalLocation": _place(f, file)}],
                    }
                    for f in findings
                ],
            }
        ],
    }


def _place(finding: Finding, file: str) -> dict[str, Any]:
    path = Path(finding.file or file)
    place: dict[str, Any] = {"artifactLocation": {"uri": path.as_uri() if path.is_absolute() else path.as_posix()}}
    if finding.line:
        place["region"] = {"startLine": finding.line, "startColumn": max(finding.column, 1)}
    return place
